"""A caller of a given role, in place of the guard."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from core.server.access import Principal
from core.spec.access import Role
from studio.server.access import SCOPE_KEY


class Caller:
    """ASGI middleware: every request is the caller's."""

    def __init__(self, app: ASGIApp, role: Role = Role.OWNER) -> None:
        self.app, self.role = app, role

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY] = Principal("caller", self.role)
        await self.app(scope, receive, send)
