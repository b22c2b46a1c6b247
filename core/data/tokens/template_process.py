"""Renders foreign chat templates in a process of its own, with limits of time, memory and output.

A template is a program: in the sandbox of jinja2 it cannot reach this machine, but it can run for long.

    this process ─ one line of JSON: template, messages, settings ─> child
    child ─ one line of JSON: {"text": ...} or {"error": ...} ─> this process

The child serves many templates, so that one start, of half a second, pays for all. It renders as transformers
does, with the same function. Messages hold placeholders (`core.data.tokens.rendering`), so conversations of
one shape are rendered once.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
import json
import logging
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2

from core.data.child_process import build_child_command, limit_process
from core.data.tokens.known_templates import digest_of

logger = logging.getLogger(__name__)
SECONDS = 10  # of processor time, for one conversation
WAIT_SECONDS = 120.0  # for one conversation on a busy machine, and where the system counts no processor time
PROCESSOR_SECONDS = 24 * 3600  # of the process, for all conversations together
MEMORY_BYTES = 1 << 30  # of address space; the libraries take a third of it
TEXT_LIMIT = 1_000_000  # characters of a rendered conversation
WORDS_LIMIT = 300  # characters of a template's own error
CACHED = 1024  # conversations
IDLE_LIMIT = 2  # processes that wait for the next conversation


class TemplateStopped(jinja2.TemplateError):  # type: ignore[misc]
    """A template exceeded its limits; it is not rendered again in this process."""


def render(template: str, messages: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """Renders a conversation as `apply_chat_template` does.

    Args:
        template: in Jinja.
        messages: of the conversation; JSON can hold them.
        settings: variables of the template.

    Raises:
        jinja2.TemplateError: the template refuses the conversation; in its words.
        TemplateStopped: it exceeded its limits.
    """
    text = json.dumps([list(messages), dict(settings)], default=str)
    return _render(template, text)


@lru_cache(maxsize=CACHED)
def _render(template: str, conversation: str) -> str:
    return _open_processes(os.getpid()).render(template, conversation)


@lru_cache(maxsize=1)
def _open_processes(owner: int) -> TemplateProcesses:
    """The processes that belong to this one: a fork of it starts its own."""
    processes = TemplateProcesses()
    atexit.register(processes.close, owner)
    return processes


class TemplateProcesses:
    """Starts a process at the first conversation and keeps it. Safe to call from any thread."""

    def __init__(self) -> None:
        self._idle: deque[_Process] = deque()  # `pop` and `append` are atomic
        self._stopped: set[str] = set()  # digests of templates

    def render(self, template: str, conversation: str) -> str:
        """See `core.data.tokens.template_process.render`.

        Args:
            conversation: messages and settings, as JSON.
        """
        digest = digest_of(template)
        if digest in self._stopped:
            raise TemplateStopped("it took too long, or wrote too much, before")
        try:
            process = self._idle.pop()
        except IndexError:
            process = _Process()
        answer = process.request(template, conversation)
        if answer is None or answer.get("stopped"):
            self._stopped.add(digest)
            process.end()
            logger.warning("A chat template exceeded its limits of time, memory or output")
            raise TemplateStopped(f"it needs more than {SECONDS} s, or writes too long a text")
        if len(self._idle) < IDLE_LIMIT:
            self._idle.append(process)
        else:
            process.end()
        if "error" in answer:
            raise jinja2.TemplateError(str(answer["error"]))
        return str(answer["text"])

    def close(self, owner: int) -> None:
        """Ends the processes, in the process that started them."""
        while self._idle and owner == os.getpid():
            self._idle.pop().end()


class _Process:
    """One process that renders one conversation after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            build_child_command(__name__, "run"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def request(self, template: str, conversation: str) -> dict[str, Any] | None:
        """The answer of the process; None where it has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([template, conversation]).encode() + b"\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    def end(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        self._process.wait()


def _limit_seconds(seconds: int) -> None:
    """Ends this process after further seconds of processor time, where the system can."""
    with contextlib.suppress(ImportError):
        resource = importlib.import_module("resource")
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + seconds, hard))


def run() -> None:
    """The process: renders until its parent has ended."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    render_template = importlib.import_module("transformers.utils.chat_template_utils").render_jinja_template
    limit_process(MEMORY_BYTES, PROCESSOR_SECONDS)
    for line in sys.stdin.buffer:
        template, conversation = json.loads(line)
        messages, settings = json.loads(conversation)
        _limit_seconds(SECONDS)
        faulthandler.dump_traceback_later(WAIT_SECONDS, exit=True)  # a watchdog without a thread of Python
        try:
            text = render_template([messages], chat_template=template, **settings)[0][0]
            answer = {"text": text} if len(text) <= TEXT_LIMIT else {"stopped": True}
        except MemoryError:
            answer = {"stopped": True}
        except Exception as e:  # noqa: BLE001 (a template can raise anything)
            answer = {"error": str(e)[:WORDS_LIMIT]}
        faulthandler.cancel_dump_traceback_later()
        output.write(json.dumps(answer).encode() + b"\n")
        output.flush()
