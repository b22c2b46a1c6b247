"""Mixes side by side over HTTP: answers to one prompt, and measurements on a dataset."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from core.engine import Engine
from core.engine.chat import Frame
from core.engine.worker import Stream
from core.errors import SpecError
from core.retrieve.passages import Passage
from core.server.access import Role, require
from core.server.events_stream import (
    EVENT_SCHEMA,
    HEADERS,
    EventStream,
    end_with_problem,
    frame_values,
    poll,
    poll_last,
)
from core.server.streams import CLIENT_LEFT, wait_for_value
from core.server.studio_api_jobs import Job, Jobs
from core.server.studio_api_mixes import find_mix
from core.server.studio_api_models import (
    EngineOf,
    ReportView,
    SamplingSettings,
    Split,
    Text,
    example,
    form,
    read_fields,
)
from core.server.studio_api_retrieval import Documents, PassageView, search_documents, view_passage
from core.spec.mix import COLUMN_LIMIT, NEW_TOKENS_LIMIT, Sampling
from core.store.reports import Report

router = APIRouter(prefix="/api", tags=["answers"])
MixText = Annotated[str, Field(max_length=4000)]
MIXES = "Saved mixes, or adapters with weights, such as notes=0.7,tone=1; base is the base."
MIX_COUNT_LIMIT = 64  # mixes of one evaluation


class Message(BaseModel):
    """A turn of a conversation."""

    model_config = form(role="user", content="Where is the lamp?")
    role: Literal["system", "user", "assistant"]
    content: Text


class Comparison(BaseModel):
    """A prompt, and the mixes that answer it in one batch."""

    model_config = form(prompt="Where is the lamp?", mixes=["base"], sampling={"max_new_tokens": 16})
    prompt: Text | Annotated[list[Message], Field(min_length=1, max_length=200)]
    mixes: list[MixText] = Field(min_length=1, max_length=COLUMN_LIMIT, description=MIXES)
    sampling: SamplingSettings = Field(default_factory=SamplingSettings)  # type: ignore[valid-type]
    chat: bool = Field(True, description="Render the prompt with the chat template; false continues it.")
    same_noise: bool = Field(True, description="Sample every column with the same seed.")
    documents: Documents | None = Field(
        None, description="Answer from these documents: passages for the last question stand before it."
    )
    with_documents: list[bool] | None = Field(
        None,
        max_length=COLUMN_LIMIT,
        description="For each mix, whether it answers from the documents; null means that all do.",
    )


class ColumnView(BaseModel):
    """The answer of one mix. `stamp` holds what was active, read from the tensors.

    `passages` are those of its prompt, cited as [1], [2]; `passages_left_out` did not fit in the context.
    Both are null for an answer without documents.
    """

    model_config = example(
        mix="base", text="In the north room.", thought="", tokens=6, seconds=0.2, done=True, reason="end",
        stamp={"mix": "base"}, passages=None, passages_left_out=None,
    )  # fmt: skip
    mix: str
    text: str
    thought: str
    tokens: int
    seconds: float
    done: bool
    reason: str
    stamp: dict[str, Any]
    passages: list[PassageView] | None = None
    passages_left_out: list[PassageView] | None = None


class ComparisonView(BaseModel):
    """All columns at one moment."""

    model_config = example(columns=[ColumnView.model_config["json_schema_extra"]["examples"][0]],  # type: ignore[index,call-overload]
                           done=True, left_out=0)  # fmt: skip
    columns: list[ColumnView]
    done: bool
    left_out: int


class NewEvaluation(BaseModel):
    """Mixes to measure on a split of a dataset."""

    model_config = form(dataset="pairs-77aa", mixes=["base"], split="test", limit=20)
    dataset: str = Field(min_length=1, max_length=64)
    mixes: list[MixText] = Field(["base"], min_length=1, max_length=MIX_COUNT_LIMIT, description=MIXES)
    split: Split = "test"
    limit: int = Field(0, ge=0, le=10**9, description="At most this many rows; 0 means all.")
    general: bool = Field(True, description="Also measure perplexity on general text.")
    max_new_tokens: int = Field(0, ge=0, le=NEW_TOKENS_LIMIT, description="0 follows the data.")


class EvaluationView(BaseModel):
    """An evaluation in the background; `report` is set at its end."""

    model_config = example(
        id="evaluation-9ab01c22", state="running", done=3, total=10, text="Measuring", report="", problem=None
    )
    id: str
    state: Literal["running", "done", "failed", "cancelled"]
    done: int
    total: int
    text: str
    report: str
    problem: dict[str, Any] | None


def get_jobs(request: Request) -> Jobs:
    """The jobs of the application, as a FastAPI dependency."""
    jobs: Jobs = request.app.state.jobs
    return jobs


JobsOf = Annotated[Jobs, Depends(get_jobs)]


def start_comparison(engine: Engine, body: Comparison) -> Stream:
    """Starts the answers of a comparison; a stream of Frames.

    Raises:
        NotFound, SpecError
    """
    engine.bases.load()  # where no page has done so
    mixes = [find_mix(engine, text) for text in body.mixes]
    sampling = Sampling.from_json(read_fields(body.sampling))  # type: ignore[arg-type]
    prompt = body.prompt if isinstance(body.prompt, str) else [m.model_dump() for m in body.prompt]
    passages = _find_passages(engine, body)
    return engine.chat.stream(prompt, mixes, sampling, body.chat, body.same_noise, passages=passages)


def _find_passages(engine: Engine, body: Comparison) -> list[list[Passage] | None] | None:
    """For each column the passages that it answers from, or None; None for a request without documents."""
    chosen = body.with_documents
    if chosen is not None and (body.documents is None or len(chosen) != len(body.mixes)):
        raise SpecError(
            f"with_documents must have one value per mix ({len(body.mixes)}) beside documents, "
            f"got {len(chosen)}.",
            "Name the datasets in documents, and give one value per mix.",
        )
    if body.documents is None:
        return None
    question = body.prompt if isinstance(body.prompt, str) else body.prompt[-1].content
    found = search_documents(engine, body.documents, question)
    return [found if has_documents else None for has_documents in chosen or [True] * len(body.mixes)]


def view_frame(frame: Frame, names: Sequence[str]) -> ComparisonView:
    """The view of a frame.

    Args:
        names: of the mixes, as the request gave them.
    """
    columns = [
        ColumnView(
            mix=name, text=c.text, thought=c.thought, tokens=c.tokens, seconds=c.seconds, done=c.done,
            reason=c.reason, stamp=c.stamp,
            passages=[view_passage(p) for p in prompt.used] if prompt else None,
            passages_left_out=[view_passage(p) for p in prompt.left_out] if prompt else None,
        )
        for name, c, prompt in zip(names, frame.columns, frame.prompts or [None] * len(names), strict=True)
    ]  # fmt: skip
    return ComparisonView(columns=columns, done=frame.done, left_out=frame.left_out)


@router.post("/compare", response_model=ComparisonView, summary="Answer a prompt with several mixes",
             dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
async def compare(body: Comparison, engine: EngineOf, request: Request) -> ComparisonView | Response:
    """The answers of all mixes, computed in one batch; waits for their end."""
    stream = await run_in_threadpool(start_comparison, engine, body)
    frame = await wait_for_value(request, poll_last(stream))
    return Response(status_code=CLIENT_LEFT) if frame is None else view_frame(frame, body.mixes)


@router.post(
    "/compare/stream",
    response_class=EventStream,
    responses={
        200: {
            "description": "Frames with all columns so far.",
            "content": {
                "text/event-stream": {
                    "schema": EVENT_SCHEMA,
                    "example": 'event: frame\ndata: {"columns": [], "done": false, "left_out": 0}\n\n',
                }
            },
        }
    },
    summary="Follow the answers of several mixes as server-sent events",
    dependencies=[Depends(require(Role.VIEWER))],
)
async def stream_comparison(body: Comparison, engine: EngineOf, request: Request) -> Response:
    """The answers while they grow: events "frame", then "end"; an error in between is a "problem"."""
    stream = await run_in_threadpool(start_comparison, engine, body)

    async def view() -> AsyncIterator[dict[str, Any]]:
        async for frame in poll(stream):
            yield view_frame(frame, body.mixes).model_dump()

    views = view()
    # An error before the first frame is a problem of the request.
    first = await wait_for_value(request, anext(views))
    if first is None:
        return Response(status_code=CLIENT_LEFT)
    return EventStream(end_with_problem(frame_values(first, views, "frame")), headers=HEADERS)


@router.post("/evaluations", status_code=202, response_model=EvaluationView, summary="Measure mixes",
             dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
async def start_evaluation(body: NewEvaluation, engine: EngineOf, jobs: JobsOf) -> EvaluationView:
    """Starts an evaluation and answers with its id; its report stays in the workspace."""

    def measure() -> Stream:
        engine.bases.load()
        mixes = [find_mix(engine, text) for text in body.mixes]
        return engine.evaluation.measure(
            mixes, body.dataset, body.split, body.limit, body.general, max_new_tokens=body.max_new_tokens
        )

    return _view_job(jobs.start("evaluation", await run_in_threadpool(measure)))


@router.get("/evaluations/{evaluation_id}", response_model=EvaluationView, summary="Follow an evaluation",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
async def get_evaluation(evaluation_id: str, jobs: JobsOf) -> EvaluationView:
    """The progress of an evaluation, and the id of its report at the end."""
    return _view_job(jobs.find(evaluation_id))


@router.delete("/evaluations/{evaluation_id}", response_model=EvaluationView, summary="Cancel an evaluation",
               dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
async def cancel_evaluation(evaluation_id: str, jobs: JobsOf) -> EvaluationView:
    """Stops an evaluation; it leaves no report."""
    return _view_job(await jobs.cancel(evaluation_id))


@router.get("/reports", response_model=list[ReportView], summary="List the reports",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def list_reports(engine: EngineOf) -> list[Report]:
    """All reports, the newest first."""
    return engine.evaluation.reports()


@router.get("/reports/{report_id}", response_model=ReportView, summary="Show a report",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def get_report(report_id: str, engine: EngineOf) -> Report:
    """One report: a row of figures for each mix."""
    return engine.evaluation.report(report_id)


def _view_job(job: Job) -> EvaluationView:
    progress = job.progress
    return EvaluationView(
        id=job.id, state=job.state,  # type: ignore[arg-type]
        done=progress.done if progress else 0, total=progress.total if progress else 0,
        text=progress.text if progress else "Waiting for the model",
        report=progress.report if progress else "", problem=job.problem or None,
    )  # fmt: skip
