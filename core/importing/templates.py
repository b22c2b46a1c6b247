"""Renders the chat template of a foreign adapter, in a process of its own with limits of time and memory.

A template is a program: in the sandbox of jinja2 it cannot reach this machine, but it can run for long.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from core.data.child_process import ChildProcess, Parent, limit_process, serve
from core.errors import DataError, StudioError

logger = logging.getLogger(__name__)
SECONDS = 10
MEMORY_BYTES = 1 << 30
TEXT_LIMIT = 100_000  # characters of a rendered prompt


def render(template: str, line: str) -> str:
    """The prompt that a template makes of one question; "" where it makes none."""
    if not template:
        return ""
    process = ChildProcess(__name__, "template of the adapter")
    try:
        return str(process.run({"template": template, "line": line}))
    except StudioError as e:
        logger.warning("The chat template of the adapter cannot be used: %s", e)
        return ""


def run() -> None:
    """The process: renders."""
    serve(_work)


def _work(request: dict[str, Any], parent: Parent) -> str:
    limit_process(MEMORY_BYTES, SECONDS)
    sandbox = importlib.import_module("jinja2.sandbox")
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    try:
        text = environment.from_string(request["template"]).render(
            messages=[{"role": "user", "content": request["line"]}],
            add_generation_prompt=True,
            bos_token="",
            eos_token="",
        )
    except Exception as e:  # a template can raise anything
        raise DataError(f"The template fails: {type(e).__name__}.") from e
    if len(text) > TEXT_LIMIT:
        raise DataError("The template makes too long a prompt.")
    return str(text)


def _refuse(message: object) -> None:
    raise DataError(str(message)[:200])
