"""Experiments and promotions over HTTP: start, follow, results, report, the gate, and rollback.

Rows at other addresses are started in the terminal only: their keys come from the environment of the studio,
which no request may name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from core.engine import Engine
from core.engine.experiment_html import format_html
from core.engine.experiment_report import make_report
from core.server.access import Role, require
from core.server.studio_api_models import TIME, DeletedView, EngineOf, Split, example, form
from core.spec.answer_metrics import ANSWER_METRICS
from core.spec.experiment import ROWS_LIMIT, ExperimentSpec
from core.spec.mix import NEW_TOKENS_LIMIT
from core.store.promotions import Promotion

router = APIRouter(prefix="/api", tags=["experiments"])
Name = Annotated[str, Field(max_length=120)]
MixText = Annotated[str, Field(max_length=4000)]
MetricName = Literal[tuple(ANSWER_METRICS)]  # type: ignore[valid-type]
REPORT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The report.", "content": {"application/json": {"example": {"rows": []}}}}
}
REPORT_PAGE: dict[int | str, dict[str, Any]] = {
    200: {"description": "The report.", "content": {"text/html": {"example": "<!doctype html>"}}}
}


class NewExperiment(BaseModel):
    """Mixes and documents on the same questions; every combination is a row."""

    model_config = form(
        name="Does it help?", dataset="pairs-1f3a", mixes=["", "notes"], documents=["off", "on"]
    )
    name: str = Field(min_length=1, max_length=120)
    dataset: Name
    split: Split = "test"
    limit: int = Field(0, ge=0, le=1_000_000, description="At most this many questions; 0 means all.")
    sources: list[Name] = Field([], max_length=16, description="Datasets of texts; none means all of them.")
    mixes: list[MixText] = Field(min_length=1, max_length=ROWS_LIMIT, description='"" is the base.')
    documents: list[Annotated[str, Field(max_length=400)]] = Field(
        ["off"], min_length=1, max_length=ROWS_LIMIT, description='"off", "on", or "on:8" for eight passages.'
    )
    metrics: list[MetricName] = Field([], max_length=len(ANSWER_METRICS))  # type: ignore[valid-type]
    max_new_tokens: int = Field(0, ge=0, le=NEW_TOKENS_LIMIT)
    general_questions: int = Field(40, ge=0, le=1000)
    timed_questions: int = Field(12, ge=0, le=1000)


class ExperimentView(BaseModel):
    """An experiment and the work on it; a state begins with done, running, waiting, not run or failed."""

    model_config = example(
        id="does-it-help-1f3a",
        name="Does it help?",
        created=TIME,
        base="embedded",
        state="running",
        share=0.5,
        rows={"base": "done"},
        problem="",
    )
    id: str
    name: str
    created: float
    base: str
    state: str
    share: float
    rows: dict[str, str]
    problem: str

    @classmethod
    def of(cls, engine: Engine, experiment_id: str) -> ExperimentView:
        """The view of an experiment."""
        experiment, status = engine.experiments.get(experiment_id), engine.experiments.status(experiment_id)
        states = engine.experiments.states(experiment_id)
        is_done = all(state == "done" for state in states.values())
        idle = "done" if is_done else "stopped"
        return cls(
            id=experiment.id,
            name=experiment.name,
            created=experiment.created,
            base=experiment.base,
            state=status.state if status else idle,
            share=status.share if status else float(is_done),
            rows=states,
            problem=status.problem if status else "",
        )


class PromotionRequest(BaseModel):
    """A mix and the experiment whose gate decides."""

    model_config = form(mix="notes", experiment="does-it-help-1f3a", dry_run=True)
    mix: MixText = Field(description="An adapter or a saved mix by id or name, a mix, or a row.")
    experiment: Name
    dry_run: bool = Field(False, description="Only say what the gate decides.")


class PromotionView(BaseModel):
    """What `production` stands for."""

    model_config = example(
        id="p-1f3a2b4c", name="notes", weights={"notes-1f3a": 1.0}, experiment="e-1", row="notes", time=TIME
    )
    id: str
    name: str
    weights: dict[str, float]
    experiment: str
    row: str
    time: float

    @classmethod
    def of(cls, promotion: Promotion) -> PromotionView:
        """The view of a promotion."""
        return cls(**{name: getattr(promotion, name) for name in cls.model_fields})


class ProductionView(BaseModel):
    """The promotion in force; null where nothing is promoted."""

    model_config = example(production=None)
    production: PromotionView | None


class DecisionView(BaseModel):
    """What the gate decided: pass, fail, void, or not enough questions, with how many are missing."""

    model_config = example(
        status="fail", text="Falls short: factuality.", missing=0, row="notes", baseline="base + documents",
        criteria=[{"name": "factuality", "status": "fail", "text": "", "missing": 0}], promotion=None,
    )  # fmt: skip
    status: str
    text: str
    missing: int
    row: str
    baseline: str
    criteria: list[dict[str, Any]]
    promotion: PromotionView | None


@router.get("/experiments", response_model=list[ExperimentView], summary="List the experiments",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def list_experiments(engine: EngineOf) -> list[ExperimentView]:
    """All experiments, the newest first."""
    return [ExperimentView.of(engine, e.id) for e in engine.experiments.list()]


@router.post("/experiments", status_code=202, response_model=ExperimentView, summary="Start an experiment",
             dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def start_experiment(body: NewExperiment, engine: EngineOf) -> ExperimentView:
    """Starts an experiment and answers at once; `GET /api/experiments/{id}` follows it."""
    return ExperimentView.of(
        engine, engine.experiments.start(ExperimentSpec.from_json(body.model_dump(mode="json")))
    )


@router.get("/experiments/{experiment_id}", response_model=ExperimentView, summary="Show an experiment",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def get_experiment(experiment_id: str, engine: EngineOf) -> ExperimentView:
    """One experiment, with the state of each row."""
    return ExperimentView.of(engine, experiment_id)


@router.post("/experiments/{experiment_id}/resume", status_code=202, response_model=ExperimentView,
             summary="Continue an experiment", dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def resume_experiment(experiment_id: str, engine: EngineOf) -> ExperimentView:
    """Runs the rows that are not complete, behind what is answered already."""
    engine.experiments.resume(experiment_id)
    return ExperimentView.of(engine, experiment_id)


@router.post("/experiments/{experiment_id}/stop", response_model=ExperimentView,
             summary="Stop an experiment", dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def stop_experiment(experiment_id: str, engine: EngineOf) -> ExperimentView:
    """Stops the work; what is answered stays."""
    engine.experiments.cancel(experiment_id)
    return ExperimentView.of(engine, experiment_id)


@router.get("/experiments/{experiment_id}/report", response_model=dict[str, Any],
            summary="Read the report of an experiment", responses=REPORT,
            dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def read_report(experiment_id: str, engine: EngineOf) -> dict[str, Any]:
    """Figures with intervals, every answer, what changed, settings, versions and checksums."""
    return make_report(engine.judges.results(experiment_id))


@router.get("/experiments/{experiment_id}/report.html", response_class=HTMLResponse, responses=REPORT_PAGE,
            summary="Read the report as a page",
            dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def read_report_page(experiment_id: str, engine: EngineOf) -> HTMLResponse:
    """The report as one HTML file that loads nothing."""
    return HTMLResponse(format_html(make_report(engine.judges.results(experiment_id))))


@router.delete("/experiments/{experiment_id}", response_model=DeletedView, summary="Delete an experiment",
               dependencies=[Depends(require(Role.OWNER))])  # fmt: skip
def delete_experiment(experiment_id: str, engine: EngineOf) -> DeletedView:
    """Moves an experiment to the trash."""
    item = engine.experiments.delete(experiment_id)
    return DeletedView(deleted=experiment_id, entry=item.entry)


@router.get("/production", response_model=ProductionView, summary="Show what is promoted",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def get_production(engine: EngineOf) -> ProductionView:
    """The mix that the model name `production` stands for."""
    current = engine.promotions.current()
    return ProductionView(production=PromotionView.of(current) if current else None)


@router.post("/production", response_model=DecisionView, summary="Promote a mix, if the gate passes it",
             dependencies=[Depends(require(Role.OWNER))])  # fmt: skip
def promote_mix(body: PromotionRequest, engine: EngineOf) -> DecisionView:
    """Applies the rule of an experiment to a mix; a mix that passes becomes `production`."""
    promotion: Promotion | None = None
    if body.dry_run:
        decision = engine.promotions.decide(body.mix, body.experiment)
    else:
        decision, promotion = engine.promotions.promote(body.mix, body.experiment)
    return DecisionView(**decision.to_json(), promotion=PromotionView.of(promotion) if promotion else None)


@router.post("/production/rollback", response_model=ProductionView, summary="Take back a promotion",
             dependencies=[Depends(require(Role.OWNER))])  # fmt: skip
def roll_back(engine: EngineOf) -> ProductionView:
    """Makes the mix `production` again that was promoted before."""
    _, now = engine.promotions.roll_back()
    return ProductionView(production=PromotionView.of(now) if now else None)
