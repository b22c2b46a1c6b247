"""Rows are divided into train, val and test.

Knows how to divide so that the same rows and seed always fall the same way, each type is spread over
the three, and no row is learned from and tested on. Knows nothing of files.

    rows of one text form a group ─┐   groups, by type, each type in an order drawn from the seed
                                   ▼
    a a a a a b b b b c c c c c c c    each group goes where most is owed at that point:
    T T v T t T T T v T T t T T T v    after n groups, each split has its share of n within one or two
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

from core.errors import DataError, SpecError
from core.spec.settings import SEED

SPLITS = ("train", "val", "test")
RATIOS = (0.70, 0.15, 0.15)


def check_ratios(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Returns the ratios, or refuses them.

    Raises:
        SpecError: not three shares above zero that sum to 1.
    """
    good = (
        len(ratios) == 3
        and all(isinstance(r, (int, float)) and 0 < r < 1 for r in ratios)
        and math.isclose(sum(ratios), 1.0, abs_tol=1e-6)
    )
    if not good:
        raise SpecError(
            f"The split ratios are {tuple(ratios)!r}.",
            "Give three shares above 0 that sum to 1, such as 0.7, 0.15, 0.15.",
        )
    return (float(ratios[0]), float(ratios[1]), float(ratios[2]))


def content_key(row: Mapping[str, Any]) -> str:
    """What makes two canonical rows the same row: everything but the type."""
    if "text" in row:
        return str(row["text"])
    return "".join(f"{m['role']}:{len(m['content'])}:{m['content']}" for m in row["messages"])


def split(
    rows: Sequence[Mapping[str, Any]], seed: int = SEED, ratios: Sequence[float] = RATIOS
) -> dict[str, list[int]]:
    """Divides canonical rows; decided by their content and the seed alone, whatever their order.

    Args:
        rows: canonical rows.
        seed: another seed draws another division.
        ratios: shares of train, val and test.

    Returns:
        "train", "val" and "test", each with ascending indices into `rows`; every index occurs once.

    Raises:
        DataError: fewer than three different rows.
        SpecError: ratios that are none.
    """
    shares = check_ratios(ratios)
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(content_key(row), []).append(index)
    if len(groups) < len(SPLITS):
        raise DataError(
            f"The data has {len(groups)} different {'row' if len(groups) == 1 else 'rows'}; train, val and test need at least one each.",
            "Give three rows or more; divide one long text into documents by lines of only `---` between blank lines.",
        )

    def place(content: str) -> tuple[str, bytes]:
        kind = min(str(rows[i].get("type", "")) for i in groups[content])
        return kind, hashlib.sha256(f"{seed}:{content}".encode("utf-8", "surrogatepass")).digest()

    parts: list[list[str]] = [[], [], []]
    for n, content in enumerate(sorted(groups, key=place), start=1):
        owed = [share * n - len(part) for share, part in zip(shares, parts)]
        parts[owed.index(max(owed))].append(content)
    for part in parts:
        if not part:  # tiny data: the fullest part gives one of its own
            part.append(max(parts, key=len).pop())
    return {name: sorted(i for content in part for i in groups[content]) for name, part in zip(SPLITS, parts)}
