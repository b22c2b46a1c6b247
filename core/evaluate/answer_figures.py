"""Figures of answers: of one answer, of all answers of a row, and the difference between two rows.

Intervals are percentile intervals of a bootstrap over questions; two rows are compared on the questions that
both have answered, with the same draws (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import SpecError
from core.evaluate.citations import score_citations
from core.evaluate.facts import measure_factuality, measure_support, read_gold
from core.evaluate.metrics import exact_match, f1
from core.evaluate.paired_gain import DRAWS, TAIL
from core.evaluate.refusals import OUTCOMES, classify_answer, is_refusal
from core.spec.answer_metrics import ANSWER_METRICS, GOLD_METRICS
from core.store.experiments import Cell

NATS, SCORED = "nats", "scored_tokens"  # figures of an answer that perplexity is made of
PERPLEXITY, LATENCY = "perplexity", "latency"


@dataclass(frozen=True)
class RowFigure:
    """A figure of a row with its 95 % interval.

    Attributes:
        count: answers that it is measured on.
    """

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Difference:
    """A figure of one row minus that of another, on the questions of both, with its 95 % interval.

    Attributes:
        base, value: of the first row, and of the second.
        deviation: standard deviation of the differences between questions.
        is_ratio: whether `gain` is value / base, as for latency.
    """

    base: float
    value: float
    gain: float
    low: float
    high: float
    count: int
    deviation: float = 0.0
    is_ratio: bool = False


def choose_metrics(metrics: Sequence[str], has_gold: bool) -> tuple[str, ...]:
    """The metrics of an experiment.

    Args:
        metrics: what was asked for; none means all that the questions allow.
        has_gold: whether the questions have reference answers.

    Raises:
        SpecError: a metric needs reference answers, and there are none.
    """
    if not metrics:
        return tuple(m for m in ANSWER_METRICS if has_gold or m not in GOLD_METRICS)
    missing = [ANSWER_METRICS[m].label for m in metrics if m in GOLD_METRICS and not has_gold]
    if missing:
        raise SpecError(
            f"{' and '.join(missing)} must be compared with reference answers, and the questions have none.",
            "Import questions with an answer column, or leave these metrics out.",
        ).at("metrics")
    return tuple(metrics)


def score_answer(
    question: str, answer: str, reference: str, passages: Sequence[str] | None
) -> tuple[dict[str, float], str]:
    """The figures of one answer, and its outcome.

    Args:
        answer: as the model wrote it, without citations that were attached afterwards.
        reference: "" without a gold answer.
        passages: that the model was given; None for a row without documents.
    """
    gold = read_gold(question, reference)
    figures: dict[str, float | None] = {}
    if reference.strip():
        figures = {"exact_match": exact_match(answer, reference), "f1": f1(answer, reference)}
        figures["factuality"] = measure_factuality(answer, gold)
    refused = is_refusal(answer)
    if passages is not None:
        citations = score_citations(answer, passages)
        figures["citation_precision"] = citations.precision
        if not refused:
            figures["support"] = measure_support(answer, question, list(passages))
            figures["citation_coverage"] = citations.coverage
    sources = list(passages) if passages is not None else []
    if passages is None and not refused and reference.strip():
        sources = [reference]
    outcome = classify_answer(answer, question, gold, sources)
    figures |= {name.replace(" ", "_"): float(name == outcome) for name in OUTCOMES}
    return {name: value for name, value in figures.items() if value is not None}, outcome


# --- of rows


def list_values(cell: Cell, metric: str) -> dict[int, tuple[float, float]]:
    """The (value, weight) of each answer, by the index of its question.

    A mean is sum(value) / sum(weight); perplexity has the nats and tokens of each answer.
    """
    if metric == LATENCY:
        return {t.index: (t.seconds, 1.0) for t in cell.timed}
    if metric == PERPLEXITY:
        return {a.index: (a.figures[NATS], a.figures[SCORED]) for a in cell.answers if a.figures.get(SCORED)}
    return {a.index: (a.figures[metric], 1.0) for a in cell.answers if metric in a.figures}


def measure_row(cell: Cell, metric: str, seed: int = 0) -> RowFigure | None:
    """A figure of a row with its interval; None without an answer that has it."""
    return measure_values(list(list_values(cell, metric).values()), metric, seed)


def measure_values(
    values: Sequence[tuple[float, float]], metric: str = "", seed: int = 0
) -> RowFigure | None:
    """As `measure_row`, of the (value, weight) of each answer."""
    if not values:
        return None
    point, draws = _draw([values], metric, seed)
    low, high = _cut(draws[0])
    return RowFigure(point[0], low, high, len(values))


def compare_rows(first: Cell, second: Cell, metric: str, seed: int = 0) -> Difference | None:
    """The second row minus the first, on the questions of both; of latency, second / first.

    Returns:
        None where they share no question with this figure.
    """
    return compare_values(list_values(first, metric), list_values(second, metric), metric, seed)


def compare_values(
    first: dict[int, tuple[float, float]],
    second: dict[int, tuple[float, float]],
    metric: str = "",
    seed: int = 0,
) -> Difference | None:
    """As `compare_rows`, of values by the index of their question."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    a, b = [first[i] for i in shared], [second[i] for i in shared]
    point, draws = _draw([a, b], metric, seed)
    is_ratio = metric == LATENCY
    combine: Callable[[Any, Any], Any] = (lambda x, y: y / _clip(x)) if is_ratio else (lambda x, y: y - x)
    low, high = _cut(combine(draws[0], draws[1])) if len(shared) > 1 else (-math.inf, math.inf)
    gains = [y[0] - x[0] for x, y in zip(a, b, strict=True)]
    mean = sum(gains) / len(gains)
    deviation = math.sqrt(sum((g - mean) ** 2 for g in gains) / max(1, len(gains) - 1))
    gain = float(combine(point[0], point[1]))
    return Difference(point[0], point[1], gain, low, high, len(shared), deviation, is_ratio)


def _clip(seconds: Any) -> Any:
    import numpy as np

    return np.maximum(seconds, 1e-9)


def _draw(
    rows: Sequence[Sequence[tuple[float, float]]], metric: str, seed: int
) -> tuple[list[float], list[Any]]:
    """The figure of each row, and of the same DRAWS draws of its questions."""
    import numpy as np

    count = len(rows[0])
    picks = np.random.default_rng(seed).integers(0, count, (DRAWS, count))
    whole = np.arange(count)[None, :]
    points, draws = [], []
    for row in rows:
        table = np.asarray(row, dtype=np.float64)
        points.append(float(_reduce(table[whole], metric)[0]))
        draws.append(_reduce(table[picks], metric))
    return points, draws


def _reduce(table: Any, metric: str) -> Any:
    """The figure of every draw: table is (draws, questions, value and weight)."""
    import numpy as np

    if metric == LATENCY:
        return np.median(table[:, :, 0], axis=1)
    means = table[:, :, 0].sum(1) / np.maximum(table[:, :, 1].sum(1), 1e-9)
    return np.exp(np.minimum(means, 700.0)) if metric == PERPLEXITY else means


def _cut(draws: Any) -> tuple[float, float]:
    ordered = sorted(float(d) for d in draws)
    return ordered[int(TAIL * len(ordered))], ordered[int((1 - TAIL) * len(ordered)) - 1]
