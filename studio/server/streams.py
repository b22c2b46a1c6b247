"""Keeps the end of one event stream from cancelling the events that were queued since."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLOSE_MESSAGE = b'"msg":"close_stream"'


class StreamEnd:
    """ASGI middleware: after a stream has sent its close message, hides the client's disconnect from it.

    Gradio's client disconnects as soon as it reads the close message. If its server (6.31) notices the
    disconnect while the stream is still ending, it treats the session as gone and drops the session's
    newer events; the page then reports a lost connection and reloads.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/queue/data"):
            await self.app(scope, receive, send)
            return
        closing = False

        async def forward(message: Message) -> None:
            nonlocal closing
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

        await self.app(scope, receive_until_close, forward)
