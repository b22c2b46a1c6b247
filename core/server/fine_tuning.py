"""Fine-tuning on documents over HTTP: set up, look at the status, ask. `core.engine.fine_tuning` does it."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.concurrency import run_in_threadpool

from core.engine import Engine
from core.engine.fine_tuning import DOCUMENT_LIMIT, FineTuning, FineTuningStatus
from core.engine.serving import Request as Question
from core.server.access import Role, require
from core.server.streams import CLIENT_LEFT, finish, wait_for_value
from core.server.studio_api_models import (
    PROMPT_LIMIT,
    EngineOf,
    Text,
    example,
    form,
    make_model,
    read_fields,
)
from core.server.studio_api_uploads import check_fields, read_json
from core.spec.fine_tuning import DEFAULT_MODEL, FineTuningConfig
from core.spec.mix import NEW_TOKENS_LIMIT, Sampling

router = APIRouter(prefix="/fine-tuning", tags=["fine-tuning"])
DOCUMENT_TEXT_LIMIT = 1_000_000  # characters of one document
ConfigBody = make_model(FineTuningConfig, "FineTuningConfig")


class Document(BaseModel):
    """A document of a RAG system: its text under one of these names, and anything beside it."""

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"page_content": "The lamp is in the north room."}]}
    )
    page_content: str | None = Field(None, max_length=DOCUMENT_TEXT_LIMIT)
    text: str | None = Field(None, max_length=DOCUMENT_TEXT_LIMIT)
    content: str | None = Field(None, max_length=DOCUMENT_TEXT_LIMIT)


class Setup(BaseModel):
    """What is learned, and how. Without a body: the newest dataset, with the defaults."""

    model_config = form(documents=["The lamp is kept in the north room."], config={"num_epochs": 3})
    documents: list[str | Document] = Field([], max_length=DOCUMENT_LIMIT)
    dataset: str = Field("", max_length=64, description="Id of an uploaded dataset; empty is the newest.")
    config: ConfigBody = Field(default_factory=ConfigBody)  # type: ignore[valid-type]


class SetupView(BaseModel):
    """A training that was queued. `notes` say where the configuration was adapted."""

    model_config = example(
        message="Fine-tuning 1 is queued.", run="fine-tuning-1-20c1", dataset="notes-1f3a", base="embedded",
        config={"num_epochs": 3, "lora_rank": 16}, notes=[],
    )  # fmt: skip
    message: str
    run: str
    dataset: str
    base: str
    config: dict[str, Any]
    notes: list[str]


class StatusView(BaseModel):
    """Whether a version is trained and available, and where the newest run is; losses in nats per token."""

    model_config = example(
        state="running", explanation="It is training.", next_step="Wait.", trained=False, available=True,
        progress=0.25, step=10, total_steps=40, loss=3.1, validation_loss=None, run="fine-tuning-1-20c1",
        adapter="", version=0, base="embedded", error="",
    )  # fmt: skip
    state: str
    explanation: str
    next_step: str
    trained: bool
    available: bool
    progress: float
    step: int
    total_steps: int
    loss: float | None
    validation_loss: float | None
    run: str
    adapter: str
    version: int
    base: str
    error: str


class Query(BaseModel):
    """A question."""

    model_config = form(query="What is machine learning?")
    query: Text = Field(min_length=1)
    max_new_tokens: int = Field(96, ge=1, le=NEW_TOKENS_LIMIT)

    @field_validator("max_new_tokens", mode="before")
    @classmethod
    def read_number(cls, value: Any) -> Any:
        """A number that a form sent as text."""
        return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


class AnswerView(BaseModel):
    """An answer, and what gave it: a version of the fine-tuning, or the base."""

    model_config = example(
        query="Where is the lamp?", answer="The lamp is kept in the north room.", fine_tuned=True,
        model="Fine-tuning 1", version=1, base="embedded", tokens=12, latency_seconds=0.4,
    )  # fmt: skip
    query: str
    answer: str
    fine_tuned: bool
    model: str
    version: int
    base: str
    tokens: int
    latency_seconds: float


@router.post(
    "/setup",
    status_code=202,
    response_model=SetupView,
    summary="Train an adapter on documents",
    openapi_extra={
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Setup"}}}}
    },
    dependencies=[Depends(require(Role.TRAINER))],
)
async def set_up(request: Request, engine: EngineOf) -> SetupView:
    """Queues a run on the documents of the body, on a dataset, or on what was uploaded last.

    The base is the one that is resident; a `model_name` that differs is refused, with what is resident.
    """
    return await run_in_threadpool(_set_up, engine, await read_json(request, Setup))


def _set_up(engine: Engine, body: Setup) -> SetupView:
    tuning, given = FineTuning(engine), read_fields(body.config)  # type: ignore[arg-type]
    base = engine.bases.current()
    config = FineTuningConfig.from_json({"model_name": base.name, **given})
    tuning.check_base(config)
    tuning.check_idle()  # before documents are imported
    if body.documents:
        dataset = tuning.import_documents(
            d if isinstance(d, str) else d.model_dump(exclude_none=True) for d in body.documents
        )
    else:
        dataset = tuning.find_dataset(body.dataset)
    run = tuning.start(config, dataset)
    notes = []
    if base.context and config.max_length > base.context:
        notes.append(f"max_length is {base.context}: the base reads no longer sequences.")
    if "model_name" not in given and base.name != DEFAULT_MODEL:
        notes.append(f"The base is {base.name!r}, which is resident; another one is chosen by its owner.")
    name = engine.runs.get(run).name
    return SetupView(
        message=f"{name} is queued.", run=run, dataset=dataset.id, base=base.name, config=config.to_json(),
        notes=notes,
    )  # fmt: skip


@router.get(
    "/status",
    response_model=StatusView,
    summary="Whether a version is trained and available",
    dependencies=[Depends(require(Role.VIEWER))],
)
def read_status(engine: EngineOf) -> FineTuningStatus:
    """The newest run with its progress, and which version answers."""
    return FineTuning(engine).status()


_SCHEMA = {"$ref": "#/components/schemas/Query"}  # `core.server.studio_api_document` adds it
_BODY = {
    "required": True,
    "content": {
        kind: {"schema": _SCHEMA, "example": {"query": "What is machine learning?"}}
        for kind in ("multipart/form-data", "application/x-www-form-urlencoded", "application/json")
    },
}


@router.post(
    "/query",
    response_model=AnswerView,
    summary="Ask the newest version",
    openapi_extra={"requestBody": _BODY},
    dependencies=[Depends(require(Role.VIEWER))],
)
async def query(request: Request, engine: EngineOf) -> AnswerView | Response:
    """Answers a question, sent as a form field `query` or as JSON; without a version, the base answers."""
    question = await _read_query(request)
    mix, version = await run_in_threadpool(FineTuning(engine).find_mix)
    begun = time.monotonic()
    sampling = Sampling(max_new_tokens=question.max_new_tokens)
    engine.bases.load()  # where no page has done so
    completion = engine.serving.submit(Question(question.query, mix, sampling))
    progress = await wait_for_value(request, finish(completion))
    if progress is None:
        return Response(status_code=CLIENT_LEFT)
    column = progress.columns[0]
    return AnswerView(
        query=question.query, answer=column.text, fine_tuned=version > 0, model=mix.name, version=version,
        base=engine.bases.current().name, tokens=column.tokens, latency_seconds=time.monotonic() - begun,
    )  # fmt: skip


async def _read_query(request: Request) -> Query:
    """The question of a request.

    Raises:
        Problem: it cannot be read, or has no question.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        async with request.form(max_files=0, max_fields=10, max_part_size=4 * PROMPT_LIMIT) as fields:
            return check_fields(Query, dict(fields))
    return await read_json(request, Query)
