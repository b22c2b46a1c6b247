"""Names of adapters and mixes in words. Date, steps and order distinguish two adapters of one name."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

NAME_LIMIT = 120  # characters of a mix's name
TILTS = {1.0: " (deep)", -1.0: " (shallow)"}


def label_adapters(adapters: Sequence[Any]) -> dict[str, str]:
    """A label for each adapter that no other adapter has: its name where that is unique.

    Args:
        adapters: all adapters that a user can see, in any order: their `id`, `name`, `created` (Unix
            seconds, 0 in training) and `steps`.

    Returns:
        id -> label. Adapters of one name get the minute that they were made and their steps, and where both
        are equal, a number in the order of their making.
    """
    names = Counter(a.name for a in adapters)
    labels = {a.id: a.name if names[a.name] == 1 else f"{a.name} ({_describe(a)})" for a in adapters}
    counts, numbers = Counter(labels.values()), Counter[str]()
    for adapter in sorted(adapters, key=lambda a: (a.created, a.id)):
        label = labels[adapter.id]
        if counts[label] > 1:
            numbers[label] += 1
            labels[adapter.id] = f"{label} #{numbers[label]}"
    return labels


def _describe(adapter: Any) -> str:
    parts = []
    if adapter.created:
        made = time.localtime(adapter.created)
        year = "" if made.tm_year == time.localtime().tm_year else f" {made.tm_year}"
        parts.append(time.strftime(f"%d %b{year} %H:%M", made).lstrip("0"))
    if adapter.steps:
        parts.append("1 step" if adapter.steps == 1 else f"{adapter.steps} steps")
    return ", ".join(parts) or "in training"


def name_mix(
    weights: Mapping[str, float],
    tilt: Mapping[str, float],
    labels: Mapping[str, str],
    limit: int = NAME_LIMIT,
) -> str:
    """The name of a mix: its adapters with every weight other than 1, or "Base" without an adapter.

    Args:
        weights, tilt: by adapter id.
        labels: by adapter id; an adapter without a label was deleted.
        limit: characters; the labels of a mix that would be longer are shortened.

    Example:
        >>> name_mix({"a": 1.0, "b": 0.5}, {"b": 1.0}, {"a": "Notes", "b": "Answers"})
        'Notes + 0.50 · Answers (deep)'
    """
    if not weights:
        return "Base"
    room = max(8, (limit - 22 * len(weights)) // len(weights))
    whole = _join(weights, tilt, {a: labels.get(a, "a deleted adapter") for a in weights})
    if len(whole) <= limit:
        return whole
    return _join(weights, tilt, {a: shorten(labels.get(a, "a deleted adapter"), room) for a in weights})[
        :limit
    ]


def shorten(text: str, limit: int) -> str:
    """A text of at most `limit` characters: its beginning and its end, which tells labels apart."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def _join(weights: Mapping[str, float], tilt: Mapping[str, float], names: Mapping[str, str]) -> str:
    parts = []
    for adapter, weight in weights.items():
        slope = tilt.get(adapter, 0.0)
        depth = TILTS.get(slope, f" (tilt {slope:g})") if slope else ""
        factor = "" if weight == 1 else f"{abs(weight):.2f} · "
        sign = "−" if weight < 0 else "+"
        parts.append((sign, f"{factor}{names[adapter]}{depth}"))
    first = parts[0][1] if parts[0][0] == "+" else f"− {parts[0][1]}"
    return " ".join([first, *(f"{sign} {text}" for sign, text in parts[1:])])
