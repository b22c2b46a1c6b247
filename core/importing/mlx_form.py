"""Adapters of mlx-lm: factors transposed against peft, and a scale that multiplies the product directly.

    lora_a (I, r)  lora_b (r, O)        y = W x + scale · (x lora_a) lora_b        alpha = scale · r

Source: mlx-lm 0.32, `tuner/lora.py`. Versions of early 2024 multiplied the scale by alpha / r, and wrote
"alpha" beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.importing.peft_form import Extra
from core.importing.tensors import StoredTensor, transpose

SUFFIXES = {".lora_a": "A", ".lora_b": "B", ".m": "magnitude"}
MERGE = "Fuse it into its base with mlx_lm.fuse, and use the result as a base."


@dataclass(frozen=True)
class MlxTensors:
    """The tensors of a file of mlx-lm.

    Attributes:
        factors: layer -> (A (r, I), B (O, r), alpha, magnitude of DoRA).
        problem: as `ForeignAdapter.problem`.
    """

    factors: dict[str, tuple[StoredTensor, StoredTensor, float | None, StoredTensor | None]]
    incomplete: tuple[str, ...]
    extras: tuple[Extra, ...]
    is_dora: bool
    problem: tuple[str, str] | None


def is_mlx(config: dict[str, Any], tensors: dict[str, StoredTensor]) -> bool:
    """Whether an adapter was made by mlx-lm."""
    return "fine_tune_type" in config or (
        "peft_type" not in config and any(name.endswith(".lora_a") for name in tensors)
    )


def read(config: dict[str, Any], tensors: dict[str, StoredTensor]) -> MlxTensors:
    """Sorts the tensors of a file by layer, in the shapes of peft."""
    kind = str(config.get("fine_tune_type", "lora"))
    problem = None
    if kind not in ("lora", "dora"):
        problem = (f'Its fine_tune_type is "{kind}": it holds whole weights, not low-rank factors.', MERGE)
    layers: dict[str, dict[str, StoredTensor]] = {}
    extras: list[Extra] = []
    for name, tensor in tensors.items():
        suffix = next((s for s in SUFFIXES if name.endswith(s)), "")
        part = SUFFIXES.get(suffix, "")
        layer = name.removesuffix(suffix)
        if part and len(tensor.shape) == (1 if part == "magnitude" else 2):
            layers.setdefault(layer, {})[part] = tensor
        else:
            extras.append(Extra(layer, "unknown" if part else "copy", tensor))
    factors = {}
    for layer, parts in layers.items():
        if "A" in parts and "B" in parts:
            a, b = transpose(parts["A"]), transpose(parts["B"])
            factors[layer] = (a, b, _alpha_of(config, a.shape[0]), parts.get("magnitude"))
    incomplete = tuple(layer for layer in layers if layer not in factors)
    return MlxTensors(factors, incomplete, tuple(extras), kind == "dora", problem)


def _alpha_of(config: dict[str, Any], rank: int) -> float | None:
    settings = config.get("lora_parameters")
    scale = settings.get("scale") if isinstance(settings, dict) else None
    if not isinstance(scale, (int, float)) or isinstance(scale, bool):
        return None
    return float(scale) * rank


def read_early_alpha(config: dict[str, Any]) -> float | None:
    """The alpha that versions of early 2024 wrote, and divided by the rank; None for other versions."""
    settings = config.get("lora_parameters")
    alpha = settings.get("alpha") if isinstance(settings, dict) else None
    return float(alpha) if isinstance(alpha, (int, float)) and not isinstance(alpha, bool) else None
