"""The report of an experiment as JSON: figures, every answer, what changed, settings, versions, checksums.

`core.engine.experiment_html` draws it; `compare_reports` says whether a repeated experiment agrees with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from core.engine.experiment_results import ExperimentResults, RowResult
from core.errors import SpecError
from core.evaluate.answer_figures import list_values
from core.spec.answer_metrics import ANSWER_METRICS
from core.spec.experiment import ExperimentSpec
from core.store.experiments import Cell
from core.store.json_text import parse_object

KIND, FORMAT = "adapter-studio experiment report", 1
TOLERANCE = 1e-6  # of a figure that is repeated
WIN, LOSS, TIE = "win", "loss", "tie"
SHOWN_METRICS = (
    "factuality",
    "f1",
    "support",
    "citation_coverage",
    "grounded",
)  # that decide a win, in order
TIMES = ("latency",)  # figures that no repetition has exactly
REPORT_BYTES = 64 << 20


@dataclass(frozen=True)
class RowChange:
    """What changed from one row to another, question by question.

    Attributes:
        metric: that decides about win, loss and tie.
        wins, losses, ties: numbers of questions.
        questions: (index, change of the metric), the worst losses first.
    """

    first: str
    second: str
    metric: str
    wins: int
    losses: int
    ties: int
    questions: tuple[tuple[int, float], ...]


def list_changes(results: ExperimentResults) -> list[RowChange]:
    """What changed from the baseline of each group to its other rows."""
    found = []
    for row in results.rows:
        name = results.baselines.get(row.row.group_name, "")
        if row.cell is None or not name or name == row.name or results.find(name).cell is None:
            continue
        if (change := _list_change(results, results.find(name), row)) is not None:
            found.append(change)
    return found


def _list_change(results: ExperimentResults, first: RowResult, second: RowResult) -> RowChange | None:
    assert first.cell is not None and second.cell is not None
    for metric in SHOWN_METRICS:
        if metric not in results.metrics:
            continue
        before, after = list_values(first.cell, metric), list_values(second.cell, metric)
        changes = {i: after[i][0] - before[i][0] for i in sorted(before.keys() & after.keys())}
        if changes:
            wins, losses = sum(c > 0 for c in changes.values()), sum(c < 0 for c in changes.values())
            worst = tuple(sorted(changes.items(), key=lambda item: (item[1], item[0])))
            ties = len(changes) - wins - losses
            return RowChange(first.name, second.name, metric, wins, losses, ties, worst)
    return None


def make_report(results: ExperimentResults) -> dict[str, Any]:
    """The report as JSON, with a checksum over its content."""
    experiment = results.experiment
    decisions = []
    for row in results.rows:
        baseline = results.baselines.get(row.row.group_name, "")
        is_candidate = row.cell is not None and row.row.mix and not row.row.address
        if not is_candidate or not baseline or baseline == row.name or results.find(baseline).cell is None:
            continue
        with contextlib.suppress(SpecError):  # the base without documents is not complete
            decisions.append(results.decide(row.name).to_json())
    content = {
        "kind": KIND,
        "format": FORMAT,
        "created": round(time.time(), 3),
        "experiment": {"id": experiment.id, "name": experiment.name, "created": experiment.created},
        "base": {"name": experiment.base, "fingerprint": experiment.base_fingerprint},
        "spec": experiment.spec,
        "metrics": {m: ANSWER_METRICS[m].method for m in results.metrics},
        "baselines": dict(results.baselines),
        "rows": [_describe_row(row) for row in results.rows],
        "changes": [asdict(change) for change in list_changes(results)],
        "decisions": decisions,
        "judges": [judge.to_json() for judge in results.judges],
    }
    plain: dict[str, Any] = json.loads(json.dumps(_drop_infinite(content)))
    return {**plain, "sha256": compute_checksum(plain)}


def _describe_row(row: RowResult) -> dict[str, Any]:
    described: dict[str, Any] = {"row": row.row.to_json(), "group": row.row.group_name, "state": row.state}
    if row.cell is None:
        return described
    cell = asdict(row.cell)
    return {
        **described,
        "key": row.cell.key,
        "sha256": hash_answers(row.cell),
        "figures": {m: asdict(f) for m, f in (row.figures or {}).items()},
        "gains": {m: asdict(d) for m, d in (row.gains or {}).items()},
        "latency_p95": row.latency_p95,
        "tokens_per_second": row.tokens_per_second,
        "memory_bytes": row.cell.memory_bytes,
        "conditions": cell["conditions"],
        "notes": cell["notes"],
        "answers": cell["answers"],
        "general": cell["general"],
        "timed": cell["timed"],
    }


def hash_answers(cell: Cell) -> str:
    """A sha256 over the answers of a cell."""
    parts = [[a.index, a.answer] for a in cell.answers]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()


def compute_checksum(report: Mapping[str, Any]) -> str:
    """The sha256 over a report without its checksum."""
    content = {k: v for k, v in report.items() if k != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _drop_infinite(value: Any) -> Any:
    """The value with None in place of numbers that JSON lacks."""
    if isinstance(value, dict):
        return {str(k): _drop_infinite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_drop_infinite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- repeating


def read_report(content: bytes) -> dict[str, Any]:
    """Reads a report.

    Raises:
        SpecError: it is not a report, or its checksum does not match.
    """
    fix = "Give the JSON file that `report write` wrote."
    if len(content) > REPORT_BYTES:
        raise SpecError(f"A report may have {REPORT_BYTES >> 20} MB.", fix)
    try:
        value = parse_object(content)
    except ValueError as e:
        raise SpecError("The file is not JSON.", fix) from e
    if value.get("kind") != KIND or value.get("format") != FORMAT or not isinstance(value.get("rows"), list):
        raise SpecError("The file is not a report of an experiment.", fix)
    if value.get("sha256") != compute_checksum(value):
        raise SpecError("The report was changed: its checksum does not match its content.", fix)
    return value


@dataclass(frozen=True)
class Agreement:
    """Whether a repeated row agrees with the report.

    Attributes:
        answers, equal: answers that both have, and how many of them are equal.
        differences: (metric, figure in the report, figure now); times are left out.
        changed: conditions that differ, such as "base" or "questions".
        problem: why it could not be repeated; "" otherwise.
    """

    row: str
    answers: int = 0
    equal: int = 0
    differences: tuple[tuple[str, float, float], ...] = ()
    changed: tuple[str, ...] = ()
    problem: str = ""

    @property
    def agrees(self) -> bool:
        """Whether all answers and figures agree."""
        return not self.problem and not self.differences and self.equal == self.answers

    def describe(self) -> str:
        """The agreement as a sentence."""
        if self.problem:
            return f"{self.row}: not repeated ({self.problem})."
        if self.agrees:
            return f"{self.row}: agrees; {self.answers} answers and all figures are equal."
        parts = [f"{self.equal} of {self.answers} answers are equal"]
        parts += [f"{ANSWER_METRICS[m].label} was {a:.4f} and is {b:.4f}" for m, a, b in self.differences]
        changed = f" Different conditions: {', '.join(self.changed)}." if self.changed else ""
        return f"{self.row}: differs; {'; '.join(parts)}.{changed}"


def read_spec(report: Mapping[str, Any]) -> ExperimentSpec:
    """The settings with which a report is repeated.

    Raises:
        SpecError
    """
    return ExperimentSpec.from_json(report["spec"])


def compare_reports(report: Mapping[str, Any], now: Mapping[str, Any]) -> list[Agreement]:
    """Compares a report with one of the same settings, row by row; rows without answers are left out."""
    rows = {r["row"]["name"]: r for r in now["rows"]}
    return [_compare_row(r, rows.get(r["row"]["name"], {})) for r in report["rows"] if "answers" in r]


def _compare_row(before: Mapping[str, Any], after: Mapping[str, Any]) -> Agreement:
    name = before["row"]["name"]
    if "answers" not in after:
        return Agreement(name, problem=str(after.get("state", "it is missing")))
    texts = {a["index"]: a["answer"] for a in after["answers"]}
    equal = sum(texts.get(a["index"]) == a["answer"] for a in before["answers"])
    differences = []
    for metric, figure in before["figures"].items():
        other = after["figures"].get(metric)
        value, changed = figure["value"], other["value"] if other else math.nan
        scale = max(1.0, abs(value))
        if metric not in TIMES and not abs(value - changed) <= TOLERANCE * scale:
            differences.append((metric, value, changed))
    known = {**before["conditions"], **after["conditions"]}
    changed = tuple(k for k in known if before["conditions"].get(k) != after["conditions"].get(k))
    return Agreement(name, len(before["answers"]), equal, tuple(differences), changed)
