"""The table of an experiment: figures with intervals, and differences of rows inside a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.engine.judge_results import JudgeResult
from core.errors import NotFound, SpecError
from core.evaluate.answer_figures import (
    Difference,
    RowFigure,
    choose_metrics,
    compare_rows,
    measure_row,
)
from core.evaluate.promotion_gate import Decision, decide
from core.spec.experiment import ExperimentRow
from core.spec.mix import Mix
from core.spec.promotion import PromotionRule
from core.store.answer_log import find_percentile
from core.store.csv_tables import format_csv
from core.store.experiments import Cell, Experiment


@dataclass(frozen=True)
class RowResult:
    """A row of the table.

    Attributes:
        state: "done", or why it is not, as `Experiments.states` says it.
        figures: metric -> figure, of a row that is done.
        gains: metric -> difference from the baseline of its group; empty for the baseline.
        latency_p95: seconds; None without timed questions.
        tokens_per_second: of the questions that were answered alone; None without.
    """

    row: ExperimentRow
    state: str
    cell: Cell | None = None
    figures: Mapping[str, RowFigure] | None = None
    gains: Mapping[str, Difference] | None = None
    latency_p95: float | None = None
    tokens_per_second: float | None = None

    @property
    def name(self) -> str:
        """The name of the row."""
        return self.row.name


@dataclass(frozen=True)
class ExperimentResults:
    """The results of an experiment so far.

    Attributes:
        metrics: the columns of the table.
        baselines: group -> name of the row that its other rows are compared with.
        judges: what `core.engine.judges` knows about the answers; they are not metrics, and no gate reads
            them.
    """

    experiment: Experiment
    metrics: tuple[str, ...]
    rows: tuple[RowResult, ...]
    baselines: Mapping[str, str]
    judges: tuple[JudgeResult, ...] = ()

    def find(self, name: str) -> RowResult:
        """The row of a name.

        Raises:
            NotFound
        """
        for row in self.rows:
            if row.name == name:
                return row
        names = ", ".join(repr(row.name) for row in self.rows)
        raise NotFound(f"The experiment has no row {name!r}.", f"Its rows are {names}.")

    def compare(self, first: str, second: str, metric: str) -> Difference | None:
        """The second row minus the first; None where they share no question.

        Raises:
            NotFound. SpecError: they are of different groups, or one is not complete.
        """
        a, b = self.find(first), self.find(second)
        check_group(a.row, b.row)
        return compare_rows(_require(a), _require(b), metric, self.experiment.settings.seed)

    def decide(self, name: str, rule: PromotionRule | None = None) -> Decision:
        """The decision of the gate about a row.

        Args:
            rule: None takes the rule of the experiment.

        Raises:
            NotFound. SpecError: its group has no baseline, or a row is not complete.
        """
        settings = self.experiment.settings
        rule = rule or settings.rule
        row = self.find(name)
        baseline = rule.baseline or self.baselines.get(row.row.group_name, "")
        if not baseline:
            raise SpecError(
                f"The group of {name!r} has no row of the base with documents to compare with.",
                "Add one to the experiment, or name the baseline in the rule.",
            ).at("baseline")
        other = self.find(baseline)
        check_group(other.row, row.row)
        plain = self._find_plain(other.row)
        return decide(_require(row), _require(other), rule, settings.seed, _require(plain) if plain else None)

    def _find_plain(self, baseline: ExperimentRow) -> RowResult | None:
        """The base without documents, where the baseline is that base with documents; None without one."""
        if not baseline.passages or not _is_base(baseline):
            return None
        for row in self.rows:
            is_plain = _is_base(row.row) and not row.row.passages and row.row.base == baseline.base
            if is_plain and row.row.group_name == baseline.group_name:
                return row
        return None

    def csv(self) -> str:
        """The table as CSV: each figure with the ends of its interval."""
        heading = ["row", "group", "mix", "documents", "state", "questions"]
        judges = [j for j in self.judges if j.counts]
        columns = [*self.metrics, *(j.column for j in judges)]
        heading += [f"{name}{end}" for name in columns for end in ("", "_low", "_high")]
        lines: list[list[Any]] = []
        for row in self.rows:
            figures = row.figures or {}
            cells: list[Any] = []
            of_row = [figures.get(metric) for metric in self.metrics]
            for found in (*of_row, *(judge.shares.get(row.name) for judge in judges)):
                cells += [found.value, found.low, found.high] if found else ["", "", ""]
            count = len(row.cell.answers) if row.cell else ""
            parts = [row.name, row.row.group_name, row.row.mix, row.row.documents, row.state, count]
            lines.append([*parts, *cells])
        return format_csv([heading, *lines])


def check_group(first: ExperimentRow, second: ExperimentRow) -> None:
    """Checks that two rows may be compared.

    Raises:
        SpecError: they are of different groups.
    """
    if first.group_name != second.group_name:
        raise SpecError(
            f"{first.name!r} and {second.name!r} are in different groups ({first.group_name} and "
            f"{second.group_name}): bases of different sizes are not compared, because the larger one "
            "answers better whatever is done to it.",
            "Compare rows of one group.",
        )


def find_baselines(rows: Sequence[ExperimentRow], named: str = "") -> dict[str, str]:
    """Group -> name of its baseline: the named row, else the first row of the base with documents."""
    found: dict[str, str] = {}
    for row in rows:
        if row.name == named:
            found[row.group_name] = row.name
    for row in rows:
        if row.passages and _is_base(row):
            found.setdefault(row.group_name, row.name)
    return found


def make_results(
    experiment: Experiment, cells: Mapping[str, Cell], states: Mapping[str, str]
) -> ExperimentResults:
    """The table of an experiment.

    Args:
        cells: the complete cells, by the name of their row.
        states: of every row, by its name.
    """
    spec = experiment.settings
    has_gold = any(a.reference for cell in cells.values() for a in cell.answers) or not cells
    metrics = choose_metrics(spec.metrics, has_gold)
    baselines = find_baselines(experiment.rows, spec.rule.baseline)
    rows = []
    for row in experiment.rows:
        cell, baseline = cells.get(row.name), cells.get(baselines.get(row.group_name, ""))
        if cell is None:
            rows.append(RowResult(row, states.get(row.name, "")))
            continue
        figures = {m: f for m in metrics if (f := measure_row(cell, m, spec.seed)) is not None}
        gains: dict[str, Difference] = {}
        if baseline is not None and baselines[row.group_name] != row.name:
            found = {m: compare_rows(baseline, cell, m, spec.seed) for m in metrics}
            gains = {m: d for m, d in found.items() if d is not None}
        seconds = [t.seconds for t in cell.timed]
        rows.append(
            RowResult(
                row,
                states.get(row.name, ""),
                cell,
                figures,
                gains,
                find_percentile(seconds, 0.95) if seconds else None,
                sum(t.tokens for t in cell.timed) / max(sum(seconds), 1e-9) if seconds else None,
            )
        )
    return ExperimentResults(experiment, metrics, tuple(rows), baselines)


def _is_base(row: ExperimentRow) -> bool:
    """Whether a base answers a row, without adapters."""
    return not row.address and not Mix.parse(row.mix).weights


def _require(row: RowResult) -> Cell:
    if row.cell is None:
        raise SpecError(f"The row {row.name!r} is not complete ({row.state}).", "Continue the experiment.")
    return row.cell
