"""The learning rate of every step: a warm-up, then the shape that the spec names.

    rate
    peak        .-*-.
              .'     '-.        warm-up of W = 3 of T = 12 steps, then cosine
            .'          '-._
     0    .'                '-
         0  1  2  3 ...    11   step; every rate is above 0, and the peak is reached at step W

transformers' own schedules give the first step of a warm-up a rate of 0, so that a run of one step learns
nothing; runs that began under the first rules (`TrainSpec.rules`) keep them. After the warm-up, both give the
same rates.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch.optim.lr_scheduler import LambdaLR

from core.spec.training import TrainSpec

MIN_RATE = 0.1  # share of the learning rate at which cosine_with_min_lr ends
TIMESCALE = 10_000  # of inverse_sqrt without a warm-up, in steps; as in transformers


def warmup_steps(ratio: float, total: int) -> int:
    """Steps of a warm-up: the given share of a run, rounded up, and never all of it.

    Args:
        ratio: share of the steps, from 0 to 1.
        total: steps of the run.

    Returns:
        At most `total` - 1, so that at least one step has the peak rate.
    """
    # 0.07 * 100 is 7.000000000000001 as a float, and 7 steps are meant
    return max(0, min(math.ceil(total * ratio - 1e-9), total - 1))


def rate_factor(step: int, schedule: str, total: int, warmup: int) -> float:
    """The learning rate of a step, as a share of the peak.

    Args:
        step: optimizer steps taken before it, from 0.
        schedule: one of `core.spec.training.SCHEDULES`.
        total: steps of the run.
        warmup: steps of its warm-up, fewer than `total`.

    Returns:
        Above 0 and at most 1 for 0 <= `step` < `total`; 1 at `step` = `warmup`.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "constant":
        return 1.0
    if schedule == "inverse_sqrt":
        timescale = warmup or TIMESCALE
        return 1.0 / math.sqrt((step + timescale - warmup) / timescale)
    if schedule == "linear":
        return max(0.0, float(total - step) / float(max(1, total - warmup)))
    progress = float(step - warmup) / float(max(1, total - warmup))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    if schedule == "cosine_with_min_lr":
        return cosine * (1 - MIN_RATE) + MIN_RATE
    return max(0.0, cosine)


def create_scheduler(optimizer: Any, spec: TrainSpec, total: int) -> LambdaLR:
    """The scheduler of a run under the present rules; it multiplies the rate of every parameter group.

    Args:
        optimizer: a torch optimizer with the peak rates.
        total: steps of the run.
    """
    factor = partial(
        rate_factor, schedule=spec.schedule, total=total, warmup=warmup_steps(spec.warmup_ratio, total)
    )
    return LambdaLR(optimizer, factor)
