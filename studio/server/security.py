"""Who may talk to the studio: which hosts, which pages, which browsers.

Knows requests and their headers. Knows nothing of what is asked. Gradio itself checks no Host and takes
posts from other sites to some of its addresses, so a page next door could use the studio without this.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import SpecError
from studio.server.streams import LastLine

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
SAFE = ("GET", "HEAD", "OPTIONS")
PLATFORM = "https://huggingface.co https://*.huggingface.co https://*.hf.space"  # a Space is shown in a frame of its page


def policy(space: bool) -> str:
    """The content security policy: this host and no other.

    Gradio compiles templates in the browser and writes inline styles, so `unsafe-eval` and
    `unsafe-inline` stay; everything that could fetch or send elsewhere is closed.
    """
    frames = f"'self' {PLATFORM}" if space else "'self'"
    return (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' blob: data:; media-src 'self' data: blob:; "
        f"worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors {frames}"
    )


def is_loopback(host: str) -> bool:
    """Whether a bind address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(host: str, share: bool, auth: object, space: bool) -> None:
    """Nothing but loopback without a password; on a Space the platform stands in front.

    Raises:
        SpecError: the address can be reached by others and no one would be asked who they are.
    """
    if auth or space or (is_loopback(host) and not share):
        return
    what = "A share link was asked for" if share else f"The studio would listen on {host}"
    raise SpecError(
        f"{what}, and no password is set.", "Set a user name and a password, or listen on 127.0.0.1."
    )


def gates(hosts: Sequence[str], space: bool) -> list[Middleware]:
    """The middleware, outermost first; the last one lets streams end.

    Args:
        hosts: names besides loopback that the studio is reached by.
    """
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, *hosts], www_redirect=False),
        Middleware(SameOrigin),
        Middleware(SafeHeaders, policy=policy(space)),
        Middleware(LastLine),
    ]


class SameOrigin:
    """Refuses what another site's page asks a browser to do here."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in SAFE and not self.own(Headers(scope=scope)):
            await PlainTextResponse("Refused: this came from another site.", status_code=403)(
                scope, receive, send
            )
            return
        await self.app(scope, receive, send)

    @staticmethod
    def own(headers: Headers) -> bool:
        """Whether a request comes from our own page, or from no page at all (a script with no browser)."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:
            return site in ("same-origin", "none")
        return origin is None or urlsplit(origin).netloc == headers.get("host")


class SafeHeaders:
    """Adds the headers that keep the page to itself."""

    def __init__(self, app: ASGIApp, policy: str) -> None:
        self.app, self.policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self.policy
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)
