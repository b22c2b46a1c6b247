"""Results of a weight search: losses, and gains over the references with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from core.evaluate.sample import RowLosses, RowMatches

RESAMPLES = 2000
SEARCH_NAMES = {
    "gradient": "Gradient descent",
    "grid": "Grid search",
    "gradient-free": "Gradient-free search",
}


@dataclass(frozen=True)
class Gain:
    """The advantage of one mix over another on the same rows; positive is better.

    Attributes:
        nats: nats per token saved. low, high: its 95 % interval.
        exact, exact_low, exact_high: the same for the share of exact matches; None where not measured.
    """

    nats: float
    low: float
    high: float
    exact: float | None = None
    exact_low: float | None = None
    exact_high: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """The weights of one search or reference, with their cost and their losses.

    Attributes:
        name: "gradient", "grid", "gradient-free", "sum", "single" or "base".
        weights: of the searched adapters, without the fixed ones.
        seconds, forwards: cost of the search; 0 for a reference.
        validation_loss, test_loss: nats per token.
        gains: name of a reference ("sum", "single") to the gain over it, on test rows.
    """

    name: str
    weights: dict[str, float]
    seconds: float
    forwards: int
    validation_loss: float
    test_loss: float
    exact_match: float | None = None
    gains: dict[str, Gain] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class SearchComparison:
    """All searches and references; "single" is the single adapter with the best validation loss.

    Attributes:
        max_new_tokens: longest answer to a test question, in tokens; 0 where none was generated.
        note: on the rows that were cut or left out.
    """

    adapters: tuple[str, ...]
    fixed: dict[str, float]
    digests: dict[str, str]
    validation: str
    test: str
    validation_digest: str
    test_digest: str
    seed: int
    results: tuple[SearchResult, ...]
    tilt: dict[str, float] = field(default_factory=dict)
    max_new_tokens: int = 0
    note: str = ""

    def result(self, name: str) -> SearchResult:
        """The result with this name.

        Raises:
            KeyError: there is none.
        """
        return {r.name: r for r in self.results}[name]

    def summary(
        self,
        names: Mapping[str, str] | None = None,
        searches: Collection[str] = ("gradient", "grid", "gradient-free"),
    ) -> str:
        """What each search found, and whether it improves on the references.

        Args:
            names: adapter id to display name; ids are shown for missing names.
            searches: names of the searches to describe.
        """
        references = {"sum": "the plain sum", "single": f"{self._describe_weights('single', names)} alone"}
        sentences = []
        for result in (r for r in self.results if r.gains and r.name in searches):
            weights = self._describe_weights(result.name, names)
            sentences.append(f"{SEARCH_NAMES[result.name]} found {weights} in {result.seconds:.1f} s.")
            for reference, gain in result.gains.items():
                sentences.append(_describe_gain(gain, references[reference]))
        sentences.append(f"The weights were chosen on {self.validation} and evaluated on {self.test}.")
        if self.max_new_tokens:
            sentences.append(f"Answers were cut at {self.max_new_tokens} tokens.")
        sentences += [self.note] if self.note else []
        return " ".join(sentences)

    def _describe_weights(self, name: str, names: Mapping[str, str] | None) -> str:
        result = next((r for r in self.results if r.name == name), None)
        if result is None:
            return ""
        active = [((names or {}).get(a, a), w) for a, w in result.weights.items() if w]
        return " + ".join(f"{a} {w:.2f}" if name != "single" else a for a, w in active) or "the base"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the summary."""
        return {**asdict(self), "summary": self.summary()}


def _describe_gain(gain: Gain, reference: str) -> str:
    interval = f"95 % interval {gain.low:+.4f} to {gain.high:+.4f}"
    if gain.low > 0:
        text = f"It improves on {reference}: {gain.nats:+.4f} nats per token ({interval})"
    elif gain.high < 0:
        text = f"It is worse than {reference}: {gain.nats:+.4f} nats per token ({interval})"
    elif gain.nats == gain.low == gain.high == 0:
        return f"It equals {reference}, so nothing is gained."
    else:
        text = (
            f"The data show no difference from {reference}: {gain.nats:+.4f} nats per token "
            f"({interval}, which includes zero)"
        )
    return f"{text}{_describe_exact_gain(gain)}."


def _describe_exact_gain(gain: Gain) -> str:
    if gain.exact is None or gain.exact_low is None or gain.exact_high is None:
        return ""
    if gain.exact == gain.exact_low == gain.exact_high == 0:
        return "; exact match is the same on every question"
    zero = ", which includes zero" if gain.exact_low <= 0 <= gain.exact_high else ""
    interval = f"{100 * gain.exact_low:+.1f} to {100 * gain.exact_high:+.1f}{zero}"
    return f"; exact match {100 * gain.exact:+.1f} points ({interval})"


def bootstrap_gain(
    losses: RowLosses, matches: RowMatches | None, ours: int, reference: int, seed: int
) -> Gain:
    """The gain of one mix over another on the same rows, with intervals from a paired bootstrap.

    Rows (questions or documents) are resampled with replacement, the same rows for both mixes; the interval
    goes from the 2.5th to the 97.5th percentile.

    Args:
        losses: measured on the test rows. matches: exact matches on the same rows; None where not measured.
        ours, reference: indices of the two mixes.

    Source: Efron and Tibshirani 1993; for comparing systems, Koehn 2004, ACL W04-3250.
    """
    tokens = losses.encoded.tokens
    generator = torch.Generator().manual_seed(seed)
    measured = tokens.nonzero()[:, 0]  # the rows that were not left out
    picks = measured[torch.randint(len(measured), (RESAMPLES, len(measured)), generator=generator)]
    saved = losses.nats[reference] - losses.nats[ours]  # (N,) nats of each row
    low, high = _compute_interval(saved[picks].sum(1) / tokens[picks].sum(1))
    nats = float(saved.sum() / tokens.sum())
    if matches is None:
        return Gain(nats, low, high)
    won = matches.exact[ours] - matches.exact[reference]  # NaN for a question that was left out
    return Gain(nats, low, high, float(won.nanmean()), *_compute_interval(won[picks].nanmean(1).nan_to_num()))


def _compute_interval(values: torch.Tensor) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
