"""Many sequences in one row, each alone: windows, the fit into rows, and what that costs and saves.

Knows token ids and their masks; knows no tokenizer and no model. Which models keep the sequences of a
row apart is `core.model.packing_check`'s question.

    one row of 16      [doc a . . . ][doc b . . ][doc c . . . ]
    position_ids        0 1 2 3 4 5   0 1 2 3 4   0 1 2 3 4      restart where a sequence begins
    trained             0 1 1 1 1 1   0 1 1 1 1   0 0 0 1 1      nothing is predicted across a seam

Source: block-diagonal attention instead of concatenation, Krell et al. 2021, arXiv 2107.02027.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core.data.encoding import Encoded
from core.errors import SpecError


def windows(boundary: int, ids: Sequence[int], max_length: int, overlap: int = 0) -> list[Encoded]:
    """A document as sequences of at most `max_length` tokens, every token trained exactly once.

    The first window opens with the boundary token; each later one with the last `overlap` tokens of the
    one before (at least one), which are read and not trained.

    Args:
        boundary: the token that stands before a document, never trained.
        ids: the document with its end.

    Raises:
        SpecError: the overlap leaves no room for anything new.
    """
    if overlap > max_length // 2:
        raise SpecError(
            f"Overlap is {overlap}, of parts of {max_length} tokens.",
            f"Choose at most {max_length // 2}, or a higher max length.",
        )
    whole, shared = [boundary, *ids], max(1, overlap)
    made = [Encoded(whole[:max_length], [0] + [1] * (min(len(whole), max_length) - 1))]
    end = max_length
    while end < len(whole):
        part = whole[end - shared : end - shared + max_length]
        made.append(Encoded(part, [0] * shared + [1] * (len(part) - shared)))
        end += len(part) - shared
    return made


def fit(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Places of `sizes`, sorted into rows of at most `room`, each time into the fullest row that has the space.

    What takes more than a quarter of a row comes first, the largest first; the rest fills the gaps in the order
    given, so that a row of short sequences is a sample of all short ones. (With the largest first throughout, a
    row holds sequences of one length: a tenth of a percent fuller, and losses that jump from step to step.)
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, row), sorted
    for place in sorted(range(len(sizes)), key=lambda i: -sizes[i] if 4 * sizes[i] > room else 0):
        at = bisect.bisect_left(free, (sizes[place], -1))
        if at == len(free):
            rows.append([place])
            left, row = room - sizes[place], len(rows) - 1
        else:
            left, row = free.pop(at)
            rows[row].append(place)
            left -= sizes[place]
        if left > 1:  # a sequence has two tokens at least
            bisect.insort(free, (left, row))
    return rows


@dataclass(frozen=True)
class Account:
    """What a run reads, as its log tells.

    Attributes:
        rows: rows of the batches. sequences: documents, parts of documents or examples in them.
        tokens: tokens in the rows. trained: those of them that are learned.
        fill: share of `rows x width` that is tokens; padding is the rest.
        cut: examples that were too long. lost: tokens of theirs that nobody reads.
        windows: parts that long documents were cut into; nothing of these is lost.
    """

    rows: int
    sequences: int
    tokens: int
    trained: int
    fill: float
    width: int
    packed: bool
    cut: int = 0
    lost: int = 0
    windows: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def arranged(
    sequences: Sequence[Encoded], width: int, packed: bool
) -> tuple[list[dict[str, list[int]]], Account]:
    """Rows for `core.data.batches.collate`, and the account of them.

    Args:
        width: tokens of a row, no less than the longest sequence.
        packed: several sequences share a row; otherwise each has its own, and is padded in its batch.

    Raises:
        SpecError: there is nothing to train on.
    """
    kept = [e for e in sequences if any(e.mask[1:])]
    if not kept:
        raise SpecError(
            "Nothing in the training split is left to learn from.", "Give longer texts, or raise max length."
        )
    rows = _packed(kept, width) if packed else [{**e.row, "trained": [0, *e.mask[1:]]} for e in kept]
    tokens = sum(e.length for e in kept)
    widest = width if packed else max(e.length for e in kept)
    account = Account(
        rows=len(rows),
        sequences=len(kept),
        tokens=tokens,
        trained=sum(sum(r["trained"]) for r in rows),
        fill=round(tokens / (len(rows) * widest), 4),
        width=widest,
        packed=packed,
        cut=sum(e.lost > 0 for e in sequences),
        lost=sum(e.lost for e in sequences),
    )
    return rows, account


def _packed(sequences: Sequence[Encoded], width: int) -> list[dict[str, list[int]]]:
    rows = []
    for places in fit([len(e.ids) for e in sequences], width):
        members = [sequences[i] for i in places]
        rows.append({
            "input_ids": _joined(e.ids for e in members),
            "trained": _joined([0, *e.mask[1:]] for e in members),  # nothing predicts a first token: the one before is another text's
            "lengths": [len(e.ids) for e in members],
        })  # fmt: skip
    return rows


def _joined(parts: Iterable[Sequence[int]]) -> list[int]:
    return [t for part in parts for t in part]
