"""Initialisations other than peft's default: PiSSA, OLoRA and LoftQ, and their conversion to plain LoRA.

*PiSSA and OLoRA* start from a part of the base's own weight, W ~ s B0 A0, and train it in place of that part:

```
y = (W - s B0 A0) x + s B A x   =   W x + s B A x - s B0 A0 x
```

peft writes the difference W - s B0 A0 into the base. Here one base serves every answer and every adapter, so
it stays unchanged. Instead the start is subtracted by a second, frozen adapter with the negative scaling: the
*offset*. It is active in training and in mixes. When training ends, both become one plain LoRA adapter of
twice the rank, exactly:

```
s B A - s B0 A0  =  s [ B  -B0 ] · [ A  ]
                                   [ A0 ]
```

So both work on a 4-bit base as well, but without the gain that the papers report there, which comes from
quantizing the remainder.

*LoftQ* starts from the rounding error of the 4-bit weights, so it needs an nf4 base and the original weight
files.

Sources: PiSSA, Meng et al. 2024, arXiv 2404.02948; OLoRA, Büyükakyüz 2024, arXiv 2406.01775; LoftQ, Li et al.
2023, arXiv 2310.08659.

Letters: O outputs, I inputs, R rank, s scaling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open

from core.errors import SpecError
from core.model.low_rank import Factors
from core.model.nf4_cpu import unpack_for_backward

OFFSET_INITIALISATIONS = ("pissa", "olora")
# The smaller side of a weight up to which a full SVD is computed; above it, a randomised one.
FULL_SVD_SIZE = 1024


def pissa_factors(weight: torch.Tensor, rank: int, scaling: float) -> Factors:
    """Returns factors whose product s B A is the best approximation of a weight at this rank (PiSSA).

    Args:
        weight: (O, I).

    Returns:
        A (R, I) and B (O, R); R is smaller than `rank` where the weight has fewer singular values.
    """
    if min(weight.shape) <= FULL_SVD_SIZE:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    else:
        with torch.random.fork_rng():  # the run's own random numbers stay as they are
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(weight, rank, niter=16)
        vh = v.t()
    root = (s / scaling).sqrt()
    return Factors(root[:, None] * vh, u * root)


def olora_factors(weight: torch.Tensor, rank: int, scaling: float) -> Factors:
    """Returns the first columns of Q and the first rows of R from the QR decomposition of a weight (OLoRA).

    Args, Returns: as `pissa_factors`.
    """
    q, r = torch.linalg.qr(weight)
    return Factors(r[:rank], q[:, :rank])


START_FACTORS: dict[str, Callable[[torch.Tensor, int, float], Factors]] = {
    "pissa": pissa_factors,
    "olora": olora_factors,
}


def offset_init(model: Any, trainee: str, offset: str, initialisation: str) -> None:
    """Fills the adapter in training with its start, and the offset with the same factors and -scaling.

    Both adapters exist on the same layers already. A layer narrower than the rank gets as many directions as
    it has.

    Args:
        trainee, offset: peft's names of the two adapters.
        initialisation: one of `OFFSET_INITIALISATIONS`.

    Raises:
        SpecError: the adapter is on experts.
    """
    with _read_layers(model, trainee) as layers:
        for layer in layers:
            scaling = float(layer.scaling[trainee])
            start = START_FACTORS[initialisation](_weight(layer), layer.r[trainee], scaling)
            for name in (trainee, offset):
                _write_factors(layer, name, start)
            layer.scaling[offset] = -layer.scaling[trainee]
            # Where the layer is narrower than the rank, the trainee keeps its random rows of A; the offset
            # has none.
            layer.lora_A[offset].weight[start.rank :] = 0.0


def loftq_init(model: Any, trainee: str, folder: Path, is_transposed: bool) -> None:
    """Fills the adapter in training with the best approximation of each weight's 4-bit error (LoftQ).

    Args:
        trainee: peft's name of the adapter.
        folder: the base's folder, with its original safetensors files.
        is_transposed: whether the files hold weights as (I, O), for Conv1D layers.

    Raises:
        SpecError: a weight is missing in the files, or has another shape there.
    """
    paths = {id(m): name for name, m in model.named_modules()}
    files = _index_files(folder)
    with _read_layers(model, trainee) as layers:
        for layer in layers:
            path = paths[id(layer)].removeprefix("base_model.model.")
            original = _load_original(files, path)
            original = original.t() if is_transposed else original
            weight = _weight(layer)
            if original.shape != weight.shape:
                raise SpecError(
                    f"The shape of {path!r} must be {tuple(weight.shape)} as in the loaded base, "
                    f"got {tuple(original.shape)} in the base's files.",
                    "Choose another initialisation.",
                )
            error = original.to(weight) - weight
            _write_factors(
                layer, trainee, pissa_factors(error, layer.r[trainee], float(layer.scaling[trainee]))
            )


def to_plain_lora(
    tensors: Mapping[str, torch.Tensor], offset: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Joins trained factors and their offset into one plain LoRA adapter of twice the rank.

    Args:
        tensors, offset: the state dicts of the two adapters, with the same keys.

    Returns:
        key -> [A; A0] (2R, I) or [B, -B0] (O, 2R).
    """
    joint = {}
    for key, tensor in tensors.items():
        if ".lora_A." in f"{key}.":
            joint[key] = torch.cat([tensor, offset[key]], dim=0).contiguous()
        else:
            joint[key] = torch.cat([tensor, -offset[key]], dim=1).contiguous()
    return joint


def to_plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the adapter config for `to_plain_lora`: twice the rank with the same scaling."""
    alpha_factor = math.sqrt(2) if config.get("use_rslora") else 2
    return {**config, "r": 2 * config["r"], "lora_alpha": config["lora_alpha"] * alpha_factor}


@contextmanager
def _read_layers(model: Any, trainee: str) -> Iterator[list[Any]]:
    """The LoRA layers of the adapter in training; 4-bit base layers are unpacked while open."""
    layers = [m for m in model.modules() if isinstance(m, LoraLayer) and trainee in m.r]
    if any(isinstance(m, ParamWrapper) for m in layers):
        raise SpecError(
            "An adapter on the experts cannot start from the base's weights.",
            "Choose the default initialisation, or leave the experts out.",
        )
    with torch.no_grad(), unpack_for_backward(model):
        yield layers


def _weight(layer: Any) -> torch.Tensor:
    """(O, I) weight of the base layer under a LoRA layer, in fp32."""
    module = layer.get_base_layer()
    weight = dequantize_module_weight(module) if hasattr(module.weight, "quant_state") else module.weight
    return (weight.t() if getattr(layer, "fan_in_fan_out", False) else weight).detach().float()


def _write_factors(layer: Any, name: str, factors: Factors) -> None:
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    a[: factors.rank] = factors.a.to(a)
    b.zero_()
    b[:, : factors.rank] = factors.b.to(b)


def _index_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file of a model folder that holds it."""
    index = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as f:
            index.update(dict.fromkeys(f.keys(), file))
    return index


def _load_original(files: Mapping[str, Path], path: str) -> torch.Tensor:
    """Loads a module's weight as it was before quantization; some files omit the first part of the path."""
    key = next((k for k in (f"{path}.weight", f"{path}.weight".partition(".")[2]) if k in files), None)
    if key is None:
        raise SpecError(
            f"The base's files have no weight for {path!r}.",
            "LoftQ reads the base's own safetensors files; choose another initialisation.",
        )
    with safe_open(str(files[key]), framework="pt") as f:
        tensor: torch.Tensor = f.get_tensor(key)
    return tensor
