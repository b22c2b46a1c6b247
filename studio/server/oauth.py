"""Signs users of a Space in with their Hugging Face account: the code flow of OpenID Connect.

    browser                              studio                                      provider
    GET /login/huggingface          ->   remembers state and verifier
                                    <-   303 to the provider, cookie
    GET authorize                   -------------------------------------------->    asks the user
    GET /login/callback?code&state  ->   cookie, state and age are checked
                                         code and verifier                      ->   the user's name
                                    <-   session, 303 to the page

The cookie ties the sign-in to the browser that began it. The requests to the provider are those of
`studio.server.openid`.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from core.errors import AccessError
from core.store.api_keys import digest_of
from studio.server.access import PageAccess
from studio.server.openid import UNREACHABLE, OpenIdSettings, Provider

logger = logging.getLogger(__name__)
START, CALLBACK = "/login/huggingface", "/login/callback"
COOKIE = "adapter-studio-sign-in"
PENDING_SECONDS = 600.0  # that a user has to answer the provider
PENDING_LIMIT = 1000  # sign-ins that have begun; the one that began first is forgotten
EXCHANGE_LIMIT = 8  # codes that are exchanged at once
SESSION_SECONDS = 8 * 3600  # afterwards the user signs in again: a role in an organisation may have ended
TEXT_LIMIT = 2000  # characters of a code or a state
STALE = "This sign-in began in another browser, or too long ago. Begin again."
DECLINED = "You are not signed in: the request was declined. You can go on as a visitor, or try again."
BUSY = "Many users are signing in. Try again in a moment."


@dataclass(frozen=True)
class Pending:
    """A sign-in that has begun."""

    state: str
    verifier: str
    end: float


class OAuth:
    """Answers the two addresses of the flow.

    Args:
        access: starts the session.
        clock: monotonic seconds.
    """

    def __init__(
        self, settings: OpenIdSettings, access: PageAccess, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._access, self._clock = settings, access, clock
        self._provider = Provider(settings)
        self._pending: OrderedDict[str, Pending] = OrderedDict()  # by digest of the cookie, oldest first
        self._exchanges = 0

    async def respond(self, request: Request) -> Response | None:
        """The response to one of the two addresses; None for every other request."""
        path = request.scope["path"].rstrip("/")
        if path not in (START, CALLBACK):
            return None
        if request.method != "GET":
            return RedirectResponse("../", status_code=303)
        try:
            return await (self._begin(request) if path == START else self._finish(request))
        except AccessError as e:
            logger.warning("A sign-in failed: %s", e.what)
            return self._refuse(f"{e.what} {e.fix}", 502 if e.what == UNREACHABLE else 403)

    async def _begin(self, request: Request) -> Response:
        """Leads the browser to the provider."""
        if request.url.hostname != self._settings.host.partition(":")[0]:
            # The provider leads back to the Space's own host, and the cookie must be there.
            return RedirectResponse(f"{self._origin}/login", status_code=303)
        token, state = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        pending = Pending(state, secrets.token_urlsafe(48), self._clock() + PENDING_SECONDS)
        address = await run_in_threadpool(
            self._provider.make_address, self._redirect, state, pending.verifier
        )
        self._pending[digest_of(token)] = pending
        while len(self._pending) > PENDING_LIMIT:
            self._pending.popitem(last=False)
        response = RedirectResponse(address, status_code=303)
        # Lax: the provider's redirect back is a navigation from another site.
        response.set_cookie(
            COOKIE, token, max_age=int(PENDING_SECONDS), path="/login", httponly=True, samesite="lax",
            secure=self._is_secure,
        )  # fmt: skip
        return response

    async def _finish(self, request: Request) -> Response:
        """Starts a session for the user whom the provider names."""
        values = {name: request.query_params.get(name, "")[:TEXT_LIMIT] for name in ("code", "state")}
        pending = self._pending.pop(digest_of(request.cookies.get(COOKIE, "")), None)
        if pending is None or self._clock() >= pending.end:
            return self._refuse(STALE, 400)
        if not hmac.compare_digest(values["state"].encode(), pending.state.encode()):
            return self._refuse(STALE, 400)
        if "error" in request.query_params or not values["code"]:
            return self._refuse(DECLINED, 403)
        if self._exchanges >= EXCHANGE_LIMIT:
            return self._refuse(BUSY, 503)
        self._exchanges += 1
        try:
            user = await run_in_threadpool(
                self._provider.find_user, values["code"], self._redirect, pending.verifier
            )
        finally:
            self._exchanges -= 1
        principal = self._settings.find_principal(user)
        logger.info("Signed in: %s as %s", principal.name, principal.role.label)
        response = RedirectResponse("../", status_code=303)
        self._access.set_cookie(request, response, principal, SESSION_SECONDS)
        response.delete_cookie(COOKIE, path="/login")
        return response

    def _refuse(self, problem: str, status: int) -> Response:
        return HTMLResponse(self._access.render_login(problem, root="../"), status_code=status)

    @property
    def _is_secure(self) -> bool:
        return self._settings.provider.startswith("https://")

    @property
    def _origin(self) -> str:
        return f"{'https' if self._is_secure else 'http'}://{self._settings.host}"

    @property
    def _redirect(self) -> str:
        return f"{self._origin}{CALLBACK}"
