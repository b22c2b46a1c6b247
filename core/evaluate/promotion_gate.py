"""The gate: whether a row of an experiment may be promoted, by its rule.

    pass                  every criterion holds
    fail                  one does not, and more questions would not change that
    not enough questions  the estimate holds and its interval is too wide, or something is not measured
    void                  documents do not help the base itself, so that beating the base with documents
                          proves nothing; the other criteria are shown and decide nothing

The number of missing questions follows from the observed deviation: an interval of n questions has half the
width 1.96 s / sqrt(n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core.evaluate.answer_figures import Difference, compare_rows, compare_values, measure_row
from core.spec.promotion import PromotionRule
from core.store.experiments import Cell

PASS, FAIL, NOT_ENOUGH, VOID = "pass", "fail", "not enough questions", "void"
Z = 1.959963984540054  # the 97.5 % point of the standard normal distribution


@dataclass(frozen=True)
class Criterion:
    """One part of the rule.

    Attributes:
        status: PASS, FAIL, NOT_ENOUGH or VOID.
        text: what was measured and what is needed, as a sentence.
        missing: further questions that are needed.
    """

    name: str
    status: str
    text: str
    missing: int = 0


@dataclass(frozen=True)
class Decision:
    """The result of the gate.

    Attributes:
        row, baseline: names of the two rows.
        missing: further questions that are needed; 0 where questions are not what is missing.
    """

    row: str
    baseline: str
    status: str
    criteria: tuple[Criterion, ...]
    missing: int = 0

    @property
    def text(self) -> str:
        """The result as a sentence."""
        if self.status == PASS:
            return f"{self.row!r} may be promoted: it meets every criterion against {self.baseline!r}."
        names = " and ".join(c.name for c in self.criteria if c.status == self.status)
        if self.status == FAIL:
            return f"{self.row!r} may not be promoted. Falls short: {names}."
        if self.status == VOID:
            return (
                f"{self.row!r} cannot be decided: the gate is void, because documents do not help the base. "
                f"Beating {self.baseline!r} proves nothing then."
            )
        more = f" About {self.missing} more questions are needed." if self.missing else ""
        return f"{self.row!r} cannot be decided yet: {names}.{more}"

    def to_json(self) -> dict[str, Any]:
        """The decision as JSON."""
        return {**asdict(self), "text": self.text}


def decide(
    cell: Cell, baseline: Cell, rule: PromotionRule, seed: int = 0, plain: Cell | None = None
) -> Decision:
    """Applies a rule to a row and its baseline.

    Args:
        plain: the base without documents, where the baseline is the base with documents.
    """
    criteria = (
        *([_check_retrieval(plain, baseline, rule, seed)] if plain else []),
        _check_factuality(cell, baseline, rule, seed),
        _check_citations(cell, rule, seed),
        _check_general(cell, baseline, rule, seed),
        _check_latency(cell, baseline, rule, seed),
    )
    statuses = {c.status for c in criteria}
    status = next((s for s in (VOID, FAIL, NOT_ENOUGH) if s in statuses), PASS)
    missing = max((c.missing for c in criteria if c.status == status), default=0)
    return Decision(str(cell.row["name"]), str(baseline.row["name"]), status, criteria, missing)


def count_shortfall(difference: Difference, limit: float) -> int:
    """Further questions until the lower end of the interval reaches `limit`, by the observed deviation."""
    margin = difference.gain - limit
    if margin <= 0:
        return 0
    needed = math.ceil((Z * difference.deviation / margin) ** 2)
    return max(1, needed - difference.count)


def _check_retrieval(plain: Cell, baseline: Cell, rule: PromotionRule, seed: int) -> Criterion:
    """Whether documents help the base itself."""
    name = "retrieval"
    found = compare_rows(plain, baseline, "factuality", seed)
    if found is None:
        return Criterion(name, NOT_ENOUGH, "Retrieval is not measured: the rows share no question.")
    text = (
        f"Factuality of the base {100 * found.base:.1f} % → {100 * found.value:.1f} % with documents on "
        f"{found.count} questions: {100 * found.gain:+.1f} points (95 % interval {_points(found.low)} to "
        f"{_points(found.high)})."
    )
    if found.low > 0:
        return Criterion(name, PASS, text)
    if found.count < rule.minimum_questions:
        return Criterion(name, NOT_ENOUGH, text, rule.minimum_questions - found.count)
    fix = (
        "The lower end must be above 0: try other settings of the index, a base with a longer context or "
        f"more questions, or name {str(plain.row['name'])!r} as the baseline of the rule."
    )
    return Criterion(name, VOID, f"{text} {fix}", count_shortfall(found, 0.0))


def _check_factuality(cell: Cell, baseline: Cell, rule: PromotionRule, seed: int) -> Criterion:
    name, limit = "factuality", rule.factuality_gain / 100
    found = compare_rows(baseline, cell, name, seed)
    if found is None:
        return Criterion(name, NOT_ENOUGH, "Factuality is not measured: the rows share no question.")
    text = (
        f"Factuality {100 * found.base:.1f} % → {100 * found.value:.1f} % on {found.count} questions: "
        f"{100 * found.gain:+.1f} points (95 % interval {_points(found.low)} to {_points(found.high)}); the "
        f"lower end must be at least {rule.factuality_gain:+g}."
    )
    if found.count >= rule.minimum_questions and found.low >= limit:
        return Criterion(name, PASS, text)
    if found.count >= rule.minimum_questions and found.gain < limit:
        return Criterion(name, FAIL, text)
    if found.high < limit and found.count > 1:
        return Criterion(name, FAIL, text)
    missing = max(count_shortfall(found, limit), rule.minimum_questions - found.count)
    return Criterion(name, NOT_ENOUGH, text, missing)


def _check_citations(cell: Cell, rule: PromotionRule, seed: int) -> Criterion:
    name = "citation coverage"
    found = measure_row(cell, "citation_coverage", seed)
    if found is None:
        what = "reads documents and wrote no sentence" if cell.row.get("documents") != "off" else "reads none"
        return Criterion(
            name, FAIL, f"Citation coverage must be at least {rule.citation_coverage:g}; the row {what}."
        )
    text = (
        f"Citation coverage {found.value:.2f} (95 % interval {found.low:.2f} to {found.high:.2f}); it must "
        f"be at least {rule.citation_coverage:g}."
    )
    return Criterion(name, PASS if found.value >= rule.citation_coverage else FAIL, text)


def _check_general(cell: Cell, baseline: Cell, rule: PromotionRule, seed: int) -> Criterion:
    name = "forgetting"
    found = compare_values(_index(cell.general), _index(baseline.general), name, seed)
    if found is None:
        return Criterion(
            name, NOT_ENOUGH, "Forgetting is not measured: the experiment has no general questions."
        )
    text = (
        f"F1 on {found.count} general questions {100 * found.value:.1f} % → {100 * found.base:.1f} %: "
        f"{100 * found.gain:+.1f} points forgotten (95 % interval {_points(found.low)} to "
        f"{_points(found.high)}); at most {rule.forgetting:g} are allowed."
    )
    return Criterion(name, PASS if 100 * found.gain <= rule.forgetting else FAIL, text)


def _check_latency(cell: Cell, baseline: Cell, rule: PromotionRule, seed: int) -> Criterion:
    found = compare_rows(baseline, cell, "latency", seed)
    if found is None:
        return Criterion("latency", NOT_ENOUGH, "Latency is not measured: no question was answered alone.")
    text = (
        f"Median latency {found.base:.2f} s → {found.value:.2f} s on {found.count} questions, "
        f"{found.gain:.2f} times; at most {rule.latency_ratio:g} times is allowed."
    )
    return Criterion("latency", PASS if found.gain <= rule.latency_ratio else FAIL, text)


def _index(values: Sequence[float]) -> dict[int, tuple[float, float]]:
    return {i: (value, 1.0) for i, value in enumerate(values)}


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
