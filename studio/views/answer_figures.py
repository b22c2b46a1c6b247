"""The table of what the answers of the last days were like, mix by mix."""

from __future__ import annotations

from collections.abc import Sequence

from core.store.answer_log import MixFigures
from studio import formatting
from studio.tree import Node, empty, node, table

COLUMNS = [
    "Mix", "Base", "Answers", "Per day", "Half within", "95 % within", "Tokens/s", "Empty",
    "Cut at the limit", "By the base instead", "Good", "Poor",
]  # fmt: skip


def render_figures(figures: Sequence[MixFigures], names: dict[str, str]) -> Node:
    """The table; one row for each mix and base.

    Args:
        names: adapter id -> display name.
    """
    if not figures:
        return empty("No answers in these days", "Ask something on the Mix tab, or through the API.")
    rows = [
        [
            _name(one, names),
            formatting.format_base(one.base),
            one.answers,
            _draw_days(one.per_day),
            f"{one.p50_seconds:.2f} s",
            f"{one.p95_seconds:.2f} s",
            formatting.NONE if one.tokens_per_second is None else f"{one.tokens_per_second:.0f}",
            one.empty,
            one.too_long,
            one.fallbacks,
            one.good,
            one.poor,
        ]
        for one in figures
    ]
    return table(COLUMNS, rows, "Answers of the last days", frozenset({2, *range(4, len(COLUMNS))}))


def _name(one: MixFigures, names: dict[str, str]) -> str:
    """The name of the mix, or its weights with the names of its adapters."""
    if one.name or not one.mix:
        return one.name or "Base"
    text = one.mix
    for adapter_id, name in names.items():
        text = text.replace(adapter_id, name)
    return text


def _draw_days(per_day: dict[str, int]) -> Node:
    """A small bar for each day, the oldest first."""
    most = max([*per_day.values(), 1])
    text = ", ".join(f"{day}: {count}" for day, count in per_day.items())
    bars = [node("span", cls="day", vars={"share": f"{100 * n / most:.0f}%"}) for n in per_day.values()]
    return node("span", *bars, cls="days", role="img", aria_label=text, title=text)
