"""What an adapter does to the base, layer by layer: its updates as pairs of factors.

Knows where factors lie, in the resident model and in a file of the library, and how strongly a mix
plays each of them. Knows nothing of what is done with them. A module is called as the base calls it
(`model.layers.3.mlp.down_proj`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file

from core.errors import AdapterError
from core.model.low_rank import Factors
from core.model.resident import OFFSET, TRAINEE, Resident
from core.spec.mix import Mix
from core.store import adapters
from core.store.workspace import Workspace, read_json

PREFIX = "base_model.model."  # of every key in peft's file format
NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
EXPERTS = "Mix it live; only adapters on linear layers can be compared and baked."
WeightFunction = Callable[[str, str], float]  # (adapter id, module) -> weight


def layer_index(module: str) -> int:
    """The layer that a module belongs to, from 0; -1 for one that stands outside the layers."""
    found = NUMBER.search(module)
    return int(found[1]) if found else -1


def short_name(module: str) -> str:
    """A module's name inside its layer: `mlp.down_proj`."""
    found = NUMBER.search(module)
    return module[found.end() :] if found else module


def count_layers(resident: Resident) -> int:
    """How many layers the base has."""
    return int(resident.base.model.config.num_hidden_layers)


def weight_at(mix: Mix, adapter_id: str, module: str, layers: int) -> float:
    """How strongly a mix plays an adapter in one module.

    A mix may tilt an adapter over the depth: in layer l of L its weight is `weight · (1 + tilt · (2t - 1))`
    with t = l / (L - 1); modules outside the layers are not tilted.
    """
    weight = mix.weights.get(adapter_id, 0.0)
    tilt = (getattr(mix, "tilt", None) or {}).get(adapter_id, 0.0)
    layer = layer_index(module)
    if not tilt or layer < 0 or layers < 2:
        return weight
    return float(weight * (1.0 + tilt * (2.0 * layer / (layers - 1) - 1.0)))


def make_weight_function(mix: Mix, layers: int) -> WeightFunction:
    """`weight_in` for one mix."""
    return lambda adapter_id, module: weight_at(mix, adapter_id, module, layers)


def lora_layers(resident: Resident) -> dict[str, Any]:
    """The base's linear modules that carry LoRA factors, by name, in the model's order."""
    return {
        name: m
        for name, m in resident.base.model.named_modules()
        if isinstance(m, LoraLayer) and not isinstance(m, ParamWrapper)
    }


def read_deltas(resident: Resident, adapter_id: str) -> dict[str, Factors]:
    """The updates of an adapter that hangs on the base, also of the one in training; scaling folded in.

    Raises:
        AdapterError: it does not hang there, or it hangs on experts.
    """
    name = resident.peft_name(adapter_id)
    if any(isinstance(m, ParamWrapper) and name in m.lora_A for m in resident.base.model.modules()):
        raise AdapterError(
            f"The adapter {adapter_id!r} is trained on experts, whose factors lie many in one.", EXPERTS
        )
    found = {}
    with torch.no_grad():
        for module, layer in lora_layers(resident).items():
            if name in layer.lora_A:
                names = [name, OFFSET] if name == TRAINEE and OFFSET in layer.lora_A else [name]
                a = torch.cat(
                    [
                        layer.lora_A[n].weight.detach().to("cpu", torch.float64) * float(layer.scaling[n])
                        for n in names
                    ]
                )
                found[module] = Factors(
                    a,
                    torch.cat(
                        [layer.lora_B[n].weight.detach().to("cpu", torch.float64) for n in names], dim=1
                    ),
                )
    if not found:
        raise AdapterError(f"The adapter {adapter_id!r} is not loaded.", "Load it before looking into it.")
    return found


@dataclass(frozen=True)
class StoredFactors:
    """An adapter as it was saved.

    Attributes:
        factors: module -> its factors, in the file's own precision, without the scaling.
        scaling: module -> what the product is multiplied by.
    """

    factors: dict[str, Factors]
    scaling: dict[str, float]

    @property
    def ranks(self) -> dict[str, int]:
        return {m: p.rank for m, p in self.factors.items()}

    def delta(self, module: str, weight: float = 1.0) -> Factors:
        """The update of one module, scaled and weighted."""
        return self.factors[module].scale(weight * self.scaling[module])


def load_factors(workspace: Workspace, adapter_id: str) -> StoredFactors:
    """Reads an adapter of the library from its files, after checking them.

    The scaling is alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), with the alpha of the first
    pattern that is the end of a module's path, and the rank that its factors have.

    Raises:
        NotFound: no such adapter. AdapterError: its files are damaged, or it is trained on experts.
    """
    adapters.verify(workspace, adapter_id)
    folder = workspace.find("adapters", adapter_id)
    config = adapters.parse_config(read_json(folder / adapters.CONFIG))
    if config.get("target_parameters"):
        raise AdapterError(
            f"The adapter {adapter_id!r} is trained on experts, whose factors lie many in one.", EXPERTS
        )
    tensors = load_file(folder / adapters.WEIGHTS)
    keys = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    factors = {
        k.removeprefix(PREFIX): Factors(tensors[f"{k}.lora_A.weight"], tensors[f"{k}.lora_B.weight"])
        for k in sorted(keys, key=lambda k: (layer_index(k), k))
    }
    alphas: dict[str, float] = config.get("alpha_pattern") or {}

    def scaling(module: str, rank: int) -> float:
        alpha = next(
            (float(a) for name, a in alphas.items() if f".{module}".endswith(f".{name}")),
            float(config["lora_alpha"]),
        )
        return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank

    return StoredFactors(factors, {m: scaling(m, p.rank) for m, p in factors.items()})
