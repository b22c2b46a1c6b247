"""Evaluation reports on disk: report.json with a row of metrics for each mix, and the same as report.csv."""

from __future__ import annotations

import csv
import io
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from core.spec.metric_rules import FIRST_RULE
from core.store.csv_tables import escape_cell
from core.store.files import atomic_write, delete, write_json
from core.store.record_types import Count, Figure, Seconds, Time, check_type
from core.store.records import load_items, read_record, report_damage
from core.store.workspace import Workspace

FIRST_COLUMNS = ("name", "mix", "perplexity", "exact_match", "f1", "latency_seconds", "tokens_per_second")
NOTE_LIMIT = 1000  # rows that a report names; the counts are complete


class _Answer(TypedDict):
    question: str
    answer: str
    reference: str


class Example(_Answer, total=False):
    """A question of the data with the answer of a mix, and its thought.

    `cut` is the number of tokens of an answer that ended at its limit.
    """

    thought: str
    thought_tokens: Count
    cut: Count


class _Mix(TypedDict):
    name: str
    mix: str
    weights: dict[str, float]


class ReportRow(_Mix, total=False):
    """The metrics of one mix. A report has those that were measured; other versions may have more."""

    perplexity: Figure | None
    answer_perplexity: Figure | None
    general_perplexity: Figure | None
    exact_match: Figure | None
    f1: Figure | None
    squad_exact_match: Figure | None
    squad_f1: Figure | None
    recall: Figure | None
    latency_seconds: Figure | None
    tokens_per_second: Figure | None
    questions: Count
    answers_cut: Count
    examples: list[Example]


@dataclass(frozen=True)
class RowRecord:
    """A row that was cut or left out: its data ("" is the main data), number, first words, and why."""

    data: str
    row: Count
    text: str
    effect: str
    reason: str


@dataclass(frozen=True)
class Conditions:
    """How a report was measured; the defaults are those of reports that do not record it.

    Attributes:
        rule: by which answers were compared (`core.spec.metric_rules`).
        max_length: longest sequence that was scored, in tokens; 0 is unknown.
        max_new_tokens: longest answer, in tokens; 0 without questions, or unknown.
        rows_left_out, rows_cut: rows that do not fit the base; the first NOTE_LIMIT are in `notes`.
    """

    rule: str = FIRST_RULE
    max_length: Count = 0
    max_new_tokens: Count = 0
    rows_left_out: Count = 0
    rows_cut: Count = 0
    notes: tuple[RowRecord, ...] = ()


@dataclass(frozen=True)
class Report:
    """One evaluation.

    Attributes:
        created: Unix seconds.
        seconds: how long it took.
        rows: the metrics of each mix.
        conditions: how they were measured.
    """

    id: str
    created: Time
    dataset: str
    dataset_name: str
    split: str
    base: str
    seconds: Seconds
    rows: list[dict[str, Any]]
    conditions: Conditions = Conditions()


def save(
    workspace: Workspace,
    dataset: str,
    dataset_name: str,
    split: str,
    base: str,
    seconds: float,
    rows: list[dict[str, Any]],
    conditions: Conditions | None = None,
) -> Report:
    """Writes a report and its CSV; both appear together."""
    with workspace.build("reports", f"{dataset_name}-{split}") as draft:
        made, how = time.time(), conditions or Conditions()
        report = Report(draft.id, made, dataset, dataset_name, split, base, seconds, rows, how)
        write_json(draft.path / "report.json", asdict(report))
        with atomic_write(draft.path / "report.csv", "w") as f:
            f.write(format_report(rows))
        draft.expect("report.json", "report.csv")
    return report


def add_file(workspace: Workspace, report_id: str, name: str, content: bytes) -> None:
    """Writes a further file beside a report, such as the results of another tool. Raises NotFound."""
    folder = workspace.find("reports", report_id)
    with atomic_write(folder / name) as f:
        f.write(content)


def load(workspace: Workspace, report_id: str) -> Report:
    """Reads a report. Raises NotFound or DamagedRecord."""
    return workspace.records.read(
        ("reports", report_id), ("report.json",), lambda: _read(workspace, report_id)
    )


def _read(workspace: Workspace, report_id: str) -> Report:
    path = workspace.find("reports", report_id) / "report.json"
    report = read_record(path, Report, report_id)
    with report_damage(path):
        check_type(list[ReportRow], report.rows)
    return report


def load_all(workspace: Workspace) -> list[Report]:
    """Every report that can be read, newest first."""
    return sorted(load_items(workspace, "reports", load)[0], key=lambda r: -r.created)


def csv_path(workspace: Workspace, report_id: str) -> Path:
    """The path of a report's CSV file, which is written again from the report if it differs from it.

    Raises:
        NotFound, DamagedRecord, StorageError
    """
    path = workspace.find("reports", report_id) / "report.csv"
    text = format_report(load(workspace, report_id).rows)
    if not path.is_file() or path.read_bytes() != text.encode():
        with report_damage(path):
            delete(path)
        with atomic_write(path, "w") as f:
            f.write(text)
    return path


def format_report(rows: list[dict[str, Any]]) -> str:
    """The metrics as CSV text; lists and tables are left out, and cells are escaped for spreadsheets."""
    flat = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]
    names = [n for n in FIRST_COLUMNS if any(n in r for r in flat)]
    names += sorted({n for r in flat for n in r} - set(names))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: escape_cell(v) for k, v in row.items()} for row in flat)
    return out.getvalue()
