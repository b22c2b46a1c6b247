"""What an adapter starts from, other than nothing: PiSSA, OLoRA and LoftQ, and how it becomes plain LoRA.

Knows the weights of linear layers and the factors that hang on them. The base is only read. Letters:
O outputs, I inputs, R rank, s scaling.

PiSSA and OLoRA start from a part of the base's own weight, W ~ s B0 A0, and train it in place of that part:

    y = (W - s B0 A0) x + s B A x   =   W x + s B A x - s B0 A0 x

The usual way writes the difference into the base. Ours is shared with everyone who talks to it, so the
start stays beside it as a frozen adapter of the opposite sign, the *anchor*. What is kept at the end is
plain LoRA of twice the rank, with B next to -B0 and A above A0: the same numbers, nothing approximated.

Sources: PiSSA, Meng et al. 2024, arXiv 2404.02948; OLoRA, Büyükakyüz 2024, arXiv 2406.01775;
LoftQ, Li et al. 2023, arXiv 2310.08659.
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
from core.model.nf4_cpu import unpack_for_backward

OFFSET_INITIALISATIONS = ("pissa", "olora")
EXACT_SIZE = (
    1024  # up to here all singular vectors are worked out; beyond, the largest are found by iteration
)
Factors = tuple[torch.Tensor, torch.Tensor]


def pissa(weight: torch.Tensor, rank: int, scaling: float) -> Factors:
    """The strongest directions of a weight: (A (R, I), B (O, R)) with s B A its best approximation of that rank."""
    if min(weight.shape) <= EXACT_SIZE:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(weight, rank, niter=16)
        vh = v.t()
    root = (s / scaling).sqrt()
    return root[:, None] * vh, u * root


def olora(weight: torch.Tensor, rank: int, scaling: float) -> Factors:
    """The first columns of an orthogonal basis of a weight, and what it says in them."""
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]


WAYS: dict[str, Callable[[torch.Tensor, int, float], Factors]] = {"pissa": pissa, "olora": olora}


def begin(model: Any, trainee: str, anchor: str, way: str) -> None:
    """Fills the adapter in training with its start, and the anchor with the same under the opposite sign.

    Both hang on the same layers already. A layer narrower than the rank gets as many directions as it has.

    Raises:
        SpecError: the adapter hangs on layers that have no weight of their own to start from.
    """
    with _layers(model, trainee) as layers:
        for layer in layers:
            a, b = WAYS[way](_weight(layer), layer.r[trainee], float(layer.scaling[trainee]))
            for name in (trainee, anchor):
                _write(layer, name, a, b)
            layer.scaling[anchor] = -layer.scaling[trainee]
            layer.lora_A[anchor].weight[len(a) :] = (
                0.0  # where the layer is narrower, the trainee's own first weights stand there
            )


def make_up(model: Any, trainee: str, folder: Path, transposed: bool) -> None:
    """LoftQ: the adapter starts from what 4 bits lost of every weight, read from the base's own files.

    Args:
        transposed: the files hold weights as (I, O), as GPT-2's do.

    Raises:
        SpecError: a weight is not found in the files, or has another shape there.
    """
    paths = {id(m): name for name, m in model.named_modules()}
    files = _index(folder)
    with _layers(model, trainee) as layers:
        for layer in layers:
            path = paths[id(layer)].removeprefix("base_model.model.")
            true = _original(files, path)
            true = true.t() if transposed else true
            weight = _weight(layer)
            if true.shape != weight.shape:
                raise SpecError(
                    f"The base's files hold {path!r} in another shape than the loaded base.",
                    "Choose another start for the adapter.",
                )
            a, b = pissa(true.to(weight) - weight, layer.r[trainee], float(layer.scaling[trainee]))
            _write(layer, trainee, a, b)


def plain(tensors: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Trained factors and what they started from as one plain adapter of twice the rank, under the same names."""
    joined = {}
    for key, tensor in tensors.items():
        down = ".lora_A." in f"{key}."
        joined[key] = torch.cat(
            [tensor, start[key] if down else -start[key]], dim=0 if down else 1
        ).contiguous()
    return joined


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config that goes with `plain`: twice the rank, under the same scaling."""
    root = math.sqrt(2) if config.get("use_rslora") else 2
    return {**config, "r": 2 * config["r"], "lora_alpha": config["lora_alpha"] * root}


@contextmanager
def _layers(model: Any, trainee: str) -> Iterator[list[Any]]:
    """The layers of the adapter in training, ready to be read; 4-bit weights are unpacked meanwhile."""
    found = [m for m in model.modules() if isinstance(m, LoraLayer) and trainee in m.r]
    if any(isinstance(m, ParamWrapper) for m in found):
        raise SpecError(
            "An adapter on the experts cannot start from the base's weights.",
            "Choose the default initialisation, or leave the experts out.",
        )
    with torch.no_grad(), unpack_for_backward(model):
        yield found


def _weight(layer: Any) -> torch.Tensor:
    """(O, I) of the layer below an adapter, in fp32."""
    module = layer.get_base_layer()
    weight = dequantize_module_weight(module) if hasattr(module.weight, "quant_state") else module.weight
    return (weight.t() if getattr(layer, "fan_in_fan_out", False) else weight).detach().float()


def _write(layer: Any, name: str, a: torch.Tensor, b: torch.Tensor) -> None:
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    down[: len(a)] = a.to(down)
    up.zero_()
    up[:, : b.shape[1]] = b.to(up)


def _index(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file of a model folder that holds it."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as f:
            found.update(dict.fromkeys(f.keys(), file))
    return found


def _original(files: Mapping[str, Path], path: str) -> torch.Tensor:
    """A module's weight as it was before it was packed; some files leave out the name of the whole."""
    key = next((k for k in (f"{path}.weight", f"{path}.weight".partition(".")[2]) if k in files), None)
    if key is None:
        raise SpecError(
            f"The base's files do not name {path!r}.",
            "LoftQ reads the base's own safetensors files; choose another start for the adapter.",
        )
    with safe_open(str(files[key]), framework="pt") as f:
        tensor: torch.Tensor = f.get_tensor(key)
    return tensor
