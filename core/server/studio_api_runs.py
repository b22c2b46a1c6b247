"""Training runs over HTTP: start, list, stop, pause, resume, and their events by cursor or as a stream."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query
from pydantic import BaseModel, Field

from core.engine import Engine
from core.server.access import Role, require
from core.server.events_stream import (
    EVENT_SCHEMA,
    HEADERS,
    EventStream,
    end_with_problem,
    read_place,
    stream_run,
)
from core.server.studio_api_models import (
    EngineOf,
    EventsView,
    Kind,
    RunView,
    TrainSettings,
    form,
    read_fields,
)
from core.spec.presets import PRESETS, preset_of_size, resolve
from core.spec.training import TrainSpec

router = APIRouter(prefix="/api/runs", tags=["runs"])
PresetName = Literal[("", *PRESETS)]  # type: ignore[valid-type]
STREAM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The events.",
        "content": {
            "text/event-stream": {
                "schema": EVENT_SCHEMA,
                "example": 'id: 412\nevent: step\ndata: {"kind": "step", "step": 1, "loss": 3.2}\n\n',
            }
        },
    }
}


class NewRun(BaseModel):
    """A training run: the settings that differ from a preset, or from what suits the dataset."""

    model_config = form(kind="domain", settings={"name": "Notes", "dataset": "notes-1f3a", "epochs": 3})
    kind: Kind
    preset: PresetName = Field("", description="Empty takes what suits the dataset and the base.")
    settings: TrainSettings  # type: ignore[valid-type]


def plan_run(engine: Engine, kind: str, preset: str, changes: dict[str, Any]) -> TrainSpec:
    """The settings of a run: those of a preset, or those that suit the dataset; then the changes.

    Args:
        preset: "" takes what suits the dataset and the resident base.

    Raises:
        SpecError, NotFound
    """
    base = engine.bases.current()
    size_preset = "embedded" if base.name == "embedded" else preset_of_size(base.parameters)
    spec = resolve(kind, preset or size_preset, changes)  # refuses wrong values before the dataset is read
    if preset or not spec.dataset:
        return spec
    advice = engine.runs.recommend(spec.dataset, size_preset)
    return resolve(kind, size_preset, {**advice.choose(changes), **changes})


@router.get("", response_model=list[RunView], summary="List the runs",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def list_runs(engine: EngineOf) -> list[RunView]:
    """All runs, the newest first."""
    return [RunView.of(run) for run in engine.runs.list()]


@router.post("", status_code=202, response_model=RunView, summary="Start a run",
             dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def start_run(body: NewRun, engine: EngineOf) -> RunView:
    """Queues a run and answers at once; `GET /api/runs/{id}/events` follows it."""
    engine.bases.load()  # where no page has done so
    spec = plan_run(engine, body.kind, body.preset, read_fields(body.settings))  # type: ignore[arg-type]
    return RunView.of(engine.runs.get(engine.runs.start(spec)))


@router.get("/{run_id}", response_model=RunView, summary="Show a run",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def get_run(run_id: str, engine: EngineOf) -> RunView:
    """One run: status, progress and settings."""
    return RunView.of(engine.runs.get(run_id))


@router.post("/{run_id}/stop", response_model=RunView, summary="Stop a run and keep its adapter",
             dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def stop_run(run_id: str, engine: EngineOf) -> RunView:
    """Ends a run after its current step, with its adapter in the library; cancels a queued run."""
    engine.runs.stop(run_id)
    return RunView.of(engine.runs.get(run_id))


@router.post("/{run_id}/pause", response_model=RunView, summary="Pause a run",
             dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def pause_run(run_id: str, engine: EngineOf) -> RunView:
    """Saves a checkpoint after the current step, and frees the model."""
    engine.runs.pause(run_id)
    return RunView.of(engine.runs.get(run_id))


@router.post("/{run_id}/resume", response_model=RunView, summary="Resume a run",
             dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def resume_run(run_id: str, engine: EngineOf) -> RunView:
    """Queues a run again, from its newest checkpoint."""
    engine.bases.load()  # where no page has done so
    engine.runs.resume(run_id)
    return RunView.of(engine.runs.get(run_id))


@router.get("/{run_id}/events", response_model=EventsView, summary="Read the events of a run",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def read_events(
    run_id: str, engine: EngineOf, after: Annotated[int, Query(ge=0, le=10**15 - 1)] = 0
) -> EventsView:
    """The events after a cursor: 0, or the `cursor` of the last response."""
    events, cursor = engine.runs.events(run_id, after)
    return EventsView(events=list(events), cursor=cursor)


@router.get("/{run_id}/stream", response_class=EventStream, responses=STREAM_RESPONSES,
            summary="Follow a run as server-sent events",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def stream_events(
    run_id: str,
    engine: EngineOf,
    after: Annotated[str, Query(max_length=40, description="The id of the last event that was read.")] = "0",
    last_event_id: Annotated[str, Header(max_length=40)] = "",
) -> EventStream:
    """The events of a run until its end, which is an event of the type "end".

    Browsers send `Last-Event-ID` when they connect again; it counts before `after`.
    """
    place = last_event_id or after
    read_place(place)
    engine.runs.get(run_id)
    return EventStream(end_with_problem(stream_run(engine, run_id, place)), headers=HEADERS)
