"""Cells of experiments on disk: what a killed process leaves is continued or removed."""

from __future__ import annotations

from pathlib import Path

from core.spec.experiment import ExperimentSpec
from core.store import experiments as store
from core.store.experiments import Cell, CellAnswer, CellLog
from core.store.workspace import Workspace

KEYS = "a" * 64, "b" * 64


def make_experiment(workspace: Workspace) -> store.Experiment:
    """An experiment of two rows: the first cell is complete, and both have appended answers."""
    spec = ExperimentSpec(name="x", dataset="d", mixes=("", "notes"))
    experiment = store.create(workspace, spec, "tiny", "f" * 64)
    answer = CellAnswer(0, "Where?", "In room 1.")
    cell = Cell(KEYS[0], experiment.rows[0].to_json(), {}, (answer,))
    store.save_cell(workspace, experiment.id, cell)
    for key in KEYS:  # as if the process was killed before it removed the first log
        CellLog(workspace, experiment.id, key).append(store.ANSWER, answer.__dict__ | {"passages": []})
    return experiment


def test_the_log_of_a_complete_cell_is_removed_and_another_one_stays(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    experiment = make_experiment(workspace)
    store.remove_finished_logs(workspace, experiment.id)
    assert [CellLog(workspace, experiment.id, key).exists() for key in KEYS] == [False, True]
    assert list(store.read_cells(workspace, experiment.id)) == ["base"]


def test_a_cell_that_was_cut_short_while_it_was_written_is_removed(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    cells = workspace.path("experiments", make_experiment(workspace).id, "cells")
    (cells / f".{KEYS[1]}.json.12345678.partial").write_text('{"key": ')
    assert workspace.remove_partials() == 1
    assert sorted(p.suffix for p in cells.iterdir()) == [".json", ".jsonl", ".jsonl"]
