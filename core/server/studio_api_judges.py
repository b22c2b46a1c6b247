"""REST routes of judges of experiments: starting one, what it is worth, and what people say of the answers.

A request names a mix, never an address: judges at addresses are started in the terminal, whose environment
holds their keys.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from core.engine import Engine
from core.engine.judges import Ballot
from core.server.access import Role, require
from core.server.studio_api_models import EngineOf, example, form
from core.spec.judge import CRITERIA, CRITERIA_LIMIT, NEEDED_VOTES, JudgeSpec

router = APIRouter(prefix="/api/experiments/{experiment_id}", tags=["experiments"])
Criteria = Annotated[str, Field(max_length=CRITERIA_LIMIT)]


class NewJudge(BaseModel):
    """A mix that judges the answers of an experiment."""

    model_config = form(mix="", limit=40)
    mix: str = Field("", max_length=4000, description='The mix that judges; "" is the base.')
    limit: int = Field(0, ge=0, le=1_000_000, description="At most this many answers; 0 means all.")
    criteria: Criteria = Field(CRITERIA, min_length=1, description="When an answer is Good, and when Poor.")


class JudgesView(BaseModel):
    """The judge that is reading an experiment, and every judge with its agreement with people.

    The shares of a judge are empty unless its verdicts count; its text says why.
    """

    model_config = example(
        state="done", share=1.0, text="40 answers judged", problem="",
        judges=[{"name": "base", "counts": False, "text": "not counted yet: 0 of 30 answers judged ..."}],
    )  # fmt: skip
    state: str
    share: float
    text: str
    problem: str
    judges: list[dict[str, Any]]

    @classmethod
    def of(cls, engine: Engine, experiment_id: str) -> JudgesView:
        """The view of an experiment's judges."""
        found = engine.judges.results(experiment_id).judges
        status = engine.judges.status(experiment_id)
        return cls(
            state=status.state if status else "idle",
            share=status.share if status else 0.0,
            text=status.text if status else "",
            problem=status.problem if status else "",
            judges=[judge.to_json() for judge in found],
        )


class AnswerVote(BaseModel):
    """What a person says about an answer."""

    model_config = form(answer="0123456789abcdef", verdict="good")
    answer: str = Field(max_length=64, description="The key of the answer, as the ballot shows it.")
    verdict: Literal["good", "poor", "skip"] = Field(description="A skipped answer does not count.")
    criteria: Criteria = Field("", description='"" takes those of the newest judge, or the usual ones.')


class BallotView(BaseModel):
    """The next answer for a person, without the name of its row; null where all are judged."""

    model_config = example(
        answer={"key": "0123456789abcdef", "question": "Where is it?", "reference": "In the north room.",
                "passages": [], "answer": "In the cold room."},
        criteria=CRITERIA, votes=12, needed=NEEDED_VOTES,
    )  # fmt: skip
    answer: dict[str, Any] | None
    criteria: str
    votes: int
    needed: int

    @classmethod
    def of(cls, ballot: Ballot) -> BallotView:
        """The view of a ballot."""
        shown = ballot.answer
        names = ("key", "question", "reference", "passages", "answer")
        answer = {name: getattr(shown, name) for name in names} if shown else None
        return cls(answer=answer, criteria=ballot.criteria, votes=ballot.count, needed=ballot.needed)


@router.get("/judges", response_model=JudgesView, summary="List the judges of an experiment",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def list_judges(experiment_id: str, engine: EngineOf) -> JudgesView:
    """Every judge with Cohen's kappa between it and people, and whether its verdicts count."""
    return JudgesView.of(engine, experiment_id)


@router.post("/judges", status_code=202, response_model=JudgesView, summary="Let a mix judge the answers",
             dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def start_judge(experiment_id: str, body: NewJudge, engine: EngineOf) -> JudgesView:
    """Starts a judge on the answers that it has not read, and answers at once."""
    engine.judges.start(experiment_id, JudgeSpec.from_json(body.model_dump()))
    return JudgesView.of(engine, experiment_id)


@router.post("/judges/stop", response_model=JudgesView, summary="Stop a judge",
             dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def stop_judge(experiment_id: str, engine: EngineOf) -> JudgesView:
    """Stops the judge; its verdicts stay, and another start continues there."""
    engine.judges.cancel(experiment_id)
    return JudgesView.of(engine, experiment_id)


@router.get("/votes/next", response_model=BallotView, summary="Draw an answer to judge yourself",
            dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def draw_answer(experiment_id: str, engine: EngineOf) -> BallotView:
    """The next answer for a person: rows are drawn evenly, answers that a judge has read come first."""
    return BallotView.of(engine.judges.draw(experiment_id))


@router.post("/votes", response_model=BallotView, summary="Say whether an answer is good",
             dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def vote(experiment_id: str, body: AnswerVote, engine: EngineOf) -> BallotView:
    """Stores what a person says about an answer, and draws the next one."""
    ballot = engine.judges.vote(experiment_id, body.answer, body.verdict, body.criteria)
    return BallotView.of(ballot)
