"""The end of a stream of answers, which must not end what was asked since.

Knows the last line of Gradio's streams. Knows nothing of what is on them.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LAST_LINE = b'"msg":"close_stream"'


class LastLine:
    """Lets a stream that said its last line end by itself.

    Gradio's client hangs up when it reads that line. Should its server (6.31) hear of that while it is still ending,
    it takes the visitor for gone and drops what they asked meanwhile; their page then says that the connection is lost
    and loads itself anew.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/queue/data"):
            await self.app(scope, receive, send)
            return
        over = False

        async def sending(message: Message) -> None:
            nonlocal over
            over = over or LAST_LINE in message.get("body", b"")
            try:
                await send(message)
            except OSError:  # how a server may say that the visitor hung up
                if not over:
                    raise

        async def receiving() -> Message:
            message = await receive()
            if over and message["type"] == "http.disconnect":
                await asyncio.Event().wait()  # until the stream has ended, which cancels whoever listens here
            return message

        await self.app(scope, receiving, sending)
