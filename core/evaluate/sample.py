"""A sample of a split, and the loss and exact match of each of its rows under many mixes.

Figures are stored row by row, because a bootstrap resamples rows. Letters: M mixes, N rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from core.data.datasets import load_dataset, read_split
from core.data.encoding import EncodedSequence, encode_chat, encode_task, encode_text
from core.errors import Busy, SpecError
from core.evaluate.metrics import exact_match
from core.model.generate import generate
from core.model.resident import Resident
from core.model.scoring import score_each
from core.spec.mix import Mix, Sampling
from core.store.workspace import Workspace

ANSWER_ROWS = 64  # answers generated in one batch


@dataclass(frozen=True)
class Sample:
    """Rows of one split.

    Attributes:
        kind: "domain" (rows have `text`) or "task" (rows have `messages`).
        sha256: of the dataset.
        rows: as returned by `core.data.datasets.read_split`.
    """

    dataset: str
    name: str
    kind: str
    sha256: str
    split: str
    rows: tuple[dict[str, Any], ...]

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
    if 0 < limit < len(rows):
        rows = [rows[i * len(rows) // limit] for i in range(limit)]
    return Sample(dataset.id, dataset.name, dataset.kind, dataset.sha256, split, tuple(rows))


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
        tokens: (N,) float64, number of scored tokens in each row.
    """

    sequences: list[EncodedSequence]
    row_indices: list[int]
    tokens: torch.Tensor


def encode_sample(resident: Resident, sample: Sample, max_length: int) -> EncodedSample:
    """Encodes the answers of task rows, or whole documents, in sequences of at most `max_length` tokens."""
    base = resident.base
    length = min(max_length, base.context)
    sequences: list[EncodedSequence] = []
    row_indices: list[int] = []
    for i, row in enumerate(sample.rows):
        if sample.kind == "task":
            encoded = [encode_task(base.tokenizer, row["messages"], length, base.eos_ids)]
        else:
            encoded = encode_text(base.tokenizer, row["text"], length)
        sequences += encoded
        row_indices += [i] * len(encoded)
    tokens = torch.zeros(len(sample.rows), dtype=torch.float64)
    for index, sequence in zip(row_indices, sequences, strict=True):
        tokens[index] += sum(sequence.loss_mask[1:])
    return EncodedSample(sequences, row_indices, tokens)


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

    Attributes:
        exact: (M, N) float64 of 0 and 1; complete when `compute` ends.
    """

    def __init__(self, resident: Resident, sample: Sample, mixes: Sequence[Mix], max_new_tokens: int) -> None:
        self.resident, self.sample, self.mixes = resident, sample, list(mixes)
        self.sampling = Sampling(max_new_tokens=max_new_tokens)
        self.exact = torch.zeros(len(self.mixes), len(sample.rows), dtype=torch.float64)

    def compute(self) -> Generator[float, None, None]:
        """Fills `exact`; yields the share done, 0 to 1, after every generated token."""
        tokenizer, rows = self.resident.base.tokenizer, self.sample.rows
        prompts = [encode_chat(tokenizer, row["messages"][:-1], add_generation_prompt=True) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: len(prompts[i]))
        pairs = [(i, m) for i in order for m in range(len(self.mixes))]
        for start in range(0, len(pairs), ANSWER_ROWS):
            batch = pairs[start : start + ANSWER_ROWS]
            states: Any = []
            for states in generate(
                self.resident,
                [prompts[i] for i, _ in batch],
                [self.mixes[m] for _, m in batch],
                [self.sampling] * len(batch),
            ):
                yield start / len(pairs)
            for (i, m), state in zip(batch, states, strict=True):
                self.exact[m, i] = exact_match(
                    state.column(tokenizer).text, rows[i]["messages"][-1]["content"]
                )
        yield 1.0
