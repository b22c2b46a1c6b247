"""The caller that the engine works for, so that one of them cannot fill what all share.

The page and the API name the caller of each request; the terminal and scripts name none, and have no limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """Who asks, and whether a limit for each caller holds for this one; the owner has none."""

    name: str
    is_limited: bool = True


_CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def current_caller() -> Caller | None:
    """The caller of the request that this thread or task works on; None outside of requests."""
    return _CALLER.get()


def set_caller(caller: Caller) -> None:
    """Names the caller until the end of this task."""
    _CALLER.set(caller)


@contextmanager
def act_for(caller: Caller) -> Iterator[None]:
    """Names the caller inside the block."""
    token = _CALLER.set(caller)
    try:
        yield
    finally:
        _CALLER.reset(token)
