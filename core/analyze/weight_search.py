"""Weights of a mix found on validation data, and what they are worth on test data.

Three ways to the same few numbers: gradient descent through the frozen base and adapters, a grid, and
LoRAHub's gradient-free way; each compared with the plain sum and the best single adapter. Knows a
resident base and samples; knows no pages. Letters: A adapters, B rows, N rows of a sample.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from core.analyze.timing import StepTimer
from core.analyze.weight_map import WeightMap
from core.data.collation import collate
from core.errors import SpecError
from core.evaluate.measure import Progress
from core.evaluate.sample import EncodedSample, RowLosses, RowMatches, Sample, encode_sample, load_finished
from core.model.decoding import shifted_logits
from core.model.nf4_cpu import unpack_for_backward
from core.model.resident import Resident
from core.model.scoring import sum_row_nats
from core.spec.mix import WEIGHT_LIMIT, Mix
from core.spec.settings import SEED

ADAPTER_LIMIT = 6
GRADIENT_ROWS = 8  # sequences of one forward with a backward
SETTLED = 2e-3  # weights that would move less than this have arrived
RESAMPLES = 2000
AXES = {  # the weights that a grid of A adapters tries on each axis: at most 81 points, all with 0 and 1
    1: tuple(-2 + 0.25 * i for i in range(17)),
    2: tuple(-0.5 + 0.25 * i for i in range(9)),
    3: (0.0, 0.5, 1.0, 1.5),
    4: (0.0, 0.5, 1.0),
    5: (0.0, 1.0),
    6: (0.0, 1.0),
}
HUB_LIMIT, HUB_PENALTY, HUB_BUDGET = (
    1.5,
    0.05,
    40,
)  # LoRAHub's own bounds, weight of the mean |w|, and evaluations


@dataclass(frozen=True)
class WeightSearchSpec:
    """What is learned.

    Attributes:
        adapters: ids whose weights are learned.
        fixed: weights of the mix's other adapters. tilt: how the mix's adapters lean with depth, whatever their weights.
        steps: at most so many looks at loss and gradient. stride: length of the first step, in weight.
        exact: also compare exact match, where the sample has questions.
        max_length: longest sequence read, in tokens. max_new_tokens: longest answer written.
        seed: of the gradient-free way and of the resampling.

    Raises:
        SpecError: what cannot be learned.
    """

    adapters: tuple[str, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)
    steps: int = 40
    stride: float = 0.25
    exact: bool = False
    max_length: int = 512
    max_new_tokens: int = 64
    seed: int = SEED
    tilt: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (
            not 1 <= len(self.adapters) <= ADAPTER_LIMIT
            or len(set(self.adapters)) < len(self.adapters)
            or set(self.adapters) & set(self.fixed)
        ):
            raise SpecError(
                f"The adapters to weigh are {list(self.adapters)}.",
                f"Choose 1 to {ADAPTER_LIMIT} different ones, none of them among the fixed ones.",
            )
        if not 1 <= self.steps <= 1000 or not 0 < self.stride <= 1:
            raise SpecError(
                f"{self.steps} steps with a stride of {self.stride} were asked for.",
                "Give 1 to 1000 steps and a stride above 0, up to 1.",
            )

    def mix(self, weights: Sequence[float], name: str = "") -> Mix:
        """The mix with these weights for `adapters`."""
        return Mix(
            name=name,
            weights={**self.fixed, **{a: round(w, 4) for a, w in zip(self.adapters, weights, strict=True)}},
            tilt=dict(self.tilt),
        )


@dataclass(frozen=True)
class Gain:
    """What a mix is better by than another, on the same rows: positive is better.

    Attributes:
        nats: nats per token saved, with its 95 % interval from `low` to `high`.
        exact, exact_low, exact_high: the same of the share of exact matches, None where not measured.
    """

    nats: float
    low: float
    high: float
    exact: float | None = None
    exact_low: float | None = None
    exact_high: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """One way's weights, what finding them took, and how they do.

    Attributes:
        name: "gradient", "grid", "gradient-free", "sum", "single" or "base".
        weights: of the learned adapters; the fixed ones come on top.
        losses are nats per token. gains: name of a reference ("sum", "single") to the gain over it, on test rows.
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
    """All ways side by side; `single` is the best single adapter by validation loss."""

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

    def result(self, name: str) -> SearchResult:
        """One way's row; raises KeyError where there is none."""
        return {f.name: f for f in self.results}[name]

    def summary(
        self,
        names: Mapping[str, str] | None = None,
        ways: Collection[str] = ("gradient", "grid", "gradient-free"),
    ) -> str:
        """What the figures say, and whether learning weights helps at all.

        Args:
            names: adapter id to display name; ids are shown where there is none.
            ways: names of those that are told of.
        """
        called = {"sum": "the plain sum", "single": f"{self._weights('single', names)} alone"}
        said = []
        for way in (f for f in self.results if f.gains and f.name in ways):
            said.append(f"{SEARCH_NAMES[way.name]} found {self._weights(way.name, names)} in {way.seconds:.1f} s.")
            for reference, gain in way.gains.items():
                said.append(_verdict(gain, called[reference]))
        return " ".join([*said, f"Weights were chosen on {self.validation} and compared on {self.test}."])

    def _weights(self, name: str, names: Mapping[str, str] | None) -> str:
        found = next((f for f in self.results if f.name == name), None)
        if found is None:
            return ""
        shown = [((names or {}).get(a, a), w) for a, w in found.weights.items() if w]
        return " + ".join(f"{a} {w:.2f}" if name != "single" else a for a, w in shown) or "the base"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "summary": self.summary()}


