"""Who may do what: roles, and the principal behind a request.

Every route names the role that it needs with `require`; a route without it is a defect that a test finds.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from fastapi import Request

from core.server.problems import Problem


class Role(enum.IntEnum):
    """What a principal may do; each role may do everything that the one before it may."""

    NOBODY = 0  # signed in nowhere: health addresses only
    VIEWER = 1  # prompt, mixes, compare, vote
    TRAINER = 2  # datasets and runs
    OWNER = 3  # delete, export, base, keys


@dataclass(frozen=True)
class Principal:
    """The person or program behind a request.

    Attributes:
        name: for logs and quotas; never a secret.
    """

    name: str
    role: Role


class Access(Protocol):
    """Finds the principal of a request."""

    def identify(self, request: Request) -> Principal:
        """The principal of a request: one with the role NOBODY where it brings no valid credential."""


class OpenAccess:
    """Everybody is the owner: for `--no-token`, and for tests."""

    def identify(self, request: Request) -> Principal:
        """The owner."""
        return Principal("owner", Role.OWNER)


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
        if principal.role >= role:
            return principal
        if principal.role is Role.NOBODY:
            raise Problem(
                401, "Sign in first.", "Send a key as `Authorization: Bearer KEY`; the owner creates keys."
            )
        raise Problem(
            403,
            f"This needs the role {role.name.lower()}, and you are {principal.role.name.lower()}.",
            "Ask the owner for a key with that role.",
        )

    check.role = role  # type: ignore[attr-defined]
    return check
