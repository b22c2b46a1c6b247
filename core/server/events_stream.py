"""Server-sent events: frames, the log of a run as a stream that can be resumed, and streams of the worker.

The id of a frame is where its reader continues: "N" is a cursor of `engine.runs.events`, and "N-K" the place
after the first K events that follow cursor N. A log is only appended to, so both stay valid.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from core.engine import Engine
from core.engine.worker import Stream
from core.errors import SpecError, StudioError
from core.server.problems import Problem

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
POLL_SECONDS = 0.25  # between two looks at a run's log
FRAME_SECONDS = 0.05  # between two looks at a stream of the worker
QUIET_SECONDS = 15.0  # without an event, after which a comment keeps the connection open
_FIELDS = {name: {"type": "string"} for name in ("id", "event", "data")}
EVENT_SCHEMA = {"type": "object", "properties": _FIELDS, "required": ["data"]}  # of one event, in OpenAPI
_PLACE = re.compile(r"(\d{1,15})(?:-(\d{1,9}))?")


class EventStream(StreamingResponse):
    """A response of server-sent events."""

    media_type = MEDIA_TYPE


def format_frame(data: Any, event: str = "", place: str = "") -> str:
    """A frame of server-sent events.

    Args:
        data: is written as one line of JSON.
        event: the type; "" is "message".
        place: the id, from which the reader continues.
    """
    head = (f"id: {place}\n" if place else "") + (f"event: {event}\n" if event else "")
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n"


def read_place(text: str) -> tuple[int, int]:
    """The cursor of an id, and how many of the events after it were read.

    Raises:
        SpecError: it is not an id that this server sent.
    """
    match = _PLACE.fullmatch(text)
    if match is None:
        raise SpecError(f"The cursor must be an id of an event, such as 412, got {text!r}.").at("after")
    return int(match[1]), int(match[2] or 0)


async def stream_run(engine: Engine, run_id: str, after: str = "0") -> AsyncIterator[str]:
    """The events of a run as frames, until it has ended; the last frame is of the type "end".

    Args:
        after: the id of the last frame that was read.
    """
    cursor, skip = read_place(after)
    last_sent = time.monotonic()
    has_ended = False
    while True:
        events, new = await run_in_threadpool(engine.runs.events, run_id, cursor)
        for number, event in enumerate(events[skip:], skip + 1):
            place = str(new) if number == len(events) else f"{cursor}-{number}"
            yield format_frame(event, str(event.get("kind", "")), place)
            last_sent = time.monotonic()
        if has_ended and new == cursor:
            run = await run_in_threadpool(engine.runs.get, run_id)
            yield format_frame({"status": run.status.value, "adapter": run.adapter}, "end", str(cursor))
            return
        if new != cursor:
            cursor, skip = new, 0
            continue
        run = await run_in_threadpool(engine.runs.get, run_id)
        has_ended = not run.status.is_alive and not engine.runs.is_ending(run)
        if not has_ended:
            if time.monotonic() - last_sent > QUIET_SECONDS:
                yield ": waiting\n\n"
                last_sent = time.monotonic()
            await asyncio.sleep(POLL_SECONDS)


async def poll(stream: Stream) -> AsyncIterator[Any]:
    """The newest values of a stream of the worker until its end; waiting takes no thread.

    Raises:
        StudioError: the error that ended it.
    """
    try:
        while True:
            value, ended = stream.take()
            if value is not None:
                yield value
            elif ended:
                return
            else:
                await asyncio.sleep(FRAME_SECONDS)
    finally:
        stream.close()


async def poll_last(stream: Stream) -> Any:
    """Waits for the last value of a stream of the worker.

    Raises:
        StudioError: the error that ended it.
    """
    last = None
    async for value in poll(stream):
        last = value
    return last


async def frame_values(first: Any, values: AsyncIterator[Any], event: str) -> AsyncIterator[str]:
    """JSON values as frames, then a frame "end".

    Args:
        first: the value that was read before the response began.
    """
    yield format_frame(first, event)
    async for value in values:
        yield format_frame(value, event)
    yield format_frame({}, "end")


async def end_with_problem(frames: AsyncIterator[str]) -> AsyncIterator[str]:
    """Frames; an error after the response began becomes a last frame "problem"."""
    try:
        async for frame in frames:
            yield frame
    except StudioError as e:
        yield format_frame(Problem.of(e).to_json(), "problem")
