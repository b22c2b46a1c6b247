"""Reports on disk: what was measured, for which mixes, on what.

Knows report.json and its CSV. Knows nothing of how figures come about.
"""

from __future__ import annotations

import csv
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.store.csv_tables import escape_cell
from core.store.workspace import Workspace, read_json, atomic_write, write_json

LEADING = ("name", "mix", "perplexity", "exact_match", "f1", "latency_seconds", "tokens_per_second")


@dataclass(frozen=True)
class Report:
    """One evaluation: a row of figures a mix."""

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
    """Writes a report with its CSV beside it; both appear at once."""
    report_id, place = workspace.new_dir("reports", f"{dataset_name}-{split}")
    report = Report(report_id, time.time(), dataset, dataset_name, split, base, seconds, rows)
    write_json(place / "report.json", report.__dict__)
    with atomic_write(place / "report.csv", "w") as f:
        f.write(format_report(rows))
    workspace.commit_dir("reports", report_id, place)
    return report


def load(workspace: Workspace, report_id: str) -> Report:
    """Reads a report. Raises NotFound or StorageError."""
    return Report(**read_json(workspace.find("reports", report_id) / "report.json"))


def csv_path(workspace: Workspace, report_id: str) -> Path:
    return workspace.find("reports", report_id) / "report.csv"


def format_report(rows: list[dict[str, Any]]) -> str:
    """The figures as CSV. Text that a spreadsheet would take for a formula gets a quote before it."""
    plain = [{k: v for k, v in row.items() if not isinstance(v, (list, dict))} for row in rows]
    names = [n for n in LEADING if any(n in r for r in plain)]
    names += sorted({n for r in plain for n in r} - set(names))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: escape_cell(v) for k, v in row.items()} for row in plain)
    return out.getvalue()
