"""Agreement of two raters on the same answers, beyond what chance explains: Cohen's kappa.

Source: Cohen, A Coefficient of Agreement for Nominal Scales, Educational and Psychological Measurement 20
(1960).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from core.evaluate.paired_gain import DRAWS, TAIL

Pair = tuple[str, str]


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa of two raters.

    Attributes:
        value: 1 for equal ratings, 0 for as much agreement as chance gives; None where both raters gave all
            answers one and the same rating, which leaves it undefined.
        low, high: its 95 % interval from a bootstrap over the answers; None with `value`.
        share: of the answers that both rated equally.
        count: answers.
    """

    value: float | None
    low: float | None
    high: float | None
    share: float
    count: int


def compute_kappa(pairs: Sequence[Pair]) -> float | None:
    """Cohen's kappa, (observed - expected) / (1 - expected) agreement.

    Args:
        pairs: (rating of the first rater, rating of the second) of each answer; any categories.

    Returns:
        None without pairs, and where every rating is the same: the agreement that chance gives is then 1.

    Example:
        >>> compute_kappa([("good", "good"), ("poor", "poor"), ("good", "poor"), ("poor", "poor")])
        0.5
    """
    count = len(pairs)
    if not count:
        return None
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    observed = sum(a == b for a, b in pairs) * count  # both sides are multiplied by count squared
    expected = sum(first[category] * second[category] for category in first)
    return None if expected == count**2 else (observed - expected) / (count**2 - expected)


def measure_kappa(pairs: Sequence[Pair], seed: int = 0) -> Kappa:
    """Cohen's kappa with a percentile interval of a bootstrap over the answers.

    A draw in which kappa is undefined counts as 0: where all ratings are the same, chance explains the
    agreement. So a judge that is right about 29 good answers and one poor one is not taken for certain.
    """
    import numpy as np

    count, value = len(pairs), compute_kappa(pairs)
    share = sum(a == b for a, b in pairs) / count if count else 0.0
    if value is None:
        return Kappa(None, None, None, share, count)
    categories = sorted({rating for pair in pairs for rating in pair})
    places = {category: i for i, category in enumerate(categories)}
    table = np.zeros((len(categories), len(categories)))  # ratings of the first rater x of the second
    for a, b in pairs:
        table[places[a], places[b]] += 1
    # Answers that are drawn with replacement: how often each cell of the table is drawn is multinomial.
    drawn = np.random.default_rng(seed).multinomial(count, table.ravel() / count, DRAWS)
    draws = drawn.reshape(DRAWS, *table.shape).astype(np.float64)
    observed = np.trace(draws, axis1=1, axis2=2) * count
    expected = (draws.sum(2) * draws.sum(1)).sum(1)
    rest = count**2 - expected
    kappas = np.sort(np.where(rest > 0, (observed - expected) / np.maximum(rest, 1.0), 0.0))
    low, high = float(kappas[int(TAIL * DRAWS)]), float(kappas[int((1 - TAIL) * DRAWS) - 1])
    return Kappa(value, low, high, share, count)
