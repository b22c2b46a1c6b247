"""Streams of the engine as asynchronous iterators: waiting takes no thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from core.engine.serving import Completion, Progress

WAIT_SECONDS = 5.0  # how often a waiting reader looks whether the stream is still served


async def follow(completion: Completion) -> AsyncIterator[Progress]:
    """The newest values of a completion until its end; closes it when the reader leaves.

    Raises:
        StudioError: the error that ended it.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended, and with it the loop
            loop.call_soon_threadsafe(changed.set)

    completion.on_change = wake
    try:
        while True:
            changed.clear()
            value, ended = completion.take()
            if value is not None:
                yield value
            elif ended:
                return
            else:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(changed.wait(), WAIT_SECONDS)
    finally:
        completion.on_change = lambda: None
        completion.close()


async def finish(completion: Completion) -> Progress:
    """Waits for the last value.

    Raises:
        StudioError: the error that ended it.
    """
    last: Progress | None = None
    async for value in follow(completion):
        last = value
    assert last is not None, "a stream without an error has a value"
    return last
