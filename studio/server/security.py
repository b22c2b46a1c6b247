"""Which requests the studio accepts: host names, origins, sizes, and exposure to a network.

Gradio checks no Host header, accepts cross-site POSTs at some of its endpoints, and lets pages of other ports
of this machine read its responses. Without this middleware any website open in the same browser could use the
studio.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import SpecError
from core.server.protection import LOOPBACK_NAMES, UPLOADS, BodyLimit, is_loopback, is_same_origin
from studio.server.streams import StreamEnd

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
UPLOAD = "/gradio_api/upload"
LINKED = ("/", "/login", "/login/callback")  # pages that another site may link to or lead back to
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


def middleware(hosts: Sequence[str], space: bool, inner: Sequence[Middleware] = ()) -> list[Middleware]:
    """The middleware stack, outermost first.

    Args:
        hosts: the host names, besides loopback, under which users reach the studio.
        space: this is a Hugging Face Space.
        inner: what runs after the checks of this module: the guard, and the API.
    """
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK_NAMES, *hosts], www_redirect=False),
        Middleware(SameOrigin),
        Middleware(SecurityHeaders, policy=content_policy(space)),
        Middleware(BodyLimit, uploads=(UPLOAD, *UPLOADS)),
        *inner,
        Middleware(StreamEnd),
    ]


def is_navigation(headers: Headers) -> bool:
    """Whether a browser opens the address as a page, in a tab or in a frame."""
    is_page = headers.get("sec-fetch-dest", "document") in ("document", "iframe")
    return headers.get("sec-fetch-mode") == "navigate" and is_page


class SameOrigin:
    """ASGI middleware: refuses requests that come from another site's page, or another port of this one.

    Another site may only link to the page itself and to the pages for signing in.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self.is_allowed(scope):
            refusal = PlainTextResponse("Refused: the request comes from another site.", status_code=403)
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)

    @staticmethod
    def is_allowed(scope: Scope) -> bool:
        """Whether a request comes from the studio's own page, from outside a browser, or opens the page."""
        headers = Headers(scope=scope)
        if is_same_origin(headers):
            return True
        is_read = scope["method"] in SAFE_METHODS
        return is_read and scope["path"] in LINKED and is_navigation(headers)


class NoSharing:
    """ASGI middleware: removes every header that would let the page of another origin read a response.

    It must be outside of Gradio's own middleware, which adds them; `studio.app` places it there.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_private(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.get("headers", [])
                message["headers"] = [h for h in headers if not h[0].lower().startswith(b"access-control-")]
            await send(message)

        await self.app(scope, receive, send_private if scope["type"] == "http" else send)


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
