"""The rules by which answers are compared for exact match and F1. `core.evaluate.metrics` computes them.

A record of figures stores the name of its rule; one without a name is from a version that had SQuAD's only.
"""

from __future__ import annotations

RULE = "words"  # of the figures `exact_match` and `f1`
FIRST_RULE = "squad"  # of records without a rule
RULES = {
    "words": (
        "Case, punctuation and articles do not count. Signs and points of numbers, symbols such as % and the "
        "signs of C++ do."
    ),
    "squad": "SQuAD's: ASCII punctuation, articles and case do not count, so 1.5 equals 15 and C++ equals C.",
}
LABELS = {"words": "", "squad": "SQuAD"}  # behind the name of a metric


def label_metric(name: str, rule: str) -> str:
    """The name of a metric with its rule, where that is not the studio's own: `Exact match (SQuAD)`."""
    label = LABELS.get(rule, rule)
    return f"{name} ({label})" if label else name


def describe_rule(rule: str) -> str:
    """One sentence on a rule; a rule of another version is named."""
    return RULES.get(rule, f"The rule {rule!r} of another version.")
