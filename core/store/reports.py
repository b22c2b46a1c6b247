"""Evaluation reports on disk: report.json with a row of metrics for each mix, and the same as report.csv."""

from __future__ import annotations

import csv
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.store.csv_tables import escape_cell
from core.store.files import atomic_write, read_json, write_json
from core.store.workspace import Workspace

FIRST_COLUMNS = ("name", "mix", "perplexity", "exact_match", "f1", "latency_seconds", "tokens_per_second")


@dataclass(frozen=True)
class Report:
    """One evaluation.

    Attributes:
        created: Unix seconds.
        seconds: how long it took.
        rows: the metrics of each mix.
    """

    id: str
    created: float
    dataset: str
    dataset_name: str
    split: str
    base: str
    seconds: float
    rows: list[dict[str, Any]]


def save(
    workspace: Workspace,
    dataset: str,
    dataset_name: str,
    split: str,
    base: str,
    seconds: float,
    rows: list[dict[str, Any]],
) -> Report:
    """Writes a report and its CSV; both appear together."""
    with workspace.build("reports", f"{dataset_name}-{split}") as draft:
        report = Report(draft.id, time.time(), dataset, dataset_name, split, base, seconds, rows)
        write_json(draft.path / "report.json", report.__dict__)
        with atomic_write(draft.path / "report.csv", "w") as f:
            f.write(format_report(rows))
        draft.expect("report.json", "report.csv")
    return report


def load(workspace: Workspace, report_id: str) -> Report:
    """Reads a report. Raises NotFound or StorageError."""
    return Report(**read_json(workspace.find("reports", report_id) / "report.json"))


def csv_path(workspace: Workspace, report_id: str) -> Path:
    return workspace.find("reports", report_id) / "report.csv"


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
