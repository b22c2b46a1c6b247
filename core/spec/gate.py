"""Gates: the weight of an adapter on Auto, from how much likelier the adapter makes a prompt.

The *evidence* of an adapter on a prompt is the largest mean, over WINDOW consecutive tokens, of
(log-likelihood with it - log-likelihood without it), in nats a token. A scan over windows finds the name of
one thing in a question; the mean over all tokens dilutes it. Chance makes the largest of many windows large,
by about `growth` nats for each unit of ln(tokens), so that much is taken off (as in penalised scan
statistics, Walther 2010).

A *calibration* compares the evidence on prompts that are the adapter's own with the evidence on other ones.
Both are modelled as normal distributions, by median and median absolute deviation, so that the log-odds that
a prompt is its own are linear in the evidence (linear discriminant analysis, Fisher 1936):

    log-odds = (evidence - growth ln(tokens / TYPICAL_TOKENS) - threshold) / temperature

Adapters of one kind compete: their log-odds and the 0 of "none of them" go through one softmax. Adapters of
different kinds, such as a domain and a task, are independent of each other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from core.errors import SpecError
from core.spec.settings import is_number

MINIMUM_ROWS = 4  # of each side of a calibration
MINIMUM_AREA = 0.7  # under the ROC curve, for a gate that may switch something
MINIMUM_TOKENS = 3  # of a prompt with evidence
WINDOW = 4  # tokens of a part of a prompt
TYPICAL_TOKENS = 12  # of a question; thresholds are given for it
LARGEST_GROWTH = 2.0  # nats for each unit of ln(tokens)
SMALLEST_WIDTH = 0.02  # nats a token; the standard deviation of a few equal rows is not believed
HYSTERESIS = 1.0  # log-odds beyond 0 that a gate which follows the tokens needs to switch
TOKEN_WINDOW = 24  # newest tokens that such a gate reads
IN_TRAINING = "it is still in training, and its gate is calibrated at the end"
SOFT_STEP = 0.05  # a soft weight is rounded to it


class Evidence(float):
    """Evidence in nats a token.

    Attributes:
        tokens: of the prompt that it was measured on.
        half: the evidence of the first half of the prompt.
    """

    tokens: int
    half: float

    def __new__(cls, value: float, tokens: int = TYPICAL_TOKENS, half: float | None = None) -> Evidence:
        made = super().__new__(cls, value)
        made.tokens, made.half = tokens, value if half is None else half
        return made


@dataclass(frozen=True)
class GateCalibration:
    """What the gate of one adapter knows, stored with the adapter.

    Attributes:
        threshold: evidence at which the adapter is as likely on as off, in nats a token.
        temperature: nats a token for one unit of log-odds.
        area: area under the ROC curve of the rows that it was made from.
        own, other: (median, width) of the evidence on both sides, `growth` taken off.
        rows: how many prompts of its own, and of others.
        against: names of what the others came from.
        base_fingerprint: of the base.
        questions: whether its own prompts were questions; else they were sentences of documents.
        growth: nats a token that chance adds for each unit of ln(tokens).
    """

    threshold: float
    temperature: float
    area: float
    own: tuple[float, float]
    other: tuple[float, float]
    rows: tuple[int, int]
    against: tuple[str, ...] = ()
    base_fingerprint: str = ""
    questions: bool = False
    growth: float = 0.0

    @property
    def obstacle(self) -> str:
        """Why this calibration cannot switch an adapter; "" where it can."""
        if self.area >= MINIMUM_AREA:
            return ""
        return (
            f"its own prompts and others are hardly told apart (area under the curve {self.area:.2f}, "
            f"at least {MINIMUM_AREA:g} is needed)"
        )

    def log_odds(self, evidence: float) -> float:
        """How likely the adapter belongs to a prompt: 0 is even, positive is likelier."""
        return (evidence - self.limit_for(evidence)) / self.temperature

    def limit_for(self, evidence: float) -> float:
        """The threshold for a prompt as long as the one that this evidence was measured on."""
        return self.threshold + self.growth * _log_length(evidence)

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Any) -> GateCalibration | None:
        """Reads a calibration; None for anything that is not one."""
        if not isinstance(value, dict):
            return None
        numbers = {k: value.get(k) for k in ("threshold", "temperature", "area")}
        pairs = {k: _read_pair(value.get(k)) for k in ("own", "other", "rows")}
        if not all(is_number(n) for n in numbers.values()) or None in pairs.values():
            return None
        against, growth = value.get("against"), value.get("growth")
        made: dict[str, Any] = {
            **numbers,
            **pairs,
            "against": tuple(str(a) for a in against) if isinstance(against, list) else (),
            "base_fingerprint": str(value.get("base_fingerprint", "")),
            "questions": value.get("questions") is True,
            "growth": growth if is_number(growth) else 0.0,
        }
        return cls(**made) if made["temperature"] > 0 else None


def _read_pair(value: Any) -> tuple[Any, Any] | None:
    is_pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(is_number(n) for n in value)
    return (value[0], value[1]) if is_pair else None


def _log_length(evidence: float) -> float:
    """ln(tokens / TYPICAL_TOKENS) of the prompt; a window needs WINDOW tokens."""
    tokens = getattr(evidence, "tokens", TYPICAL_TOKENS)
    return math.log(max(tokens, WINDOW) / TYPICAL_TOKENS)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(is_number(n) for n in value)


def calibrate(
    own: Sequence[float],
    other: Sequence[float],
    against: Sequence[str] = (),
    base_fingerprint: str = "",
    questions: bool = False,
) -> GateCalibration:
    """Fits the threshold, the temperature and the growth.

    The threshold lies between the two medians, nearer to the side that varies less. The temperature is that
    of two normal distributions with the pooled variance. The growth compares each of the others with its own
    first half, so that long and short texts of different kinds do not count as long and short.

    Args:
        own, other: `Evidence` on prompts of the adapter, and on others.

    Raises:
        SpecError: a side has fewer than MINIMUM_ROWS prompts.
    """
    if min(len(own), len(other)) < MINIMUM_ROWS:
        raise SpecError(
            f"A calibration needs at least {MINIMUM_ROWS} prompts of the adapter's own data and as many "
            f"others, got {len(own)} and {len(other)}.",
            "Choose larger datasets.",
        )
    growth = _fit_growth(other)
    sides = [[e - growth * _log_length(e) for e in side] for side in (own, other)]
    medians = [statistics.median(side) for side in sides]
    widths = [_measure_width(side) for side in sides]
    distance = medians[0] - medians[1]
    threshold = (medians[0] * widths[1] + medians[1] * widths[0]) / sum(widths)
    variance = statistics.fmean(w * w for w in widths)
    return GateCalibration(
        threshold,
        variance / max(distance, SMALLEST_WIDTH),
        area_under_curve(*sides),
        (medians[0], widths[0]),
        (medians[1], widths[1]),
        (len(own), len(other)),
        tuple(against),
        base_fingerprint,
        questions,
        growth,
    )


def _measure_width(side: Sequence[float]) -> float:
    """The standard deviation of a normal distribution with this median absolute deviation."""
    median = statistics.median(side)
    return max(1.4826 * statistics.median(abs(e - median) for e in side), SMALLEST_WIDTH)


def _fit_growth(other: Sequence[float]) -> float:
    """How much the evidence of others grows with their length, from each one and its first half."""
    whole = [e for e in other if isinstance(e, Evidence) and e.tokens >= 2 * WINDOW]
    if not whole:
        return 0.0
    growth = statistics.fmean(e - e.half for e in whole) / math.log(2)
    return min(max(growth, 0.0), LARGEST_GROWTH)


def area_under_curve(own: Sequence[float], other: Sequence[float]) -> float:
    """The share of pairs in which the own prompt has more evidence; equal ones count half."""
    pairs = len(own) * len(other)
    return sum((a > b) + 0.5 * (a == b) for a in own for b in other) / pairs if pairs else math.nan


@dataclass(frozen=True)
class GateInput:
    """One adapter on Auto at one prompt.

    Attributes:
        kind: "domain" or "task"; adapters of one kind compete.
        mode: "hard", "soft" or "token".
        weight: where the gate is fully open.
        evidence: nats a token; None where it could not be measured.
        obstacle: why the gate stays off, "" where it works.
    """

    kind: str
    mode: str
    weight: float
    evidence: float | None
    calibration: GateCalibration | None
    obstacle: str = ""


@dataclass(frozen=True)
class GateDecision:
    """What a gate chose.

    Attributes:
        weight: the adapter's weight, 0 where the gate is off.
        evidence: nats a token, or None.
        threshold: evidence that was needed, or None.
        probability: that the adapter belongs to the prompt, beside the others of its kind.
        obstacle: why the gate is off without looking at the prompt, "" where it looked.
        rival: the adapter of its kind that the gate chose instead, "" without one.
    """

    weight: float
    evidence: float | None = None
    threshold: float | None = None
    probability: float = 0.0
    obstacle: str = ""
    rival: str = ""

    def to_json(self) -> dict[str, Any]:
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return {k: v for k, v in rounded.items() if v not in (None, "")}


def decide(
    inputs: Mapping[str, GateInput], so_far: Mapping[str, GateDecision] | None = None
) -> dict[str, GateDecision]:
    """Chooses the weight of every adapter on Auto.

    A hard gate opens the likeliest adapter of a kind, unless "none" is likelier. A soft gate gives each its
    share of the softmax.

    Args:
        inputs: by adapter id.
        so_far: what was decided before the newest tokens. Only gates that follow the tokens decide again; one
            that is on stays on, and one that is off stays off, until the log-odds are HYSTERESIS beyond even.
    """
    decisions: dict[str, GateDecision] = {}
    for kind in sorted({i.kind for i in inputs.values()}):
        group = {a: i for a, i in inputs.items() if i.kind == kind}
        odds: dict[str, float] = {}
        held = {a: so_far[a] for a, i in group.items() if so_far and i.mode != "token"}
        decisions |= held
        winner = next((a for a, decision in held.items() if decision.weight), "")
        for adapter, given in group.items():
            if adapter in held:
                continue
            if given.obstacle or given.calibration is None or given.evidence is None:
                decisions[adapter] = GateDecision(0.0, given.evidence, obstacle=given.obstacle)
                continue
            odds[adapter] = given.calibration.log_odds(given.evidence)
            if so_far:
                odds[adapter] += HYSTERESIS if so_far[adapter].weight else -HYSTERESIS
        shares = _softmax(odds)
        best = max(odds, key=odds.__getitem__, default="")
        winner = winner or (best if best and odds[best] > 0 else "")
        for adapter, share in shares.items():
            given, calibration = group[adapter], group[adapter].calibration
            assert calibration is not None
            if given.mode == "soft":
                weight = given.weight * round(share / SOFT_STEP) * SOFT_STEP
            else:
                weight = given.weight if adapter == winner else 0.0
            is_beaten = winner and adapter != winner and odds[adapter] > 0
            decisions[adapter] = GateDecision(
                weight,
                given.evidence,
                calibration.limit_for(given.evidence or 0.0),
                share,
                rival=winner if is_beaten else "",
            )
    return {a: decisions[a] for a in inputs}


def _softmax(odds: Mapping[str, float]) -> dict[str, float]:
    """The share of each, beside "none" with log-odds 0."""
    top = max([0.0, *odds.values()])
    total = math.exp(-top) + sum(math.exp(o - top) for o in odds.values())
    return {a: math.exp(o - top) / total for a, o in odds.items()}


def describe_decision(decision: GateDecision, name: str, rival: str = "") -> str:
    """Why a gate is on or off, as one sentence without its end: "part of this prompt is 1.12 nats a token
    likelier with Station papers (limit 0.60): on".

    Args:
        name, rival: of the adapter, and of the one that was chosen instead.
    """
    if decision.obstacle or decision.evidence is None:
        return f"{name} is off: {decision.obstacle or 'the prompt gives no evidence'}"
    limit = f" (limit {decision.threshold:.2f})" if decision.threshold is not None else ""
    if decision.evidence <= 0:
        start = f"no part of this prompt is likelier with {name}"
    else:
        start = f"part of this prompt is {decision.evidence:.2f} nats a token likelier with {name}"
    if rival:
        return f"{start}, and {rival} fits it better: off"
    if not decision.weight:
        return f"{start}{limit}: off"
    return f"{start}{limit}: {'on' if decision.weight == 1 else f'weight {decision.weight:.2f}'}"
