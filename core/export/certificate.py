"""The parity certificate: whether an exported file says what the studio says, in numbers.

    studio   prompts ─ greedy answers, logits at the last tokens ─> Reference      core.export.reference
    file     reopened in its runtime ─ the same tokens ─> predictions, answers     core.export.runtimes
    both     compare ─> Certificate                                                here

At each position both sides predict the token after the same beginning, so that one difference does not change
all that follows. The free-running answers are compared beside that.

Letters: T positions, V vocabulary, K the most likely tokens that a runtime tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

PASSED, FAILED, UNCHECKED = "passed", "failed", "not checked"
EXACT_DIFFERENCE = 1e-4  # of logits, between two computations in fp32
# Of the largest logit: rounding in fp32 grows with the numbers, and with the layers that they pass.
RELATIVE_DIFFERENCE = 1e-5
EXAMPLES_KEPT, TEXT_LIMIT = 4, 300
SMALLEST = 1e-12  # a probability


@dataclass(frozen=True)
class Limits:
    """What a file must hold.

    Attributes:
        agreement: the smallest share of positions at which both sides predict the same token.
        difference: the largest difference of two logits; None does not limit it.
    """

    agreement: float
    difference: float | None = None


# By the precision of the weights that are compared with the studio's.
LIMITS = {
    "exact": Limits(0.99, EXACT_DIFFERENCE),
    "f32": Limits(0.99),
    "bf16": Limits(0.99),
    "f16": Limits(0.99),
    "q8_0": Limits(0.95),
    "q4_0": Limits(0.7),
    "q4_k_m": Limits(0.7),
    "quantized studio": Limits(0.8),
}


@dataclass(frozen=True)
class Predictions:
    """What a runtime predicts after each position of one sequence.

    Attributes:
        logits: (T, V); None where the runtime tells only the most likely tokens.
        ids, logprobs: (T, K), the most likely first; where `logits` is None. A log-probability that is not
            told is NaN.
    """

    logits: np.ndarray[Any, Any] | None = None
    ids: np.ndarray[Any, Any] | None = None
    logprobs: np.ndarray[Any, Any] | None = None


class Runtime(Protocol):
    """A program that reads the exported file.

    Attributes:
        name: with its version, such as "llama.cpp (xllamacpp 2026.10)".
        stops: ids that end an answer there.
        template: its chat template; None where it cannot be read.
    """

    name: str
    stops: tuple[int, ...]
    template: str | None

    def predict(self, prompt: Sequence[int], answer: Sequence[int], count: int) -> Predictions:
        """Predicts the tokens after the last `count` positions of prompt and answer."""

    def answer(self, prompt: Sequence[int], limit: int) -> list[int]:
        """The greedy answer, at most `limit` tokens, without its stop token."""


@dataclass(frozen=True)
class CheckedPrompt:
    """One prompt of a certificate.

    Attributes:
        prompt, studio, file: the texts, shortened.
        equal_tokens: how many tokens of the two answers are equal from their start.
        tokens: of the studio's answer.
    """

    prompt: str
    studio: str
    file: str
    equal_tokens: int
    tokens: int


@dataclass(frozen=True)
class Certificate:
    """What was compared, and what came out.

    Attributes:
        status: "passed", "failed" or "not checked".
        reason: why it failed or was not checked, as sentences; "" for one that passed.
        runtime: that read the file, with its version.
        studio: the precision in which the studio answered.
        prompts, positions: how many were compared.
        agreement: the share of positions at which both sides predict the same token.
        free_agreement: the share of the studio's answers' tokens that the file says, from the start on.
        kl: KL(studio || file), nats a token; at least this much where `kl_is_bound`.
        difference: the largest difference of two logits; None where the runtime does not tell logits.
        studio_perplexity, file_perplexity: of the compared tokens.
        same_stops, same_template: whether stop tokens and chat template are the studio's; None unknown.
        limits: what had to hold.
        examples: the first answers of both sides.
        created: Unix seconds.
    """

    status: str
    reason: str = ""
    runtime: str = ""
    studio: str = ""
    prompts: int = 0
    positions: int = 0
    agreement: float = 0.0
    free_agreement: float = 0.0
    kl: float = 0.0
    kl_is_bound: bool = False
    difference: float | None = None
    studio_perplexity: float = 0.0
    file_perplexity: float = 0.0
    same_stops: bool | None = None
    same_template: bool | None = None
    limits: Limits = field(default_factory=lambda: Limits(0.0))
    examples: tuple[CheckedPrompt, ...] = ()
    created: float = 0.0


@dataclass
class Comparison:
    """Sums over the positions that were compared so far.

    Attributes:
        nats_studio, nats_file: of the tokens that followed. known: how many of those the sums cover.
        largest: the largest size of a logit.
    """

    positions: int = 0
    agreeing: int = 0
    largest: float = 0.0
    kl: float = 0.0
    kl_is_bound: bool = False
    difference: float | None = None
    nats_studio: float = 0.0
    nats_file: float = 0.0
    known: int = 0

    def add(self, studio: np.ndarray[Any, Any], file: Predictions, following: Sequence[int]) -> None:
        """Adds the positions of one sequence.

        Args:
            studio: (T, V) logits.
            following: the tokens after the positions; the last position may have none.
        """
        if file.logits is not None:
            self._add_logits(studio, file.logits, following)
        elif file.ids is not None and file.logprobs is not None:
            self._add_top(studio, file.ids, file.logprobs, following)
        self.positions += len(studio)

    def _add_logits(
        self, studio: np.ndarray[Any, Any], file: np.ndarray[Any, Any], following: Sequence[int]
    ) -> None:
        p, q = log_softmax(studio), log_softmax(file)
        self.agreeing += int((studio.argmax(-1) == file.argmax(-1)).sum())
        self.kl += float((np.exp(p) * (p - q)).sum())
        self.difference = max(self.difference or 0.0, float(np.abs(studio.astype(np.float64) - file).max()))
        self.largest = max(self.largest, float(np.abs(studio).max()))
        at = np.arange(len(following))
        self.nats_studio -= float(p[at, list(following)].sum())
        self.nats_file -= float(q[at, list(following)].sum())
        self.known += len(following)

    def _add_top(
        self,
        studio: np.ndarray[Any, Any],
        ids: np.ndarray[Any, Any],
        logprobs: np.ndarray[Any, Any],
        following: Sequence[int],
    ) -> None:
        """The rest of the vocabulary counts as one token, which makes the KL divergence a lower bound."""
        p = log_softmax(studio)
        self.agreeing += int((studio.argmax(-1) == ids[:, 0]).sum())
        self.kl_is_bound = True
        for t in range(len(studio)):
            is_told = np.isfinite(logprobs[t])
            if not is_told.any():
                continue
            told = ids[t][is_told]
            known, q = p[t, told], logprobs[t][is_told].astype(np.float64)
            self.kl += float((np.exp(known) * (known - q)).sum())
            rest_p = max(1.0 - float(np.exp(known).sum()), SMALLEST)
            rest_q = max(1.0 - float(np.exp(q).sum()), SMALLEST)
            self.kl += rest_p * (math.log(rest_p) - math.log(rest_q))
            if t < len(following) and following[t] in (row := list(told)):
                self.nats_studio -= float(p[t, following[t]])
                self.nats_file -= float(q[row.index(following[t])])
                self.known += 1


def log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Log-probabilities along the last dimension, in fp64."""
    values = logits.astype(np.float64)
    values -= values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))  # type: ignore[no-any-return]


