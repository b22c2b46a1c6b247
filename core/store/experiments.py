"""Experiments on disk: what was planned, and one file for each cell, which appears whole.

    experiments/<id>/experiment.json      name, settings, and the base that was loaded at the start
                     rows.jsonl           which cell answers for a row, appended when it is complete
                     cells/<key>.jsonl    answers of a cell that is not complete, appended one by one
                     cells/<key>.json     a complete cell

The key of a cell is a sha256 over everything that its answers depend on, so a cell of one experiment answers
for the same cell of another (`find_cell`). A process that is killed leaves the appended answers, and the cell
continues behind them; a last line that was cut short is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from core.errors import DamagedRecord, NotFound, StorageError
from core.spec.experiment import ExperimentRow, ExperimentSpec, list_rows
from core.store.files import delete, storage_error, write_json
from core.store.json_text import parse_object
from core.store.permissions import open_private
from core.store.record_types import Count, Figure, Seconds, Time, check_type
from core.store.records import load_items, read_record, report_damage
from core.store.workspace import Workspace, check_name

KIND, RECORD, ROWS, CELLS = "experiments", "experiment.json", "rows.jsonl", "cells"
KEY = re.compile("[0-9a-f]{64}")
ANSWER, GENERAL, TIMED = "answer", "general", "timed"  # what a line of a cell in progress holds


@dataclass(frozen=True)
class Experiment:
    """The content of experiment.json.

    Attributes:
        spec: an `ExperimentSpec` as JSON.
        base, base_fingerprint: that was loaded at the start; rows without a base are on this one.
        is_fresh: whether every cell is measured, also where another experiment has it.
    """

    id: str
    name: str
    spec: dict[str, Any]
    base: str = ""
    base_fingerprint: str = ""
    created: Time = field(default_factory=time.time)
    is_fresh: bool = False

    @property
    def settings(self) -> ExperimentSpec:
        """Its settings."""
        return ExperimentSpec.from_json(self.spec)

    @property
    def rows(self) -> list[ExperimentRow]:
        """Its rows, each with the base that answers it."""
        rows = list_rows(self.settings)
        return [row if row.address or row.base else replace(row, base=self.base) for row in rows]


@dataclass(frozen=True)
class CitedPassage:
    """A passage that a prompt held; `number` is the n of its citations [n]."""

    number: Count
    title: str
    text: str
    score: Figure = 0.0


@dataclass(frozen=True)
class CellAnswer:
    """The answer of a row to one question.

    Attributes:
        index: of the question, from 0.
        answer: as the model wrote it.
        attached: the answer with citations that were attached afterwards; "" without any. They never count.
        passages: that its prompt held. left_out: passages that did not fit in the context.
        reason: why it ended: "end", "length" or "stop".
        tokens: of the answer; 0 where an address does not say.
        seconds: in its batch.
        figures: metric -> value; a metric that this question does not have is left out.
        outcome: one of `core.evaluate.refusals.OUTCOMES`.
    """

    index: Count
    question: str
    answer: str
    reference: str = ""
    attached: str = ""
    passages: tuple[CitedPassage, ...] = ()
    left_out: Count = 0
    reason: str = ""
    tokens: Count = 0
    seconds: Seconds = 0.0
    figures: dict[str, Figure] = field(default_factory=dict)
    outcome: str = ""


@dataclass(frozen=True)
class TimedAnswer:
    """A question that was answered alone: seconds from the question to the whole answer, with retrieval."""

    index: Count
    seconds: Seconds
    tokens: Count


@dataclass(frozen=True)
class Cell:
    """A complete cell: the answers of one row.

    Attributes:
        key: also the name of its file.
        row: an `ExperimentRow` as JSON.
        conditions: everything that the key covers, and the versions of the libraries.
        answers: in the order of the questions.
        general: F1 of each general question, in order, without documents.
        timed: the questions that were answered alone.
        memory_bytes: the largest memory of the process, or of the GPU, while it answered; 0 for an address.
        notes: rows that were left out, one sentence each.
    """

    key: str
    row: dict[str, Any]
    conditions: dict[str, Any]
    answers: tuple[CellAnswer, ...]
    general: tuple[Figure, ...] = ()
    timed: tuple[TimedAnswer, ...] = ()
    memory_bytes: Count = 0
    notes: tuple[str, ...] = ()
    created: Time = field(default_factory=time.time)


def create(
    workspace: Workspace, spec: ExperimentSpec, base: str, base_fingerprint: str, is_fresh: bool = False
) -> Experiment:
    """Stores a new experiment.

    Raises:
        InvalidName, StorageError
    """
    name = check_name(spec.name)
    with workspace.build(KIND, name) as draft:
        experiment = Experiment(draft.id, name, spec.to_json(), base, base_fingerprint, is_fresh=is_fresh)
        write_json(draft.path / RECORD, asdict(experiment))
        (draft.path / CELLS).mkdir()
        draft.expect(RECORD, CELLS)
    return experiment


def load(workspace: Workspace, experiment_id: str) -> Experiment:
    """Reads an experiment.

    Raises:
        NotFound, DamagedRecord
    """
    path = workspace.find(KIND, experiment_id) / RECORD
    experiment = read_record(path, Experiment, experiment_id)
    with report_damage(path):
        _ = experiment.settings  # checks their limits
    return experiment


def load_all(workspace: Workspace) -> list[Experiment]:
    """Every experiment that can be read, newest first."""
    return sorted(load_items(workspace, KIND, load)[0], key=lambda e: -e.created)


# --- cells


def _cell_path(workspace: Workspace, experiment_id: str, key: str, suffix: str) -> Path:
    return workspace.path(KIND, experiment_id, CELLS, f"{key}{suffix}")


def load_cell(workspace: Workspace, experiment_id: str, key: str) -> Cell | None:
    """Reads a complete cell; None where it is not complete, or damaged, so that it is measured again."""
    path = _cell_path(workspace, experiment_id, key, ".json")
    if not path.is_file():
        return None
    try:
        cell = read_record(path, Cell)
    except DamagedRecord:
        return None
    return cell if cell.key == key else None


def find_cell(workspace: Workspace, key: str) -> Cell | None:
    """A complete cell of any experiment; None where none has it."""
    for experiment_id in workspace.ids(KIND):
        if (cell := load_cell(workspace, experiment_id, key)) is not None:
            return cell
    return None


def save_cell(workspace: Workspace, experiment_id: str, cell: Cell) -> None:
    """Writes a complete cell, records that it answers for its row, and removes its appended answers.

    Raises:
        NotFound: the experiment was deleted. StorageError
    """
    workspace.find(KIND, experiment_id)
    write_json(_cell_path(workspace, experiment_id, cell.key, ".json"), asdict(cell))
    line = json.dumps({"row": cell.row["name"], "key": cell.key, "time": time.time()}, ensure_ascii=False)
    append_line(workspace.path(KIND, experiment_id, ROWS), line + "\n")
    partial = _cell_path(workspace, experiment_id, cell.key, ".jsonl")
    if partial.exists():
        delete(partial)


def read_cells(workspace: Workspace, experiment_id: str) -> dict[str, Cell]:
    """The complete cells of an experiment, by the name of their row."""
    lines = read_lines(workspace.path(KIND, experiment_id, ROWS))
    keys = {str(line.get("row")): str(line.get("key")) for line in lines}
    found = {}
    for row, key in keys.items():
        if KEY.fullmatch(key) and (cell := load_cell(workspace, experiment_id, key)) is not None:
            found[row] = cell
    return found


def remove_finished_logs(workspace: Workspace, experiment_id: str) -> None:
    """Removes the appended answers of complete cells, which a process that was killed has left.

    Raises:
        StorageError
    """
    for cell in read_cells(workspace, experiment_id).values():
        if (log := _cell_path(workspace, experiment_id, cell.key, ".jsonl")).exists():
            delete(log)


class CellLog:
    """The answers of a cell in progress: JSON lines that are on the disk when `append` returns."""

    def __init__(self, workspace: Workspace, experiment_id: str, key: str) -> None:
        workspace.find(KIND, experiment_id)
        self._path = _cell_path(workspace, experiment_id, key, ".jsonl")

    def append(self, kind: str, values: Mapping[str, Any]) -> None:
        """Appends a line.

        Args:
            kind: ANSWER, GENERAL or TIMED.

        Raises:
            StorageError
        """
        line = json.dumps({"kind": kind, **values}, ensure_ascii=False) + "\n"
        append_line(self._path, line)

    def read(self) -> tuple[dict[int, CellAnswer], dict[int, float], dict[int, TimedAnswer]]:
        """The answers so far, the F1 of general questions, and the timed answers, each by its index."""
        answers: dict[int, CellAnswer] = {}
        general: dict[int, float] = {}
        timed: dict[int, TimedAnswer] = {}
        for record in read_lines(self._path):
            with contextlib.suppress(ValueError):  # another version, or a damaged line
                if record.get("kind") == ANSWER:
                    answer = check_type(CellAnswer, record)
                    answers[answer.index] = answer
                elif record.get("kind") == TIMED:
                    alone = check_type(TimedAnswer, record)
                    timed[alone.index] = alone
                elif record.get("kind") == GENERAL:
                    general[int(check_type(int, record.get("index")))] = float(record["f1"])
        return answers, general, timed

    def exists(self) -> bool:
        """Whether it has begun."""
        return self._path.is_file()


def append_line(path: Path, line: str) -> None:
    """Appends a line and flushes it to the disk; it ends a line that a crash has cut short.

    Raises:
        NotFound: its folder was deleted. StorageError
    """
    try:
        with open(path, "ab+", opener=open_private) as f:
            size = f.seek(0, os.SEEK_END)
            is_torn = False
            if size:
                f.seek(-1, os.SEEK_END)
                is_torn = f.read(1) != b"\n"
            f.write(("\n" * is_torn + line).encode("utf-8", "replace"))
            f.flush()
            os.fsync(f.fileno())
    except FileNotFoundError as e:
        raise NotFound(f"The folder of {path.name} was deleted.", "Start the work again.") from e
    except OSError as e:
        raise storage_error(e, path) from e


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; lines that are not one are left out. A missing file has none.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as e:
        raise StorageError(f"{path.name} cannot be read: {e.strerror or e}.", "Check its permissions.") from e
    found = []
    for line in content.split(b"\n"):
        if line.strip():
            with contextlib.suppress(ValueError):
                found.append(parse_object(line))
    return found
