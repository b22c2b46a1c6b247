"""Stratified splits of canonical rows into train, val and test.

The same rows and seed always give the same split, every type is spread over the three splits, and equal rows
never fall into two splits.

    rows of equal content form a group ─┐   groups sorted by type, within a type by a hash of seed and content
                                        ▼
    a a a a a b b b b c c c c c c c    each group goes to the split that is furthest below its share:
    T T v T t T T T v T T t T T T v    after n groups every split holds its share of n, give or take two
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
    """Checks the ratios of train, val and test.

    Returns:
        The ratios as floats.

    Raises:
        SpecError: they are not three shares above 0 that sum to 1.
    """
    is_valid = (
        len(ratios) == 3
        and all(isinstance(r, (int, float)) and 0 < r < 1 for r in ratios)
        and math.isclose(sum(ratios), 1.0, abs_tol=1e-6)
    )
    if not is_valid:
        raise SpecError(
            f"Split ratios must be three shares above 0 that sum to 1, got {tuple(ratios)!r}.",
            "Give train, val and test, for example 0.7, 0.15, 0.15.",
        )
    return (float(ratios[0]), float(ratios[1]), float(ratios[2]))


def content_key(row: Mapping[str, Any]) -> str:
    """Builds a key that is equal for two canonical rows of equal content, whatever their types."""
    if "text" in row:
        return str(row["text"])
    return "".join(f"{m['role']}:{len(m['content'])}:{m['content']}" for m in row["messages"])


def split(
    rows: Sequence[Mapping[str, Any]], seed: int = SEED, ratios: Sequence[float] = RATIOS
) -> dict[str, list[int]]:
    """Splits canonical rows. The result depends on their content and the seed, not on their order.

    Args:
        rows: canonical rows.
        seed: another seed gives another split.
        ratios: shares of train, val and test.

    Returns:
        "train", "val" and "test", each with ascending indices into `rows`; every index occurs once.

    Raises:
        DataError: there are fewer than three different rows.
        SpecError: the ratios are not valid.
    """
    shares = check_ratios(ratios)
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(content_key(row), []).append(index)
    if len(groups) < len(SPLITS):
        raise DataError(
            "A dataset needs at least 3 different rows, one each for train, val and test, "
            f"got {len(groups)}.",
            "Add rows, or split one long text into documents with lines of only `---` between blank lines.",
        )

    def sort_key(content: str) -> tuple[str, bytes]:
        kind = min(str(rows[i].get("type", "")) for i in groups[content])
        return kind, hashlib.sha256(f"{seed}:{content}".encode("utf-8", "surrogatepass")).digest()

    parts: list[list[str]] = [[], [], []]
    for n, content in enumerate(sorted(groups, key=sort_key), start=1):
        deficits = [share * n - len(part) for share, part in zip(shares, parts)]
        parts[deficits.index(max(deficits))].append(content)
    for part in parts:
        if not part:  # very small data: take a group from the largest split
            part.append(max(parts, key=len).pop())
    return {name: sorted(i for content in part for i in groups[content]) for name, part in zip(SPLITS, parts)}
