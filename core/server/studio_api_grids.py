"""Grids over HTTP: a run for every combination of settings, and the experiment that a grid ends in."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from core.engine import Engine
from core.server.access import Role, require
from core.server.studio_api_models import (
    TIME,
    EngineOf,
    Kind,
    TrainSettings,
    example,
    form,
    make_model,
    read_fields,
)
from core.server.studio_api_runs import PresetName, plan_run
from core.spec.grid_questions import GridQuestions
from core.spec.settings import TEXT_LIMIT
from core.store.grids import CELL_LIMIT, FIELDS, GRID_PRESETS, Grid, GridPreset

router = APIRouter(prefix="/api/grids", tags=["grids"])
GridName = Literal[("", *GRID_PRESETS)]  # type: ignore[valid-type]
FieldName = Literal[tuple(FIELDS)]  # type: ignore[valid-type]
Word = Annotated[str, Field(max_length=TEXT_LIMIT)]
Value = (
    bool
    | int
    | Annotated[float, Field(allow_inf_nan=False)]
    | Word
    | Annotated[list[Word], Field(max_length=64)]
)
QuestionFields = make_model(GridQuestions, "GridQuestions")


class NewGrid(BaseModel):
    """Settings that all cells share, and those that vary; every combination of values is a run."""

    model_config = form(
        kind="domain", settings={"name": "Ranks", "dataset": "notes-1f3a"}, vary={"rank": [16, 32]},
        then_ask={"dataset": "pairs-77aa", "documents": "on"},
    )  # fmt: skip
    kind: Kind
    preset: PresetName = Field("", description="Empty takes what suits the dataset and the base.")
    settings: TrainSettings  # type: ignore[valid-type]
    grid: GridName = Field("", description="A grid that is often useful; `vary` and `settings` add to it.")  # type: ignore[valid-type]
    vary: dict[FieldName, Annotated[list[Value], Field(min_length=1, max_length=CELL_LIMIT)]] = Field(  # type: ignore[valid-type]
        {}, description="Setting -> its values."
    )
    then_ask: QuestionFields | None = Field(  # type: ignore[valid-type]
        None, description="Once the last run has ended, one experiment asks these questions."
    )


class GridView(BaseModel):
    """A grid. `experiment` is the id of the experiment that it ended in, or "" before, and without questions.

    `experiment_problem` says why it could not be started; `left_out` names the cells without an adapter.
    """

    model_config = example(
        id="ranks-1f3a", name="Ranks", created=TIME, axes={"rank": [16, 32]}, counts={"finished": 2}, note="",
        cells=[{"name": "Ranks: rank 16", "values": {"rank": 16}, "status": "finished", "best": True}],
        questions={"dataset": "pairs-77aa"}, experiment="grid-ranks-1f3a-20c1", experiment_problem="",
        left_out=[],
    )  # fmt: skip
    id: str
    name: str
    created: float
    axes: dict[str, list[Any]]
    counts: dict[str, int]
    note: str
    cells: list[dict[str, Any]]
    questions: dict[str, Any] | None
    experiment: str
    experiment_problem: str
    left_out: list[str]

    @classmethod
    def of(cls, engine: Engine, grid: Grid) -> GridView:
        """The view of a grid, the best cell first."""
        results = engine.grids.results(grid.id)
        ending = results.grid.follow_up
        cells = [
            {
                "name": row.cell.spec.name,
                "values": row.cell.values,
                **_write_figures(row.figures()),
                "best": row.best,
            }
            for row in results.rows
        ]
        return cls(
            id=grid.id, name=grid.name, created=grid.created, axes=grid.axes, counts=results.counts,
            note=results.note, cells=cells, questions=results.grid.questions,
            experiment=ending.experiment if ending else "",
            experiment_problem=ending.problem if ending else "",
            left_out=list(ending.left_out) if ending else [],
        )  # fmt: skip


def _write_figures(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of a cell as JSON holds them: null for what is not a finite number."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in figures.items()
    }


@router.get("", response_model=list[GridView], summary="List the grids",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def list_grids(engine: EngineOf) -> list[GridView]:
    """All grids, the newest first."""
    return [GridView.of(engine, grid) for grid in engine.grids.list()]


@router.post("", status_code=202, response_model=GridView, summary="Start a grid",
             dependencies=[Depends(require(Role.TRAINER))])  # fmt: skip
def start_grid(body: NewGrid, engine: EngineOf) -> GridView:
    """Queues a run for every cell and answers at once; `GET /api/grids/{id}` follows it."""
    engine.bases.load()  # where no page has done so
    preset = GRID_PRESETS.get(body.grid, GridPreset({}))
    changes = {**preset.settings, **read_fields(body.settings)}  # type: ignore[arg-type]
    spec = plan_run(engine, body.kind, body.preset, changes)
    axes = {**preset.axes, **{name: list(values) for name, values in body.vary.items()}}
    questions = None
    if body.then_ask is not None:
        asked = read_fields(body.then_ask)
        has_documents = preset.documents and engine.retrieval.list_documents()
        usual = {"documents": preset.documents} if has_documents else {}
        questions = GridQuestions.from_json({**usual, **asked})
    return GridView.of(engine, engine.grids.start(spec, axes, spec.name, questions))


@router.get("/{grid_id}", response_model=GridView, summary="Show a grid",
            dependencies=[Depends(require(Role.VIEWER))])  # fmt: skip
def get_grid(grid_id: str, engine: EngineOf) -> GridView:
    """One grid: its cells, the best first, and the experiment that it ended in."""
    return GridView.of(engine, engine.grids.get(grid_id))