def list_likeliest(predicted: Predictions) -> list[int]:
    """The most likely token after each position."""
    if predicted.logits is not None:
        return [int(token) for token in predicted.logits.argmax(-1)]
    return [] if predicted.ids is None else [int(token) for token in predicted.ids[:, 0]]


def count_equal(first: Sequence[int], second: Sequence[int]) -> int:
    """How many items are equal from the start on."""
    length = min(len(first), len(second))
    return next((i for i in range(length) if first[i] != second[i]), length)


def limit_difference(limits: Limits, largest: float) -> Limits:
    """The limits for logits whose largest has this size."""
    if limits.difference is None:
        return limits
    return Limits(limits.agreement, max(limits.difference, RELATIVE_DIFFERENCE * largest))


def judge(comparison: Comparison, limits: Limits, same_stops: bool | None, same_template: bool | None) -> str:
    """Why a file does not say the same, as sentences; "" for one that does."""
    reasons = []
    if not comparison.positions:
        return "Nothing could be compared."
    agreement = comparison.agreeing / comparison.positions
    if agreement < limits.agreement:
        reasons.append(
            f"Both predict the same token at {agreement:.1%} of {comparison.positions} positions; "
            f"at least {limits.agreement:.0%} were expected."
        )
    found = comparison.difference
    if limits.difference is not None and found is not None and not found <= limits.difference:
        reasons.append(f"A logit differs by {found:.2g}; at most {limits.difference:.2g} was expected.")
    if not math.isfinite(comparison.kl):
        reasons.append("The file predicts values that are not finite.")
    if same_stops is False:
        reasons.append("Other tokens end an answer than in the studio.")
    if same_template is False:
        reasons.append("The chat template is not the studio's.")
    return " ".join(reasons)
