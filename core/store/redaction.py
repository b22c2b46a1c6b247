"""Log records without secrets and without the texts of users; switched on by the entrances."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Callable
from typing import Any

_NAMES = r"(?:access[_-]?token|token|passwd|password|secret|x?-?api[_-]?key)"
SECRETS = (
    (re.compile(r"\b(as-|hf_|sk-)[A-Za-z0-9_-]{8,}"), r"\1…"),
    (re.compile(r"\b(bearer|basic)(\s+)[^\s\"',;]+", re.IGNORECASE), r"\1\2…"),
    (re.compile(rf"\b({_NAMES}[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;]+", re.IGNORECASE), r"\1…"),
    (re.compile(r"(\w+://[^/\s:@]*:)[^@/\s]+@"), r"\1…@"),  # of a URL with a password
)


def redact(text: str) -> str:
    """A text whose keys, tokens and passwords are replaced by "…"."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def format_private(error: BaseException | None) -> str:
    """A traceback without the messages of its exceptions, because they may quote what a user wrote."""
    parts: list[str] = []
    while error is not None and len(parts) < 10:
        frames = "".join(traceback.format_tb(error.__traceback__))
        parts.append(f"{frames}{type(error).__name__} (its message is not logged)")
        context = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or context
    return "\ncaused by:\n".join(parts)


class PrivateRecord(logging.LogRecord):
    """A log record without secrets, and with a traceback without messages, for all handlers."""

    def __init__(self, *values: Any, **more: Any) -> None:
        super().__init__(*values, **more)
        if self.exc_info:
            self.exc_text = format_private(self.exc_info[1])
            self.exc_info = None

    def getMessage(self) -> str:  # noqa: N802 (of logging)
        return redact(super().getMessage())


def protect_logs() -> Callable[[], None]:
    """Makes every log record of this process a `PrivateRecord`; returns a function that ends this."""
    previous = logging.getLogRecordFactory()
    logging.setLogRecordFactory(PrivateRecord)
    return lambda: logging.setLogRecordFactory(previous)
