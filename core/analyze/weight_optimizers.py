"""Three searches for the weights of a mix: BFGS, a grid, and LoraHub's gradient-free search.

Each is a generator that yields after every forward, so that training and chatting are interleaved with it,
and writes its result into a `SearchState`. `core.analyze.weight_search` compares the three on test rows.

Letters: A adapters whose weights are searched, B rows of a batch, P points of the depth interpolation.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from core.analyze.timing import StepTimer
from core.data.tokens.collation import collate
from core.errors import SpecError
from core.evaluate.sample import EncodedSample, RowLosses
from core.model.decoding import shift_logits
from core.model.nf4_cpu import unpack_for_backward
from core.model.resident import Resident
from core.model.scoring import sum_row_nats
from core.spec.mix import WEIGHT_LIMIT, Mix
from core.spec.settings import SEED
from core.store.weight_maps import WeightMap

ADAPTER_LIMIT = 6
GRADIENT_ROWS = 8  # sequences per forward and backward
STEP_MIN = 2e-3  # the descent ends when no weight would change by this much
GRID_AXES = {  # number of adapters -> the weights on each axis: at most 81 points, all with 0 and 1
    1: tuple(-2 + 0.25 * i for i in range(17)),
    2: tuple(-0.5 + 0.25 * i for i in range(9)),
    3: (0.0, 0.5, 1.0, 1.5),
    4: (0.0, 0.5, 1.0),
    5: (0.0, 1.0),
    6: (0.0, 1.0),
}
# LoraHub's own settings: bound of a weight, factor of the mean |w| in the objective, evaluations
HUB_LIMIT = 1.5
HUB_PENALTY = 0.05
HUB_BUDGET = 40


@dataclass(frozen=True)
class WeightSearchSpec:
    """What a weight search varies, and its limits.

    Attributes:
        adapters: ids of the adapters whose weights are searched.
        fixed: weights of the mix's other adapters. tilt: tilts of the mix's adapters, the same for all
            weights.
        steps: at most this many evaluations of loss and gradient. stride: length of the first step, in
            weight.
        exact: also compare exact match, where the sample has questions.
        max_length: longest sequence, in tokens. max_new_tokens: longest generated answer, in tokens; 0 takes
            the longest reference answer.
        seed: of the gradient-free search and of the bootstrap.

    Raises:
        SpecError: the adapters, the steps or the stride are not allowed.
    """

    adapters: tuple[str, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)
    steps: int = 40
    stride: float = 0.25
    exact: bool = False
    max_length: int = 512
    max_new_tokens: int = 0
    seed: int = SEED
    tilt: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = set(self.adapters)
        unique = len(ids) == len(self.adapters) and not ids & set(self.fixed)
        if not unique or not 1 <= len(ids) <= ADAPTER_LIMIT:
            raise SpecError(
                f"The weight search takes 1 to {ADAPTER_LIMIT} different adapters without a fixed weight, "
                f"got {list(self.adapters)}.",
                "Choose other adapters.",
            )
        if not 1 <= self.steps <= 1000:
            raise SpecError(
                f"The number of steps must be between 1 and 1000, got {self.steps}.", "Change it."
            )
        if not 0 < self.stride <= 1:
            raise SpecError(f"The stride must be above 0 and at most 1, got {self.stride:g}.", "Change it.")

    def mix(self, weights: Sequence[float], name: str = "") -> Mix:
        """The mix with these weights for `adapters`."""
        searched = {a: round(w, 4) for a, w in zip(self.adapters, weights, strict=True)}
        return Mix(name=name, weights={**self.fixed, **searched}, tilt=dict(self.tilt))


@dataclass
class SearchState:
    """A search in progress.

    Attributes:
        weights: of the spec's adapters; () until the search ends.
        note: the cost or source of the result, in a few words. share: progress, 0 to 1.
    """

    name: str
    timer: StepTimer = field(default_factory=StepTimer)
    weights: tuple[float, ...] = ()
    note: str = ""
    share: float = 0.0


@contextlib.contextmanager
def activate_differentiable(resident: Resident, rows: torch.Tensor) -> Iterator[None]:
    """Activates weights that require a gradient, in eval mode; restores training mode on exit.

    Args:
        rows: (B, adapters on the base), columns in the order of the mixer's names; or (P, B, adapters) over
            the depth of the model.
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
    resident: Resident, spec: WeightSearchSpec, batch: dict[str, torch.Tensor], values: torch.Tensor
) -> tuple[float, torch.Tensor]:
    """The loss of a batch and its gradient with respect to the weights; parameter gradients stay untouched.

    Args:
        batch: from `collate`, B rows. values: (A,) weights of the spec's adapters.

    Returns:
        (nats of the batch, (A,) nats per unit of weight)
    """
    mixer, mix = resident.mixer, spec.mix([1.0] * len(spec.adapters))
    resident.load_adapters([mix])
    with torch.inference_mode(False), torch.enable_grad():
        weights = values.detach().clone().requires_grad_(True)  # the only leaf
        columns = torch.tensor(
            [mixer.names.index(resident.peft_name(a)) for a in spec.adapters], device=weights.device
        )
        fixed = mixer.to_tensor(resident.rows([Mix(weights=dict(spec.fixed))]))[0].to(weights.device)
        row = fixed.index_put((columns,), weights)
        if mix.tilt:
            tilt = mixer.to_tensor([{resident.peft_name(a): t for a, t in mix.tilt.items()}])[0].to(
                weights.device
            )
            # (2, 1, adapters): the first and the last layer
            row = torch.stack([row * (1 - tilt), row * (1 + tilt)]).unsqueeze(1)
        rows = row.expand(*row.shape[:-2], len(batch["input_ids"]), -1)
        with activate_differentiable(resident, rows):
            nats = sum_row_nats(*shift_logits(resident.base.model, batch)).sum()
            (gradient,) = torch.autograd.grad(nats, weights)
    return float(nats.detach()), gradient


