"""The API for other programs on the page's port: its paths lead to the application of `core.server.app`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from studio.server import page_states
from studio.server.guard import is_api
from studio.server.security import NoSharing


class ApiMount:
    """ASGI middleware: requests whose path is one of the API's are answered by it, all others by the page.

    A mount of Gradio's application cannot do this: Gradio registers its own routes first.
    """

    def __init__(self, app: ASGIApp, api: ASGIApp) -> None:
        self.app, self.api = app, api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        leads_to_api = scope["type"] == "http" and is_api(scope["path"])
        await (self.api if leads_to_api else self.app)(scope, receive, send)


def make_lifespan(api: FastAPI) -> Callable[[Any], contextlib.AbstractAsyncContextManager[None]]:
    """The lifespan of Gradio's application: that of the API, the outermost middleware, and the states.

    Gradio adds its own middleware outside of every one that it takes, so `NoSharing` is put around the built
    stack here, before the first request.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        app.middleware_stack = NoSharing(app.middleware_stack)
        page_states.install(app)
        async with api.router.lifespan_context(api):
            yield

    return lifespan
