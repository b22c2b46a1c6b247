"""LoRA adapters of llama.cpp as GGUF: names and rows of llama.cpp, one alpha for all layers.

    blk.3.attn_q.weight.lora_a  (r, I)      blk.3.attn_q.weight.lora_b  (O, r)

The scaling is alpha / r, and 1 where the file states an alpha of 0. Source: `llama-adapter.cpp`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.errors import AdapterError, BaseModelError
from core.gguf.architectures import ARCHITECTURES
from core.gguf.header import TensorInfo, read_header
from core.importing.peft_form import Extra
from core.importing.tensors import COPY_AGAIN, StoredTensor

NAME = re.compile(r"(blk\.(\d+)\.[\w.]+|[\w.]+)\.weight\.(lora_a|lora_b)")
QUERY, KEY = (
    "." + ARCHITECTURES["llama"].linear[f"blk.{{n}}.attn_{part}"].rsplit(".", 1)[-1] for part in ("q", "k")
)
OTHER_LAYERS = {"output": "lm_head", "token_embd": "model.embed_tokens"}


@dataclass(frozen=True)
class GgufTensors:
    """The tensors of an adapter as GGUF.

    Attributes:
        factors: layer, under its name in transformers -> (A (r, I), B (O, r), alpha). Rows of q and k are
            still in the order of llama.cpp.
        architecture: as llama.cpp names it.
        base: the name of the base that the file states, or "".
        problem: as `ForeignAdapter.problem`.
    """

    factors: dict[str, tuple[StoredTensor, StoredTensor, float | None]]
    incomplete: tuple[str, ...]
    extras: tuple[Extra, ...]
    architecture: str
    base: str
    problem: tuple[str, str] | None


def read(path: Path) -> GgufTensors:
    """Reads the header of an adapter as GGUF.

    Raises:
        AdapterError: it is damaged, or not an adapter.
    """
    try:
        with open(path, "rb") as file:
            header = read_header(file, path.name)
    except BaseModelError as e:
        raise AdapterError(e.what, e.fix) from e
    except OSError as e:
        raise AdapterError(f"{path.name!r} cannot be read: {e.strerror or e}.", COPY_AGAIN) from e
    metadata = header.metadata
    if metadata.get("general.type") != "adapter":
        raise AdapterError(
            f"{path.name!r} is a model, not an adapter.", "Load it as a base, and import an adapter for it."
        )
    problem = None
    if metadata.get("adapter.type") != "lora" or "adapter.alora.invocation_tokens" in metadata:
        problem = (
            "It is an activated LoRA or another kind of adapter: it applies to a part of the tokens only.",
            "Only plain LoRA can be mixed: use it in llama.cpp.",
        )
    layers: dict[str, dict[str, StoredTensor]] = {}
    extras: list[Extra] = []
    for name, info in header.tensors.items():
        match = NAME.fullmatch(name)
        layer = _name_layer(header.architecture, match[1], match[2]) if match else name
        stored = StoredTensor(name, info.shape, _make_reader(path, info))
        if match and layer and len(info.shape) == 2:
            layers.setdefault(layer, {})["A" if match[3] == "lora_a" else "B"] = stored
        else:
            extras.append(Extra(layer or name, "unknown", stored))
    alpha = metadata.get("adapter.lora.alpha", 0.0)
    is_number = isinstance(alpha, (int, float)) and not isinstance(alpha, bool) and math.isfinite(alpha)
    factors = {}
    for layer, parts in layers.items():
        if len(parts) == 2:
            rank = parts["A"].shape[0]
            factors[layer] = parts["A"], parts["B"], float(alpha or rank) if is_number else None
    incomplete = tuple(layer for layer in layers if layer not in factors)
    return GgufTensors(factors, incomplete, tuple(extras), header.architecture, _find_base(metadata), problem)


def _name_layer(architecture: str, name: str, number: str | None) -> str:
    """The name of a layer in transformers, or ""."""
    if number is None:
        return OTHER_LAYERS.get(name, "")
    known = ARCHITECTURES.get(architecture)
    linear = known.linear if known else ARCHITECTURES["llama"].linear
    return linear.get(name.replace(f"blk.{number}.", "blk.{n}.", 1), "").replace("{n}", number)


def _find_base(metadata: dict[str, Any]) -> str:
    for key in ("general.base_model.0.repo_url", "general.base_model.0.name"):
        value = metadata.get(key)
        if isinstance(value, str) and value:
            return value.removeprefix("https://huggingface.co/")[:200]
    return ""


def _make_reader(path: Path, info: TensorInfo) -> Callable[[], torch.Tensor]:
    def read_values() -> torch.Tensor:
        import gguf
        import numpy as np

        with open(path, "rb") as file:
            file.seek(info.start)
            block = np.frombuffer(file.read(info.bytes), dtype=np.uint8)
        if block.size != info.bytes:
            raise AdapterError(f"{path.name!r} became shorter while it was read.", COPY_AGAIN)
        with np.errstate(all="ignore"):  # values that are not finite are refused later
            kind = gguf.GGMLQuantizationType[info.type.name]
            values = gguf.dequantize(block.reshape(-1, info.row_bytes), kind)
        return torch.from_numpy(np.array(values, dtype=np.float32)).reshape(info.shape)

    return read_values


def list_model_types(architecture: str) -> tuple[str, ...]:
    """The model types of transformers that an architecture of llama.cpp stands for; () for an unknown one."""
    known = ARCHITECTURES.get(architecture)
    if known is None:
        return ()
    return ("llama", "mistral") if known.permutes else (known.model_type,)


def permutes_rows(architecture: str) -> bool:
    """Whether the rows of q and k are in an order of their own."""
    known = ARCHITECTURES.get(architecture)
    return bool(known and known.permutes)


def restore_rows(b: torch.Tensor, heads: int) -> torch.Tensor:
    """Puts the rows of B of q or k into the order of transformers.

    llama.cpp rotates neighbouring values of a head, transformers the two halves of a head.

    Args:
        b: (O, r). heads: of q or k.
    """
    pairs = b.reshape(heads, b.shape[0] // heads // 2, 2, b.shape[1])
    return pairs.transpose(1, 2).reshape(b.shape).contiguous()
