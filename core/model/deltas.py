"""The deltas of an adapter, module by module: what it adds to each weight of the base, as low-rank factors.

Factors are read from the resident model or from an adapter's files, and weighted as a mix weights them. The
algebra on them is `core.model.low_rank`; comparing and baking belong to `core.analyze` and `core.merge`. A
module is named by its path in the base, such as `model.layers.3.mlp.down_proj`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
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
from core.store.adapter_config import parse_config
from core.store.adapters import Adapter
from core.store.files import read_json
from core.store.workspace import Workspace

PREFIX = "base_model.model."  # of every key in peft's file format
NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")
EXPERTS_FIX = "Mix it live; only adapters on linear layers can be compared and baked."
WeightFunction = Callable[[str, str], float]  # (adapter id, module) -> weight


def layer_index(module: str) -> int:
    """Returns the index of the layer that a module belongs to, from 0; -1 for a module outside the layers."""
    match = NUMBER.search(module)
    return int(match[1]) if match else -1


def short_name(module: str) -> str:
    """Returns a module's name inside its layer, such as `mlp.down_proj`."""
    match = NUMBER.search(module)
    return module[match.end() :] if match else module


def count_layers(resident: Resident) -> int:
    """Returns the number of layers of the base."""
    return int(resident.base.model.config.num_hidden_layers)


def weight_at(mix: Mix, adapter_id: str, module: str, layers: int) -> float:
    """Returns the weight of an adapter in one module under a mix.

    A mix may tilt an adapter's weight over the depth. In layer l of L the weight is
    `weight · (1 + tilt · (2t - 1))` with t = l / (L - 1). Modules outside the layers are not tilted.

    Args:
        layers: L, from `count_layers`.
    """
    weight = mix.weights.get(adapter_id, 0.0)
    tilt = (getattr(mix, "tilt", None) or {}).get(adapter_id, 0.0)
    layer = layer_index(module)
    if not tilt or layer < 0 or layers < 2:
        return weight
    return float(weight * (1.0 + tilt * (2.0 * layer / (layers - 1) - 1.0)))


def make_weight_function(mix: Mix, layers: int) -> WeightFunction:
    """Returns `weight_at` for one mix."""
    return lambda adapter_id, module: weight_at(mix, adapter_id, module, layers)


def lora_layers(resident: Resident) -> dict[str, Any]:
    """Returns the linear LoRA layers by module name, in the model's order; experts are left out."""
    return {
        name: m
        for name, m in resident.base.model.named_modules()
        if isinstance(m, LoraLayer) and not isinstance(m, ParamWrapper)
    }


def read_deltas(resident: Resident, adapter_id: str) -> dict[str, Factors]:
    """Reads the deltas of a loaded adapter, or of the adapter in training, from the resident model.

    The scaling is folded into A. For PiSSA and OLoRA the frozen offset is part of the delta
    (`core.model.lora_init`).

    Returns:
        module -> its factors, in fp64 on the CPU.

    Raises:
        AdapterError: the adapter is not loaded, is not plain LoRA, or is trained on experts.
    """
    name = resident.peft_name(adapter_id)
    if name in resident.mixer.gains or name in resident.mixer.own_weights:
        check_plain(adapters.load(resident.workspace, adapter_id))
    if any(isinstance(m, ParamWrapper) and name in m.lora_A for m in resident.base.model.modules()):
        raise _experts_error(adapter_id)
    deltas = {}
    with torch.no_grad():
        for module, layer in lora_layers(resident).items():
            if name in layer.lora_A:
                names = [name, OFFSET] if name == TRAINEE and OFFSET in layer.lora_A else [name]
                a = [_fp64(layer.lora_A[n].weight) * float(layer.scaling[n]) for n in names]
                b = [_fp64(layer.lora_B[n].weight) for n in names]
                deltas[module] = Factors(torch.cat(a), torch.cat(b, dim=1))
    if not deltas:
        raise AdapterError(f"The adapter {adapter_id!r} is not loaded.", "Load it before comparing it.")
    return deltas


def _fp64(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().to("cpu", torch.float64)


def _experts_error(adapter_id: str) -> AdapterError:
    return AdapterError(
        f"The adapter {adapter_id!r} is trained on experts, and their factors are stored together.",
        EXPERTS_FIX,
    )


def check_plain(adapter: Adapter) -> None:
    """Checks that an adapter's change of each layer is a product of two factors.

    Raises:
        AdapterError: it is not.
    """
    if adapter.form:
        raise AdapterError(
            f"{adapter.name!r} is {adapter.form}, and only plain LoRA is baked or compared by layers: its "
            "change is not a product of two factors.",
            "Mix it live; or import it again, and choose the repair that makes plain LoRA of it.",
        )


@dataclass(frozen=True)
class StoredFactors:
    """The factors of an adapter as its files hold them.

    Attributes:
        factors: module -> its factors, in the file's own precision, without the scaling.
        scaling: module -> the number that the product is multiplied by.
    """

    factors: dict[str, Factors]
    scaling: dict[str, float]

    @property
    def ranks(self) -> dict[str, int]:
        """module -> the width of its factors."""
        return {m: f.rank for m, f in self.factors.items()}

    def delta(self, module: str, weight: float = 1.0) -> Factors:
        """Returns the delta of one module: its factors with scaling and weight folded in."""
        return self.factors[module].scale(weight * self.scaling[module])


def load_factors(workspace: Workspace, adapter_id: str) -> StoredFactors:
    """Verifies an adapter's files and reads its factors.

    The scaling is alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732). alpha
    comes from the first entry of `alpha_pattern` that the module's path ends with, and r is the width of the
    factors.

    Raises:
        NotFound: no adapter has this id.
        AdapterError: its files are damaged, it is not plain LoRA, or it is trained on experts.
    """
    adapters.verify(workspace, adapter_id)
    check_plain(adapters.load(workspace, adapter_id))
    config, tensors = adapters.read_files(
        workspace,
        adapter_id,
        lambda folder: (
            parse_config(read_json(folder / adapters.CONFIG)),
            load_file(folder / adapters.WEIGHTS),
        ),
    )
    if config.get("target_parameters"):
        raise _experts_error(adapter_id)
    keys = [key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")]
    factors = {
        k.removeprefix(PREFIX): Factors(tensors[f"{k}.lora_A.weight"], tensors[f"{k}.lora_B.weight"])
        for k in sorted(keys, key=lambda k: (layer_index(k), k))
    }
    scale_for = make_scale_function(config)
    return StoredFactors(factors, {m: scale_for(m, f.rank) for m, f in factors.items()})


def make_scale_function(config: Mapping[str, Any]) -> Callable[[str, int], float]:
    """Returns (module, rank) -> the scaling of an adapter; see `load_factors`.

    Args:
        config: as `parse_config` returns it.
    """
    alphas: dict[str, float] = config.get("alpha_pattern") or {}

    def scale_for(module: str, rank: int) -> float:
        alpha = next(
            (float(a) for name, a in alphas.items() if f".{module}".endswith(f".{name}")),
            float(config["lora_alpha"]),
        )
        return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank

    return scale_for
