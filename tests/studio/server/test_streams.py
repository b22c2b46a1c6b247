"""The ends of event streams: an error after the first message completes the response."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from studio.server.streams import StreamEnd

MESSAGE = 'data: {"msg":"unexpected_error"}\n\n'


async def stream(request: Request) -> StreamingResponse:
    async def messages() -> AsyncIterator[str]:
        yield MESSAGE
        raise HTTPException(404)

    return StreamingResponse(messages(), media_type="text/event-stream")


async def fail(request: Request) -> StreamingResponse:
    raise RuntimeError("before any message")


def client(path: str, handler) -> TestClient:
    return TestClient(Starlette(routes=[Route(path, handler)], middleware=[Middleware(StreamEnd)]))


def test_a_stream_that_raises_after_a_message_ends_completely():
    answer = client("/gradio_api/queue/data", stream).get("/gradio_api/queue/data")
    assert (answer.status_code, answer.text) == (200, MESSAGE)


def test_an_error_before_the_response_is_raised():
    with pytest.raises(RuntimeError, match="before any message"):
        client("/queue/data", fail).get("/queue/data")


def test_errors_of_other_routes_are_raised():
    with pytest.raises(RuntimeError, match="response already started"):
        client("/other", stream).get("/other")
