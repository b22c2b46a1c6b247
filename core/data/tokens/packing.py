"""Packing: several sequences share one row, each with its own positions, masks and attention.

    one row of 16   [a a a a a a] [b b b b b] [c c c c c]
    position_ids     0 1 2 3 4 5   0 1 2 3 4   0 1 2 3 4     restart at every sequence
    loss_mask        0 1 1 1 1 1   0 1 1 1 1   0 0 0 1 1     0 at every first token, and in c for its context
    seq_lengths      6             5           5
    attention        a to a        b to b      c to c        block-diagonal, causal within each block

`core.model.packing_check` tests whether a model keeps the sequences of a row separate.

Source: block-diagonal attention instead of concatenation, Krell et al. 2021, arXiv 2107.02027.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core.data.tokens.encoded_sequence import EncodedSequence
from core.errors import SpecError


def split_into_windows(
    boundary: int | Sequence[int],
    ids: Sequence[int],
    max_length: int,
    overlap: int = 0,
    repeat: bool = False,
) -> list[EncodedSequence]:
    """Splits a document into sequences of at most `max_length` tokens; every token is trained exactly once.

    The first window opens with the boundary tokens. Each later window opens with the last `overlap` tokens
    (at least one) of the window before it, as context that is not trained.

        max_length 6, overlap 2      ids        b a1 a2 a3 a4 a5 | a4 a5 a6 a7 a8 a9
                                     loss_mask  0  1  1  1  1  1 |  0  0  1  1  1  1
        repeat                       ids        b a1 a2 a3 a4 a5 | b a4 a5 a6 a7 a8 | b a7 a8 a9
                                     loss_mask  0  1  1  1  1  1 | 0  0  0  1  1  1 | 0  0  0  1

    Args:
        boundary: ids of the tokens that stand before a document, never trained.
        ids: token ids of the document, with eos at the end.
        max_length: tokens of a window.
        overlap: tokens that two neighbouring windows share.
        repeat: whether every window opens with the boundary tokens; a base that was trained with BOS before
            every text expects it there.

    Raises:
        SpecError: the overlap is more than half of a window.
    """
    if overlap > max_length // 2:
        raise SpecError(
            f"Overlap must be at most {max_length // 2}, half of the max length, got {overlap}.",
            "Choose a smaller overlap or a larger max length.",
        )
    opening = [boundary] if isinstance(boundary, int) else list(boundary)
    later = opening if repeat else []
    document, shared = [*opening, *ids], max(1, overlap)
    first = document[:max_length]
    known = min(len(opening), len(first))
    sequences = [EncodedSequence(first, [0] * known + [1] * (len(first) - known))]
    end = max_length
    size = max(shared + 1, max_length - len(later))
    while end < len(document):
        part = document[end - shared : end - shared + size]
        context = len(later) + shared
        sequences.append(EncodedSequence([*later, *part], [0] * context + [1] * (len(part) - shared)))
        end += len(part) - shared
    return sequences


def pack_best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Assigns sequences to rows, each time to the fullest row that still has space (best fit).

    Sequences above a quarter of a row come first, the longest first. The rest fill the gaps in the given
    order, so that a row of short sequences is a sample of all short ones. (With the longest first throughout,
    a row would hold sequences of one length: 0.1 % fuller, but the loss would jump from step to step.)

    Args:
        sizes: tokens of each sequence, at least two.
        capacity: tokens of a row, at least the largest size.

    Returns:
        For each row the indices into `sizes`.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (tokens free, row), sorted
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i] if 4 * sizes[i] > capacity else 0):
        at = bisect.bisect_left(free, (sizes[index], -1))
        if at == len(free):
            rows.append([index])
            left, row = capacity - sizes[index], len(rows) - 1
        else:
            left, row = free.pop(at)
            rows[row].append(index)
            left -= sizes[index]
        if left > 1:  # the shortest sequence has two tokens
            bisect.insort(free, (left, row))
    return rows


@dataclass(frozen=True)
class PackingStats:
    """What the training rows of a run hold; the fields of its "data" event.

    Attributes:
        rows: rows of the batches.
        sequences: documents, windows of documents, or examples in the rows.
        tokens: tokens in the rows, without padding.
        trained: tokens with a loss.
        fill: share of `rows x width` that is tokens; the rest is padding.
        width: tokens of a full row.
        packed: whether sequences share rows.
        cut: examples that were longer than the max length.
        lost: tokens that were cut off from them; `lost_answer`, `lost_question` and `lost_system` are its
            parts.
        windows: windows that long documents were split into; their tokens are all read.
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
    lost_answer: int = 0
    lost_question: int = 0
    lost_system: int = 0
    windows: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def build_rows(
    sequences: Sequence[EncodedSequence], width: int, packed: bool
) -> tuple[list[dict[str, list[int]]], PackingStats]:
    """Builds rows for `core.data.collation.collate`; sequences without a trained token are left out.

    Args:
        sequences: in the order in which they should fill the rows.
        width: tokens of a row, at least the longest sequence.
        packed: sequences share rows; otherwise each has its own row, which is padded in its batch.

    Raises:
        SpecError: no sequence has a trained token.
    """
    trainable = [e for e in sequences if any(e.loss_mask[1:])]
    check_trainable(len(trainable))
    if packed:
        rows = _pack(trainable, width)
    else:
        rows = [{**e.row, "loss_mask": [0, *e.loss_mask[1:]]} for e in trainable]
    tokens = sum(e.length for e in trainable)
    row_width = width if packed else max(e.length for e in trainable)
    stats = PackingStats(
        rows=len(rows),
        sequences=len(trainable),
        tokens=tokens,
        trained=sum(sum(row["loss_mask"]) for row in rows),
        fill=round(tokens / (len(rows) * row_width), 4),
        width=row_width,
        packed=packed,
        cut=sum(e.truncated > 0 for e in sequences),
        lost=sum(e.truncated for e in sequences),
        lost_answer=sum(e.cut.answer for e in sequences),
        lost_question=sum(e.cut.question for e in sequences),
        lost_system=sum(e.cut.system for e in sequences),
    )
    return rows, stats


def check_trainable(count: int) -> None:
    """Checks that there is a sequence to train.

    Args:
        count: sequences with a trained token.

    Raises:
        SpecError: there is none.
    """
    if not count:
        raise SpecError(
            "The training split has no tokens to train on.", "Add longer texts, or raise the max length."
        )


def _pack(sequences: Sequence[EncodedSequence], width: int) -> list[dict[str, list[int]]]:
    rows = []
    for indices in pack_best_fit([len(e.ids) for e in sequences], width):
        members = [sequences[i] for i in indices]
        rows.append({
            "input_ids": _concatenate(e.ids for e in members),
            # The token before a first token belongs to another sequence, so first tokens are not predicted.
            "loss_mask": _concatenate([0, *e.loss_mask[1:]] for e in members),
            "seq_lengths": [len(e.ids) for e in members],
        })  # fmt: skip
    return rows


def _concatenate(parts: Iterable[Sequence[int]]) -> list[int]:
    return [token for part in parts for token in part]
