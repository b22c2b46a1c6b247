"""The config of a model as keys of a GGUF file, and the check that a reader finds the same model in them.

    config.json ─ transformers' defaults ─> config ─> keys ─ reading_plan ─> config     must be equal

A setting that GGUF cannot state, or that llama.cpp has another fixed value for, is thereby refused by its
name, whatever the setting is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import BaseModelError
from core.gguf.architectures import (
    ARCHITECTURES,
    ATTENTION_CAP_KEY,
    COUNTS,
    EPSILON_KEY,
    FINAL_CAP_KEY,
    HEAD_SIZE_KEYS,
    WINDOW_KEY,
    WINDOW_PATTERN_KEY,
    name_architecture,
)
from core.gguf.header import GgufHeader, TensorInfo
from core.gguf.header_writer import TYPES, NewTensor
from core.gguf.reading_plan import plan_conversion
from core.gguf.rotary_writer import OTHER_FILE, RotaryKeys, build_rotary_keys

# Entries of a config that an answer does not depend on.
_IRRELEVANT = (
    "model_type", "attention_dropout", "bos_token_id", "embd_pdrop", "eos_token_id", "initializer_range",
    "pad_token_id", "pretraining_tp", "resid_pdrop", "use_cache", "_sliding_window_pattern", "dtype",
    "cache_implementation", "rope_parameters", "original_max_position_embeddings", "max_window_layers",
    "rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor",
)  # fmt: skip


_NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))  # `tokenizer_writer` has them


@dataclass(frozen=True)
class ModelKeys:
    """What a file states about the shape of a model.

    Attributes:
        architecture: of llama.cpp.
        config: of transformers, with all defaults.
        keys: with the name of the architecture.
        tensors: of the rotary embedding: name -> values.
        notes: what is different in llama.cpp, a sentence each.
    """

    architecture: str
    config: dict[str, Any]
    keys: dict[str, Any]
    tensors: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def complete_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json with the defaults of transformers.

    Raises:
        BaseModelError: a model type that has no architecture here, or a config that transformers refuses.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or name_architecture(model_type) is None:
        known = ", ".join(dict.fromkeys(["mistral", *(a.model_type for a in ARCHITECTURES.values())]))
        raise BaseModelError(
            f"A model of the type {model_type!r} cannot be written as GGUF; these can: {known}.", OTHER_FILE
        )
    if raw.get("quantization_config"):
        raise BaseModelError(
            "The weights of the base are quantized, so that they cannot be written as GGUF.",
            "Choose the original weights of the model.",
        )
    from transformers import CONFIG_MAPPING, PretrainedConfig

    try:
        config = CONFIG_MAPPING[model_type].from_dict({**raw, **_NO_TOKENS}).to_dict()
        shared = PretrainedConfig().to_dict()
        config = {k: v for k, v in config.items() if k not in shared or k == "model_type"}
        known_entries = CONFIG_MAPPING[model_type]().to_dict()
        config = {
            k: v for k, v in config.items() if k in known_entries or k in ("head_dim", "rope_parameters")
        }
        heads = config["num_attention_heads"]
        config["head_dim"] = config.get("head_dim") or config["hidden_size"] // heads
        config["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as e:
        raise BaseModelError(
            f"config.json is not a config of the type {model_type!r}: {e}.", "Copy the folder again."
        ) from e
    return config


def build_keys(raw: Mapping[str, Any]) -> ModelKeys:
    """Builds the keys of a model.

    Args:
        raw: the content of config.json.

    Raises:
        BaseModelError: the model has a setting that GGUF cannot state.
    """
    config = complete_config(raw)
    architecture = name_architecture(config["model_type"])
    assert architecture is not None
    if ARCHITECTURES[architecture].is_tied and not config["tie_word_embeddings"]:
        raise BaseModelError(
            f"llama.cpp takes the embedding of {ARCHITECTURES[architecture].label} as its head, and this "
            "model has a head of its own (an adapter of the embedding or of the head makes one).",
            OTHER_FILE,
        )
    rotary = build_rotary_keys(config)
    keys: dict[str, Any] = {key: int(config[entry]) for key, (entry, _) in COUNTS.items()}
    keys |= {EPSILON_KEY: float(config["rms_norm_eps"])}
    keys |= dict.fromkeys(HEAD_SIZE_KEYS, int(config["head_dim"]))
    keys |= {"vocab_size": int(config["vocab_size"])}
    notes = list(rotary.notes)
    _add_windows(keys, config, notes)
    for key, entry in (
        (ATTENTION_CAP_KEY, "attn_logit_softcapping"),
        (FINAL_CAP_KEY, "final_logit_softcapping"),
    ):
        if config.get(entry):
            keys[key] = float(config[entry])
    keys |= rotary.keys
    return ModelKeys(
        architecture,
        config,
        {f"{architecture}.{key}": value for key, value in keys.items()},
        rotary.tensors,
        notes,
    )


def _add_windows(keys: dict[str, Any], config: Mapping[str, Any], notes: list[str]) -> None:
    window, context = config.get("sliding_window"), config["max_position_embeddings"]
    if config["model_type"] in ("mistral", "phi3"):
        if window and window < context:
            keys[WINDOW_KEY] = int(window)
            notes.append(
                f"llama.cpp reads all of a text where the model reads the last {window:,} tokens of a layer: "
                "answers after longer texts differ."
            )
        elif config["model_type"] == "phi3":
            keys[WINDOW_KEY] = 0
    if config["model_type"] in ("gemma2", "gemma3_text") and window:
        keys[WINDOW_KEY] = int(window)
    if config["model_type"] == "gemma3_text":
        keys[WINDOW_PATTERN_KEY] = _find_pattern(config["layer_types"])


def _find_pattern(layer_types: list[str]) -> int:
    """After how many layers one reads the whole text; `check_read_back` finds out where none fits."""
    whole = [i for i, kind in enumerate(layer_types) if kind == "full_attention"]
    return whole[0] + 1 if whole else len(layer_types) + 1


def check_read_back(
    keys: ModelKeys, metadata: Mapping[str, Any], tensors: list[NewTensor], name: str
) -> None:
    """Reads the model from the header that is about to be written, and compares.

    Raises:
        BaseModelError: a setting that the file cannot state, by its name.
    """
    infos = {t.name: TensorInfo(t.name, t.shape, TYPES[t.type.name], 0, t.bytes) for t in tensors}
    header = GgufHeader(name, dict(metadata), infos, 0)
    try:
        plan = plan_conversion(header, lambda info: keys.tensors[info.name])
        again = complete_config(plan.config)
    except BaseModelError as e:
        raise BaseModelError(f"A GGUF file cannot hold this model: {e.what}", OTHER_FILE) from e
    ours, theirs = _list_settings(keys.config), _list_settings(again)
    for entry in sorted({*ours, *theirs}):
        if not _is_equal(ours.get(entry), theirs.get(entry)):
            raise BaseModelError(
                f"The model has the setting {entry} = {_shorten(ours.get(entry))}, which a GGUF file of the "
                f"architecture {keys.architecture!r} cannot state: llama.cpp takes "
                f"{_shorten(theirs.get(entry))}.",
                OTHER_FILE,
            )
    first, second = build_rotary_keys(keys.config), build_rotary_keys(again)
    if not _is_rotary_equal(first, second):
        raise BaseModelError("A GGUF file cannot state the rotary embedding of this model.", OTHER_FILE)


def _list_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in config.items() if key not in _IRRELEVANT}
    model_type, window = config["model_type"], config.get("sliding_window")
    is_unused = model_type.startswith("qwen") and not config.get("use_sliding_window")
    has_room = model_type in ("mistral", "phi3") and window and window >= config["max_position_embeddings"]
    if is_unused or has_room:
        settings.pop("sliding_window", None)
    return settings


def _is_equal(ours: Any, theirs: Any) -> bool:
    if not ours and not theirs:  # None, False and a missing entry
        return True
    if isinstance(ours, float) or isinstance(theirs, float):
        return (
            isinstance(ours, (int, float))
            and isinstance(theirs, (int, float))
            and math.isclose(ours, theirs, rel_tol=1e-5)
        )
    return bool(ours == theirs)


def _is_rotary_equal(ours: RotaryKeys, theirs: RotaryKeys) -> bool:
    if ours.keys.keys() != theirs.keys.keys() or ours.tensors.keys() != theirs.tensors.keys():
        return False
    if not all(_is_equal(value, theirs.keys[key]) for key, value in ours.keys.items()):
        return False
    return all(
        len(values) == len(theirs.tensors[key])
        and all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(values, theirs.tensors[key], strict=True))
        for key, values in ours.tensors.items()
    )


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
