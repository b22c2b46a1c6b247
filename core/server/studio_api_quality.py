"""The answers of the last days over HTTP: figures of each mix, and judgements of answers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel

from core.engine.answer_quality import ID_LIMIT
from core.server.access import Role, require
from core.server.studio_api_models import EngineOf, example, form
from core.store.answer_log import DAYS, KEPT_DAYS, MixFigures

router = APIRouter(prefix="/api", tags=["answers"])


class MixFiguresView(BaseModel):
    """What the answers of one mix on one base were like; `mix` is empty for the base."""

    model_config = example(
        mix="notes=0.7", name="Calm", base="embedded", answers=12, per_day={"2026-11-28": 4, "2026-11-29": 8},
        tokens_per_second=210.5, p50_seconds=0.31, p95_seconds=0.52, empty=0, too_long=2, fallbacks=0,
        good=3, poor=1,
    )  # fmt: skip
    mix: str
    name: str
    base: str
    answers: int
    per_day: dict[str, int]
    tokens_per_second: float | None
    p50_seconds: float
    p95_seconds: float
    empty: int
    too_long: int
    fallbacks: int
    good: int
    poor: int


class Rating(BaseModel):
    """A judgement of an answer."""

    model_config = form(good=True)
    good: bool


@router.get("/answers", response_model=list[MixFiguresView], summary="Show what the answers were like",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def show_answers(
    engine: EngineOf, days: Annotated[int, Query(ge=1, le=KEPT_DAYS, examples=[DAYS])] = DAYS
) -> list[MixFigures]:
    """Figures of every mix that has answered in the last days, the most used first. No texts are kept."""
    return engine.answer_quality.summarize(days)


class RatingView(BaseModel):
    """The judgement of an answer that counts now."""

    model_config = example(answer="chatcmpl-9ab01c22-0", good=True)
    answer: str
    good: bool


@router.post("/answers/{answer_id}/rating", response_model=RatingView, summary="Judge an answer",
             dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def rate_answer(
    answer_id: Annotated[str, Path(max_length=ID_LIMIT, examples=["chatcmpl-9ab01c22-0"])],
    body: Rating,
    engine: EngineOf,
) -> RatingView:
    """Records whether an answer of today or yesterday was good: the id of a completion, "-", its choice."""
    engine.answer_quality.rate(answer_id, body.good)
    return RatingView(answer=answer_id, good=body.good)
