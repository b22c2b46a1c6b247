"""Streams of the engine as asynchronous iterators: waiting takes no thread."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from starlette.requests import Request

from core.engine.serving import Completion, Progress

T = TypeVar("T")
CLIENT_LEFT = 499  # as in nginx; no client reads it
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


async def wait_for_value(request: Request, work: Awaitable[T]) -> T | None:
    """The value of `work`; None where the client disconnects before it. `work` is cancelled then."""
    answer = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_watch_disconnect(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        return answer.result() if answer.done() else None
    finally:
        answer.cancel()
        gone.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


async def _watch_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
