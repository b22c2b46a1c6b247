"""Exact match and F1 of answers, with SQuAD normalisation.

Source: Rajpurkar et al. 2016, arXiv 1606.05250, and its official script: lower case, no punctuation,
no articles, single spaces. By this rule "1.5" equals "15" and "C++" equals "C".
"""

from __future__ import annotations

import re
import string
from collections import Counter

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Normalises an answer for comparison."""
    words = text.lower().translate(_PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", words).split())


def exact_match(answer: str, reference: str) -> float:
    """1.0 if answer and reference are equal after normalisation, otherwise 0.0."""
    return float(normalise(answer) == normalise(reference))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of the precision and recall of normalised words, 0.0 to 1.0."""
    words, expected = normalise(answer).split(), normalise(reference).split()
    if not words or not expected:
        return float(words == expected)
    shared = sum((Counter(words) & Counter(expected)).values())
    return 2 * shared / (len(words) + len(expected)) if shared else 0.0
