"""Whether a run was still learning when it ended, from its validations; for how many steps to train on.

    loss
    L0  *                      fall: L0 - L, of the whole run
        '.                     late: Lh - L, of the steps since the middle
    Lh    '-._*                area: the learning rates of these steps, over those of all steps
    L           '--.__*
        0     S/2     S  step

A schedule that ends near 0 flattens every curve at its end. So the late fall is compared with what the
learning rates of the late steps would give at the mean pace of the run: `pace` is (late / fall) / area. It is
1 for a loss that falls in proportion to the learning rate, and near 0 for one that has converged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from core.spec.training import TrainSpec
from core.train.comparison import SIGNIFICANCE, ValidationPoint, compare_losses
from core.train.schedule import rate_factor, warmup_steps

PACE = 0.4  # from this pace on, a run counts as still learning
VALIDATIONS = 3  # after step 0; with fewer, nothing is said
MIN_FALL = 0.01  # nats per token; a smaller late fall is not worth more steps
MOST = 3.0  # as many times its steps as are suggested at most


@dataclass(frozen=True)
class Convergence:
    """How the validation loss of a run moved towards its end.

    Attributes:
        still_learning: the loss was still falling.
        late_fall: nats per token that it fell since the middle of the run; NaN if not measured.
        error: standard error of `late_fall` over the validation rows; NaN if they are not stored.
        pace: of the late fall, see above; NaN if the loss did not fall.
        more_steps: optimizer steps that are suggested for training on; 0 if none are.
    """

    still_learning: bool = False
    late_fall: float = math.nan
    error: float = math.nan
    pace: float = math.nan
    more_steps: int = 0


def judge_convergence(validations: Sequence[ValidationPoint], spec: TrainSpec, floor: int = 0) -> Convergence:
    """Judges whether a run that completed its steps was still learning when it ended.

    It was, if all of this holds:

    1. The last validation is the best one, and at least three validations follow step 0.
    2. The loss fell since the last validation in the first half of the run, by more than two standard errors
       over the validation rows, which are compared pair by pair (`core.train.comparison.compare_losses`), and
       by at least 0.01 nats per token. Without stored rows, only the second part is required.
    3. The pace of that fall is at least 0.4 (see the top of this module).

    The suggested steps grow with the pace, from the steps of the run to three times as many, and with them
    the adapter has at least `floor` steps altogether.

    Args:
        validations: of the run, in the order of steps, with the one before the first step.
        spec: its settings, of which the schedule counts.
        floor: optimizer steps that an adapter needs on this base, altogether.
    """
    if len(validations) < VALIDATIONS + 1 or validations[0].step != 0:
        return Convergence()
    start, last = validations[0], validations[-1]
    early = [v for v in validations if 2 * v.step <= last.step]
    middle = early[-1]
    fall, difference = start.loss - last.loss, compare_losses(last, middle)
    late, error = difference.nats, difference.error
    if not fall > 0 or middle.step == last.step:
        return Convergence(late_fall=late, error=error)
    pace = late / fall / _area(spec, middle.step, last.step)
    is_best = last.loss <= min(v.loss for v in validations)
    is_certain = math.isnan(error) or late > SIGNIFICANCE * error
    if not (is_best and is_certain and late >= MIN_FALL and pace >= PACE):
        return Convergence(False, late, error, pace)
    factor = 1 + (MOST - 1) * min(1.0, (pace - PACE) / (1 - PACE))
    return Convergence(True, late, error, pace, max(round(factor * last.step), floor - last.step))


def _area(spec: TrainSpec, middle: int, total: int) -> float:
    """Share of the learning rates of a run's steps that comes after its step `middle`."""
    warmup = warmup_steps(spec.warmup_ratio, total)
    rates = [rate_factor(step, spec.schedule, total, warmup) for step in range(total)]
    return sum(rates[middle:]) / sum(rates)
