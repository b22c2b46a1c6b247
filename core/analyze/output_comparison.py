"""Compares a mix with the base and with each of its adapters alone, by what they predict on prompts.

Reports KL divergences between the predictions, and how much each adapter adds to the output of every layer.
The weights are compared in `core.analyze.interference`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from core.analyze.interference import COSINE_MIN, adapter_names, describe_layers, require_two
from core.errors import SpecError
from core.model.decoding import all_logits
from core.model.deltas import count_layers, layer_index, lora_layers, short_name, weight_at
from core.model.generate import inference_mode_for
from core.model.low_rank import ratio
from core.model.resident import Resident
from core.model.scoring import kl_divergence
from core.progress import Progress
from core.spec.mix import Mix

NEAR_FACTOR = 0.25  # a mix is close to an adapter when its divergence is at most this share of the next one's
NO_EFFECT_NATS = 0.001  # nats per token below which a mix hardly changes the base


@dataclass(frozen=True)
class Contribution:
    """What each adapter adds to the output of a module, or of a whole layer (`module` is ""), on the prompts.

    Attributes:
        shares: norm of each adapter's contribution divided by the norm of the output.
        cosines: between the contributions of two adapters, one per pair in `OutputComparison.pairs`.
    """

    layer: int
    module: str
    shares: tuple[float, ...]
    cosines: tuple[float, ...]


@dataclass(frozen=True)
class OutputComparison:
    """Predictions of a mix, of its adapters alone and of the base, compared on prompts.

    Divergences are in nats per token: one sum over all positions, divided once.

    Attributes:
        ids, names: the adapters, in the mix's order. pairs: of ids, in the order of `Contribution.cosines`.
        prompts, tokens: how many were read.
        divergence_from_base: KL(mix || base).
        divergence_from_parts: KL(mix || adapter alone), one per adapter.
        part_divergences_from_base: KL(adapter alone || base), one per adapter.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    prompts: int
    tokens: int
    divergence_from_base: float
    divergence_from_parts: tuple[float, ...]
    part_divergences_from_base: tuple[float, ...]
    modules: tuple[Contribution, ...]
    layers: tuple[Contribution, ...]
    overall: Contribution

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the summary."""
        return {**asdict(self), "summary": self.summary()}

    def summary(self) -> str:
        """One to three sentences, and up to two more per pair of adapters."""
        moved = f"{self.divergence_from_base:.2g} nats per token"
        if self.divergence_from_base < NO_EFFECT_NATS:
            return (
                f"On these {self.tokens} tokens the mix hardly changes the predictions of the base ({moved})."
            )
        nearest = min(range(len(self.ids)), key=lambda i: self.divergence_from_parts[i])
        next_best = min(d for i, d in enumerate(self.divergence_from_parts) if i != nearest)
        if self.divergence_from_parts[nearest] <= NEAR_FACTOR * next_best:
            likeness = f"is closest to {self.names[nearest]}"
        else:
            likeness = "is close to none of its adapters alone"
        named = zip(self.names, self.divergence_from_parts, strict=True)
        distances = ", ".join(f"{name} {d:.2g}" for name, d in named)
        shares = ", ".join(f"{n} {s:.0%}" for n, s in zip(self.names, self.overall.shares, strict=True))
        sentences = [
            f"On these {self.tokens} tokens the mix diverges from the base by {moved} and {likeness} "
            f"(divergence: {distances}).",
            f"Size of each contribution relative to the layer outputs: {shares}.",
        ]
        name_of = dict(zip(self.ids, self.names, strict=True))
        for i, (a, b) in enumerate(self.pairs):
            opposed = [c.layer for c in self.layers if c.cosines[i] <= -COSINE_MIN]
            aligned = [c.layer for c in self.layers if c.cosines[i] >= COSINE_MIN]
            subject = f"The contributions of {name_of[a]} and {name_of[b]}"
            if opposed:
                sentences.append(f"{subject} oppose each other in {describe_layers(opposed)}.")
            if aligned:
                sentences.append(f"{subject} point the same way in {describe_layers(aligned)}.")
        return " ".join(sentences)


def compare_outputs(
    resident: Resident, mix: Mix, prompts: Sequence[Sequence[int]]
) -> Iterator[Progress | OutputComparison]:
    """Runs each prompt through the base, each adapter alone and the mix, as rows of one batch.

        rows   base | adapter 1 | ... | adapter n | mix

    KL divergences are taken at every position; contributions come from the last row.

    Args:
        prompts: token ids, one list per prompt.

    Yields:
        Progress after every prompt; last, one OutputComparison.

    Raises:
        SpecError: the mix has fewer than two adapters, or the prompts are missing or longer than the context.
        NotFound, AdapterError: an adapter cannot be loaded.
    """
    ids = require_two(mix)
    _check_prompts(prompts, resident.base.context)
    mixes = [Mix(), *(_isolate(mix, a) for a in ids), mix]
    mix_nats, tokens = 0.0, 0
    mix_to_part_nats, part_nats = [0.0] * len(ids), [0.0] * len(ids)
    products: dict[str, torch.Tensor] = {}
    for done, prompt in enumerate(prompts, 1):
        resident.load_adapters([mix])
        batch = torch.tensor([list(prompt)] * len(mixes), device=resident.base.device)
        with (
            inference_mode_for(resident, resident.rows(mixes)),
            _record_contributions(resident, mix, ids, products),
        ):
            logits = all_logits(resident.base.model, batch)  # (adapters + 2, T, V)
            mix_nats += kl_divergence(logits[-1], logits[0])
            for i in range(len(ids)):
                mix_to_part_nats[i] += kl_divergence(logits[-1], logits[i + 1])
                part_nats[i] += kl_divergence(logits[i + 1], logits[0])
        tokens += len(prompt)
        yield Progress(done, len(prompts), "Running the prompts")
    names = adapter_names(resident, ids)
    layers = sorted({layer_index(m) for m in products})
    yield OutputComparison(
        ids=tuple(ids),
        names=tuple(names[a] for a in ids),
        pairs=tuple(itertools.combinations(ids, 2)),
        prompts=len(prompts),
        tokens=tokens,
        divergence_from_base=mix_nats / tokens,
        divergence_from_parts=tuple(n / tokens for n in mix_to_part_nats),
        part_divergences_from_base=tuple(n / tokens for n in part_nats),
        modules=tuple(
            _sum_products(layer_index(m), short_name(m), [p], len(ids)) for m, p in products.items()
        ),
        layers=tuple(
            _sum_products(n, "", [p for m, p in products.items() if layer_index(m) == n], len(ids))
            for n in layers
        ),
        overall=_sum_products(-1, "", list(products.values()), len(ids)),
    )


def _check_prompts(prompts: Sequence[Sequence[int]], context: int) -> None:
    if not prompts:
        raise SpecError("The comparison needs at least one prompt, got none.", "Add a prompt.")
    lengths = [len(p) for p in prompts]
    if min(lengths) < 1 or max(lengths) > context:
        raise SpecError(
            f"Prompts must have 1 to {context} tokens, got {min(lengths)} to {max(lengths)}.",
            "Shorten or remove the prompts outside these limits.",
        )


def _isolate(mix: Mix, adapter_id: str) -> Mix:
    """The mix with only one of its adapters, at its weight and tilt."""
    tilt = {a: t for a, t in mix.tilt.items() if a == adapter_id}
    return dataclasses.replace(mix, weights={adapter_id: mix.weights[adapter_id]}, tilt=tilt)


@contextlib.contextmanager
def _record_contributions(
    resident: Resident, mix: Mix, ids: Sequence[str], products: dict[str, torch.Tensor]
) -> Iterator[None]:
    """Within the context, every forward adds inner products of the contributions to `products`.

    `products[module]` is the (n + 1, n + 1) matrix of inner products of the n adapters' contributions and the
    layer's output, in the last row of the batch.
    """
    layers, handles = count_layers(resident), []
    names = [resident.peft_name(a) for a in ids]
    try:
        for module, layer in lora_layers(resident).items():
            if any(name in layer.lora_A for name in names):
                weights = [weight_at(mix, a, module, layers) for a in ids]
                gains = {n: g[module] for n, g in resident.mixer.gains.items() if module in g}
                hook = _make_hook(module, names, weights, gains, products)
                handles.append(layer.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _make_hook(
    module: str,
    names: Sequence[str],
    weights: Sequence[float],
    gains: Mapping[str, torch.Tensor],
    products: dict[str, torch.Tensor],
) -> Callable[[Any, tuple[torch.Tensor, ...], torch.Tensor], None]:
    def hook(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        """inputs[0]: (B, T, I), output: (B, T, O)."""
        y = output[-1].float()
        own = _compute_product(layer, inputs[0][-1:])[0].float() if gains else y
        contributions = []
        for name, weight in zip(names, weights, strict=True):
            if name in layer.lora_A:
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
                delta = (inputs[0][-1].to(a.dtype) @ a.T @ b.T).float()
                delta = delta * layer.scaling[name]
                if name in gains:  # DoRA also rescales the product of the base (core.model.dora)
                    delta = delta + own * gains[name]
                contributions.append(delta * weight)
            else:
                contributions.append(torch.zeros_like(y))
        flat = torch.stack([*contributions, y]).flatten(1).double()
        gram = flat @ flat.T
        products[module] = products[module] + gram if module in products else gram

    return hook


def _compute_product(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """W x of the base's layer, without its bias."""
    base = layer.get_base_layer()
    y: torch.Tensor = base(x)
    return y if getattr(base, "bias", None) is None else y - base.bias


def _sum_products(layer: int, module: str, products: Sequence[torch.Tensor], count: int) -> Contribution:
    """Sums the inner products of several modules into one Contribution of `count` adapters."""
    total = torch.stack(list(products)).sum(0).cpu() if products else torch.zeros(count + 1, count + 1)
    norms = total.diagonal().clamp(min=0).sqrt().tolist()
    shares = tuple(norm / norms[-1] if norms[-1] else 0.0 for norm in norms[:-1])
    pairs = itertools.combinations(range(count), 2)
    cosines = tuple(ratio(float(total[i, j]), norms[i] * norms[j]) for i, j in pairs)
    return Contribution(layer, module, shares, cosines)
