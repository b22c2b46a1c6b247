"""A sample of a split, and how each of its rows fares under many mixes at once.

Nats and exact matches are kept row by row, because rows are what can be resampled. Knows datasets,
token ids and a resident base; knows nothing of weights, maps or what is concluded from them.
Letters: M mixes, N rows.
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

ANSWER_ROWS = 64  # answers written in one batch


@dataclass(frozen=True)
class Sample:
    """Rows of one split.

    Attributes:
        kind: "domain" (rows have `text`) or "task" (rows have `messages`).
        sha256: the dataset's fingerprint.
        rows: as `core.data.datasets.read_split` gives them.
    """

    dataset: str
    name: str
    kind: str
    sha256: str
    split: str
    rows: tuple[dict[str, Any], ...]

    @property
    def digest(self) -> str:
        """The sha256 of the rows themselves."""
        return hashlib.sha256(json.dumps(self.rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{len(self.rows)} rows of {self.name!r} ({self.split})"


def load_sample(workspace: Workspace, dataset_id: str, split: str, limit: int = 0) -> Sample:
    """At most `limit` rows of a split, evenly spread over it; 0 takes all.

    Raises:
        NotFound, StorageError: the dataset. SpecError: the split is empty, or the limit negative.
    """
    dataset = load_dataset(workspace, dataset_id)
    rows = read_split(workspace, dataset_id, split)
    if limit < 0:
        raise SpecError(f"The limit is {limit} rows.", "Give a positive number, or 0 for all rows.")
    if not rows:
        raise SpecError(f"The split {split!r} of {dataset.name!r} is empty.", "Choose another split.")
    if 0 < limit < len(rows):
        rows = [rows[i * len(rows) // limit] for i in range(limit)]
    return Sample(dataset.id, dataset.name, dataset.kind, dataset.sha256, split, tuple(rows))


def load_finished(resident: Resident, adapters: Sequence[str]) -> dict[str, str]:
    """Loads adapters and returns their sha256; one that is still changing has no place in a comparison.

    Raises:
        Busy: one of them is in training. NotFound, AdapterError: it cannot be loaded.
    """
    if resident.trainee_id in adapters:
        raise Busy(
            f"The adapter {resident.trainee_id!r} is still in training.",
            "Wait until its run has ended, or stop the run and keep what is learned.",
        )
    resident.load_adapters([Mix(weights=dict.fromkeys(adapters, 1.0))])
    return {a: resident.digests[a] for a in adapters}


@dataclass(frozen=True)
class EncodedSample:
    """A sample as token ids.

    Attributes:
        sequences: what is read; a long document is several.
        owners: for each sequence, the row that it comes from.
        tokens: (N,) float64, scored tokens of each row.
    """

    sequences: list[EncodedSequence]
    owners: list[int]
    tokens: torch.Tensor


def encode_sample(resident: Resident, sample: Sample, max_length: int) -> EncodedSample:
    """Answers of task rows, whole texts of documents; sequences of at most `max_length` tokens."""
    base = resident.base
    length = min(max_length, base.context)
    sequences: list[EncodedSequence] = []
    owners: list[int] = []
    for i, row in enumerate(sample.rows):
        if sample.kind == "task":
            made = [encode_task(base.tokenizer, row["messages"], length, base.eos_ids)]
        else:
            made = encode_text(base.tokenizer, row["text"], length)
        sequences += made
        owners += [i] * len(made)
    tokens = torch.zeros(len(sample.rows), dtype=torch.float64)
    for owner, sequence in zip(owners, sequences, strict=True):
        tokens[owner] += sum(sequence.loss_mask[1:])
    return EncodedSample(sequences, owners, tokens)


class RowLosses:
    """The nats of every row under every mix.

    Attributes:
        nats: (M, N) float64, complete once `compute` has ended.
    """

    def __init__(self, resident: Resident, encoding: EncodedSample, mixes: Sequence[Mix]) -> None:
        self.resident, self.encoding, self.mixes = resident, encoding, list(mixes)
        self.nats = torch.zeros(len(self.mixes), len(encoding.tokens), dtype=torch.float64)

    def compute(self) -> Generator[float, None, None]:
        """Yields the share that is done, after every forward."""
        done, total = 0, len(self.encoding.sequences) * len(self.mixes)
        for cells in score_each(self.resident, self.encoding.sequences, self.mixes):
            for cell in cells:
                self.nats[cell.mix, self.encoding.owners[cell.sequence]] += cell.nats
            done += len(cells)
            yield done / total

    @property
    def losses(self) -> list[float]:
        """Nats a token under each mix: a sum over a sum."""
        return [float(x) for x in self.nats.sum(1) / self.encoding.tokens.sum()]


class RowMatches:
    """Which rows every mix answers exactly, by greedy writing.

    Attributes:
        exact: (M, N) float64 of 0 and 1, complete once `compute` has ended.
    """

    def __init__(self, resident: Resident, sample: Sample, mixes: Sequence[Mix], max_new_tokens: int) -> None:
        self.resident, self.sample, self.mixes = resident, sample, list(mixes)
        self.sampling = Sampling(max_new_tokens=max_new_tokens)
        self.exact = torch.zeros(len(self.mixes), len(sample.rows), dtype=torch.float64)

    def compute(self) -> Generator[float, None, None]:
        """Yields the share that is done, after every step of writing."""
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
