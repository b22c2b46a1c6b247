"""Checks of rows with the tokenizer of a base: lengths, forged control tokens, the first packed row."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.data.documents.sections import join_parts
from core.data.inspection.records import (
    LengthBin,
    Lengths,
    PackedRow,
    PackedSegment,
    SplitSize,
    TokenFindings,
)
from core.data.inspection.row_checks import PORTION, Rows, Step, excerpt, find, show_row, spread
from core.data.tokens.conversations import list_texts
from core.data.tokens.encoded_sequence import EncodedSequence, is_seq2seq
from core.data.tokens.encoding import (
    boundary_ids,
    count_with_special_tokens,
    encode_chat,
    encode_documents,
    encode_span_corruption,
    encode_turns,
    text_prefix,
)
from core.data.tokens.packing import pack_best_fit, split_into_windows
from core.errors import DataError
from core.spec.settings import SEED

TOKEN_ROWS = 20_000  # rows whose tokens are counted; of more, evenly spread ones
PACKED_ROWS = 5_000  # rows of the train split that are packed; of more, the first ones
BIN_COUNT = 30
LABEL = 80  # characters
UNLIMITED = 1 << 24  # tokens, more than any row has


@dataclass(frozen=True)
class TokenizerOfBase:
    """What a check needs of a base.

    Attributes:
        name: of the base.
        tokenizer: a copy that no other thread uses.
        eos_ids: tokens that end an answer.
        context: longest sequence in tokens.
    """

    name: str
    tokenizer: Any
    eos_ids: list[int]
    context: int


def inspect_tokens(
    rows: Rows,
    sizes: Sequence[SplitSize],
    base: TokenizerOfBase,
    max_length: int,
    step: Step = lambda text, done, total: None,
    seed: int = SEED,
) -> tuple[TokenFindings, list[SplitSize]]:
    """Runs the checks that need a tokenizer.

    Args:
        sizes: of the splits, as `row_checks.measure_splits` gives them.
        max_length: tokens of a training sequence; at most the base's context is used.
        step: receives the progress.
        seed: of the run whose first packed row is drawn.

    Returns:
        The findings, and `sizes` with tokens and their shares.
    """
    width = min(max_length, base.context)
    forged = []
    for i, row in enumerate(rows.rows):
        if i % PORTION == 0:
            step("Searching control tokens", i, len(rows.rows))
        if _has_control_token(base.tokenizer, row):
            forged.append(i)
    counts = _TokenCounts(rows, base)
    chosen = spread(len(rows.rows), TOKEN_ROWS)
    for done, i in enumerate(chosen):
        if done % (PORTION // 4) == 0:
            step("Counting tokens", done, len(chosen))
        counts.add(i)
    step("Packing a row", 0, 1)
    try:
        packed = pack_first_row(rows, base, width, seed)
    except DataError:  # a conversation that the template refuses: `refusal` says why
        packed = None
    findings = TokenFindings(
        base=base.name,
        lengths=counts.describe(width),
        forged=find(rows, forged),
        packed=packed,
        refused=counts.refused,
        refusal=counts.refusal,
    )
    return findings, counts.complete(sizes)


def _has_control_token(tokenizer: Any, row: Mapping[str, Any]) -> bool:
    texts = [row["text"]] if "text" in row else list_texts(row["messages"])
    return count_with_special_tokens(tokenizer, texts) > 0


def measure_row(row: Mapping[str, Any], base: TokenizerOfBase) -> tuple[int, int]:
    """The tokens of a canonical row with what the base's template writes, and those with a loss.

    Raises:
        DataError: the template refuses the conversation.
    """
    tokenizer = base.tokenizer
    if "text" in row:
        (ids,) = encode_documents(tokenizer, [row["text"]])
        return len(ids) + len(boundary_ids(tokenizer)), len(ids)
    sequences = encode_turns(tokenizer, row["messages"], UNLIMITED, base.eos_ids)
    if not sequences:  # no answer is trained
        return len(encode_chat(tokenizer, row["messages"], add_generation_prompt=False)), 0
    longest = max(max(len(e.ids), len(e.encoder_ids)) for e in sequences)
    return longest, sum(sum(e.loss_mask[1:]) for e in sequences)


class _TokenCounts:
    """Counts the tokens of rows, one row after the other.

    Attributes:
        refused: rows that the base's chat template refuses.
        refusal: its words for the first of them.
    """

    def __init__(self, rows: Rows, base: TokenizerOfBase) -> None:
        self._rows, self._base = rows, base
        self._indices: list[int] = []
        self._lengths: list[int] = []
        self._trained = [0, 0, 0]
        self.refused, self.refusal = 0, ""

    def add(self, index: int) -> None:
        try:
            length, trained = measure_row(self._rows.rows[index], self._base)
        except DataError as e:
            self.refused += 1
            self.refusal = self.refusal or e.what
            return
        self._indices.append(index)
        self._lengths.append(length)
        self._trained[self._rows.places[index][0]] += trained

    def describe(self, width: int) -> Lengths:
        """The histogram of the counted rows, and those that are longer than `width`."""
        long = [i for i, n in zip(self._indices, self._lengths, strict=True) if n > width]
        lengths = self._lengths or [0]
        return Lengths(
            rows=len(self._lengths),
            bins=make_bins(self._lengths),
            shortest=min(lengths),
            median=sorted(lengths)[len(lengths) // 2],
            longest=max(lengths),
            tokens=sum(self._lengths),
            trained_tokens=self._trained[0],
            max_length=width,
            over=len(long),
            over_share=len(long) / max(1, len(self._lengths)),
            cuts=self._rows.kind == "task",
            over_examples=find(self._rows, long).examples,
        )

    def complete(self, sizes: Sequence[SplitSize]) -> list[SplitSize]:
        """Adds tokens to the sizes of splits: those counted, extrapolated where not all rows were."""
        counted, tokens = [0, 0, 0], [0, 0, 0]
        for i, n in zip(self._indices, self._lengths, strict=True):
            split = self._rows.places[i][0]
            counted[split] += 1
            tokens[split] += n
        totals = [round(t * s.rows / max(1, c)) for t, c, s in zip(tokens, counted, sizes, strict=True)]
        everything = sum(totals)
        if not everything:
            return list(sizes)
        return [replace(s, tokens=n, share=n / everything) for s, n in zip(sizes, totals, strict=True)]


def make_bins(lengths: Sequence[int]) -> list[LengthBin]:
    """A histogram of at most BIN_COUNT + 1 bins of one width; the longest hundredth shares the last bin."""
    if not lengths:
        return []
    ordered = sorted(lengths)
    low, typical = ordered[0], ordered[(99 * (len(ordered) - 1)) // 100]
    width = max(1, -(-(typical - low + 1) // BIN_COUNT))
    count = (typical - low) // width + 1
    rows = [0] * (count + 1)
    for n in lengths:
        rows[min(count, (n - low) // width)] += 1
    bins = [LengthBin(low + i * width, low + (i + 1) * width - 1, rows[i]) for i in range(count)]
    return [*bins, LengthBin(low + count * width, ordered[-1], rows[count])] if rows[count] else bins


# --- the first packed row


@dataclass(frozen=True)
class _Source:
    """Where a sequence comes from; see `PackedSegment`."""

    row: int
    label: str
    window: int = 0
    windows: int = 0


def pack_first_row(rows: Rows, base: TokenizerOfBase, width: int, seed: int) -> PackedRow | None:
    """Packs the train split as a run with these settings does, and returns its first row.

    Args:
        width: tokens of a row.
        seed: of the run; it decides which sequences share a row.

    Returns:
        None where no sequence has a trained token.

    Raises:
        DataError: the chat template refuses a conversation.
    """
    indices = rows.pick("train")[:PACKED_ROWS]
    train_rows = [rows.rows[i] for i in indices]
    encode = _encode_conversations if rows.kind == "task" else _encode_texts
    sequences = list(encode(train_rows, base, width, seed))
    random.Random(seed).shuffle(sequences)
    trainable = [pair for pair in sequences if any(pair[0].loss_mask[1:])]
    if not trainable:
        return None
    packed = pack_best_fit([len(e.ids) for e, _ in trainable], width)
    ids: list[int] = []
    trained: list[bool] = []
    segments = []
    for e, source in (trainable[i] for i in packed[0]):
        mask = [0, *e.loss_mask[1:]]  # the first token of a sequence is not predicted
        segments.append(
            PackedSegment(
                len(ids), len(e.ids), sum(mask), source.row, source.label, source.window, source.windows
            )
        )
        ids += e.ids
        trained += [bool(m) for m in mask]
    total = sum(len(e.ids) for e, _ in trainable)
    return PackedRow(
        width=width,
        segments=segments,
        ids=ids,
        texts=[base.tokenizer.decode([token]) for token in ids],
        trained=trained,
        padding=width - len(ids),
        rows=len(packed),
        fill=round(total / (len(packed) * width), 4),
        sequences=len(trainable),
        packed_rows=len(indices),
    )


def _encode_conversations(
    rows: Sequence[Mapping[str, Any]], base: TokenizerOfBase, width: int, seed: int
) -> Iterator[tuple[EncodedSequence, _Source]]:
    for i, row in enumerate(rows):
        for sequence in encode_turns(base.tokenizer, row["messages"], width, base.eos_ids):
            yield sequence, _Source(i, excerpt(show_row(row))[:LABEL])


def _encode_texts(
    rows: Sequence[Mapping[str, Any]], base: TokenizerOfBase, width: int, seed: int
) -> Iterator[tuple[EncodedSequence, _Source]]:
    texts = join_parts(rows)
    firsts = _find_first_rows(rows, texts)
    documents = list(encode_documents(base.tokenizer, texts))
    if is_seq2seq(base.tokenizer):
        divided = encode_span_corruption(base.tokenizer, documents, width, seed)
    else:
        boundary, repeat = boundary_ids(base.tokenizer), bool(text_prefix(base.tokenizer))
        divided = [split_into_windows(boundary, ids, width, repeat=repeat) for ids in documents]
    for text, first, windows in zip(texts, firsts, divided, strict=True):
        count = len(windows) if len(windows) > 1 else 0
        for i, window in enumerate(windows, 1):
            yield window, _Source(first, excerpt(text)[:LABEL], i if count else 0, count)


def _find_first_rows(rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[int]:
    """For each text of `join_parts` the number of the first row in it."""
    firsts, at = [], 0
    for text in texts:
        firsts.append(at)
        length = len(rows[at]["text"])
        at += 1
        while length < len(text):
            length += len(" " if rows[at].get("continues") else "\n\n") + len(rows[at]["text"])
            at += 1
    return firsts