SEARCH_NAMES = {"gradient": "Gradient descent", "grid": "Grid search", "gradient-free": "The gradient-free search"}


def _verdict(gain: Gain, reference: str) -> str:
    figures = f"{gain.nats:+.4f} nats per token against {reference} (95 % interval {gain.low:+.4f} to {gain.high:+.4f})"
    if gain.low > 0:
        said = f"It helps: {figures}"
    elif gain.high < 0:
        said = f"It makes things worse: {figures}"
    elif gain.nats == gain.low == gain.high == 0:
        return f"It is {reference} itself, so it gains nothing."
    else:
        said = f"No help that these data can show: {figures}, which includes zero"
    if gain.exact == gain.exact_low == gain.exact_high == 0:
        said += "; exact match is the same on every question"
    elif gain.exact is not None and gain.exact_low is not None and gain.exact_high is not None:
        zero = " which includes zero" if gain.exact_low <= 0 <= gain.exact_high else ""
        said += f"; exact match {100 * gain.exact:+.1f} points ({100 * gain.exact_low:+.1f} to {100 * gain.exact_high:+.1f}{',' + zero if zero else ''})"
    return said + "."


@dataclass(frozen=True)
class WeightSearchProgress(Progress):
    """Progress of learning weights; the last one has the comparison."""

    comparison: SearchComparison | None = None


@dataclass
class _Search:
    """What one way has found so far; `share` is how far it is, from 0 to 1."""

    name: str
    watch: StepTimer = field(default_factory=StepTimer)
    weights: tuple[float, ...] = ()
    note: str = ""
    share: float = 0.0


def search_weights(
    resident: Resident, plan: WeightSearchSpec, validation: Sample, test: Sample, drawn: WeightMap | None = None
) -> Iterator[WeightSearchProgress]:
    """Finds weights in three ways on validation rows and compares them on test rows.

    Args:
        drawn: a complete perplexity map of the same adapters and validation rows; it then stands for the grid.

    Yields:
        Learning after every forward.

    Raises:
        SpecError: the same rows for both. Busy: an adapter is still in training. NotFound, AdapterError.
    """
    if validation.digest == test.digest or validation.kind != test.kind:
        raise SpecError(
            "Validation and test are the same rows, or not of one kind.", "Give two splits of one dataset."
        )
    digests = load_finished(resident, [*plan.fixed, *plan.adapters])
    encoding = encode_sample(resident, validation, plan.max_length)
    searches = [_Search("gradient"), _Search("grid"), _Search("gradient-free")]
    works = (
        run_bfgs(resident, plan, encoding, searches[0]),
        _grid(resident, plan, encoding, searches[1], _fitting(plan, drawn, digests, validation)),
        _evolve(resident, plan, encoding, searches[2]),
    )
    for i, (search, work) in enumerate(zip(searches, works, strict=True)):
        for _ in search.watch.over(work):
            yield WeightSearchProgress(int(100 * (i + search.share)), 400, SEARCH_NAMES[search.name])
    candidates = _candidates(plan, searches)
    mixes = [plan.mix(weights) for _, weights, *_ in candidates]
    judged = [
        RowLosses(resident, encoding, mixes),
        RowLosses(resident, encode_sample(resident, test, plan.max_length), mixes),
    ]
    for i, reading in enumerate(judged):
        for share in reading.compute():
            yield WeightSearchProgress(
                int(300 + 30 * (i + share)), 400, f"Comparing on {validation.split if i == 0 else test.split}"
            )
    asking = (
        RowMatches(resident, test, mixes, plan.max_new_tokens) if plan.exact and test.kind == "task" else None
    )
    for share in asking.compute() if asking is not None else ():
        yield WeightSearchProgress(int(360 + 40 * share), 400, "Asking the test questions")
    rows = _judge(plan, candidates, judged[0], judged[1], asking)
    comparison = SearchComparison(
        plan.adapters,
        dict(plan.fixed),
        digests,
        str(validation),
        str(test),
        validation.digest,
        test.digest,
        plan.seed,
        rows,
        dict(plan.tilt),
    )
    yield WeightSearchProgress(400, 400, "Done", comparison=comparison)


