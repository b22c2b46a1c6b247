"""Names of adapters and mixes in words. Date, steps and order distinguish two adapters of one name."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from core.spec.mix import Mix

NAME_LIMIT = 120  # characters of a mix's name
TILTS = {1.0: " (deep)", -1.0: " (shallow)"}
GATES = {"hard": "", "soft": "soft", "token": "each token"}  # how a weight on Auto follows the prompt


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


def name_mix(mix: Mix, labels: Mapping[str, str], limit: int = NAME_LIMIT) -> str:
    """The name of a mix: its adapters with every weight other than 1, or "Base" without an adapter.

    Args:
        labels: by adapter id; an adapter without a label was deleted.
        limit: characters; the labels of a mix that would be longer are shortened.

    Example:
        >>> mix = Mix(weights={"a": 1.0, "b": 0.5}, tilt={"b": 1.0}, auto={"a": "hard"})
        >>> name_mix(mix, {"a": "Notes", "b": "Answers"})
        'auto · Notes + 0.50 · Answers (deep)'
    """
    if not mix.weights:
        return "Base"
    names = {a: labels.get(a, "a deleted adapter") for a in mix.weights}
    whole = _join(mix, names)
    if len(whole) <= limit:
        return whole
    room = max(8, (limit - len(_join(mix, dict.fromkeys(names, "")))) // len(names))
    return _join(mix, {a: shorten(name, room) for a, name in names.items()})[:limit]


def format_weight(mix: Mix, adapter_id: str) -> str:
    """The size of a weight in words, without its sign: "0.50", "auto", or "auto, soft, up to 0.50"."""
    size = f"{abs(mix.weights[adapter_id]):.2f}"
    if adapter_id not in mix.auto:
        return size
    parts = ["auto", GATES[mix.auto[adapter_id]], "" if size == "1.00" else f"up to {size}"]
    return ", ".join(p for p in parts if p)


def shorten(text: str, limit: int) -> str:
    """A text of at most `limit` characters: its beginning and its end, which tells labels apart."""
    if len(text) <= limit:
        return text
    tail = (limit - 1) // 2
    return f"{text[: limit - 1 - tail]}…{text[len(text) - tail :]}"


def _join(mix: Mix, names: Mapping[str, str]) -> str:
    parts = []
    for adapter, weight in mix.weights.items():
        slope = mix.tilt.get(adapter, 0.0)
        depth = TILTS.get(slope, f" (tilt {slope:g})") if slope else ""
        is_plain = weight == 1 and adapter not in mix.auto
        factor = "" if is_plain else f"{format_weight(mix, adapter)} · "
        sign = "−" if weight < 0 else "+"
        parts.append((sign, f"{factor}{names[adapter]}{depth}"))
    first = parts[0][1] if parts[0][0] == "+" else f"− {parts[0][1]}"
    return " ".join([first, *(f"{sign} {text}" for sign, text in parts[1:])])
