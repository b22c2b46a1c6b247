"""Grids: axes become cells, cells become runs, and the table states which differences are significant."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main
from core.engine import Engine
from core.errors import NotFound, SpecError
from core.spec.training import RunStatus, TrainSpec
from core.store import grids
from core.train import comparison
from core.train.comparison import ValidationPoint, compare_losses, history_from_events

BASE = TrainSpec(name="Base", dataset="d")
FAST: dict[str, Any] = {
    "max_steps": 3,
    "learning_rate": 5e-3,
    "batch_size": 2,
    "accumulation": 1,
    "max_length": 48,
    "rank": 4,
    "alpha": 8,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), quantization="none", device="cpu") as made:
        yield made


@pytest.fixture
def base(engine: Engine, corpus: Path) -> TrainSpec:
    data = next(iter(engine.datasets.list()), None) or engine.datasets.import_files(
        [corpus], "Corpus", "domain"
    )
    return TrainSpec(**{"kind": "domain", "name": "Base", "dataset": data.id, **FAST})


def finished(engine: Engine, grid: grids.Grid) -> None:
    for run_id in grid.runs:
        assert engine.runs.wait(run_id, 120).status is RunStatus.DONE


# --- cells


def test_the_preset_is_eight_cells_of_rank_rate_and_epochs() -> None:
    cells = grids.make_cells(BASE, grids.GRID_PRESETS["rank x rate x epochs"].axes)
    assert [(c.spec.rank, c.spec.learning_rate, c.spec.epochs) for c in cells] == [
        (r, lr, e) for r in (16, 32) for lr in (1e-4, 5e-5) for e in (2, 3)
    ]
    assert (
        cells[0].spec.name == "Base: rank 16, learning rate 0.0001, epochs 2"
        and len({c.key for c in cells}) == 8
    )
    assert all(
        dataclasses.replace(c.spec, name="Base", rank=16, learning_rate=2e-4, epochs=3.0) == BASE
        for c in cells
    )


@pytest.mark.parametrize("name, sequences, tokens", [("64 sequences", 64, None), ("64 tokens", 1, 64)])
def test_the_grid_of_the_portfolio_reads_64_in_both_ways(
    name: str, sequences: int, tokens: int | None
) -> None:
    preset = grids.GRID_PRESETS[f"portfolio, {name}"]
    cells = grids.make_cells(dataclasses.replace(BASE, **preset.settings), preset.axes)
    assert [(c.spec.rank, c.spec.learning_rate, c.spec.epochs) for c in cells] == [
        (r, lr, e) for r in (16, 32) for lr in (1e-4, 5e-5) for e in (2, 3)
    ]
    for spec in (c.spec for c in cells):
        assert spec.batch_size * spec.accumulation == sequences
        assert tokens is None or spec.max_length * sequences == tokens
        assert spec.target_modules == ("attention", "down")
    assert "64 tokens effective" in preset.help


def test_the_terminal_takes_the_settings_of_a_grid_preset_below_its_options(
    tiny_base: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--workspace", str(tmp_path / "ws"), "--base", str(tiny_base)]
    with Engine(tmp_path / "ws", load=False) as engine:
        data = engine.datasets.import_files([corpus], "Corpus", "domain")
    arguments = ["grid", "define", "domain", *common, "--dataset", data.id, "--preset", "standard"]
    arguments += ["--grid", "portfolio, 64 sequences", "--batch-size", "2"]
    assert main(arguments) == 0
    assert "64 sequences per optimizer step" in capsys.readouterr().out
    with Engine(tmp_path / "ws", load=False) as engine:
        (grid,) = engine.grids.list()
    assert len(grid.cells) == 8
    assert (grid.base["batch_size"], grid.base["accumulation"]) == (2, 16)


@pytest.mark.parametrize(
    "field, text, values",
    [
        ("rank", "4, 8; 16", [4, 8, 16]),
        ("learning_rate", "1e-4,5e-5", [1e-4, 5e-5]),
        ("use_rslora", "on, off", [True, False]),
        ("schedule", "linear, cosine", ["linear", "cosine"]),
        ("target_modules", "q_proj + v_proj, q_proj", [("q_proj", "v_proj"), ("q_proj",)]),
    ],
)
def test_typed_values_become_the_settings_own_type_and_read_back(
    field: str, text: str, values: list[Any]
) -> None:
    assert grids.parse_axis(field, text) == values
    assert grids.parse_axis(field, ", ".join(grids.format_value(v) for v in values)) == values


@pytest.mark.parametrize(
    "field, text, said",
    [
        ("rank", "16, 512", "Rank must be between 1 and 256, got 512."),
        ("rank", "many", "Rank must be a number between 1 and 256, got 'many'."),
        ("rank", "1.5", "must be a whole number"),
        ("rank", " , ", "Rank must have at least one value"),
        ("rank", "8, 8.0", "values of Rank must differ, got 8 twice"),
        ("schedule", "straight", "Schedule must be one of linear"),
        ("use_dora", "perhaps", "DoRA must be true or false, got 'perhaps'."),
        ("name", "a, b", "'name' cannot be varied"),
        ("nonsense", "1", "cannot be varied"),
    ],
)
def test_impossible_values_are_refused_with_the_limits(field: str, text: str, said: str) -> None:
    with pytest.raises(SpecError) as told:
        grids.parse_axis(field, text)
    assert said in str(told.value)


def test_a_grid_of_more_than_64_cells_is_refused_before_anything_is_made() -> None:
    axes: dict[str, list[Any]] = {"rank": list(range(1, 10)), "seed": list(range(8))}
    with pytest.raises(SpecError, match=r"at most 64 cells, got 72"):
        grids.make_cells(BASE, axes)
    assert len(grids.make_cells(BASE, {**axes, "rank": list(range(1, 9))})) == 64
    with pytest.raises(SpecError, match="varies no setting"):
        grids.make_cells(BASE, {})


def test_a_cells_name_never_breaks_the_rules_of_names() -> None:
    for field, values in (("dataset", ["x" * 60, "y" * 60]), ("target_modules", [("a/b",), ("c",)])):
        for cell in grids.make_cells(dataclasses.replace(BASE, name="N" * 100), {field: values}):
            assert grids.check_name(cell.spec.name) and len(cell.spec.name) <= 120


def test_the_checksum_of_a_spec_ignores_its_name() -> None:
    assert (
        grids.spec_checksum(BASE)
        == grids.spec_checksum(dataclasses.replace(BASE, name="Other"))
        != grids.spec_checksum(dataclasses.replace(BASE, seed=1))
    )


# --- runs


def test_a_grid_runs_its_cells_and_its_table_states_significance(engine: Engine, base: TrainSpec) -> None:
    grid = engine.grids.start(base, {"rank": [2, 4], "learning_rate": [1e-2, 1e-5]}, "Ranks and rates")
    assert (
        engine.grids.start(base, {"rank": [2, 4], "learning_rate": [1e-2, 1e-5]}, "Ranks and rates").id
        == grid.id
    ), "a double click is one grid"
    assert (
        list(engine.grids.get(grid.id).axes) == ["rank", "learning_rate"]
        and engine.grids.get(grid.id) == grid
    )
    finished(engine, grid)
    results = engine.grids.results(grid.id)
    losses = [r.loss for r in results.rows]
    assert (
        losses == sorted(losses)
        and [r.best for r in results.rows] == [True, False, False, False]
        and results.counts == {"finished": 4}
    )
    for row in results.rows:
        assert (
            row.run is not None
            and (row.run.extra.grid, row.run.extra.cell) == (grid.id, row.cell.index)
            and row.run.spec == row.cell.spec
        )
        measured = [e["loss"] for e in engine.runs.events(row.run.id)[0] if e["kind"] == "validation"]
        figures = row.figures()
        assert (figures["final_loss"], figures["best_loss"]) == (
            measured[-1],
            min(measured),
        ) and row.loss == min(measured)
        assert (
            figures["best_perplexity"] == pytest.approx(math.exp(min(measured)))
            and engine.library.adapter(figures["adapter"]).rank == row.cell.values["rank"]
        )
        assert figures["seconds"] > 0 and figures["tokens_per_second"] > 0 and figures["steps"] == 3
    assert [r.cell.values["learning_rate"] for r in results.rows][:2] == [1e-2, 1e-2], (
        "the higher rate learns more in three steps"
    )
    last = results.rows[-1]
    assert (
        last.behind is not None
        and last.behind.paired
        and last.behind.is_significant
        and last.behind.nats == pytest.approx(last.loss - losses[0])
    )
    assert "standard error" in results.note and "another seed may order them differently" in results.note


def test_the_csv_has_every_cell_and_no_formula(engine: Engine, base: TrainSpec) -> None:
    grid = engine.grids.define(
        base, {"target_modules": [("q_proj",), ("=HYPERLINK",)], "rank": [2]}, "Formulas"
    )
    table = list(csv.DictReader(io.StringIO(engine.grids.csv(grid.id))))
    assert (
        [r["target_modules"] for r in table] == ["q_proj", "'=HYPERLINK"]
        and {r["status"] for r in table} == {"not run"}
        and {r["rank"] for r in table} == {"2"}
    )


def test_cancelling_a_grids_open_cells_keeps_the_training_one(engine: Engine, base: TrainSpec) -> None:
    gate = threading.Event()
    engine.worker.run(lambda: gate.wait(60) and None)
    grid = engine.grids.start(base, {"rank": [1, 2, 3]}, "Half of it")
    other = engine.runs.start(dataclasses.replace(base, name="Not of the grid"))
    engine.queue.move(other, "first")
    assert set(engine.grids.cancel_open_cells(grid.id)) == set(grid.runs)
    gate.set()
    assert engine.runs.wait(other).status is RunStatus.DONE
    results = engine.grids.results(grid.id)
    assert (
        results.counts == {"stopped": 3}
        and results.note == ""
        and not results.is_alive
        and not any(r.best for r in results.rows)
    )


def test_a_grid_with_an_invalid_spec_queues_nothing(engine: Engine, base: TrainSpec) -> None:
    before = len(engine.runs.list()), len(engine.grids.list())
    for axes in ({"dataset": ["nowhere"]}, {"rank": [0]}, {"kind": ["task"]}):
        with pytest.raises((SpecError, NotFound)):
            engine.grids.start(base, axes, "Faulty")
    assert (len(engine.runs.list()), len(engine.grids.list())) == before


def test_cells_trained_elsewhere_are_collected_by_their_checksum(engine: Engine, base: TrainSpec) -> None:
    grid = engine.grids.define(base, {"seed": [1, 2, 3]}, "Elsewhere")
    assert grid.runs == ["", "", ""] and engine.grids.collect(grid.id) == []
    cell = engine.grids.get(grid.id).cells[1]
    run = engine.runs.wait(
        engine.runs.start(dataclasses.replace(cell.spec, name="Whatever it was called there"))
    )
    assert engine.grids.collect(grid.id) == [1] and engine.grids.collect(grid.id) == []
    assert engine.grids.get(grid.id).runs == ["", run.id, ""]
    results = engine.grids.results(grid.id)
    assert (
        results.rows[0].cell.index == 1
        and results.rows[0].best
        and results.counts == {"finished": 1, "not run": 2}
    )
    engine.library.delete("runs", run.id)
    assert engine.grids.results(grid.id).counts == {"not run": 3}


def test_the_time_of_a_grid_comes_from_the_newest_comparable_run(engine: Engine, base: TrainSpec) -> None:
    run = engine.runs.wait(engine.runs.start(dataclasses.replace(base, name="Measured", max_steps=4)))
    seconds = engine.runs.history(run.id).seconds
    assert seconds > 0 and engine.grids.estimate_seconds(
        base, {"max_steps": [2, 6]}, run.base
    ) == pytest.approx(2 * seconds)
    assert (
        engine.grids.estimate_seconds(base, {"max_length": [64]}, run.base) is None
        and engine.grids.estimate_seconds(base, {"rank": [2]}, "another base") is None
    )


# --- significance


def rows(*losses: float, tokens: int = 10) -> tuple[tuple[float, int], ...]:
    return tuple((x * tokens, tokens) for x in losses)


def test_losses_on_the_same_rows_are_compared_row_by_row() -> None:
    a = ValidationPoint(1, 2.0, rows(1.0, 2.0, 3.0, 2.0))
    b = ValidationPoint(1, 2.1, rows(1.1, 2.1, 3.1, 2.1))
    found = compare_losses(a, b)
    assert (
        found.paired
        and found.nats == pytest.approx(0.1)
        and found.error == pytest.approx(0.0, abs=1e-12)
        and found.is_significant
    )
    c = ValidationPoint(
        1, 2.1, rows(1.9, 2.0, 2.0, 2.5)
    )  # d = .9, 0, -1, .5: mean .1, sd .82, so that the error is .82 / 2
    told_apart = compare_losses(a, c)
    assert told_apart.error == pytest.approx(0.8205 / 2, rel=1e-3) and not told_apart.is_significant


def test_losses_on_other_rows_add_their_errors_if_rows_are_known() -> None:
    a, b = (
        ValidationPoint(1, 2.0, rows(1.0, 2.0, 3.0)),
        ValidationPoint(1, 2.1, rows(1.1, 2.1, 3.1, tokens=7)),
    )
    found = compare_losses(a, b)
    assert not found.paired and found.error == pytest.approx(math.hypot(1 / math.sqrt(3), 1 / math.sqrt(3)))
    bare = compare_losses(ValidationPoint(1, 2.0), b)
    assert math.isnan(bare.error) and not bare.is_significant


def test_a_log_of_two_sessions_counts_a_step_once_and_adds_the_seconds() -> None:
    events = [
        {"kind": "plan", "elapsed": 1.0, "train_rows": 30},
        {"kind": "step", "step": 1, "loss": 3.0, "tokens": 100, "tokens_per_second": 50.0, "elapsed": 4.0},
        {"kind": "step", "step": 2, "loss": 2.9, "tokens": 200, "tokens_per_second": 50.0, "elapsed": 6.0},
        {"kind": "status", "status": "running", "elapsed": 0.0},
        {"kind": "plan", "elapsed": 0.5, "train_rows": 30},
        {"kind": "step", "step": 2, "loss": 2.5, "tokens": 100, "tokens_per_second": 100.0, "elapsed": 2.0},
        {"kind": "step", "step": 3, "loss": "nan", "tokens": 200, "tokens_per_second": 100.0, "elapsed": 3.0},
        {"kind": "validation", "step": 3, "loss": 2.0, "rows": [[20.0, 10]], "elapsed": 3.5},
        {"kind": "validation", "step": 4, "loss": 2.2, "elapsed": 3.9},
    ]
    found = history_from_events(events)
    assert (
        found.train == ((1, 3.0), (2, 2.5)) and found.seconds == pytest.approx(9.9) and found.sequences == 30
    )
    assert (
        found.tokens_per_second == pytest.approx(300 / 5)
        and found.best is not None
        and found.best.step == 3
        and found.best.rows == ((20.0, 10),)
    )
    assert (
        found.final is not None
        and found.final.step == 4
        and found.validation_for("last") is found.final
        and found.validation_for("best") is found.best
    )


def test_a_long_curve_is_thinned_out_and_keeps_its_end() -> None:
    points = [(i, float(i)) for i in range(5001)]
    kept = comparison.thin_out(points)
    assert (
        len(kept) <= comparison.POINT_LIMIT + 1
        and kept[0] == points[0]
        and kept[-1] == points[-1]
        and comparison.thin_out([]) == []
    )


def test_the_settings_that_differ_between_runs_are_marked(engine: Engine, base: TrainSpec) -> None:
    ids = [engine.runs.start(dataclasses.replace(base, name=f"Alpha {a}", alpha=a)) for a in (8, 64)]
    for run_id in ids:
        engine.runs.wait(run_id)
    found = engine.runs.compare(ids)
    assert [s.name for s in found.settings if s.is_varied] == ["alpha"] and next(
        s for s in found.settings if s.name == "alpha"
    ).values == (8, 64)
    assert [len(h.train) for h in found.histories] == [3, 3] and found.histories[0].validation[
        0
    ] == found.histories[1].validation[0]
    for few in ([ids[0]], [ids[0], ids[0]], [f"r{i}" for i in range(9)]):
        with pytest.raises(SpecError, match="Choose 2 to 8"):
            engine.runs.compare(few)
