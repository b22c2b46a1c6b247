"""Merges one layer of several adapters with peft's `add_weighted_adapter`, on a model that has no other
layers.

Works on factors on the CPU, so the resident model is not involved.

peft 0.21 does two things silently that this module avoids: the merged adapter takes the settings of the first
adapter (rsLoRA scales the result by sqrt(r), `layers_to_transform` drops the other layers), and an adapter
name that exists already keeps its old weights. Here every adapter is plain LoRA on one layer, and every model
is new.
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
    """One adapter on one layer.

    Attributes:
        factors: as trained, without `scaling`; None if the adapter does not change this layer.
    """

    factors: Factors | None
    scaling: float
    weight: float


def merge_with_peft(
    layer_adapters: Sequence[LayerAdapter], method: str, density: float, rank: int | None, seed: int
) -> Factors:
    """Merges one layer with peft's `add_weighted_adapter`.

    Args:
        method: peft's `combination_type`.
        density: share of the values that are kept.
        rank: of the result, for methods that end in `_svd`; None for the others, which keep the rank.
        seed: of the values that are dropped; the random state of the process is unchanged.

    Returns:
        fp32 factors, of at most the rank that the layer's shape allows.
    """
    names = [f"part-{i}" for i in range(len(layer_adapters))]
    model = _make_model(*next(a.factors.shape for a in layer_adapters if a.factors))
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The density .* is greater than or equal to 1")
        torch.manual_seed(seed)
        width = max(a.factors.rank for a in layer_adapters if a.factors)
        configs = [
            LoraConfig(
                r=a.factors.rank if a.factors else width,
                target_modules=["layer" if a.factors else "unused"],
                inference_mode=True,
            )
            for a in layer_adapters
        ]
        merger = LoraModel(model, configs[0], names[0])
        for name, config in zip(names[1:], configs[1:], strict=True):
            merger.peft_config[name] = config
            merger.inject_adapter(model, name)
        layer: Any = model["layer"]
        for name, a in zip(names, layer_adapters, strict=True):
            if a.factors:
                layer.lora_A[name].weight.data = a.factors.a.float()
                layer.lora_B[name].weight.data = a.factors.b.float()
                layer.scaling[name] = a.scaling
        options = (
            {"svd_rank": min(rank, layer.out_features, layer.in_features), "svd_full_matrices": False}
            if rank
            else {}
        )
        merger.add_weighted_adapter(
            names,
            [a.weight for a in layer_adapters],
            "merged",
            combination_type=method,
            density=density,
            **options,
        )
        return Factors(layer.lora_A["merged"].weight.detach(), layer.lora_B["merged"].weight.detach())


def _make_model(outputs: int, inputs: int) -> nn.ModuleDict:
    """A linear layer of zeros, and an unused one for the adapters that do not change the layer."""
    layers = {
        "layer": nn.Linear(inputs, outputs, bias=False, device="meta"),
        "unused": nn.Linear(1, 1, bias=False, device="meta"),
    }
    for layer in layers.values():
        layer.weight = nn.Parameter(
            torch.zeros(1).expand(layer.out_features, layer.in_features), requires_grad=False
        )
    return nn.ModuleDict(layers)
