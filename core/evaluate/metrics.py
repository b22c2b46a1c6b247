"""Exact match and F1 of answers: by the studio's own rule, and by SQuAD's.

The rule of `exact_match` and `f1` is `core.spec.metric_rules.RULE`; `core.evaluate.words` splits a text into
the words that it compares.
SQuAD's rule stays available under its own name: lower case, no ASCII punctuation, no articles, single spaces.
By that rule "1.5" equals "15", "-5" equals "5", "C++" equals "C", and "A" equals nothing at all.

Source of SQuAD's: Rajpurkar et al. 2016, arXiv 1606.05250, and its published scripts evaluate-v1.1 and v2.0.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from core.evaluate.words import split_words

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Normalises an answer for comparison: its words, with single spaces; "" for blank text only."""
    return " ".join(split_words(text))


def exact_match(answer: str, reference: str) -> float:
    """1.0 if answer and reference have the same words in the same order, otherwise 0.0."""
    return float(split_words(answer) == split_words(reference))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of the precision and recall of the words, 0.0 to 1.0; 1.0 only for equal multisets."""
    return _overlap(split_words(answer), split_words(reference))


def squad_normalise(text: str) -> str:
    """Normalises an answer as SQuAD's published script does."""
    words = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", words).split())


def squad_exact_match(answer: str, reference: str) -> float:
    """SQuAD's exact match."""
    return float(squad_normalise(answer) == squad_normalise(reference))


def squad_f1(answer: str, reference: str) -> float:
    """SQuAD's F1. Two answers that both normalise to nothing score 1.0, as in v2.0 of its script."""
    return _overlap(squad_normalise(answer).split(), squad_normalise(reference).split())


def _overlap(words: Sequence[str], expected: Sequence[str]) -> float:
    if not words or not expected:
        return float(words == expected)
    shared = sum((Counter(words) & Counter(expected)).values())
    return 2 * shared / (len(words) + len(expected))
