"""Measuring likelihood: nats and tokens of encoded sequences under mixes.

Sums of nats over sums of tokens, never a mean of means. A Python generator that yields between
batches. Knows a resident base and token ids; knows no datasets or reports.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from core.data.batches import IGNORED, Encoded, collate
from core.model.generate import speaking
from core.model.resident import Resident
from core.spec import Mix

BATCH_TOKENS = 4096  # rows x tokens of one forward


@dataclass
class Score:
    """What was measured so far for one mix."""

    nats: float = 0.0
    tokens: int = 0

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0)) if self.tokens else math.nan


def score(resident: Resident, sequences: Sequence[Encoded], mixes: Sequence[Mix]) -> Iterator[tuple[int, list[Score]]]:
    """Scores the masked tokens of sequences under every mix.

    Yields:
        (sequences done, one Score a mix), after every forward.
    """
    scores = [Score() for _ in mixes]
    device = resident.base.device
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
    done = 0
    while done < len(order):
        longest, count = 0, 0
        while done + count < len(order):
            longest_next = max(longest, len(sequences[order[done + count]].ids))
            if count and longest_next * (count + 1) > BATCH_TOKENS:
                break
            longest, count = longest_next, count + 1
        batch = [sequences[i] for i in order[done : done + count]]
        tensors = collate([{"input_ids": e.ids, "trained": e.mask} for e in batch], resident.base.tokenizer.pad_token_id)
        tensors = {k: v.to(device) for k, v in tensors.items()}
        resident.ensure(mixes)
        for i, row in enumerate(resident.rows(mixes)):
            with speaking(resident, [row] * count):
                logits = resident.base.model(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"], use_cache=False).logits
                nats, tokens = summed_nats(logits, tensors["labels"])
            scores[i].nats += nats
            scores[i].tokens += tokens
        done += count
        yield done, scores


def summed_nats(logits: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Cross entropy of next tokens, summed.

    Args:
        logits: (B, T, V). labels: (B, T), not shifted, masked where nothing is scored.

    Returns:
        (nats, scored tokens)
    """
    targets = labels[:, 1:].reshape(-1)
    keep = targets != IGNORED
    nats = functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1])[keep].float(), targets[keep], reduction="sum")
    return float(nats), int(keep.sum())


def divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """How surprised someone who expects `q` is by `p`: KL(p || q) in nats, summed over positions.

    Args:
        p, q: (T, V) logits.
    """
    log_p, log_q = (functional.log_softmax(x.float(), dim=-1) for x in (p, q))
    return max(0.0, float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64)))
