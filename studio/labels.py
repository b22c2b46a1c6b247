"""Labels of datasets and runs in lists: two things of one name differ by date, size and order.

Those of adapters belong to `core.engine.mix_names`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from studio import formatting


def tell_apart(items: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """A label for each item that no other item has: its name where that is unique.

    Args:
        items: (id, name, what tells items of one name apart), oldest first.

    Returns:
        id -> label; items of one name that nothing tells apart get a number in their order.
    """
    listed = list(items)
    names = Counter(name for _, name, _ in listed)
    labels = {i: name if names[name] == 1 else f"{name} ({detail})" for i, name, detail in listed}
    counts, numbers = Counter(labels.values()), Counter[str]()
    for i, _, _ in listed:
        label = labels[i]
        if counts[label] > 1:
            numbers[label] += 1
            labels[i] = f"{label} #{numbers[label]}"
    return labels


def label_datasets(datasets: Sequence[Any]) -> dict[str, str]:
    """Dataset id -> label, with date and rows where two have one name; oldest first."""
    return tell_apart(
        (d.id, d.name, f"{formatting.format_time(d.created)}, {d.rows:,} row{'' if d.rows == 1 else 's'}")
        for d in datasets
    )


def label_runs(runs: Sequence[Any]) -> dict[str, str]:
    """Run id -> label, with date and steps where two have one name.

    Args:
        runs: newest first, as the engine lists them.
    """
    return tell_apart((r.id, r.name, _describe_run(r)) for r in reversed(runs))


def _describe_run(run: Any) -> str:
    steps = run.total_steps or run.step
    made = formatting.format_time(run.created)
    if not steps:
        return made
    return f"{made}, {steps:,} step{'' if steps == 1 else 's'}"


def shorten(name: str, limit: int = 40) -> str:
    """A name of at most `limit` characters, for a button."""
    return name if len(name) <= limit else f"{name[: limit - 1]}…"
