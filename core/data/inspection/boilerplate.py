"""Instructions that many prompts share word for word at their beginning or end.

    "Classify the review. Review: great food Answer:"   ─┐
    "Classify the review. Review: cold soup  Answer:"   ─┴─> "great food", "cold soup"

Two prompts are not nearly equal because they have a long instruction in common.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from core.data.inspection.near_duplicates import list_words

LEAST_TEXTS, LEAST_SHARE = 10, 0.02  # texts that share an instruction: at least so many, and this share


def strip_instructions(texts: Sequence[str]) -> list[str]:
    """Leaves out the words that many texts begin or end with, and that they share with each other.

    Args:
        texts: prompts.

    Returns:
        For each text its other words, normalized; all of them where the whole text is shared.
    """
    words = [list_words(text) for text in texts]
    count = max(LEAST_TEXTS, int(LEAST_SHARE * len(texts)))
    starts = _measure_shared_beginnings(words, count)
    ends = _measure_shared_beginnings([text[::-1] for text in words], count)
    stripped = []
    for text, start, end in zip(words, starts, ends, strict=True):
        rest = text[start : len(text) - end]
        stripped.append(" ".join(rest or text))
    return stripped


def _measure_shared_beginnings(texts: Sequence[list[str]], count: int) -> list[int]:
    """For each text how many of its first words at least `count` texts begin with.

    In the sorted order, `count` texts with a common beginning are neighbours: the first and the last of them
    tell how long it is.
    """
    lengths = [0] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: texts[i])
    last = len(order) - count
    shared = [_count_equal(texts[order[i]], texts[order[i + count - 1]]) for i in range(last + 1)]
    best: deque[int] = deque()  # windows that hold the present text, the longest beginning first
    for place, i in enumerate(order):
        if place <= last:
            while best and shared[best[-1]] <= shared[place]:
                best.pop()
            best.append(place)
        while best and best[0] <= place - count:
            best.popleft()
        lengths[i] = shared[best[0]] if best else 0
    return lengths


def _count_equal(a: Sequence[str], b: Sequence[str]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
