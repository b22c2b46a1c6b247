"""Ends event streams cleanly: their end cancels no newer events, and an error ends the response."""

from __future__ import annotations

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

CLOSE_MESSAGE = b'"msg":"close_stream"'


class StreamEnd:
    """ASGI middleware: after a stream has sent its close message, hides the client's disconnect from it.

    Gradio's client disconnects as soon as it reads the close message. If its server (6.31) notices the
    disconnect while the stream is still ending, it treats the session as gone and drops the session's
    newer events; the page then reports a lost connection and reloads.

    If a session is unknown, Gradio's stream sends a message that says so and then raises. The browser would
    see a broken response instead of the message, so the middleware completes the response.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/queue/data"):
            await self.app(scope, receive, send)
            return
        closing = is_open = False

        async def forward(message: Message) -> None:
            nonlocal closing, is_open
            is_open = message["type"] == "http.response.start" or bool(message.get("more_body"))
            closing = closing or CLOSE_MESSAGE in message.get("body", b"")
            try:
                await send(message)
            except OSError:  # a server may raise this when the client has disconnected
                if not closing:
                    raise

        async def receive_until_close() -> Message:
            message = await receive()
            if closing and message["type"] == "http.disconnect":
                await asyncio.Event().wait()  # until the stream has ended, which cancels this coroutine
            return message

        try:
            await self.app(scope, receive_until_close, forward)
        except RuntimeError as e:
            if not is_open:
                raise
            logger.info("An event stream ended with an error: %s", e)
            await forward({"type": "http.response.body", "body": b"", "more_body": False})
