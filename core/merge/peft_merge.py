"""peft's own ways of merging adapters, for one layer, on a model that has nothing else.

Knows peft's add_weighted_adapter and what it does in silence. Knows no library and no base: factors in,
factors out, on the CPU, so whatever is resident notices nothing.

What peft 0.21 does in silence, and we keep clear of: the merged adapter takes the settings of the first one
(rsLoRA scales the result by sqrt(r), `layers_to_transform` drops the other layers), and a name that is
there already keeps its old weights. A skeleton is plain LoRA, of one layer, and always new.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import nn

from core.model.low_rank import Factors


@dataclass(frozen=True)
class LayerAdapter:
    """One adapter at one layer.

    Attributes:
        factors: as they were trained, without `scaling`; None for an adapter that leaves this layer alone.
    """

    factors: Factors | None
    scaling: float
    weight: float


def merged(
    ingredients: Sequence[LayerAdapter], method: str, density: float, rank: int | None, seed: int
) -> Factors:
    """What peft's add_weighted_adapter makes of one layer.

    Args:
        method: peft's `combination_type`.
        density: share of the numbers that are kept.
        rank: of the result, for methods that end in `_svd`; None for the others, which keep the rank.
        seed: of the numbers that are dropped; the dice of the process stay as they are.

    Returns:
        fp32 factors; at most as wide as the layer.
    """
    names = [f"part-{i}" for i in range(len(ingredients))]
    skeleton = _skeleton(*next(i.factors.shape for i in ingredients if i.factors))
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density .* is greater than or equal to 1")
        torch.manual_seed(seed)
        width = max(i.factors.rank for i in ingredients if i.factors)
        configs = [
            LoraConfig(
                r=i.factors.rank if i.factors else width,
                target_modules=["here" if i.factors else "elsewhere"],
                inference_mode=True,
            )
            for i in ingredients
        ]
        merger = LoraModel(skeleton, configs[0], names[0])
        for name, config in zip(names[1:], configs[1:], strict=True):
            merger.peft_config[name] = config
            merger.inject_adapter(skeleton, name)
        layer: Any = skeleton["here"]
        for name, i in zip(names, ingredients, strict=True):
            if i.factors:
                layer.lora_A[name].weight.data = i.factors.a.float()
                layer.lora_B[name].weight.data = i.factors.b.float()
                layer.scaling[name] = i.scaling
        options = (
            {"svd_rank": min(rank, layer.out_features, layer.in_features), "svd_full_matrices": False}
            if rank
            else {}
        )
        merger.add_weighted_adapter(
            names,
            [i.weight for i in ingredients],
            "merged",
            combination_type=method,
            density=density,
            **options,
        )
        return Factors(layer.lora_A["merged"].weight.detach(), layer.lora_B["merged"].weight.detach())


def _skeleton(outputs: int, inputs: int) -> nn.ModuleDict:
    """One layer without weights (a single zero, seen as a matrix), and a place for adapters that have no such layer."""
    layers = {
        "here": nn.Linear(inputs, outputs, bias=False, device="meta"),
        "elsewhere": nn.Linear(1, 1, bias=False, device="meta"),
    }
    for layer in layers.values():
        layer.weight = nn.Parameter(
            torch.zeros(1).expand(layer.out_features, layer.in_features), requires_grad=False
        )
    return nn.ModuleDict(layers)
