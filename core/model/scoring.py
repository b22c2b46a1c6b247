"""Scoring: the negative log-likelihood, in nats, of encoded sequences under mixes.

Losses and perplexities are sums of nats over sums of tokens, never means of means. `score` and `score_each`
are Python generators that yield after every forward, so that the worker can interleave them with other work.
Datasets and reports belong to `core.evaluate`.

Letters: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from core.data.tokens.collation import collate
from core.data.tokens.encoding import IGNORE_INDEX, EncodedSequence
from core.model.activation import inference_mode_for
from core.model.decoding import shift_logits
from core.model.gating import resolve_mixes
from core.model.resident import Resident
from core.spec.gate import MINIMUM_TOKENS
from core.spec.mix import Mix

BLOCK_BYTES = 32 << 20  # of logits in fp32 whose nats are computed at once
TEXT_PREFIX = 16  # tokens of a text that gates read
BATCH_TOKENS = 4096  # rows x tokens of one forward
BATCH_TOKENS_CPU = 1024  # fastest on the embedded base, and short enough not to delay waiting requests


@dataclass
class Score:
    """The sums for one mix so far.

    Attributes:
        nats: sum of the negative log-likelihoods.
        tokens: number of scored tokens.
        rows: index of a sequence -> its (nats, tokens).
    """

    nats: float = 0.0
    tokens: int = 0
    rows: dict[int, tuple[float, int]] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """Nats per token; NaN before the first token."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss); NaN before the first token."""
        return math.exp(min(self.loss, 700.0)) if self.tokens else math.nan


def score(
    resident: Resident, sequences: Sequence[EncodedSequence], mixes: Sequence[Mix]
) -> Iterator[tuple[int, list[Score]]]:
    """Scores sequences under every mix; only tokens with a loss mask of 1 count.

    Yields:
        (sequences that are scored under every mix, one `Score` per mix), after every forward.

    Example:
        >>> for done, scores in score(resident, sequences, [Mix(), Mix(weights={"my-adapter": 1.0})]):
        ...     pass
        >>> [s.perplexity for s in scores]
    """
    scores = [Score() for _ in mixes]
    lengths = [sum(e.loss_mask[1:]) for e in sequences]
    done = 0
    for results in score_each(resident, sequences, mixes):
        for result in results:
            scores[result.mix].nats += result.nats
            scores[result.mix].tokens += lengths[result.sequence]
            scores[result.mix].rows[result.sequence] = (result.nats, lengths[result.sequence])
        done += len(results)
        yield done // len(mixes), scores


@dataclass(frozen=True)
class SequenceScore:
    """The score of one sequence under one mix.

    Attributes:
        mix, sequence: their indices in the arguments of `score_each`.
        nats: summed over the scored tokens.
    """

    mix: int
    sequence: int
    nats: float


def score_each(
    resident: Resident, sequences: Sequence[EncodedSequence], mixes: Sequence[Mix]
) -> Iterator[list[SequenceScore]]:
    """Scores every sequence under every mix, with many mixes in one batch.

    A row of a batch is a (sequence, mix) pair. The shortest sequences come first, and all mixes of a sequence
    follow each other. So batches are full, and their rows about equally long, for any number of mixes.

    Gates of mixes with Auto read what a sequence asks, up to its first scored token. Of a text without a
    question they read the first TEXT_PREFIX tokens, which are scored like the others.

    Yields:
        The results of one forward; all forwards together give every pair once. Nothing after a forward that
        only gates read.
    """
    chosen: list[list[Mix]] = [list(mixes)] * len(sequences)
    if any(mix.auto for mix in mixes):
        prompts = [_read_prompt(sequence) for sequence in sequences]
        for choices in resolve_mixes(resident, prompts, mixes):
            chosen = [[c.mix for c in of_prompt] for of_prompt in choices or ()]
            yield []
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
        used = [chosen[i][m] for i, m in batch]
        resident.load_adapters(used)
        with inference_mode_for(resident, resident.rows(used)):
            nats = sum_row_nats(*shift_logits(resident.base.model, tensors)).tolist()
        yield [SequenceScore(m, i, n) for (i, m), n in zip(batch, nats, strict=True)]
        start = end


def _read_prompt(sequence: EncodedSequence) -> list[int]:
    """The token ids that a gate reads before a sequence is scored."""
    first = next((i for i, scored in enumerate(sequence.loss_mask) if scored), len(sequence.loss_mask))
    return list(sequence.ids[: first if first > MINIMUM_TOKENS else TEXT_PREFIX])


def sum_row_nats(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sums the cross entropy over each row.

    Args:
        logits: (B, T, V).
        labels: (B, T) the token that each position predicts, `IGNORE_INDEX` where a position is not scored.

    Returns:
        (B,) nats.
    """
    rows, columns = (labels != IGNORE_INDEX).nonzero(as_tuple=True)
    size = max(32, BLOCK_BYTES // (4 * logits.shape[-1]))
    blocks = zip(
        rows.split(size), columns.split(size), strict=True
    )  # their copies in fp32 are never all held
    nats = [functional.cross_entropy(logits[at].float(), labels[at], reduction="none") for at in blocks]
    return torch.zeros(len(labels), device=logits.device).index_add(0, rows, torch.cat(nats))


def kl_divergence(p: torch.Tensor, q: torch.Tensor) -> float:
    """Returns KL(p || q) between two next-token distributions, in nats, summed over positions.

    Args:
        p, q: (T, V) logits.
    """
    log_p, log_q = (functional.log_softmax(x.float(), dim=-1) for x in (p, q))
    return max(0.0, float((log_p.exp() * (log_p - log_q)).sum(dtype=torch.float64)))
