"""What a GGUF file becomes: the config of transformers, and where each tensor goes.

Every tensor of the model must be in the file in the shape that the config implies, and the file may have no
other ones, so that a model is either converted whole or refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.errors import BaseModelError
from core.gguf.architectures import (
    ARCHITECTURES,
    COUNTS,
    EPSILON_KEY,
    HEAD_LIMIT,
    HEAD_SIZE_KEYS,
    OTHER_MODEL,
    WIDTH_LIMIT,
    WINDOW_KEY,
    Architecture,
    TensorRule,
    explain_refusal,
    list_tensors,
    make_damage_error,
)
from core.gguf.header import GgufHeader, TensorInfo
from core.gguf.rotary import rotary_settings

# Parts of files that belong to the pictures or sounds of a model: its text part is converted alone.
OTHER_SENSES = re.compile(r"(?:v|a|mm|mmproj|vision_tower|multi_modal_projector)\.")
# Tensors that hold factors of the rotary embedding (`rotary.py`) or what follows from the config.
SETTINGS_AS_TENSORS = re.compile(
    r"rope_freqs\.weight|rope_factors_(?:long|short)\.weight|blk\.\d+\.attn_rot_embd\.weight"
)


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the model.

    Attributes:
        name: in the model.
        source: where it lies in the file.
        shape: of the tensor in the model.
        heads: its rows are put into the order of transformers, head by head; 0 leaves them as they are.
        offset: is subtracted from its values.
    """

    name: str
    source: TensorInfo
    heads: int = 0
    offset: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor in the model; rows first."""
        return self.source.shape


@dataclass(frozen=True)
class Plan:
    """What a file becomes.

    Attributes:
        config: the content of config.json, without the ids of the tokenizer.
        tensors: in the order of the model.
        notes: what is left out, a sentence each.
    """

    config: dict[str, Any]
    tensors: list[TensorPlan]
    notes: list[str]


def plan_conversion(header: GgufHeader, read_numbers: Callable[[TensorInfo], list[float]]) -> Plan:
    """Decides what a file becomes.

    Args:
        read_numbers: reads the values of a small tensor.

    Raises:
        BaseModelError: the architecture or a setting is not supported, or the file is damaged.
    """
    if error := explain_refusal(header.architecture, header.name):
        raise error
    _refuse_variants(header)
    architecture = ARCHITECTURES[header.architecture]
    config = _build_shape(header)
    config |= {"model_type": architecture.model_type, "architectures": [architecture.model_class]}
    config |= architecture.settings(header, config)
    config |= rotary_settings(header, config, read_numbers)
    window = header.get(WINDOW_KEY) if header.architecture in ("llama", "mistral") else None
    if isinstance(window, int) and 0 < window < config["max_position_embeddings"]:
        config |= {
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "sliding_window": window,
        }
    tensors = _plan_tensors(header, architecture, config)
    _check_rest(header, tensors)
    left_out = any(OTHER_SENSES.match(name) for name in header.tensors)
    notes = ["The part that reads pictures is left out."] if left_out else []
    return Plan(config, tensors, notes)


def _refuse_variants(header: GgufHeader) -> None:
    """Refuses files that are not one whole, dense language model."""
    if (parts := header.metadata.get("split.count", 1)) != 1:
        raise BaseModelError(
            f"{header.name!r} is one of {parts} parts of a model, which cannot be read one by one.",
            "Join the parts with llama.cpp's `llama-gguf-split --merge`, and choose the whole file.",
        )
    if (kind := header.metadata.get("general.type", "model")) != "model":
        raise BaseModelError(
            f"{header.name!r} is not a model but of the type {kind!r}.",
            "Choose the file of the language model; adapters can be imported under Library.",
        )
    if header.get("expert_count", 0):
        raise BaseModelError(
            f"{header.name!r} is a mixture of experts, which is not converted from GGUF.",
            "Choose a model without experts, or a folder that transformers' save_pretrained wrote.",
        )


def _build_shape(header: GgufHeader) -> dict[str, Any]:
    """The entries of the config that all architectures have."""
    heads = _read_count(header, "attention.head_count", HEAD_LIMIT)
    width = _read_count(header, "embedding_length", WIDTH_LIMIT)
    key_value_heads = _read_count(header, "attention.head_count_kv", HEAD_LIMIT, heads)
    rotary = header.get("rope.dimension_count") if header.architecture in ("llama", "mistral") else None
    default = rotary if isinstance(rotary, int) and rotary > 0 else width // heads
    head_size = _read_count(header, HEAD_SIZE_KEYS[0], HEAD_LIMIT, default)
    if _read_count(header, HEAD_SIZE_KEYS[1], HEAD_LIMIT, head_size) != head_size or head_size % 2:
        raise make_damage_error(header, "the sizes of its heads are odd or differ")
    if heads % key_value_heads:
        raise make_damage_error(header, f"{heads} heads cannot share {key_value_heads} keys and values")
    epsilon = header.get(EPSILON_KEY)
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise make_damage_error(header, "it states no epsilon of its norms")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != width:
        raise make_damage_error(header, "its embedding is missing or has another shape")
    defaults = {"attention.head_count_kv": heads}
    return {
        **{
            entry: _read_count(header, key, limit, defaults.get(key))
            for key, (entry, limit) in COUNTS.items()
        },
        "head_dim": head_size,
        "rms_norm_eps": float(f"{epsilon:.6g}"),  # stored as float32
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def _read_count(header: GgufHeader, key: str, limit: int, default: int | None = None) -> int:
    value = header.get(key, default)
    if isinstance(value, list):
        if value and all(v == value[0] for v in value):
            value = value[0]
        else:
            raise BaseModelError(
                f"The layers of {header.name!r} have different shapes ({key}), which is not supported.",
                OTHER_MODEL,
            )
    if value is None:
        raise make_damage_error(header, f"its header has no {header.architecture}.{key}")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise make_damage_error(header, f"its {key} is {value!r}")
    return value


def _plan_tensors(header: GgufHeader, architecture: Architecture, config: dict[str, Any]) -> list[TensorPlan]:
    return [
        TensorPlan(rule.name, _find_tensor(header, rule), rule.heads, rule.offset)
        for rule in list_tensors(architecture, config)
    ]


def _find_tensor(header: GgufHeader, rule: TensorRule) -> TensorInfo:
    info = header.tensors.get(rule.source)
    if info is None:
        raise make_damage_error(header, f"the tensor {rule.source} is missing")
    if info.shape != rule.shape:
        raise make_damage_error(
            header,
            f"the tensor {rule.source} has the shape {list(info.shape)} and not {list(rule.shape)}",
        )
    return info


def _check_rest(header: GgufHeader, tensors: list[TensorPlan]) -> None:
    """Refuses a file with tensors that the model does not have: without them it would be another model."""
    used = {plan.source.name for plan in tensors}
    rest = [
        name
        for name in header.tensors
        if name not in used and not SETTINGS_AS_TENSORS.fullmatch(name) and not OTHER_SENSES.match(name)
    ]
    if rest:
        more = f" and {len(rest) - 3:,} more" if len(rest) > 3 else ""
        raise BaseModelError(
            f"{header.name!r} has tensors that a model of the architecture {header.architecture!r} does not "
            f"have: {', '.join(rest[:3])}{more}.",
            OTHER_MODEL,
        )
