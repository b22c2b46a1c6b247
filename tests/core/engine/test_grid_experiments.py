"""A grid ends in one experiment: once, whatever kills the studio, and without the cells that failed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main
from core.engine import Engine
from core.engine.grid_experiments import GridExperiments, name_experiment
from core.errors import NotFound, SpecError
from core.spec.experiment import ON
from core.spec.grid_questions import GridQuestions
from core.spec.training import RunStatus, TrainSpec
from core.store import experiments, grids, runs
from core.store.grids import FollowUp, Grid
from tests.conftest import SENTENCES

from .test_grids import FAST

pytestmark = pytest.mark.slow
TWO: grids.Axes = {"rank": [2, 4]}


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("files")
    texts, pairs = folder / "notes.txt", folder / "pairs.jsonl"
    texts.write_text("\n\n---\n\n".join(SENTENCES[:12]), encoding="utf-8")
    rows = [{"question": f"Where is the {s.split()[1]} {s.split()[2]}?", "answer": s} for s in SENTENCES[:30]]
    pairs.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), quantization="none", device="cpu") as made:
        made.datasets.import_files([texts], "Notes", "domain")
        made.datasets.import_files([pairs], "Pairs", "task")
        yield made


def ids(engine: Engine) -> dict[str, str]:
    return {d.name: d.id for d in engine.datasets.list()}


def questions(engine: Engine, **changes: Any) -> GridQuestions:
    return GridQuestions(dataset=ids(engine)["Pairs"], limit=1, **changes)


def train_spec(engine: Engine, kind: str = "domain", **changes: Any) -> TrainSpec:
    data = ids(engine)["Notes" if kind == "domain" else "Pairs"]
    return TrainSpec(**{"kind": kind, "name": "Base", "dataset": data, **FAST, "max_steps": 1, **changes})


@pytest.fixture
def still(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experiments are stored and not worked on, and nothing watches the grids."""
    monkeypatch.setattr(engine.experiments, "_start_job", lambda experiment: None)
    monkeypatch.setattr(GridExperiments, "watch", lambda self: None)


@pytest.fixture(scope="module")
def run(engine: Engine) -> str:
    """A run that has ended with an adapter."""
    return engine.runs.wait(engine.runs.start(train_spec(engine, name="Trained"))).id


def define(engine: Engine, name: str, *run_ids: str, **changes: Any) -> Grid:
    """A grid with questions, whose cells have these runs."""
    axes: grids.Axes = {"rank": list(range(1, 1 + len(run_ids)))}
    grid = engine.grids.define(train_spec(engine), axes, name, questions(engine, **changes))
    return grids.set_runs(engine.workspace, grid.id, dict(enumerate(run_ids)))


def list_named(engine: Engine, grid: Grid) -> list[experiments.Experiment]:
    return [e for e in engine.experiments.list() if e.name == name_experiment(grid)]


def test_a_grid_asks_base_and_cells_once_the_last_cell_has_ended(engine: Engine) -> None:
    gate = threading.Event()
    engine.worker.run(lambda: gate.wait(60) and None)
    grid = engine.grids.start(train_spec(engine), TWO, "Ranks", questions(engine, documents=ON))
    assert engine.grids.experiments.start_due() == [] and list_named(engine, grid) == []
    gate.set()
    for run_id in grid.runs:
        engine.runs.wait(run_id, 120)
    ended = engine.grids.experiments.wait(grid.id)
    assert ended.follow_up and not ended.follow_up.problem and ended.follow_up.left_out == ()
    (experiment,) = list_named(engine, grid)
    assert ended.follow_up.experiment == experiment.id
    adapters = [engine.runs.get(run_id).adapter for run_id in grid.runs]
    assert [(r.name, r.mix, r.passages) for r in experiment.rows] == [
        ("base", "", 0), ("base + documents", "", 4),
        ("rank 2", adapters[0], 0), ("rank 2 + documents", adapters[0], 4),
        ("rank 4", adapters[1], 0), ("rank 4 + documents", adapters[1], 4),
    ]  # fmt: skip
    assert engine.experiments.wait(experiment.id, 120).state == "done"
    results = engine.experiments.results(experiment.id)
    assert [r.state for r in results.rows] == ["done"] * 6 and results.compare("base", "rank 4", "f1")
    engine.grids.experiments.start_due()
    assert len(list_named(engine, grid)) == 1


def test_a_cell_on_a_parent_adapter_answers_together_with_it(engine: Engine, still: None, run: str) -> None:
    parent = engine.runs.get(run).adapter
    stacked = engine.runs.wait(engine.runs.start(train_spec(engine, "task", stack_on=parent)))
    grid = define(engine, "Stacked", stacked.id)
    engine.grids.experiments.wait(grid.id)
    (experiment,) = list_named(engine, grid)
    assert [(r.name, r.mix, r.passages) for r in experiment.rows] == [
        ("base", "", 0), ("base + documents", "", 4), ("rank 1", f"{parent} + {stacked.adapter}", 0)
    ]  # fmt: skip
    engine.experiments.delete(experiment.id)
    assert engine.grids.experiments.start_due() == [], "a deleted experiment does not come back"


