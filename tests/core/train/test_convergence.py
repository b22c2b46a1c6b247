"""Whether a run was still learning when it ended."""

from __future__ import annotations

import math
import random

import pytest

from core.spec.training import SCHEDULES, TrainSpec
from core.train.comparison import ValidationPoint
from core.train.convergence import PACE, judge_convergence
from core.train.schedule import rate_factor, warmup_steps


def curve(
    total: int, loss_at: object, spec: TrainSpec, rows: int = 20, noise: float = 0.0
) -> list[ValidationPoint]:
    """Ten validations whose loss is a function of the learning rate that was spent, 0 to 1."""
    warmup = warmup_steps(spec.warmup_ratio, total)
    rates = [rate_factor(s, spec.schedule, total, warmup) for s in range(total)]
    generator, points = random.Random(0), []
    for step in [round(total * i / 10) for i in range(11)]:
        loss = loss_at(sum(rates[:step]) / sum(rates))  # type: ignore[operator]
        each = [(10 * (loss + generator.gauss(0, noise)), 10) for _ in range(rows)]
        points.append(ValidationPoint(step, sum(n for n, _ in each) / (10 * rows), tuple(each)))
    return points


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_loss_that_falls_with_the_learning_rate_is_still_learning(schedule: str) -> None:
    spec = TrainSpec(schedule=schedule)
    judged = judge_convergence(curve(40, lambda spent: 4.7 - 0.6 * spent, spec), spec, floor=200)
    assert judged.still_learning and judged.pace == pytest.approx(1.0, abs=0.02)
    assert judged.more_steps == 160, "200 steps altogether"
    assert judge_convergence(curve(40, lambda s: 4.7 - 0.6 * s, spec), spec).more_steps == pytest.approx(
        120, abs=4
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_loss_that_has_converged_is_not(schedule: str) -> None:
    spec = TrainSpec(schedule=schedule)
    judged = judge_convergence(curve(200, lambda spent: 1.7 + 3 * math.exp(-12 * spent), spec), spec, 200)
    assert not judged.still_learning and judged.more_steps == 0 and judged.pace < PACE


def test_overfitting_is_not_underfitting() -> None:
    spec = TrainSpec()
    judged = judge_convergence(curve(200, lambda s: 2 - 2 * s + 2.5 * s * s, spec), spec, 500)
    assert not judged.still_learning and judged.late_fall < 0


def test_a_fall_within_chance_is_not_counted() -> None:
    """Two standard errors of the paired rows decide."""
    spec = TrainSpec()
    loud = judge_convergence(curve(40, lambda s: 3 - 0.15 * s, spec, rows=4, noise=0.5), spec)
    calm = judge_convergence(curve(40, lambda s: 3 - 0.15 * s, spec, rows=4), spec)
    assert not loud.still_learning and loud.error > 0.05
    assert calm.still_learning and calm.error < 1e-9


def test_too_few_validations_say_nothing() -> None:
    spec = TrainSpec()
    points = curve(40, lambda s: 4 - s, spec)
    assert not judge_convergence(points[:3], spec).still_learning
    assert not judge_convergence(points[1:], spec).still_learning, "without the loss before the first step"
    assert not judge_convergence([], spec).still_learning


def test_twenty_four_steps_on_eighty_questions_are_named() -> None:
    """24 steps, 4.71 to 4.11."""
    spec = TrainSpec(warmup_ratio=0.05)
    short = curve(24, lambda spent: 4.71 - 0.6 * spent, spec)
    judged = judge_convergence(short, spec, 200)
    assert judged.still_learning and judged.more_steps == 176
