"""The sizes of splits in tokens of a base, before an import; of much text, estimated from a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.inspection.row_checks import count_characters, spread
from core.data.inspection.token_checks import TokenizerOfBase, measure_row
from core.data.splits import SPLITS
from core.errors import DataError

CHARACTERS = 300_000  # whose tokens are counted; more are estimated
LEAST_ROWS = 20  # that are counted of a split


@dataclass(frozen=True)
class SplitTokens:
    """Tokens of each split, with what the base's template writes.

    Attributes:
        tokens: of "train", "val" and "test".
        base: name of the base.
        is_estimate: whether they follow from a part of the rows.
    """

    tokens: dict[str, int]
    base: str
    is_estimate: bool


def count_split_tokens(
    rows: Sequence[Mapping[str, Any]], parts: Mapping[str, Sequence[int]], base: TokenizerOfBase
) -> SplitTokens | None:
    """Counts the tokens of splits.

    Args:
        rows: canonical rows.
        parts: for each split the indices of its rows.

    Returns:
        None where the base's template refuses a conversation, which the import says.
    """
    lengths = [count_characters(row) for row in rows]
    share = min(1.0, CHARACTERS / max(1, sum(lengths)))
    tokens: dict[str, int] = {}
    is_estimate = False
    for split in SPLITS:
        indices = parts.get(split, ())
        chosen = [indices[i] for i in spread(len(indices), max(LEAST_ROWS, round(share * len(indices))))]
        try:
            counted = sum(measure_row(rows[i], base)[0] for i in chosen)
        except DataError:
            return None
        is_estimate |= len(chosen) < len(indices)
        whole, seen = sum(lengths[i] for i in indices), sum(lengths[i] for i in chosen)
        tokens[split] = counted if len(chosen) == len(indices) else round(counted * whole / max(1, seen))
    return SplitTokens(tokens, base.name, is_estimate)
