"""Whether the server answers (`GET /health`), and whether its model does (`GET /ready`)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from core.engine import Engine
from core.server.access import Principal, Role, require
from core.server.problems import Problem

router = APIRouter(tags=["Operation"])
Anyone = Annotated[Principal, Depends(require(Role.NONE))]


@router.get("/health", summary="Whether the process answers")
async def check_health(principal: Anyone) -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get(
    "/ready",
    summary="Whether the base is loaded",
    responses={503: {"description": "The base is not loaded; the problem says what is missing."}},
)
async def check_readiness(request: Request, principal: Anyone) -> dict[str, str]:
    """The base is loaded.

    The answer needs no credential, so it holds no name and no path.
    """
    engine: Engine = request.app.state.engine
    if not engine.worker.is_running:
        raise Problem(503, "The studio is closing.", "Start it again.")
    if engine.bases.current().loading:
        raise Problem(
            503, "The base is being loaded.", "Ask again in a moment.", headers={"Retry-After": "5"}
        )
    if engine.resident_base.peek() is None:
        raise Problem(
            503, "No base is loaded.", "The log of the studio says why; start it with another base."
        )
    return {"status": "ready"}
