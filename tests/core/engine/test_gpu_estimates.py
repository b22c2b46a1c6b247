"""How much GPU time answers and runs request: what the estimates count, and their limits."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.engine.gpu_estimates import (
    ANSWER_LIMITS,
    START_SECONDS,
    estimate_answer_seconds,
    estimate_load_seconds,
    plan_slices,
)
from core.engine.gpu_tasks import AnswerJob
from core.spec.mix import Mix, Sampling
from core.spec.recommendation import DataSize
from core.spec.training import TrainSpec

SIZE = DataSize(rows=100, tokens=20_000, trained=20_000)


def job(tokens: int, columns: int, rate: float, load: float = 6.0) -> AnswerJob:
    sampling = Sampling(max_new_tokens=tokens)
    return AnswerJob(
        "w", "b", "none", "auto", "p", (Mix(),) * columns, sampling, True, True, False, rate, load
    )


@pytest.mark.parametrize(
    ("tokens", "columns", "rate", "seconds"),
    [(25, 1, 25.0, 10), (100, 2, 25.0, 14), (200, 6, 25.0, 54), (200, 6, 240.0, 11), (1024, 6, 25.0, 120)],
)
def test_an_answer_requests_tokens_times_columns(
    tokens: int, columns: int, rate: float, seconds: int
) -> None:
    assert estimate_answer_seconds(job(tokens, columns, rate)) == seconds


@given(st.integers(1, 1024), st.integers(1, 6), st.floats(1.0, 2000.0))
def test_more_columns_never_request_less(tokens: int, columns: int, rate: float) -> None:
    one, more = (estimate_answer_seconds(job(tokens, n, rate)) for n in (columns, columns + 1))
    assert ANSWER_LIMITS[0] <= one <= more <= ANSWER_LIMITS[1]


def test_a_larger_base_takes_longer_to_load() -> None:
    assert estimate_load_seconds(0) == START_SECONDS
    assert estimate_load_seconds(1_000_000_000) == START_SECONDS + 2.0


def spec(**changes: Any) -> TrainSpec:
    values = {"kind": "task", "name": "n", "dataset": "d", "batch_size": 5, "accumulation": 2, "epochs": 3.0}
    return TrainSpec.from_json({**values, "packing": False, "replay_share": 0.0, **changes})


def test_a_plan_counts_the_slices_that_the_tokens_need() -> None:
    measured = plan_slices(spec(), SIZE, 0, 60, 1000.0)
    assert (measured.slices, measured.is_measured) == (2, True), (
        "60,000 tokens in slices of 46 useful seconds"
    )
    assert measured.seconds == 60 + 2 * 14
    assert plan_slices(spec(max_steps=10), SIZE, 0, 60, 1000.0).seconds == 20 + 14
    stated = plan_slices(spec(), SIZE, 8_000_000_000, 60)
    assert stated.slices == 5 and not stated.is_measured, "417 tokens a second, 30 useful seconds a slice"
    assert plan_slices(spec(), SIZE, 135_000_000, 60).slices == 1


def test_a_plan_is_one_sentence_with_time_slices_and_quota() -> None:
    text = plan_slices(spec(), SIZE, 8_000_000_000, 60).text
    assert text.count(". ") == 0 and "about 5 minutes of your GPU time in 5 slices of at most 60 s" in text
    assert "not measured on this base yet" in text and "daily quota of your Hugging Face account" in text