# --- the three ways


@contextlib.contextmanager
def learning(resident: Resident, rows: torch.Tensor) -> Iterator[None]:
    """The model in eval mode under weights that carry a gradient; training finds it as it was.

    Args:
        rows: (B, adapters on the base), columns as the mixer's names; or (P, B, adapters) over the depth.
    """
    model = resident.peft or resident.model
    was_training = model.training
    try:
        if was_training:
            model.eval()
        with unpack_for_backward(resident.base.model), resident.mixer.activate(rows):
            yield
    finally:
        if was_training:
            model.train()


def compute_gradient(
    resident: Resident, plan: WeightSearchSpec, batch: dict[str, torch.Tensor], leaf: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """Nats of a batch under the weights, and their gradient; no parameter's gradient is touched.

    Args:
        batch: as `collate` makes it, B rows. leaf: (A,) weights of the plan's adapters.

    Returns:
        (nats, (A,) nats by weight)
    """
    mixer, mix = resident.mixer, plan.mix([1.0] * len(plan.adapters))
    resident.load_adapters([mix])
    with torch.inference_mode(False), torch.enable_grad():
        weights = leaf.detach().clone().requires_grad_(True)  # the only leaf
        columns = torch.tensor(
            [mixer.names.index(resident.peft_name(a)) for a in plan.adapters], device=weights.device
        )
        rest = mixer.tensor(resident.rows([Mix(weights=dict(plan.fixed))]))[0].to(weights.device)
        row = rest.index_put((columns,), weights)
        if lean := mix.tilt:
            slant = mixer.tensor([{resident.peft_name(a): t for a, t in lean.items()}])[0].to(weights.device)
            row = torch.stack([row * (1 - slant), row * (1 + slant)]).unsqueeze(
                1
            )  # the first and the last layer
        with learning(resident, row.expand(*row.shape[:-2], len(batch["input_ids"]), -1)):
            nats = sum_row_nats(*shifted_logits(resident.base.model, batch)).sum()
            (gradient,) = torch.autograd.grad(nats, weights)
    return float(nats.detach()), gradient


def run_bfgs(
    resident: Resident, plan: WeightSearchSpec, encoding: EncodedSample, search: _Search
) -> Generator[None, None, None]:
    """Quasi-Newton descent (BFGS) on the few weights with the gradient of the whole sample; no step makes the loss higher.

    Begins at the best of the base, the single adapters and the plain sum, and so never ends worse than
    they on these rows. The loss is not convex in the weights: what is found is an optimum near there.

    Source: learned weights of frozen adapters as in LoRA Soups, Prabhakar et al. 2024, arXiv 2410.13025; BFGS as in
    Nocedal and Wright 2006, chapter 6.
    """
    count = len(plan.adapters)
    starts = [
        (1.0,) * count,
        *(tuple(float(i == j) for j in range(count)) for i in range(count)),
        (0.0,) * count,
    ]
    reading = RowLosses(resident, encoding, [plan.mix(start) for start in starts])
    for _ in reading.compute():
        yield
    at = torch.tensor(starts[min(range(len(starts)), key=reading.losses.__getitem__)], dtype=torch.float64)
    batches, tokens = _batches(resident, encoding), float(encoding.tokens.sum())

    def look(weights: torch.Tensor) -> Generator[None, None, tuple[float, torch.Tensor]]:
        nats, gradient = 0.0, torch.zeros_like(weights)
        for batch in batches:
            part, slant = compute_gradient(resident, plan, batch, weights.float().to(resident.base.device))
            nats, gradient = nats + part, gradient + slant.to(gradient)
            yield
        return nats / tokens, gradient / tokens

    loss, gradient = yield from look(at)
    inverse: torch.Tensor | None = None  # (A, A) of the loss's curvature
    reach, steps = 1.0, 1
    while steps < plan.steps:
        way = (
            -gradient / gradient.norm().clamp(min=1e-12) * plan.stride
            if inverse is None
            else -(inverse @ gradient)
        )
        tried = (at + reach * way.clamp(-1, 1)).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)
        moved = tried - at
        if float(moved.abs().max()) < SETTLED:
            break
        steps, search.share = steps + 1, steps / plan.steps
        value, slant = yield from look(tried)
        if value >= loss:
            reach /= 2
            continue
        change = slant - gradient
        if float(moved @ change) > 1e-12:
            inverse = _bfgs(inverse, moved, change)
        at, loss, gradient, reach = tried, value, slant, 1.0
    search.weights, search.note = tuple(at.tolist()), f"{steps} looks at loss and gradient"


