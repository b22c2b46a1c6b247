"""The gain of one mix over another on the same rows, with a bootstrap interval.

A figure is a sum over a sum of weights: F1 has the weight 1 for each row, and bits per byte the bytes of the
row. A bootstrap draws the rows with replacement, and both mixes have the same draws.

Source: Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13 (percentile interval).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

DRAWS = 2000
TAIL = 0.025  # of the draws on each side of a 95 % interval


def bootstrap_gain(
    base: Sequence[float], adapter: Sequence[float], weights: Sequence[float], seed: int = 0
) -> tuple[float, float, float]:
    """The difference of two figures on the same rows, and its 95 % interval.

    Args:
        base, adapter: one value per row, in the order of the rows.
        weights: the weight of each row; a figure is sum(values) / sum(weights).

    Returns:
        (adapter minus base, low, high). With fewer than two rows, the interval is unbounded.
    """
    total = sum(weights)
    differences = [a - b for a, b in zip(adapter, base, strict=True)]
    gain = sum(differences) / total
    if len(differences) < 2:
        return gain, float("-inf"), float("inf")
    generator = random.Random(seed)
    pairs = list(zip(differences, weights, strict=True))
    gains = []
    for _ in range(DRAWS):
        drawn = generator.choices(pairs, k=len(pairs))
        gains.append(sum(d for d, _ in drawn) / sum(w for _, w in drawn))
    gains.sort()
    return gain, gains[int(TAIL * DRAWS)], gains[int((1 - TAIL) * DRAWS) - 1]
