"""Tools of MCP: the library, and runs. `core.server.mcp_tools` lists them with their roles."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from core.engine import Engine
from core.server.mcp_mix_tools import Report
from core.server.studio_api_models import (
    AdapterView,
    Kind,
    MixView,
    RunView,
    TrainSettings,
    form,
    read_fields,
)
from core.server.studio_api_runs import PresetName, plan_run

EVENT_LIMIT = 20  # newest events of a run's status


class NoArguments(BaseModel):
    """No arguments."""

    model_config = form()


class LibraryView(BaseModel):
    """The resident base, the adapters, and the saved mixes."""

    base: str
    adapters: list[AdapterView]
    mixes: list[MixView]


async def list_adapters(engine: Engine, arguments: NoArguments, report: Report) -> LibraryView:
    """The library."""

    def read() -> LibraryView:
        return LibraryView(
            base=engine.bases.current().name,
            adapters=[AdapterView.of(adapter, engine) for adapter in engine.library.adapters()],
            mixes=[MixView.of(mix) for mix in engine.library.mixes()],
        )

    return await run_in_threadpool(read)


# --- start_training, run_status, stop_run


class Training(BaseModel):
    """What is trained."""

    model_config = form(kind="domain", dataset="notes-1f3a", name="Notes")
    kind: Kind = Field(description="domain trains on texts, task on prompts with answers.")
    dataset: str = Field(max_length=64, description="Id of a dataset of this kind.")
    name: str = Field(max_length=120, description="Name of the adapter.")
    preset: PresetName = Field("", description="Empty takes what suits the dataset and the base.")
    settings: TrainSettings = Field(  # type: ignore[valid-type]
        default_factory=TrainSettings, description="Settings that differ from the preset."
    )


async def start_training(engine: Engine, arguments: Training, report: Report) -> RunView:
    """Queues a run."""

    def start() -> RunView:
        engine.bases.load()  # where no page has done so
        given = read_fields(arguments.settings)  # type: ignore[arg-type]
        changes = {**given, "dataset": arguments.dataset, "name": arguments.name}
        spec = plan_run(engine, arguments.kind, arguments.preset, changes)
        return RunView.of(engine.runs.get(engine.runs.start(spec)))

    return await run_in_threadpool(start)


class RunId(BaseModel):
    """A run."""

    model_config = form(run="tone-20c1")
    run: str = Field(min_length=1, max_length=120, description="Id of the run.")


class RunStatusView(BaseModel):
    """A run with its newest events."""

    run: RunView
    events: list[dict[str, Any]]


async def read_run(engine: Engine, arguments: RunId, report: Report) -> RunStatusView:
    """A run and the end of its log."""

    def read() -> RunStatusView:
        run = engine.runs.get(arguments.run)
        events: list[dict[str, Any]] = []
        cursor, end = -1, 0
        while end != cursor:
            cursor = end
            new, end = engine.runs.events(arguments.run, cursor)
            events = [*events, *new][-EVENT_LIMIT:]
        return RunStatusView(run=RunView.of(run), events=events)

    return await run_in_threadpool(read)


async def stop_run(engine: Engine, arguments: RunId, report: Report) -> RunView:
    """Stops a run."""

    def stop() -> RunView:
        engine.runs.stop(arguments.run)
        return RunView.of(engine.runs.get(arguments.run))

    return await run_in_threadpool(stop)
