"""Figures of rows and the gate: intervals by hand, pass, fail, and how many questions are missing."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from core.evaluate.answer_figures import (
    Difference,
    compare_rows,
    measure_row,
    score_answer,
)
from core.evaluate.promotion_gate import FAIL, NOT_ENOUGH, PASS, VOID, count_shortfall, decide
from core.spec.promotion import PromotionRule
from core.store.answer_log import find_percentile
from core.store.experiments import Cell, CellAnswer, TimedAnswer


def make_cell(name: str, factuality: list[float], coverage: float = 0.5, **changes: Any) -> Cell:
    answers = tuple(
        CellAnswer(i, "q", "a", "r", figures={"factuality": f, "citation_coverage": coverage, "nats": 2.0,
                                              "scored_tokens": 4.0})
        for i, f in enumerate(factuality)
    )  # fmt: skip
    settings: dict[str, Any] = {
        "general": (0.8,) * 20,
        "timed": tuple(TimedAnswer(i, 1.0, 10) for i in range(8)),
        **changes,
    }
    return Cell("0" * 64, {"name": name, "documents": "on"}, {}, answers, **settings)


def draw(share: float, count: int, seed: int) -> list[float]:
    generator = random.Random(seed)
    return [float(generator.random() < share) for _ in range(count)]


RULE = PromotionRule()
BASELINE = make_cell("rag", draw(0.4, 200, 1))


def test_a_clear_gain_with_citations_passes_every_criterion() -> None:
    decision = decide(make_cell("both", draw(0.8, 200, 2)), BASELINE, RULE)
    assert decision.status == PASS and {c.status for c in decision.criteria} == {PASS}
    assert decision.missing == 0 and "may be promoted" in decision.text
    assert "95 % interval" in decision.criteria[0].text and "200 questions" in decision.criteria[0].text


@pytest.mark.parametrize(
    ("changes", "criterion"),
    [
        ({"coverage": 0.34}, "citation coverage"),
        ({"general": (0.7,) * 20}, "forgetting"),
        ({"timed": tuple(TimedAnswer(i, 1.6, 10) for i in range(8))}, "latency"),
    ],
)
def test_one_criterion_that_falls_short_fails_the_gate(changes: dict[str, Any], criterion: str) -> None:
    decision = decide(make_cell("both", draw(0.8, 200, 2), **changes), BASELINE, RULE)
    assert decision.status == FAIL
    assert [c.name for c in decision.criteria if c.status == FAIL] == [criterion]


def test_a_gain_below_the_limit_fails_and_a_wide_interval_needs_questions() -> None:
    assert decide(make_cell("same", draw(0.4, 200, 3)), BASELINE, RULE).criteria[0].status == FAIL
    few = decide(make_cell("few", draw(0.9, 12, 4)), make_cell("rag", draw(0.3, 12, 5)), RULE)
    assert few.status == NOT_ENOUGH and few.missing >= 18  # 30 are the least
    before, after = [0.0] * 100 + [1.0] * 100, [1.0] * 14 + [0.0] * 88 + [1.0] * 98  # 14 wins, 2 losses
    close = decide(make_cell("close", after), make_cell("rag", before), RULE)
    factuality = close.criteria[0]
    assert factuality.status == NOT_ENOUGH and close.missing == factuality.missing > 0
    assert f"About {close.missing} more questions" in close.text


def test_the_missing_questions_follow_from_the_deviation() -> None:
    found = Difference(0.4, 0.55, 0.15, 0.01, 0.29, 50, deviation=0.5)
    needed = count_shortfall(found, 0.05) + found.count
    half_width = 1.96 * found.deviation / math.sqrt(needed)
    assert found.gain - half_width == pytest.approx(0.05, abs=0.002) and needed == 97
    assert count_shortfall(found, 0.2) == 0


def test_what_is_not_measured_does_not_pass() -> None:
    cell = make_cell("both", draw(0.8, 200, 2), general=(), timed=())
    decision = decide(cell, BASELINE, RULE)
    assert decision.status == NOT_ENOUGH
    assert [c.status for c in decision.criteria] == [PASS, PASS, NOT_ENOUGH, NOT_ENOUGH]


def test_the_gate_is_void_where_the_gain_of_retrieval_may_be_nothing() -> None:
    both = make_cell("both", draw(0.8, 200, 2))
    better = decide(both, BASELINE, RULE, plain=make_cell("base", draw(0.1, 200, 6)))
    assert better.status == PASS and better.criteria[0].name == "retrieval"
    same = decide(both, BASELINE, RULE, plain=make_cell("base", draw(0.4, 200, 1)))
    assert same.status == VOID and [c.status for c in same.criteria][1:] == [PASS] * 4
    assert same.missing == 0 and "longer context" in same.criteria[0].text
    worse = make_cell("worse", draw(0.4, 200, 3), coverage=0.0)  # the gate is void, whatever fails
    assert decide(worse, BASELINE, RULE, plain=make_cell("base", draw(0.5, 200, 7))).status == VOID
    values = draw(0.4, 200, 1)
    for index in [i for i, value in enumerate(values) if value][:2]:  # documents win two questions
        values[index] = 0.0
    nearly = decide(both, BASELINE, RULE, plain=make_cell("base", values))
    found = compare_rows(make_cell("base", values), BASELINE, "factuality")
    assert found and found.low <= 0 < found.gain and nearly.status == VOID
    assert nearly.missing == count_shortfall(found, 0.0) > 0
    few = make_cell("both", draw(0.9, 12, 4)), make_cell("rag", draw(0.3, 12, 5))
    early = decide(*few, RULE, plain=make_cell("base", draw(0.3, 12, 5)))
    assert early.status == NOT_ENOUGH and early.criteria[0].missing == 18


def test_rows_are_compared_on_the_questions_of_both() -> None:
    first, second = make_cell("a", [0.0, 1.0, 1.0]), make_cell("b", [1.0, 1.0])
    found = compare_rows(first, second, "factuality")
    assert found and (found.base, found.value, found.gain, found.count) == (0.5, 1.0, 0.5, 2)
    perplexity = measure_row(first, "perplexity")
    assert perplexity and perplexity.value == pytest.approx(math.exp(0.5)) == perplexity.low
    assert measure_row(first, "support") is None
    ratio = compare_rows(first, make_cell("b", [1.0], timed=(TimedAnswer(0, 1.5, 1),)), "latency")
    assert ratio and ratio.is_ratio and ratio.gain == 1.5
    assert find_percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0 and find_percentile([1.0, 9.0], 0.95) == 9.0
    same = compare_rows(BASELINE, BASELINE, "factuality")
    assert same and (same.gain, same.low, same.high) == (0.0, 0.0, 0.0)


def test_citations_that_were_attached_afterwards_never_reach_the_score() -> None:
    passages = ["The lamp is in the north room."]
    bare, _ = score_answer("Where is the lamp?", "In the north room.", "In the north room.", passages)
    cited, outcome = score_answer("Where is the lamp?", "In the north room [1].", "North room.", passages)
    assert bare["citation_coverage"] == 0.0 and cited["citation_coverage"] == 1.0 and outcome == "grounded"
    refused, outcome = score_answer("Where is the lamp?", "I don't know.", "In the cellar.", passages)
    assert outcome == "honest refusal" and "citation_coverage" not in refused
    closed, _ = score_answer("Where?", "In the north room.", "In the north room.", None)
    assert "support" not in closed and closed["grounded"] == closed["factuality"] == 1.0
