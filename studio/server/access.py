"""Who may use the page: the login link, the login with a name and a password, sessions, and API keys.

    the page is opened with        a request without credentials is
    the login link (loopback)      refused: 401, and where to find the link
    --auth, --auth-file            refused: 401, with the login form
    --no-token (loopback)          the owner's
    a Hugging Face Space           a viewer's; it signs in for more, with a password or `studio.server.oauth`

A login starts a session: a random cookie, whose hash and role are kept in memory, so a restart ends it.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from core.errors import SpecError
from core.server.access import ANONYMOUS, KeyAccess, Principal, read_key
from core.server.failed_attempts import FailedAttempts
from core.spec.access import Role
from core.store.api_keys import ApiKeys, digest_of
from studio.server import login_pages

logger = logging.getLogger(__name__)
SESSION_SECONDS = 30 * 24 * 3600
SESSION_LIMIT = 1000  # of all users; the one that began first ends
TOKEN_BYTES = 32
SCOPE_KEY = "studio.principal"  # where the guard leaves the principal of a request
ACCESS_KEY = "studio.access"  # and its `PageAccess`


@dataclass(frozen=True)
class Login:
    """A user who signs in with a password."""

    name: str
    password: str
    role: Role = Role.OWNER

    @classmethod
    def parse(cls, text: str, role: Role = Role.OWNER) -> Login:
        """Reads NAME:PASSWORD; the password may hold further colons.

        Raises:
            SpecError: the colon, the name or the password is missing. The message does not quote the text.
        """
        name, colon, password = text.partition(":")
        rule = "A login must be NAME:PASSWORD"
        if not colon:
            raise SpecError(f"{rule}, got a text without a colon.", "Write the name, a colon, the password.")
        if not name.strip():
            raise SpecError(f"{rule}, got an empty name.", "Write a name before the colon.")
        if not password.strip():
            raise SpecError(f"{rule}, got an empty password.", "Write a password after the colon.")
        return cls(name.strip(), password, role)


def read_logins(auth: str | None, file: Path | None, role: Role) -> list[Login]:
    """The users with passwords.

    Args:
        auth: NAME:PASSWORD, or None.
        file: a text file with such lines, or None.
        role: of all of them.

    Raises:
        SpecError: the file cannot be read, or a line has another form.
    """
    lines = [] if auth is None else [auth]
    if file is not None:
        try:
            found = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, ValueError) as e:
            reason = e.strerror if isinstance(e, OSError) else "it is not UTF-8 text"
            raise SpecError(
                f"The file of logins cannot be read: {reason}.", "Write a text file with lines NAME:PASSWORD."
            ) from None
        lines += found or [""]  # an empty file is a mistake, and must not open the studio
    return [Login.parse(line, role) for line in lines]


def read_visitor_role(text: str) -> Role:
    """The role of anonymous visitors of a Space: "viewer", or "none" where all have to sign in; "" is viewer.

    Raises:
        SpecError: it is another word.
    """
    allowed = {"": Role.VIEWER, "viewer": Role.VIEWER, "none": Role.NONE}
    if text.strip().lower() not in allowed:
        raise SpecError(
            f"ADAPTER_STUDIO_VISITORS must be viewer or none, got {text[:40]!r}.",
            "Anonymous visitors of a Space cannot have more.",
        )
    return allowed[text.strip().lower()]


class Sessions:
    """The sessions of signed-in browsers.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: OrderedDict[str, tuple[Principal, float]] = OrderedDict()  # by hash, oldest first

    def start(self, principal: Principal, seconds: float = SESSION_SECONDS) -> str:
        """Starts a session that ends after some time; returns the value of its cookie."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self._sessions[digest_of(token)] = (principal, self._clock() + seconds)
        while len(self._sessions) > SESSION_LIMIT:
            self._sessions.popitem(last=False)
        return token

    def find(self, token: str) -> Principal | None:
        """The user of a session; None where it is unknown or too old."""
        if not token:
            return None
        principal, end = self._sessions.get(digest_of(token), (None, 0.0))
        if principal is not None and self._clock() >= end:
            self.end(token)
            return None
        return principal

    def end(self, token: str) -> None:
        """Ends a session, if it exists."""
        self._sessions.pop(digest_of(token), None)


class PageAccess:
    """Finds the principal of each request to the page, and signs users in.

    Args:
        keys: the API keys of the workspace.
        port: of the page; two studios on one machine have cookies of different names.
        visitor: the role of a request without credentials.
        link: whether a login link signs the owner in; each link works once, and the next one is announced.
        logins: users with passwords.
        has_provider: whether users of a Space sign in with their Hugging Face account.
        is_framed: another site shows the page in a frame (a Space), so the cookie must be sent there, too.
    """

    def __init__(
        self,
        keys: ApiKeys,
        port: int,
        visitor: Role,
        *,
        link: bool = False,
        logins: Sequence[Login] = (),
        has_provider: bool = False,
        is_framed: bool = False,
    ) -> None:
        self.attempts = FailedAttempts()
        self.sessions = Sessions()
        self.cookie = f"adapter-studio-{port}"
        self.visitor_cookie = f"adapter-studio-visitor-{port}"
        self.logins, self.has_provider = tuple(logins), has_provider
        self.announce_link: Callable[[], None] = lambda: None
        self._keys = KeyAccess(keys, self.attempts)
        self._visitor = Principal("visitor", visitor) if visitor > Role.NONE else ANONYMOUS
        self._link = secrets.token_urlsafe(TOKEN_BYTES) if link else ""
        self._is_framed = is_framed

    @property
    def query(self) -> str:
        """What the login link adds to the URL of the page; "" without a link."""
        return f"?token={self._link}" if self._link else ""

    @property
    def has_login_page(self) -> bool:
        """Whether a visitor can sign in at `/login`."""
        return bool(self.logins) or self.has_provider

    def render_login(self, problem: str = "", reopens: bool = False, root: str = "") -> str:
        """The page for signing in, or where the login link is; see `login_pages.render_login`."""
        if not self.has_login_page:
            return login_pages.render_notice(reopens=reopens)
        return login_pages.render_login(
            problem, reopens, has_form=bool(self.logins), has_provider=self.has_provider, root=root
        )

    def identify(self, request: Request) -> Principal:
        """The principal of a request.

        Raises:
            Problem: 429 after too many wrong keys.
        """
        session = self.find_session(request)
        if session is not None:
            return session
        if self._visitor.role < Role.OWNER and read_key(request):
            return self._keys.identify(request)
        return self._visitor

    def find_session(self, request: Request) -> Principal | None:
        """The user of the session of a request."""
        return self.sessions.find(request.cookies.get(self.cookie, ""))

    def needs_visitor_cookie(self, request: Request) -> bool:
        """Whether a browser is an anonymous visitor of a Space that cannot be told from others yet."""
        return self._is_framed and not (
            request.cookies.get(self.cookie) or request.cookies.get(self.visitor_cookie)
        )

    def use_link(self, token: str) -> Principal | None:
        """The owner, if this is the token of the current link, which then stops working."""
        if not self._link or not _are_equal(token, self._link):
            return None
        self._link = secrets.token_urlsafe(TOKEN_BYTES)
        self.announce_link()
        return Principal("owner", Role.OWNER)

    def check_password(self, name: str, password: str) -> Principal | None:
        """The user of a name and a password."""
        found = None
        for login in self.logins:  # all are compared, so that the time says nothing about the names
            if _are_equal(name, login.name) & _are_equal(password, login.password):
                found = Principal(login.name, login.role)
        return found

    def set_cookie(
        self, request: Request, response: Response, principal: Principal, seconds: int = SESSION_SECONDS
    ) -> None:
        """Starts a session in the browser that made a request, in place of the one that it had."""
        self.sessions.end(request.cookies.get(self.cookie, ""))
        token = self.sessions.start(principal, seconds)
        response.set_cookie(self.cookie, token, max_age=seconds, **self._cookie_options(request))

    def sign_out(self, request: Request) -> Response:
        """The response to `/logout`: a POST ends the session, and a GET shows a page that sends it."""
        user = self.find_session(request)
        if request.method != "POST" and user is not None:
            return HTMLResponse(login_pages.render_sign_out(name_of(user)))
        response = RedirectResponse("./", status_code=303)
        if request.method == "POST":
            self.sessions.end(request.cookies.get(self.cookie, ""))
            response.delete_cookie(self.cookie, **self._cookie_options(request))
        return response

    def _cookie_options(self, request: Request) -> dict[str, Any]:
        return {
            "httponly": True,
            "samesite": "none" if self._is_framed else "strict",
            "secure": self._is_framed or request.url.scheme == "https",
        }


class ScopeAccess:
    """For the API that the page mounts: the guard has identified the principal already."""

    def identify(self, request: Request) -> Principal:
        """The principal that the guard found."""
        return principal_of(request)


def principal_of(request: Any) -> Principal:
    """The principal of a request that passed the guard; without the guard, one that may do nothing.

    Args:
        request: Starlette's, or Gradio's around it.
    """
    inner = getattr(request, "request", request)
    principal = getattr(inner, "scope", {}).get(SCOPE_KEY)
    return principal if isinstance(principal, Principal) else ANONYMOUS


@dataclass(frozen=True)
class Visit:
    """What the page says about its visitor.

    Attributes:
        name: of a user who has signed in, or "".
        can_sign_in: whether `/login` offers a way to more.
        can_sign_out: whether the visitor has a session.
    """

    role: Role
    name: str = ""
    can_sign_in: bool = False
    can_sign_out: bool = False


def describe_visit(request: Any) -> Visit:
    """The visit that a request belongs to; it has passed the guard."""
    inner = getattr(request, "request", request)
    access = getattr(inner, "scope", {}).get(ACCESS_KEY)
    role = principal_of(request).role
    if not isinstance(access, PageAccess):
        return Visit(role)
    user = access.find_session(Request(inner.scope))
    can_sign_in = user is None and role < Role.OWNER and access.has_login_page
    return Visit(role, name_of(user) if user else "", can_sign_in, user is not None)


def name_of(principal: Principal) -> str:
    """The name of a user as the page shows it."""
    return principal.name.removeprefix("hf:")


def split_refusal(principal: Principal, role: Role) -> tuple[str, str]:
    """Why a principal may not do what needs a role, and what to do."""
    if principal.role is Role.NONE:
        return "You are not signed in.", "Open the page again and sign in."
    return (
        f"This needs the role {role.label}, and you are {principal.role.label}.",
        "Ask the owner of the studio.",
    )


def describe_refusal(principal: Principal, role: Role) -> str:
    """The two sentences of `split_refusal` as one text."""
    return " ".join(split_refusal(principal, role))


def _are_equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode("utf-8", "replace"))
