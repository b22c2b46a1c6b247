"""Who may do what: roles, and the principal behind a request.

Every route names the role that it needs with `require`; a route without it is a defect that a test finds.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from fastapi import Request

from core.engine.callers import Caller, set_caller
from core.server.failed_attempts import FailedAttempts, address_of
from core.server.problems import Problem
from core.spec.access import Role
from core.store.api_keys import ApiKeys

__all__ = ["ANONYMOUS", "Access", "KeyAccess", "OpenAccess", "Principal", "Role", "read_key", "require"]

logger = logging.getLogger(__name__)
HOW_TO_SIGN_IN = "Send a key as `Authorization: Bearer KEY`; the owner creates keys."


@dataclass(frozen=True)
class Principal:
    """The person or program behind a request.

    Attributes:
        name: for logs and quotas; never a secret.
    """

    name: str
    role: Role


ANONYMOUS = Principal("anonymous", Role.NONE)


class Access(Protocol):
    """Finds the principal of a request."""

    def identify(self, request: Request) -> Principal:
        """The principal of a request: one with the role NONE where it brings no valid credential.

        Raises:
            Problem: 429 after too many wrong credentials.
        """


class OpenAccess:
    """Every caller is the owner: for `--no-token`, and for tests."""

    def identify(self, request: Request) -> Principal:
        """The owner."""
        return Principal("owner", Role.OWNER)


class KeyAccess:
    """Callers send an API key, as `Authorization: Bearer KEY` or as `x-api-key: KEY`.

    A valid key is accepted at any time. Wrong keys of one client address are answered 401 at first, and then
    429 for a time that doubles with each further one.

    Args:
        attempts: counts the wrong keys; shared with other ways to sign in.
    """

    def __init__(self, keys: ApiKeys, attempts: FailedAttempts | None = None) -> None:
        self.keys = keys
        self.attempts = attempts or FailedAttempts()

    def identify(self, request: Request) -> Principal:
        """The principal of the key of a request.

        Raises:
            Problem: 429 after too many wrong keys.
        """
        secret = read_key(request)
        if not secret:
            return ANONYMOUS
        key = self.keys.find(secret)
        if key is not None:
            return Principal(f"key:{key.name}", Role[key.role.upper()])
        address = address_of(request.scope)
        seconds = self.attempts.wait_seconds(address)
        if seconds > 0:
            raise too_many_attempts(seconds)
        self.attempts.add(address)
        logger.warning("A wrong API key was sent from %s", address)  # never the key itself
        return ANONYMOUS


def read_key(request: Request) -> str:
    """The key that a request sends, or ""."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return request.headers.get("x-api-key", "").strip()


def too_many_attempts(seconds: float) -> Problem:
    """The problem that answers an attempt before its time."""
    whole = max(1, round(seconds))
    return Problem(
        429,
        "Too many wrong credentials from this address.",
        f"Try again in {whole} s.",
        headers={"Retry-After": str(whole)},
    )


def require(role: Role) -> Callable[[Request], Awaitable[Principal]]:
    """A FastAPI dependency that refuses principals below a role, and returns the principal.

    Raises:
        Problem: 401 without a credential, 403 where the role is too low.

    Example:
        @router.get("/v1/models")
        async def list_models(principal: Annotated[Principal, Depends(require(Role.VIEWER))]) -> ...
    """

    async def check(request: Request) -> Principal:
        principal: Principal = request.app.state.access.identify(request)
        set_caller(Caller(principal.name, principal.role < Role.OWNER))
        if principal.role >= role:
            return principal
        if principal.role is Role.NONE:
            raise Problem(401, "Sign in first.", HOW_TO_SIGN_IN, headers={"WWW-Authenticate": "Bearer"})
        raise Problem(
            403,
            f"This needs the role {role.label}, and you are {principal.role.label}.",
            "Ask the owner for a key with that role.",
        )

    check.role = role  # type: ignore[attr-defined]
    return check