def run_bfgs(
    resident: Resident, spec: WeightSearchSpec, encoded: EncodedSample, state: SearchState
) -> Generator[None, None, None]:
    """Minimises the loss of the whole sample by quasi-Newton descent (BFGS); no step increases it.

    Starts from the best of the base, the single adapters and the plain sum, so the result is never worse than
    these on the sample. The loss is not convex in the weights: the result is a local optimum.

    Source: weights of frozen adapters fitted by gradient as in LoRA Soups, Prabhakar et al. 2024, arXiv
    2410.13025; BFGS as in Nocedal and Wright 2006, chapter 6.
    """
    starts = list_references(len(spec.adapters))
    start_losses = RowLosses(resident, encoded, [spec.mix(start) for start in starts])
    for _ in start_losses.compute():
        yield
    best = min(range(len(starts)), key=start_losses.losses.__getitem__)
    weights = torch.tensor(starts[best], dtype=torch.float64)
    batches, tokens = _make_batches(resident, encoded), float(encoded.tokens.sum())

    def evaluate(at: torch.Tensor) -> Generator[None, None, tuple[float, torch.Tensor]]:
        nats, gradient = 0.0, torch.zeros_like(at)
        for batch in batches:
            batch_nats, slope = compute_gradient(resident, spec, batch, at.float().to(resident.base.device))
            nats, gradient = nats + batch_nats, gradient + slope.to(gradient)
            yield
        return nats / tokens, gradient / tokens

    loss, gradient = yield from evaluate(weights)
    inverse_hessian: torch.Tensor | None = None  # (A, A)
    scale, steps = 1.0, 1
    while steps < spec.steps:
        if inverse_hessian is None:
            direction = -gradient / gradient.norm().clamp(min=1e-12) * spec.stride
        else:
            direction = -(inverse_hessian @ gradient)
        candidate = (weights + scale * direction.clamp(-1, 1)).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)
        step = candidate - weights
        if float(step.abs().max()) < STEP_MIN:
            break
        steps, state.share = steps + 1, steps / spec.steps
        new_loss, new_gradient = yield from evaluate(candidate)
        if new_loss >= loss:
            scale /= 2
            continue
        change = new_gradient - gradient
        if float(step @ change) > 1e-12:
            inverse_hessian = _update_inverse_hessian(inverse_hessian, step, change)
        weights, loss, gradient, scale = candidate, new_loss, new_gradient, 1.0
    state.weights, state.note = tuple(weights.tolist()), f"{steps} evaluations of loss and gradient"


