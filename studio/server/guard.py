"""The guard in front of every route of the page and of the API: logins, and the role that each needs."""

from __future__ import annotations

import logging
from urllib.parse import parse_qsl, urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from core.server.access import ANONYMOUS, HOW_TO_SIGN_IN, Principal, too_many_attempts
from core.server.app import PREFIXES
from core.server.failed_attempts import address_of
from core.server.problems import Problem
from core.spec.access import Role
from studio.server import login_pages
from studio.server.access import ACCESS_KEY, SCOPE_KEY, PageAccess, describe_refusal
from studio.server.oauth import OAuth
from studio.server.security import is_navigation

logger = logging.getLogger(__name__)
# Without a login: health, what browsers request without cookies, and Gradio's own request at its start.
PUBLIC = ("/health", "/ready", "/favicon.ico", "/robots.txt", "/manifest.json", "/pwa_icon",
          "/gradio_api/startup-events")  # fmt: skip
DOWNLOADS = "/gradio_api/studio/download"
# The role that a route needs, by the longest prefix of its path; every other route needs a viewer. Handlers
# and the routes of the API ask for more by themselves.
ROUTE_ROLES = {
    "/gradio_api/upload": Role.TRAINER,
    DOWNLOADS: Role.OWNER,
    f"{DOWNLOADS}/report": Role.VIEWER,
    f"{DOWNLOADS}/grid": Role.VIEWER,
    # Of Gradio, for developers; the studio uses none of them.
    "/dev": Role.OWNER,
    "/monitoring": Role.OWNER,
    "/gradio_api/api": Role.OWNER,
    "/gradio_api/call": Role.OWNER,
    "/gradio_api/deep_link": Role.OWNER,
    "/gradio_api/dev": Role.OWNER,
    "/gradio_api/process_recording": Role.OWNER,
    "/gradio_api/profiling": Role.OWNER,
    "/gradio_api/proxy=": Role.OWNER,
    "/gradio_api/run": Role.OWNER,
    "/gradio_api/undo-vibe-edit": Role.OWNER,
    "/gradio_api/vibe": Role.OWNER,
}


def route_role(path: str) -> Role:
    """The role that a path needs."""
    if any(path == public or path.startswith(f"{public}/") for public in PUBLIC):
        return Role.NONE
    found = [prefix for prefix in ROUTE_ROLES if path.startswith(prefix)]
    return ROUTE_ROLES[max(found, key=len)] if found else Role.VIEWER


def is_api(path: str) -> bool:
    """Whether a path belongs to the API for other programs."""
    return path.startswith(PREFIXES)


class Guard:
    """ASGI middleware: identifies the principal of each request, and refuses those below the route's role."""

    def __init__(self, app: ASGIApp, access: PageAccess, oauth: OAuth | None = None) -> None:
        self.app, self.access, self.oauth = app, access, oauth

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page uses no WebSocket
            await send({"type": "websocket.close", "code": 1008})
            return
        request = Request(scope, receive)
        try:
            response = await self._sign_in(request)
            if response is None:
                is_public = route_role(scope["path"]) is Role.NONE
                principal = ANONYMOUS if is_public else self.access.identify(request)
                response = self._refuse(request, principal)
                scope[SCOPE_KEY], scope[ACCESS_KEY] = principal, self.access
        except Problem as problem:
            response = problem.respond()
        if response is None:
            await self.app(scope, receive, send)
            return
        response.headers["Cache-Control"] = "no-store"
        await response(scope, receive, send)

    async def _sign_in(self, request: Request) -> Response | None:
        """The response to a login or a logout; None for every other request."""
        path = request.scope["path"].rstrip("/") or "/"
        if path == "/" and request.method == "GET" and "token" in request.query_params:
            return self._follow_link(request)
        if path == "/logout":
            return self.access.sign_out(request)
        if self.oauth is not None and (response := await self.oauth.respond(request)) is not None:
            return response
        if path == "/login":
            if not self.access.has_login_page:
                return RedirectResponse("./", status_code=303)
            if request.method == "POST" and self.access.logins:
                return await self._check_login(request)
            return HTMLResponse(self.access.render_login())
        return None

    def _follow_link(self, request: Request) -> Response | None:
        """Starts a session if the token of the URL is right, and leads to the URL without it."""
        query = [(k, v) for k, v in parse_qsl(request.url.query, keep_blank_values=True) if k != "token"]
        clean = RedirectResponse(f"./?{urlencode(query)}" if query else "./", status_code=303)
        if not self.access.query or self.access.find_session(request) is not None:
            return clean
        self._check_delay(request)
        principal = self.access.use_link(request.query_params["token"])
        if principal is None:
            self._note_failure(request, "A login link that is not valid")
            return HTMLResponse(login_pages.render_notice(is_used=True), status_code=401)
        self.access.set_cookie(request, clean, principal)
        return clean

    async def _check_login(self, request: Request) -> Response:
        """Signs a user in with the fields of the login form."""
        is_page = "text/html" in request.headers.get("accept", "")
        try:
            self._check_delay(request)
        except Problem as problem:
            if not is_page:
                raise
            page = self.access.render_login(f"{problem.what} {problem.fix}")
            return HTMLResponse(page, status_code=429, headers=problem.headers)
        async with request.form(max_files=0, max_fields=10) as form:
            name, password = str(form.get("username", "")).strip(), str(form.get("password", ""))
        principal = await run_in_threadpool(self.access.check_password, name, password)
        if principal is None:
            self._note_failure(request, "A login with a wrong name or password")
            wrong = "The name or the password is wrong."
            if not is_page:
                return JSONResponse({"detail": wrong}, status_code=401)
            return HTMLResponse(self.access.render_login(wrong), status_code=401)
        self.access.attempts.clear(address_of(request.scope))
        response: Response = JSONResponse({"success": True})
        if is_page:
            response = RedirectResponse("./", status_code=303)
        self.access.set_cookie(request, response, principal)
        return response

    def _check_delay(self, request: Request) -> None:
        seconds = self.access.attempts.wait_seconds(address_of(request.scope))
        if seconds > 0:
            raise too_many_attempts(seconds)

    def _note_failure(self, request: Request, what: str) -> None:
        address = address_of(request.scope)
        self.access.attempts.add(address)
        logger.warning("%s was sent from %s", what, address)

    def _refuse(self, request: Request, principal: Principal) -> Response | None:
        """The refusal of a request whose principal may not use the route; None if it may."""
        path = request.scope["path"]
        role = route_role(path)
        if principal.role >= role:
            return None
        if principal.role > Role.NONE:
            text = describe_refusal(principal, role)
            return Problem(403, text).respond() if is_api(path) else PlainTextResponse(text, status_code=403)
        if is_api(path):
            header = {"WWW-Authenticate": "Bearer"}
            return Problem(401, "Sign in first.", HOW_TO_SIGN_IN, headers=header).respond()
        if path != "/" or request.method != "GET":
            return PlainTextResponse("Sign in first.", status_code=401)
        # A browser sends the strict cookie only if the navigation began on this page, so a link on another
        # site is opened once more from here.
        is_foreign = is_navigation(request.headers) and "sec-fetch-site" in request.headers
        reopens = is_foreign and request.headers["sec-fetch-site"] in ("cross-site", "same-site")
        return HTMLResponse(self.access.render_login(reopens=reopens), status_code=401)
