"""Tracebacks that Gradio prints become log records, which `core.store.redaction` keeps private."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import gradio.queueing
import gradio.route_utils
import gradio.routes
import gradio.utils

logger = logging.getLogger(__name__)
PRINTING = (gradio.queueing, gradio.route_utils, gradio.routes, gradio.utils)


class LoggedTraceback:
    """The module `traceback`, except that `print_exc` logs."""

    def __getattr__(self, name: str) -> Any:
        return getattr(traceback, name)

    def print_exc(self, *values: Any, **more: Any) -> None:
        """Logs the exception that is handled now."""
        logger.error("Gradio could not run an event", exc_info=True)


def log_tracebacks() -> None:
    """Makes Gradio (6.31) log the errors that it would print, with the values that a browser sent."""
    for module in PRINTING:
        if hasattr(module, "traceback"):
            setattr(module, "traceback", LoggedTraceback())  # noqa: B010 (mypy: a module)
