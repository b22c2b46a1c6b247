"""Which requests the studio accepts: host names, origins, and exposure to a network.

Gradio checks no Host header and accepts cross-site POSTs at some of its endpoints. Without this middleware
any website open in the same browser could use the studio.
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
from studio.server.streams import StreamEnd

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
# These sites show a Space in a frame.
PLATFORM = "https://huggingface.co https://*.huggingface.co https://*.hf.space"


def content_policy(space: bool) -> str:
    """The content security policy, which allows this host only.

    Gradio compiles templates in the browser and writes inline styles, so `unsafe-eval` and
    `unsafe-inline` stay. Everything that could load from or send to another host is blocked.

    Args:
        space: this is a Hugging Face Space, which its platform shows in a frame.
    """
    frames = f"'self' {PLATFORM}" if space else "'self'"
    return (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "connect-src 'self' blob: data:; media-src 'self' data: blob:; worker-src 'self' blob:; "
        f"object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors {frames}"
    )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(host: str, share: bool, auth: object, space: bool) -> None:
    """Refuses to listen on anything but loopback without a password; a Space is protected by its platform.

    Raises:
        SpecError: other machines could reach the address, and no password is set.
    """
    if auth or space or (is_loopback(host) and not share):
        return
    exposure = "A share link is public" if share else f"Other machines can reach {host}"
    raise SpecError(
        f"{exposure}, and no password is set.", "Set a user name and a password, or listen on 127.0.0.1."
    )


def middleware(hosts: Sequence[str], space: bool) -> list[Middleware]:
    """The middleware stack, outermost first.

    Args:
        hosts: the host names, besides loopback, under which users reach the studio.
        space: this is a Hugging Face Space.
    """
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, *hosts], www_redirect=False),
        Middleware(SameOrigin),
        Middleware(SecurityHeaders, policy=content_policy(space)),
        Middleware(StreamEnd),
    ]


class SameOrigin:
    """ASGI middleware: refuses requests that change something and come from another site's page."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_unsafe = scope["type"] == "http" and scope["method"] not in SAFE_METHODS
        if is_unsafe and not self.is_same_origin(Headers(scope=scope)):
            refusal = PlainTextResponse("Refused: the request comes from another site.", status_code=403)
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)

    @staticmethod
    def is_same_origin(headers: Headers) -> bool:
        """Whether a request comes from the studio's own page, or from outside a browser (a script)."""
        site, origin = headers.get("sec-fetch-site"), headers.get("origin")
        if site is not None:
            return site in ("same-origin", "none")
        return origin is None or urlsplit(origin).netloc == headers.get("host")


class SecurityHeaders:
    """ASGI middleware: adds the content security policy and related headers to every response."""

    def __init__(self, app: ASGIApp, policy: str) -> None:
        self.app, self.policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self.policy
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)