def test_cells_without_an_adapter_are_left_out_and_named(engine: Engine, still: None, run: str) -> None:
    other = engine.runs.get(engine.runs.wait(engine.runs.start(train_spec(engine, name="Other"))).id)
    grid = define(engine, "Failing", other.id, "gone-0000", run, "")
    runs.update(engine.workspace, other, status=RunStatus.DIVERGED)
    assert engine.grids.experiments.start_due() == [], "one cell has no run yet"
    paused = engine.runs.get(run)
    grids.set_runs(engine.workspace, grid.id, {3: run})
    runs.update(engine.workspace, paused, status=RunStatus.PAUSED)
    assert engine.grids.experiments.start_due() == [], "a paused run can be resumed"
    runs.update(engine.workspace, paused, status=RunStatus.STOPPED)
    ended = engine.grids.experiments.wait(grid.id)
    assert ended.follow_up and ended.follow_up.left_out == (
        "rank 1: diverged",
        "rank 2: its run was deleted, or cannot be read",
    )
    assert [r.name for r in list_named(engine, grid)[0].rows][2:] == ["rank 3", "rank 4"]
    none = engine.grids.experiments.wait(define(engine, "None", other.id).id).follow_up
    assert none and "No cell ended with an adapter" in none.problem and not none.experiment


def test_a_process_killed_before_the_record_leaves_one_experiment(
    engine: Engine, still: None, run: str, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = define(engine, "Killed", run)

    class Killed(BaseException):
        pass

    def write(workspace: Any, changed: Grid) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(grids, "_write", write)
        with pytest.raises(Killed):
            engine.grids.experiments.start_due()
    (left,) = list_named(engine, grid)
    assert engine.grids.get(grid.id).is_pending
    monkeypatch.undo()  # the next process works on its experiments, and watches its grids
    with Engine(engine.workspace.root, str(tiny_base), quantization="none", device="cpu") as later:
        later.grids.experiments.watch()
        ended = later.grids.experiments.wait(grid.id)
        assert ended.follow_up == FollowUp(experiment=left.id) and len(list_named(later, grid)) == 1
        assert later.experiments.wait(left.id, 120).state == "done", "it continues"


def test_two_processes_start_one_experiment(engine: Engine, still: None, run: str) -> None:
    grid = define(engine, "Shared", run)
    threads = [threading.Thread(target=engine.grids.experiments.start_due) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(list_named(engine, grid)) == 1


def test_questions_that_cannot_be_asked_queue_nothing(engine: Engine) -> None:
    before = len(engine.grids.list())
    notes, pairs = ids(engine)["Notes"], ids(engine)["Pairs"]
    many: grids.Axes = {"rank": list(range(1, 33)), "seed": [1, 2]}
    for axes, refused, reason in (
        (TWO, GridQuestions(dataset=notes), "holds texts"),
        (TWO, GridQuestions(dataset=pairs, sources=(pairs,)), "holds no documents"),
        (many, GridQuestions(dataset=pairs), "at most 64 rows, and 64 cells would have 66"),
        (TWO, GridQuestions(dataset="gone-0000"), "gone-0000"),
    ):
        with pytest.raises((SpecError, NotFound), match=reason):
            engine.grids.start(train_spec(engine), axes, "Refused", refused)
    with pytest.raises(SpecError, match="at most 64 rows"):
        GridQuestions(dataset=pairs, documents=ON).check_cells(32)
    GridQuestions(dataset=pairs, documents=ON).check_cells(31)
    assert len(engine.grids.list()) == before


def test_the_grids_of_the_portfolio_also_ask_with_documents() -> None:
    wanted = {name: preset.documents for name, preset in grids.GRID_PRESETS.items()}
    assert wanted == {"rank x rate x epochs": "", "portfolio, 64 sequences": ON, "portfolio, 64 tokens": ON}


def test_the_terminal_waits_for_the_experiment_and_shows_it(
    engine: Engine, tiny_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--workspace", str(engine.workspace.root), "--base", str(tiny_base), "--quantization", "none"]
    settings = ["--preset", "standard", "--max-steps", "1", "--rank", "2", "--max-length", "48"]
    ask = ["--then-ask", "Pairs", "--documents", "Notes"]
    start = ["grid", "start", "domain", "--dataset", ids(engine)["Notes"], "--name", "From a terminal"]
    assert main([*start, "--vary", "seed=1", *settings, *ask, *place]) == 0
    printed = capsys.readouterr().out
    grid = next(g for g in engine.grids.list() if g.name == "From a terminal")
    assert f"Experiment: {name_experiment(grid)}." in printed
    (experiment,) = list_named(engine, grid)
    assert experiment.settings.sources == (ids(engine)["Notes"],)
    assert [r.name for r in experiment.rows] == ["base", "base + documents", "seed 1", "seed 1 + documents"]
    assert set(engine.experiments.states(experiment.id).values()) == {"done"}
    assert main([*start, "--vary", "seed=1", "--documents", *place]) == 1
    assert "--documents needs --then-ask" in capsys.readouterr().err
