"""A sample of a split, and the loss and exact match of each of its rows under many mixes.

Figures are stored row by row, because a bootstrap resamples rows. Letters: M mixes, N rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from core.data.datasets import load_dataset, read_split
from core.data.tokens.encoding import EncodedSequence
from core.errors import Busy, SpecError
from core.evaluate.metrics import exact_match
from core.evaluate.rows import (
    Question,
    RowNote,
    choose_answer_length,
    encode_answers,
    encode_documents,
    encode_questions,
    require_rows,
)
from core.model.generate import generate
from core.model.resident import Resident
from core.model.scoring import score_each
from core.spec.mix import Mix, Sampling
from core.store.workspace import Workspace

ANSWER_ROWS = 64  # answers generated in one batch
ANSWER_TOKENS = 131_072  # of their questions and answers together


@dataclass(frozen=True)
class Sample:
    """Rows of one split.

    Attributes:
        kind: "domain" (rows have `text`) or "task" (rows have `messages`).
        sha256: of the dataset.
        rows: as returned by `core.data.datasets.read_split`.
        numbers: of each row in its split, from 1; () where all rows of the split are here.
    """

    dataset: str
    name: str
    kind: str
    sha256: str
    split: str
    rows: tuple[dict[str, Any], ...]
    numbers: tuple[int, ...] = ()

    @property
    def digest(self) -> str:
        """The sha256 of the rows."""
        return hashlib.sha256(json.dumps(self.rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{len(self.rows)} rows of {self.name!r} ({self.split})"


def load_sample(workspace: Workspace, dataset_id: str, split: str, limit: int = 0) -> Sample:
    """Reads at most `limit` rows of a split, spread evenly over it; 0 reads all.

    Raises:
        NotFound, StorageError: the dataset is missing or damaged.
        SpecError: the split is empty, or the limit negative.
    """
    dataset = load_dataset(workspace, dataset_id)
    rows = read_split(workspace, dataset_id, split)
    if limit < 0:
        raise SpecError(f"The number of rows must not be negative, got {limit}.", "0 means all rows.")
    if not rows:
        raise SpecError(f"The split {split!r} of {dataset.name!r} is empty.", "Choose another split.")
    picks: Sequence[int] = range(len(rows))
    if 0 < limit < len(rows):
        picks = [i * len(rows) // limit for i in range(limit)]
    numbers = tuple(i + 1 for i in picks)
    chosen = tuple(rows[i] for i in picks)
    return Sample(dataset.id, dataset.name, dataset.kind, dataset.sha256, split, chosen, numbers)


def load_stable_adapters(resident: Resident, adapters: Sequence[str]) -> dict[str, str]:
    """Loads adapters and returns their sha256; an adapter in training is refused, because it still changes.

    Raises:
        Busy: one of them is in training. NotFound, AdapterError: one cannot be loaded.
    """
    if resident.trainee_id in adapters:
        raise Busy(
            f"The adapter {resident.trainee_id!r} is still in training.",
            "Wait until its run ends, or stop the run to keep the current state.",
        )
    resident.load_adapters([Mix(weights=dict.fromkeys(adapters, 1.0))])
    return {a: resident.digests[a] for a in adapters}


@dataclass(frozen=True)
class EncodedSample:
    """A sample as token ids.

    Attributes:
        sequences: a long document is split into several.
        row_indices: for each sequence, the index of its row.
        tokens: (N,) float64, number of scored tokens in each row; 0 for a row that was left out.
        notes: the rows that were cut or left out.
    """

    sequences: list[EncodedSequence]
    row_indices: list[int]
    tokens: torch.Tensor
    notes: tuple[RowNote, ...] = ()


def encode_sample(resident: Resident, sample: Sample, max_length: int) -> EncodedSample:
    """Encodes the answers of task rows, or whole documents, in sequences of at most `max_length` tokens.

    Raises:
        SpecError: no row of the sample can be measured.
    """
    length = min(max_length, resident.base.context)
    encode = encode_answers if sample.kind == "task" else encode_documents
    sequences, row_indices, notes = encode(resident.base, sample.rows, length)
    require_rows(len(sequences), len(sample.rows), str(sample), notes)
    tokens = torch.zeros(len(sample.rows), dtype=torch.float64)
    for index, sequence in zip(row_indices, sequences, strict=True):
        tokens[index] += sum(sequence.loss_mask[1:])
    return EncodedSample(sequences, row_indices, tokens, _number_notes(sample, notes))


def _number_notes(sample: Sample, notes: Sequence[RowNote]) -> tuple[RowNote, ...]:
    """The notes with the numbers that the rows have in their split."""
    if len(sample.numbers) != len(sample.rows):
        return tuple(notes)
    return tuple(replace(n, row=sample.numbers[n.row - 1]) for n in notes)


class RowLosses:
    """The loss of every row under every mix.

    Attributes:
        nats: (M, N) float64, sums over the tokens of a row; complete when `compute` ends.
    """

    def __init__(self, resident: Resident, encoded: EncodedSample, mixes: Sequence[Mix]) -> None:
        self.resident, self.encoded, self.mixes = resident, encoded, list(mixes)
        self.nats = torch.zeros(len(self.mixes), len(encoded.tokens), dtype=torch.float64)

    def compute(self) -> Generator[float, None, None]:
        """Fills `nats`; yields the share done, 0 to 1, after every forward."""
        done, total = 0, len(self.encoded.sequences) * len(self.mixes)
        for cells in score_each(self.resident, self.encoded.sequences, self.mixes):
            for cell in cells:
                self.nats[cell.mix, self.encoded.row_indices[cell.sequence]] += cell.nats
            done += len(cells)
            yield done / total

    @property
    def losses(self) -> list[float]:
        """Nats per token under each mix: a sum over all rows divided by a sum."""
        return [float(x) for x in self.nats.sum(1) / self.encoded.tokens.sum()]


class RowMatches:
    """Which rows each mix answers exactly, with greedy decoding.

    Args:
        max_new_tokens: longest answer, in tokens; 0 takes the longest reference answer, within the context.

    Attributes:
        exact: (M, N) float64 of 0 and 1, NaN for rows that were left out; complete when `compute` ends.
        max_new_tokens: longest answer, in tokens.
        notes: the rows that were cut or left out; known when `compute` begins.
    """

    def __init__(
        self, resident: Resident, sample: Sample, mixes: Sequence[Mix], max_new_tokens: int = 0
    ) -> None:
        self.resident, self.sample, self.mixes = resident, sample, list(mixes)
        self.max_new_tokens = max_new_tokens or choose_answer_length(resident.base, sample.rows)
        self.notes: tuple[RowNote, ...] = ()
        self.exact = torch.zeros(len(self.mixes), len(sample.rows), dtype=torch.float64)

    @property
    def shares(self) -> list[float]:
        """The share of the answered rows that each mix answers exactly."""
        return [float(x) for x in self.exact.nanmean(1)]

    def compute(self) -> Generator[float, None, None]:
        """Fills `exact`; yields the share done, 0 to 1, after every generated token.

        Raises:
            SpecError: no row of the sample can be measured.
        """
        tokenizer = self.resident.base.tokenizer
        order = sorted(self._encode(), key=lambda q: len(q.prompt))
        pairs = [(q, m) for q in order for m in range(len(self.mixes))]
        start = 0
        while start < len(pairs):
            batch = pairs[start : start + _count_rows([q for q, _ in pairs[start : start + ANSWER_ROWS]])]
            states: Any = []
            for states in generate(
                self.resident,
                [q.prompt for q, _ in batch],
                [self.mixes[m] for _, m in batch],
                [Sampling(max_new_tokens=q.limit) for q, _ in batch],
            ):
                yield start / len(pairs)
            for (question, m), state in zip(batch, states, strict=True):
                self.exact[m, question.index] = exact_match(state.column(tokenizer).text, question.reference)
            start += len(batch)
        yield 1.0

    def _encode(self) -> list[Question]:
        rows = self.sample.rows
        questions, notes = encode_questions(self.resident.base, rows, self.max_new_tokens)
        require_rows(len(questions), len(rows), str(self.sample), notes)
        self.notes = _number_notes(self.sample, notes)
        left_out = sorted(set(range(len(rows))) - {q.index for q in questions})
        self.exact[:, left_out] = torch.nan
        return questions


def _count_rows(questions: Sequence[Question]) -> int:
    """How many of these questions, sorted by length, are answered in one batch; at least one."""
    longest = 0
    for count, question in enumerate(questions):
        longest = max(longest, len(question.prompt) + question.limit)
        if count and longest * (count + 1) > ANSWER_TOKENS:
            return count
    return len(questions)
