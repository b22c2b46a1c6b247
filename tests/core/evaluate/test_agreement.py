"""Cohen's kappa: by its definition, symmetric, and undefined where all ratings are the same."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.evaluate.agreement import compute_kappa, measure_kappa

RATINGS = st.sampled_from(["good", "poor", "unreadable"])
PAIRS = st.lists(st.tuples(RATINGS, RATINGS), min_size=1, max_size=60)


def define_kappa(pairs: list[tuple[str, str]]) -> float | None:
    """1 - disagreement / disagreement by chance, by counting all pairs of ratings of two answers."""
    observed = sum(a != b for a, b in pairs) / len(pairs)
    chance = sum(a != b for (a, _), (_, b) in product(pairs, pairs)) / len(pairs) ** 2
    return 1 - observed / chance if chance else None


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_kappa_is_one_minus_disagreement_by_chance(pairs: list[tuple[str, str]]) -> None:
    expected = define_kappa(pairs)
    found = compute_kappa(pairs)
    assert found == (None if expected is None else pytest.approx(expected))


@settings(max_examples=100, deadline=None)
@given(PAIRS)
def test_kappa_is_symmetric_and_at_most_one(pairs: list[tuple[str, str]]) -> None:
    turned = [(b, a) for a, b in pairs]
    assert compute_kappa(pairs) == compute_kappa(turned)
    assert (compute_kappa(pairs) or 0.0) <= 1.0
    same = [(a, a) for a, _ in pairs]
    assert compute_kappa(same) == (1.0 if len({a for a, _ in pairs}) > 1 else None)


def test_kappa_of_cohen_s_definition_on_a_table() -> None:
    table = {("good", "good"): 20, ("good", "poor"): 5, ("poor", "good"): 10, ("poor", "poor"): 15}
    pairs = [pair for pair, count in table.items() for _ in range(count)]
    assert compute_kappa(pairs) == pytest.approx((0.70 - 0.50) / (1 - 0.50))
    found = measure_kappa(pairs, seed=1)
    assert found.value == pytest.approx(0.4) and found.share == 0.7 and found.count == 50
    # Cohen's standard error: the root of 0.7 * 0.3 / (50 * (1 - 0.5) ** 2) is 0.13
    assert found.low == pytest.approx(0.4 - 1.96 * 0.13, abs=0.05)
    assert found.high == pytest.approx(0.4 + 1.96 * 0.13, abs=0.05)
    assert found == measure_kappa(pairs, seed=1)


def test_ratings_of_one_kind_leave_kappa_undefined_or_zero() -> None:
    assert measure_kappa([]).value is None and measure_kappa([]).count == 0
    constant = measure_kappa([("good", "good")] * 40)
    assert (constant.value, constant.low, constant.share) == (None, None, 1.0)
    one_sided = measure_kappa([("good", "good")] * 20 + [("good", "poor")] * 20)
    assert one_sided.value == one_sided.low == one_sided.high == 0.0


def test_one_rare_rating_does_not_make_a_judge_certain() -> None:
    found = measure_kappa([("good", "good")] * 29 + [("poor", "poor")])
    assert found.value == 1.0 and found.low == 0.0 and found.high == 1.0
    even = measure_kappa([("good", "good")] * 15 + [("poor", "poor")] * 15)
    assert even.value == even.low == even.high == 1.0