def _bfgs(inverse: torch.Tensor | None, moved: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """The inverse curvature after a step `moved` (A,) that changed the gradient by `change` (A,)."""
    along = moved @ change
    unit = torch.eye(len(moved), dtype=moved.dtype)
    before = unit * along / (change @ change) if inverse is None else inverse
    turn = unit - torch.outer(moved, change) / along
    return turn @ before @ turn.T + torch.outer(moved, moved) / along


def _batches(resident: Resident, encoding: EncodedSample) -> list[dict[str, torch.Tensor]]:
    ordered = sorted(encoding.sequences, key=lambda e: e.length)
    parts = [ordered[i : i + GRADIENT_ROWS] for i in range(0, len(ordered), GRADIENT_ROWS)]
    made = [collate([e.row for e in part], resident.base.tokenizer.pad_token_id) for part in parts]
    return [{k: v.to(resident.base.device) for k, v in batch.items()} for batch in made]


def _fitting(
    plan: WeightSearchSpec, drawn: WeightMap | None, digests: Mapping[str, str], validation: Sample
) -> WeightMap | None:
    """The map, if it says what a grid search would find here."""
    if (
        drawn is None
        or not drawn.complete
        or drawn.metric != "perplexity"
        or drawn.sample != validation.digest
    ):
        return None
    same = (
        set(drawn.adapters) == set(plan.adapters)
        and drawn.fixed == dict(plan.fixed)
        and drawn.tilt == dict(plan.tilt)
        and drawn.digests == dict(digests)
    )
    return drawn if same else None


def _grid(
    resident: Resident, plan: WeightSearchSpec, encoding: EncodedSample, search: _Search, drawn: WeightMap | None
) -> Generator[None, None, None]:
    if drawn is not None and drawn.best is not None:
        at = dict(zip(drawn.adapters, (drawn.best.x, drawn.best.y), strict=True))
        search.weights = tuple(at[a] for a in plan.adapters)
        search.watch.seconds, search.watch.forwards = drawn.seconds, drawn.forwards
        search.note = f"read from a map of {len(drawn.points)} points"
        return
    cells = list(itertools.product(AXES[len(plan.adapters)], repeat=len(plan.adapters)))
    reading = RowLosses(resident, encoding, [plan.mix(c) for c in cells])
    for search.share in reading.compute():
        yield
    search.weights = cells[min(range(len(cells)), key=reading.losses.__getitem__)]
    search.note = f"{len(cells)} cells"


def _evolve(
    resident: Resident, plan: WeightSearchSpec, encoding: EncodedSample, search: _Search
) -> Generator[None, None, None]:
    """LoRAHub's objective and budget: loss plus 0.05 times the mean |w|, |w| <= 1.5, 40 evaluations, from zero.

    Its optimiser is nevergrad's, which is no dependency of ours; a (1+1) evolution strategy with the one-fifth
    success rule stands in for it. Ours weighs B A x, while LoRAHub's code weighs A and B each, so that its weights act squared.

    Source: LoRAHub, Huang et al. 2023, arXiv 2307.13269; Kern et al. 2004, Natural Computing 3 (the rule).
    """
    dice = random.Random(plan.seed)
    at, sigma, best = [0.0] * len(plan.adapters), 0.5, math.inf
    for turn in range(HUB_BUDGET):
        tried = [max(-HUB_LIMIT, min(HUB_LIMIT, w + sigma * dice.gauss(0, 1))) for w in at] if turn else at
        reading = RowLosses(resident, encoding, [plan.mix(tried)])
        for share in reading.compute():
            search.share = (turn + share) / HUB_BUDGET
            yield
        value = reading.losses[0] + HUB_PENALTY * sum(map(abs, tried)) / len(tried)
        if value <= best:
            at, best = tried, value
            sigma *= 1.5 if turn else 1.0
        else:
            sigma *= 1.5**-0.25
    search.weights = tuple(at)
    search.note = f"{HUB_BUDGET} evaluations of a (1+1) evolution strategy"


# --- judging


_Candidate = tuple[str, tuple[float, ...], float, int, str]  # name, weights, seconds, forwards, note


def _candidates(plan: WeightSearchSpec, searches: Sequence[_Search]) -> list[_Candidate]:
    count = len(plan.adapters)
    made: list[_Candidate] = [
        (s.name, s.weights, s.watch.seconds, s.watch.forwards, s.note) for s in searches
    ]
    made += [("sum", (1.0,) * count, 0.0, 0, ""), ("base", (0.0,) * count, 0.0, 0, "")]
    if count > 1:
        made += [("single", tuple(float(i == j) for j in range(count)), 0.0, 0, "") for i in range(count)]
    return made


def _judge(
    plan: WeightSearchSpec,
    candidates: Sequence[_Candidate],
    validation: RowLosses,
    test: RowLosses,
    asking: RowMatches | None,
) -> tuple[SearchResult, ...]:
    """One row a way, and of the single adapters the one that validation prefers."""
    singles = [i for i, c in enumerate(candidates) if c[0] == "single"]
    best = min(singles, key=validation.losses.__getitem__, default=-1)
    references = {c[0]: i for i, c in enumerate(candidates) if c[0] == "sum" or i == best}
    found = []
    for i, (name, weights, seconds, forwards, note) in enumerate(candidates):
        if i in singles and i != best:
            continue
        gains = (
            {r: bootstrap_gain(test, asking, i, j, plan.seed) for r, j in references.items()} if name in SEARCH_NAMES else {}
        )
        exact = float(asking.exact[i].mean()) if asking else None
        rounded = {a: round(w, 4) for a, w in zip(plan.adapters, weights, strict=True)}
        found.append(
            SearchResult(
                name,
                rounded,
                round(seconds, 3),
                forwards,
                validation.losses[i],
                test.losses[i],
                exact,
                gains,
                note,
            )
        )
    return tuple(found)


def bootstrap_gain(test: RowLosses, asking: RowMatches | None, ours: int, reference: int, seed: int) -> Gain:
    """What one mix is better by than another on the same rows, with intervals by paired bootstrap over rows.

    Rows (questions, documents) are drawn with replacement, the same ones for both mixes; percentiles 2.5 and 97.5.

    Source: Efron and Tibshirani 1993; for comparing systems, Koehn 2004, ACL W04-3250.
    """
    tokens = test.encoding.tokens
    dice = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(tokens), (RESAMPLES, len(tokens)), generator=dice)
    saved = test.nats[reference] - test.nats[ours]  # (N,)
    nats = saved[picks].sum(1) / tokens[picks].sum(1)
    low, high = _interval(nats)
    if asking is None:
        return Gain(float(saved.sum() / tokens.sum()), low, high)
    won = asking.exact[ours] - asking.exact[reference]
    return Gain(
        float(saved.sum() / tokens.sum()), low, high, float(won.mean()), *_interval(won[picks].mean(1))
    )


def _interval(values: torch.Tensor) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
