"""Measuring likelihood: nats and tokens of encoded sequences under mixes.

Sums of nats over sums of tokens, never a mean of means. A Python generator that yields between
batches. Knows a resident base and token ids; knows no datasets or reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from core.data.collation import collate
from core.data.encoding import IGNORE_INDEX, EncodedSequence
from core.model.decoding import shifted_logits
from core.model.generate import inference_mode_for
from core.model.resident import Resident
from core.spec.mix import Mix

BATCH_TOKENS = 4096  # rows x tokens of one forward
BATCH_TOKENS_CPU = 1024  # the fastest on the embedded base, and a forward that nobody waits long for


@dataclass
class Score:
    """What was measured so far for one mix."""

    nats: float = 0.0
    tokens: int = 0
    rows: dict[int, tuple[float, int]] = field(default_factory=dict)  # sequence -> its nats and tokens

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0)) if self.tokens else math.nan


def score(
    resident: Resident, sequences: Sequence[EncodedSequence], mixes: Sequence[Mix]
) -> Iterator[tuple[int, list[Score]]]:
    """Scores the masked tokens of sequences under every mix.

    Yields:
        (sequences done under every mix, one Score a mix), after every forward.
    """
    scores = [Score() for _ in mixes]
    lengths = [sum(e.loss_mask[1:]) for e in sequences]
    done = 0
    for cells in score_each(resident, sequences, mixes):
        for cell in cells:
            scores[cell.mix].nats += cell.nats
            scores[cell.mix].tokens += lengths[cell.sequence]
            scores[cell.mix].rows[cell.sequence] = (cell.nats, lengths[cell.sequence])
        done += len(cells)
        yield done // len(mixes), scores


@dataclass(frozen=True)
class Cell:
    """One sequence under one mix: their places in what was given, and the nats of its scored tokens."""

    mix: int
    sequence: int
    nats: float


def score_each(
    resident: Resident, sequences: Sequence[EncodedSequence], mixes: Sequence[Mix]
) -> Iterator[list[Cell]]:
    """Scores every sequence under every mix, many mixes in one batch.

    A row of a batch is a (sequence, mix) pair; all mixes of a sequence come after each other, the
    shortest sequences first, so that batches are full and rows of about one length however many mixes
    there are.

    Yields:
        The cells of one forward, after it; together every pair once.
    """
    pad, device = resident.base.tokenizer.pad_token_id, resident.base.device
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].length)
    pairs = [(i, m) for i in order for m in range(len(mixes))]
    limit = BATCH_TOKENS_CPU if device.type == "cpu" else BATCH_TOKENS
    start = 0
    while start < len(pairs):
        end = start + 1
        while end < len(pairs) and sequences[pairs[end][0]].length * (end + 1 - start) <= limit:
            end += 1
        batch = pairs[start:end]
        tensors = collate([sequences[i].row for i, _ in batch], pad)
        tensors = {k: v.to(device) for k, v in tensors.items()}
        resident.load_adapters(mixes)
        rows = resident.rows(mixes)
        with inference_mode_for(resident, [rows[m] for _, m in batch]):
            nats = sum_row_nats(*shifted_logits(resident.base.model, tensors)).tolist()
        yield [Cell(m, i, n) for (i, m), n in zip(batch, nats, strict=True)]
        start = end


def sum_row_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy, summed over each row.

    Args:
        logits: (B, T, V). labels: (B, T), what each position predicts, masked where nothing is scored.

    Returns:
        (B,) nats
    """
    keep = labels != IGNORE_INDEX
    nats = functional.cross_entropy(logits[keep].float(), labels[keep], reduction="none")
    return nats.new_zeros(len(labels)).index_add(0, keep.nonzero()[:, 0], nats)


def kl_divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """How surprised someone who expects `q` is by `p`: KL(p || q) in nats, summed over positions.

    Args:
        p, q: (T, V) logits.
    """
    log_p, log_q = (functional.log_softmax(x.float(), dim=-1) for x in (p, q))
    return max(0.0, float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64)))
