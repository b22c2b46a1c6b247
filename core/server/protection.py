"""Which requests a server without the page accepts: host names, origins and sizes."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.server.problems import Problem

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]", "::1")  # in a Host header
BODY_LIMIT, DISCARD_LIMIT = 1_000_000, 8_000_000  # bytes
TOO_LARGE = f"A request may have at most {BODY_LIMIT:,} bytes."
UPLOADS = ("/fine-tuning/setup", "/api/datasets")  # their bodies have limits of their own


def protect(app: FastAPI, host: str, allowed_hosts: Sequence[str]) -> None:
    """Refuses large bodies, requests of other sites' pages, and on loopback those for other host names.

    Without the last check, a site could point its own name at this machine (DNS rebinding).

    Args:
        host: the address that the server listens on.
        allowed_hosts: further names of this machine.
    """
    app.add_middleware(BodyLimit)
    app.add_middleware(RefuseOtherSites)
    if is_loopback(host) or allowed_hosts:
        names = [*LOOPBACK_NAMES, *allowed_hosts]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def is_same_origin(headers: Headers) -> bool:
    """Whether a request comes from a page of this server, or from outside a browser."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        return site in ("same-origin", "none")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


class RefuseOtherSites:
    """ASGI middleware: a page of another site, open in the browser of a user, cannot use the server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_same_origin(Headers(scope=scope)):
            refusal = Problem(
                403, "The request comes from a page of another site.", "Send it from a program."
            ).respond()
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)


class BodyLimit:
    """ASGI middleware: refuses bodies of more than 1 MB, except uploads.

    Args:
        uploads: beginnings of the paths of uploads.
    """

    def __init__(self, app: ASGIApp, uploads: tuple[str, ...] = UPLOADS) -> None:
        self._app, self._uploads = app, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(self._uploads):
            await self._app(scope, receive, send)
            return
        size, has_more, has_started = 0, True, False

        async def receive_within_limit() -> Message:
            nonlocal size, has_more
            message = await receive()
            size += len(message.get("body", b""))
            has_more = message["type"] == "http.request" and bool(message.get("more_body"))
            if size > BODY_LIMIT:
                raise BodyTooLarge
            return message

        async def send_response(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            claimed = Headers(scope=scope).get("content-length", "")
            if claimed.isdecimal() and int(claimed[:20]) > BODY_LIMIT:
                raise BodyTooLarge
            await self._app(scope, receive_within_limit, send_response)
        except BodyTooLarge:
            if has_started:
                raise
            if has_more:
                await discard_body(receive, size)
            await Problem(413, TOO_LARGE).respond()(scope, receive, send)


class BodyTooLarge(HTTPException):
    """A body exceeds the limit. FastAPI turns errors of another kind into a 400 where it reads a body."""

    def __init__(self) -> None:
        super().__init__(413, TOO_LARGE)


async def discard_body(receive: Receive, size: int) -> None:
    """Reads the rest of a body, up to a limit: a client that is still sending would not see the response."""
    has_more = True
    while has_more and size < DISCARD_LIMIT:
        message = await receive()
        size += len(message.get("body", b""))
        has_more = message["type"] == "http.request" and bool(message.get("more_body"))
