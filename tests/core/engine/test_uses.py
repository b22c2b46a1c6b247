"""What uses an item: every kind of user in a workspace that an earlier version wrote."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.engine import Engine

OLD = Path(__file__).resolve().parents[2] / "data" / "old_workspace"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    shutil.copytree(OLD, tmp_path / "w")
    with Engine(tmp_path / "w", load=False) as opened:
        yield opened


def test_a_run_is_used_by_its_grid(engine: Engine) -> None:
    (grid,) = engine.grids.list()
    for run_id in filter(None, grid.runs):
        assert engine.library.uses("runs", run_id) == [f"the grid {grid.name!r}"]


def test_an_adapter_is_used_by_every_report_that_measured_it(engine: Engine) -> None:
    reports = engine.evaluation.reports()
    measured = {a for r in reports for row in r.rows for a in row["weights"]}
    assert measured
    for adapter_id in measured:
        users = engine.library.uses("adapters", adapter_id)
        assert [u for u in users if u.startswith("the report on")] == [
            f"the report on {r.dataset_name!r}"
            for r in reports
            if any(adapter_id in row["weights"] for row in r.rows)
        ]


def test_a_dataset_is_used_by_the_grid_and_the_run_that_can_be_resumed(engine: Engine) -> None:
    (grid,) = engine.grids.list()
    assert f"the grid {grid.name!r}" in engine.library.uses("datasets", grid.base["dataset"])
    resumable = [r for r in engine.runs.list() if r.resumable]
    assert resumable
    for run in resumable:
        assert f"the run {run.name!r}" in engine.library.uses("datasets", run.spec.dataset)


def test_what_is_gone_is_used_by_nothing(engine: Engine) -> None:
    for kind in ("adapters", "datasets", "runs", "mixes", "reports"):
        assert engine.library.uses(kind, "not-there") == []
