"""What an adapter does to the base, layer by layer: its updates as pairs of factors.

Knows where factors lie, in the resident model and in a file of the library, and how strongly a mix
plays each of them. Knows nothing of what is done with them. A module is called as the base calls it
(`model.layers.3.mlp.down_proj`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from core import library
from core.errors import AdapterError
from core.model.factors import Pair
from core.model.resident import Resident
from core.spec import Mix
from core.workspace import Workspace, read_json

PREFIX = "base_model.model."  # of every key in peft's file format
NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
Weigh = Callable[[str, str], float]  # (adapter id, module) -> weight


def layer_of(module: str) -> int:
    """The layer that a module belongs to, from 0; -1 for one that stands outside the layers."""
    found = NUMBER.search(module)
    return int(found[1]) if found else -1


def short(module: str) -> str:
    """A module's name inside its layer: `mlp.down_proj`."""
    found = NUMBER.search(module)
    return module[found.end() :] if found else module


def depth_of(resident: Resident) -> int:
    """How many layers the base has."""
    return int(resident.base.model.config.num_hidden_layers)


def weight_in(mix: Mix, adapter_id: str, module: str, layers: int) -> float:
    """How strongly a mix plays an adapter in one module.

    A mix may tilt an adapter over the depth: in layer l of L its weight is `weight · (1 + tilt · (2t - 1))`
    with t = l / (L - 1); modules outside the layers are not tilted.
    """
    weight = mix.weights.get(adapter_id, 0.0)
    tilt = (getattr(mix, "tilt", None) or {}).get(adapter_id, 0.0)
    layer = layer_of(module)
    if not tilt or layer < 0 or layers < 2:
        return weight
    return float(weight * (1.0 + tilt * (2.0 * layer / (layers - 1) - 1.0)))


def weigher(mix: Mix, layers: int) -> Weigh:
    """`weight_in` for one mix."""
    return lambda adapter_id, module: weight_in(mix, adapter_id, module, layers)


def layers_of(resident: Resident) -> dict[str, Any]:
    """The base's modules that carry LoRA factors, by name, in the model's order."""
    return {name: m for name, m in resident.base.model.named_modules() if isinstance(m, LoraLayer)}


def resident_updates(resident: Resident, adapter_id: str) -> dict[str, Pair]:
    """The updates of an adapter that hangs on the base, also of the one in training; scaling folded in.

    Raises:
        AdapterError: it does not hang there.
    """
    name = resident.peft_name(adapter_id)
    found = {}
    with torch.no_grad():
        for module, layer in layers_of(resident).items():
            if name in layer.lora_A:
                a, b = (f[name].weight.detach().to("cpu", torch.float64) for f in (layer.lora_A, layer.lora_B))
                found[module] = Pair(a * float(layer.scaling[name]), b)
    if not found:
        raise AdapterError(f"The adapter {adapter_id!r} is not loaded.", "Load it before looking into it.")
    return found


def scaling_of(workspace: Workspace, adapter_id: str) -> float:
    """What an adapter of the library multiplies its factors' product by: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732).

    Raises:
        NotFound: no such adapter. AdapterError: its config is of a kind that we do not read.
    """
    config = library.parse_config(read_json(workspace.existing("adapters", adapter_id) / library.CONFIG))
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def stored_factors(workspace: Workspace, adapter_id: str) -> dict[str, Pair]:
    """The factors of an adapter of the library as it was saved, by module; its scaling is not folded in.

    Raises:
        NotFound: no such adapter. AdapterError: its files are damaged.
    """
    library.verify(workspace, adapter_id)
    tensors = load_file(workspace.existing("adapters", adapter_id) / library.WEIGHTS)
    modules = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    return {
        m.removeprefix(PREFIX): Pair(tensors[f"{m}.lora_A.weight"], tensors[f"{m}.lora_B.weight"])
        for m in sorted(modules, key=lambda m: (layer_of(m), m))
    }
