"""A session of Gradio belongs to the browser that began it: requests of others with it are refused.

A page makes up the name of its session (`session_hash`) and sends it with every event. With that name,
another caller could read the answers of the page and send events into it, so its first caller owns it.

An open page holds a stream of the server (its heartbeat) and a state in memory, so their number is limited,
for each visitor and in sum.
"""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.server.access import read_key
from core.server.failed_attempts import address_of
from core.server.problems import Problem
from core.store.api_keys import digest_of
from core.store.json_text import parse_json
from studio.server import login_pages
from studio.server.access import PageAccess

PAGE_LIMIT, PAGES_PER_VISITOR = 500, 50  # open pages: of all visitors, and of each
RETRY_SECONDS = 30  # when the visitor of a full studio should try again
VISITOR_KEY = "studio.visitor"  # where the visitor of a request stands in its scope
HEARTBEAT = "/gradio_api/heartbeat/"
OWNER_LIMIT = 10_000  # sessions in memory; the one that was used longest ago is forgotten first
IN_PATH = (HEARTBEAT, "/gradio_api/stream/")
IN_BODY = (
    "/gradio_api/queue/join",
    "/gradio_api/component_server",
    "/gradio_api/cancel",
    "/gradio_api/reset",
)


class OwnSession:
    """ASGI middleware: refuses requests with the session of another visitor."""

    def __init__(self, app: ASGIApp, access: PageAccess) -> None:
        self.app, self.access = app, access
        self._owners: OrderedDict[str, str] = OrderedDict()  # session -> digest of its owner's credential
        self._pages: Counter[str] = Counter()  # visitor -> open pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].rstrip("/") or "/"
        request = Request(scope, receive)
        try:
            if path in IN_BODY and request.method == "POST":
                body = await request.body()
                receive = _replay(body, receive)
                session = _read_session(body)
            else:
                session = _find_session(scope)
        except ValueError:
            await PlainTextResponse("The request must hold one JSON object.", status_code=400)(
                scope, receive, send
            )
            return
        if session and not self._owns(request, session):
            refusal = PlainTextResponse("This session belongs to another visitor.", status_code=403)
            await refusal(scope, receive, send)
            return
        visitor = scope[VISITOR_KEY] = self._identify(request)
        opens_page = path.startswith(HEARTBEAT)
        is_page = opens_page or (path == "/" and request.method == "GET")
        full = self._refuse_page(request, visitor) if is_page else None
        if full is not None:
            await full(scope, receive, send)
            return
        names_visitor = path == "/" and self.access.needs_visitor_cookie(request)
        send = self._name_visitor(send) if names_visitor else send
        if not opens_page:
            await self.app(scope, receive, send)
            return
        self._pages[visitor] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._pages[visitor] -= 1
            if not self._pages[visitor]:
                del self._pages[visitor]

    def _refuse_page(self, request: Request, visitor: str) -> Response | None:
        """The refusal of one more page; None if there is room for it."""
        own, total = self._pages[visitor], self._pages.total()
        if own < PAGES_PER_VISITOR and total < PAGE_LIMIT:
            return None
        what = f"The studio is full: {total} of {PAGE_LIMIT} pages are open."
        fix = f"Try again in {RETRY_SECONDS} s."
        if own >= PAGES_PER_VISITOR:
            what = f"You have {own} pages of the studio open, and each visitor can have {PAGES_PER_VISITOR}."
            fix = "Close some of them, and load this one again."
        headers = {"Retry-After": str(RETRY_SECONDS), "Cache-Control": "no-store"}
        if "text/html" not in request.headers.get("accept", ""):
            return Problem(503, what, fix, headers=headers).respond()
        return HTMLResponse(login_pages.render_refusal(what, fix), status_code=503, headers=headers)

    def _owns(self, request: Request, session: str) -> bool:
        """Whether the caller owns a session; the first caller does from then on."""
        visitor = self._identify(request)
        owner = self._owners.setdefault(session, visitor)
        self._owners.move_to_end(session)
        while len(self._owners) > OWNER_LIMIT:
            self._owners.popitem(last=False)
        return owner == visitor

    def _identify(self, request: Request) -> str:
        for name in (self.access.cookie, self.access.visitor_cookie):
            if value := request.cookies.get(name):
                return digest_of(value)
        return digest_of(read_key(request) or address_of(request.scope))

    def _name_visitor(self, send: Send) -> Send:
        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                value = f"{self.access.visitor_cookie}={secrets.token_urlsafe(32)}"
                attributes = "; HttpOnly; Path=/; SameSite=None; Secure"
                MutableHeaders(scope=message).append("set-cookie", value + attributes)
            await send(message)

        return send_with_cookie


def _find_session(scope: Scope) -> str:
    """The session that the address of a request names, or ""."""
    for prefix in IN_PATH:
        if scope["path"].startswith(prefix):
            return str(scope["path"][len(prefix) :].split("/")[0])
    values = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash", [])
    return values[-1] if scope["path"].startswith("/gradio_api/") and values else ""


def _read_session(body: bytes) -> str:
    """The session that a body names, or "".

    Raises:
        ValueError: it is not a JSON object.
    """
    value = parse_json(body)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return str(value.get("session_hash") or "")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Receives a body that was read already, and then what follows it."""
    is_sent = False

    async def receive_again() -> Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