def list_references(count: int) -> list[tuple[float, ...]]:
    """Weights of the plain sum, of each single adapter, and of the base."""
    singles = [tuple(float(i == j) for j in range(count)) for i in range(count)]
    return [(1.0,) * count, *singles, (0.0,) * count]


def _update_inverse_hessian(
    inverse: torch.Tensor | None, step: torch.Tensor, change: torch.Tensor
) -> torch.Tensor:
    """The BFGS update (A, A) after a step (A,) that changed the gradient by `change` (A,)."""
    curvature = step @ change
    identity = torch.eye(len(step), dtype=step.dtype)
    before = identity * curvature / (change @ change) if inverse is None else inverse
    left = identity - torch.outer(step, change) / curvature
    return left @ before @ left.T + torch.outer(step, step) / curvature


def _make_batches(resident: Resident, encoded: EncodedSample) -> list[dict[str, torch.Tensor]]:
    ordered = sorted(encoded.sequences, key=lambda s: s.length)
    groups = [ordered[i : i + GRADIENT_ROWS] for i in range(0, len(ordered), GRADIENT_ROWS)]
    batches = [collate([s.row for s in group], resident.base.tokenizer.pad_token_id) for group in groups]
    return [{k: v.to(resident.base.device) for k, v in batch.items()} for batch in batches]


def run_grid_search(
    resident: Resident,
    spec: WeightSearchSpec,
    encoded: EncodedSample,
    state: SearchState,
    weight_map: WeightMap | None,
) -> Generator[None, None, None]:
    """Takes the best point of a grid, or of `weight_map` where one is given.

    Args:
        weight_map: a complete map of the same adapters on the same rows.
    """
    if weight_map is not None and weight_map.best is not None:
        best = dict(zip(weight_map.adapters, (weight_map.best.x, weight_map.best.y), strict=True))
        state.weights = tuple(best[a] for a in spec.adapters)
        state.timer.seconds, state.timer.forwards = weight_map.seconds, weight_map.forwards
        state.note = f"read from a map of {len(weight_map.points)} points"
        return
    points = list(itertools.product(GRID_AXES[len(spec.adapters)], repeat=len(spec.adapters)))
    measurement = RowLosses(resident, encoded, [spec.mix(p) for p in points])
    for state.share in measurement.compute():
        yield
    state.weights = points[min(range(len(points)), key=measurement.losses.__getitem__)]
    state.note = f"{len(points)} points"


def run_evolution(
    resident: Resident, spec: WeightSearchSpec, encoded: EncodedSample, state: SearchState
) -> Generator[None, None, None]:
    """Minimises LoraHub's objective within LoraHub's budget.

    The objective is loss + 0.05 mean |w| with |w| <= 1.5; the search starts at zero and has 40 evaluations.

    LoraHub uses an optimizer of nevergrad, which we do not depend on; a (1+1) evolution strategy with the
    one-fifth success rule replaces it. Our weights scale B A x, while LoraHub's code scales A and B each, so
    that its weights act squared.

    Source: LoraHub, Huang et al. 2023, arXiv 2307.13269; the rule: Kern et al. 2004, Natural Computing 3.
    """
    rng = random.Random(spec.seed)
    weights, sigma, best = [0.0] * len(spec.adapters), 0.5, math.inf
    for evaluation in range(HUB_BUDGET):
        candidate = weights
        if evaluation:
            candidate = [max(-HUB_LIMIT, min(HUB_LIMIT, w + sigma * rng.gauss(0, 1))) for w in weights]
        measurement = RowLosses(resident, encoded, [spec.mix(candidate)])
        for share in measurement.compute():
            state.share = (evaluation + share) / HUB_BUDGET
            yield
        value = measurement.losses[0] + HUB_PENALTY * sum(map(abs, candidate)) / len(candidate)
        if value <= best:
            weights, best = candidate, value
            sigma *= 1.5 if evaluation else 1.0
        else:
            sigma *= 1.5**-0.25
    state.weights = tuple(weights)
    state.note = f"{HUB_BUDGET} evaluations of a (1+1) evolution strategy"
