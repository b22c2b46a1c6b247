"""The rotary embedding of a model as keys and tensors of a GGUF file: what `rotary.py` reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import BaseModelError
from core.gguf.rotary import DEFAULT_THETA, LOCAL_THETA, list_llama3_factors

OTHER_FILE = "Export a merged folder of transformers instead."


@dataclass
class RotaryKeys:
    """What a file states about the rotary embedding.

    Attributes:
        keys: without the name of the architecture.
        tensors: name -> values.
        notes: what is different in llama.cpp, a sentence each.
    """

    keys: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, list[float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def build_rotary_keys(config: Mapping[str, Any]) -> RotaryKeys:
    """Builds the keys of a model.

    Args:
        config: the entries of transformers' config with all defaults, `rope_parameters` among them.

    Raises:
        BaseModelError: a scaling that GGUF cannot state.
    """
    parameters = config["rope_parameters"]
    nested = parameters.get("full_attention")
    local = parameters.get("sliding_attention") or {}
    scaling = nested if nested is not None else parameters
    result = RotaryKeys({"rope.freq_base": float(scaling.get("rope_theta") or DEFAULT_THETA)})
    share = float(scaling.get("partial_rotary_factor") or 1.0)
    if config["model_type"] in ("llama", "mistral", "phi3"):
        result.keys["rope.dimension_count"] = int(config["head_dim"] * share)
    elif share != 1.0:
        raise _refuse(f"rotates only {share:g} of a head")
    if nested is not None:
        if local.get("rope_type", "default") != "default":
            raise _refuse("scales the layers with a window")
        result.keys["rope.freq_base_swa"] = float(local.get("rope_theta") or LOCAL_THETA)
    kind = scaling.get("rope_type", "default")
    writers = {
        "default": lambda *_: None,
        "linear": _add_linear,
        "yarn": _add_yarn,
        "llama3": _add_llama3,
        "longrope": _add_longrope,
        "dynamic": _add_dynamic,
    }
    if kind not in writers:
        raise _refuse(f"scales the rotary embedding in a way ({kind!r}) that GGUF cannot state")
    writers[kind](result, scaling, config)
    return result


def _add_linear(result: RotaryKeys, scaling: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    result.keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling["factor"])}


def _add_dynamic(result: RotaryKeys, scaling: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    context = config["max_position_embeddings"]
    result.notes.append(
        f"The scaling of texts beyond {context:,} tokens is left out: llama.cpp has no dynamic scaling."
    )


def _add_yarn(result: RotaryKeys, scaling: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    original = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
    factor = float(scaling.get("factor") or config["max_position_embeddings"] / original)
    if scaling.get("truncate") is False:
        raise _refuse("has a scaling of the type yarn without truncation")
    usual = 1.0 + 0.1 * math.log(factor) if factor > 1 else 1.0
    attention = scaling.get("attention_factor")
    if attention is None:
        attention = _compute_yarn_attention(scaling, factor, usual)
    result.keys |= {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(original),
        "rope.scaling.yarn_beta_fast": float(scaling.get("beta_fast") or 32.0),
        "rope.scaling.yarn_beta_slow": float(scaling.get("beta_slow") or 1.0),
    }
    if not math.isclose(attention, usual, rel_tol=1e-6):
        result.keys["rope.scaling.attn_factor"] = float(attention / usual)


def _compute_yarn_attention(scaling: Mapping[str, Any], factor: float, usual: float) -> float:
    """The attention factor that transformers computes where the config states none."""
    one, all_sizes = float(scaling.get("mscale") or 0), float(scaling.get("mscale_all_dim") or 0)
    if not one or not all_sizes or factor <= 1:
        return usual
    return (0.1 * one * math.log(factor) + 1.0) / (0.1 * all_sizes * math.log(factor) + 1.0)


def _add_llama3(result: RotaryKeys, scaling: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    result.tensors["rope_freqs.weight"] = list_llama3_factors(
        int(config["head_dim"]),
        float(scaling.get("rope_theta") or DEFAULT_THETA),
        float(scaling["factor"]),
        float(scaling["low_freq_factor"]),
        float(scaling["high_freq_factor"]),
        float(scaling["original_max_position_embeddings"]),
    )


def _add_longrope(result: RotaryKeys, scaling: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    context = config["max_position_embeddings"]
    original = scaling.get("original_max_position_embeddings") or config.get(
        "original_max_position_embeddings", context
    )
    short, long = (list(map(float, scaling[f"{kind}_factor"])) for kind in ("short", "long"))
    attention = scaling.get("attention_factor")
    if attention is None:
        factor = float(scaling.get("factor") or context / original)
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    if config["model_type"] != "phi3" and short == long and attention == 1.0:
        result.tensors["rope_freqs.weight"] = short
        return
    result.keys |= {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": int(original),
        "rope.scaling.attn_factor": float(attention),
    }
    result.tensors |= {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    result.notes.append(
        f"llama.cpp takes the factors of long texts where its context is larger than {original:,} tokens, "
        f"whatever the text's length is: start it with `-c {original}` for texts up to that length."
    )


def _refuse(what: str) -> BaseModelError:
    return BaseModelError(f"The model {what}.", OTHER_FILE)
