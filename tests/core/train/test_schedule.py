"""The learning rate of every step, under the present rules and under those of 0.1.0."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from core.spec.training import SCHEDULES, TrainSpec
from core.train.schedule import create_scheduler, rate_factor, warmup_steps

PEAK = 3e-4
TOTALS = (*range(1, 13), 33, 100, 1000)
RATIOS = (0.0, 0.001, 0.03, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)


def rates_of(schedule: str, total: int, ratio: float) -> list[float]:
    """The rate of every step, from the scheduler that a run uses."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    spec = TrainSpec(schedule=schedule, warmup_ratio=ratio, learning_rate=PEAK)
    scheduler = create_scheduler(optimizer, spec, total)
    rates = []
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_has_a_rate_and_the_peak_is_reached(schedule: str) -> None:
    for total, ratio in itertools.product(TOTALS, RATIOS):
        rates, warmup = rates_of(schedule, total, ratio), warmup_steps(ratio, total)
        where = f"{schedule}, {total} steps, warm-up {ratio}"
        assert len(rates) == total and min(rates) > 0.0, where
        assert max(rates) == rates[warmup] == PEAK, where
        rising, falling = rates[: warmup + 1], rates[warmup:]
        assert all(a < b for a, b in itertools.pairwise(rising)), where
        assert all(a >= b for a, b in itertools.pairwise(falling)), where
        if schedule != "constant":
            assert all(a > b for a, b in itertools.pairwise(falling)), where


@pytest.mark.parametrize(
    ("schedule", "total", "ratio", "shares"),
    [
        ("linear", 1, 0.9, [1.0]),
        ("cosine", 1, 0.03, [1.0]),
        ("cosine", 2, 0.03, [0.5, 1.0]),
        ("linear", 2, 0.0, [1.0, 0.5]),
        ("cosine", 3, 0.03, [0.5, 1.0, 0.5]),
        ("linear", 3, 0.9, [1 / 3, 2 / 3, 1.0]),
        ("linear", 5, 0.2, [0.5, 1.0, 0.75, 0.5, 0.25]),
        ("constant", 4, 0.5, [1 / 3, 2 / 3, 1.0, 1.0]),
        ("cosine_with_min_lr", 3, 0.03, [0.5, 1.0, 0.55]),
        ("inverse_sqrt", 4, 0.25, [0.5, 1.0, 1 / math.sqrt(2), 1 / math.sqrt(3)]),
    ],
)
def test_short_runs_have_these_rates(schedule: str, total: int, ratio: float, shares: list[float]) -> None:
    assert rates_of(schedule, total, ratio) == pytest.approx([PEAK * s for s in shares])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_after_the_warm_up_the_rates_are_those_of_transformers(schedule: str) -> None:
    from transformers import get_scheduler

    name = "constant_with_warmup" if schedule == "constant" else schedule
    options = {"min_lr_rate": 0.1} if schedule == "cosine_with_min_lr" else None
    for total, warmup in ((12, 2), (100, 3), (100, 0), (7, 6)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
        theirs = get_scheduler(name, optimizer, warmup, total, options).lr_lambdas[0]
        ours = [rate_factor(step, schedule, total, warmup) for step in range(total)]
        assert ours[warmup:] == [theirs(step) for step in range(warmup, total)]


def test_a_warm_up_is_a_share_of_the_steps_and_leaves_one() -> None:
    cases = {
        (1, 0.9): 0,
        (2, 0.9): 1,
        (10, 0.9): 9,
        (100, 0.07): 7,
        (100, 0.03): 3,
        (34, 0.1): 4,
        (9, 0.0): 0,
    }
    assert {key: warmup_steps(key[1], key[0]) for key in cases} == cases
