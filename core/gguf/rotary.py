"""The rotary embedding of a GGUF file, in both spellings of transformers' configs.

transformers 5 keeps `rope_theta` inside `rope_parameters`. transformers 4.57 and mlx-lm read `rope_theta` and
`rope_scaling` beside each other, and take 10000 without a word where the first is missing. Both are written.

A file states some scalings only as a tensor of factors, one for each pair of values of a head: those of Llama
3.1 are recognized by their values (`list_llama3_factors`); any others become the list of factors that
longrope has. `rotary_writer.py` is the other direction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from core.errors import BaseModelError
from core.gguf.header import GgufHeader, TensorInfo

DEFAULT_THETA = 10_000.0
LOCAL_THETA = 10_000.0  # of Gemma 3's layers with a window
FACTOR_TOLERANCE = 1e-3
# The low and high frequency factors and the original contexts that models with Llama 3's scaling have.
LLAMA3_BANDS = ((1.0, 4.0), (1.0, 8.0))
LLAMA3_CONTEXTS = (8192, 4096, 16_384, 32_768)

ReadNumbers = Callable[[TensorInfo], list[float]]


def rotary_settings(header: GgufHeader, config: dict[str, Any], read_numbers: ReadNumbers) -> dict[str, Any]:
    """The entries of config.json about the rotary embedding.

    Args:
        config: the entries so far.
        read_numbers: reads the values of a small tensor.

    Raises:
        BaseModelError: a scaling that is not supported.
    """
    theta = float(header.get("rope.freq_base", header.get("rope.global.freq_base", DEFAULT_THETA)))
    scaling = _read_scale(header, config, theta, read_numbers)
    if config["model_type"] == "gemma3_text":
        return _nest(header, theta, scaling)
    share = _rotary_share(header, config)
    settings: dict[str, Any] = {"rope_theta": theta}
    if share != 1.0:
        settings["partial_rotary_factor"] = share
    parameters = {**settings, **(scaling or {"rope_type": "default"})}
    # A value of None: transformers 4.57 takes "default" for a scaling that needs more keys.
    return {**settings, "rope_parameters": parameters, "rope_scaling": scaling or None}


def _nest(header: GgufHeader, theta: float, scaling: dict[str, Any]) -> dict[str, Any]:
    """Gemma 3: layers with a window have a theta of their own, and no scaling."""
    local = float(header.get("rope.freq_base_swa", header.get("rope.local.freq_base", LOCAL_THETA)))
    return {
        "rope_theta": theta,
        "rope_local_base_freq": local,
        "rope_scaling": scaling or None,
        "rope_parameters": {
            "full_attention": {"rope_theta": theta, **(scaling or {"rope_type": "default"})},
            "sliding_attention": {"rope_theta": local, "rope_type": "default"},
        },
    }


def _rotary_share(header: GgufHeader, config: dict[str, Any]) -> float:
    """The part of each head that is rotated."""
    size, head = header.get("rope.dimension_count", config["head_dim"]), config["head_dim"]
    if size == head:
        return 1.0
    if config["model_type"] != "phi3" or not isinstance(size, int) or not 0 < size < head or size % 2:
        raise _refuse(header, f"rotates {size} of the {head} values of a head")
    return float(size / head)


def _read_scale(
    header: GgufHeader, config: dict[str, Any], theta: float, read_numbers: ReadNumbers
) -> dict[str, Any]:
    """The scaling as transformers names it, without theta; {} without one."""
    if "rope_factors_long.weight" in header.tensors:
        return _read_long_factors(header, config, read_numbers)
    if "rope_freqs.weight" in header.tensors:
        return _read_factors(header, config, theta, read_numbers(header.tensors["rope_freqs.weight"]))
    kind = header.get("rope.scaling.type", "linear" if header.get("rope.scale_linear") else "none")
    factor = header.get("rope.scaling.factor", header.get("rope.scale_linear", 1.0))
    if not isinstance(factor, (int, float)) or not math.isfinite(factor) or factor < 0:
        raise _refuse(header, f"scales the rotary embedding by {factor!r}")
    if kind == "none" or factor in (0, 1):
        return {}
    if config["model_type"] == "phi3" or kind not in ("linear", "yarn"):
        raise _refuse(header, f"scales the rotary embedding in a way ({kind!r}) that is not supported")
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    stretch = float(header.get("rope.scaling.attn_factor", 1.0))
    return {
        "rope_type": "yarn",
        "factor": float(factor),
        "original_max_position_embeddings": int(
            header.get("rope.scaling.original_context_length", config["max_position_embeddings"])
        ),
        "attention_factor": stretch * (1.0 + 0.1 * math.log(factor)),
        "beta_fast": float(header.get("rope.scaling.yarn_beta_fast", 32.0)),
        "beta_slow": float(header.get("rope.scaling.yarn_beta_slow", 1.0)),
    }


def _read_long_factors(
    header: GgufHeader, config: dict[str, Any], read_numbers: ReadNumbers
) -> dict[str, Any]:
    """Longrope (Phi-3): factors for texts up to the original context, and for longer ones."""
    short = header.tensors.get("rope_factors_short.weight")
    if short is None:
        raise _refuse(header, "has no rotary factors for short texts")
    context = config["max_position_embeddings"]
    original = int(header.get("rope.scaling.original_context_length", context))
    long_factors = read_numbers(header.tensors["rope_factors_long.weight"])
    factors = {"long_factor": long_factors, "short_factor": read_numbers(short)}
    for values in factors.values():
        _check_factors(header, config, values)
    ratio = context / original
    attention = 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))
    return {
        "rope_type": "longrope",
        **factors,
        "original_max_position_embeddings": original,
        "attention_factor": float(header.get("rope.scaling.attn_factor", attention)),
    }


def _read_factors(
    header: GgufHeader, config: dict[str, Any], theta: float, factors: list[float]
) -> dict[str, Any]:
    """The scaling that these factors come from; wavelengths are multiplied by them."""
    _check_factors(header, config, factors)
    if all(f == 1.0 for f in factors):
        return {}
    largest, size = max(factors), config["head_dim"]
    for low, high in LLAMA3_BANDS:
        for original in LLAMA3_CONTEXTS:
            expected = list_llama3_factors(size, theta, largest, low, high, original)
            if all(abs(e - f) <= FACTOR_TOLERANCE * f for e, f in zip(expected, factors, strict=True)):
                return {
                    "rope_type": "llama3",
                    "factor": round(largest, 3),
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": original,
                }
    return {
        "rope_type": "longrope",
        "long_factor": factors,
        "short_factor": factors,
        "original_max_position_embeddings": config["max_position_embeddings"],
        "attention_factor": 1.0,
    }


def _check_factors(header: GgufHeader, config: dict[str, Any], factors: list[float]) -> None:
    size = header.get("rope.dimension_count", config["head_dim"])
    if len(factors) != size // 2 or not all(0 < f < 1e6 for f in factors):
        raise _refuse(header, f"has {len(factors)} rotary factors, which do not fit {size} rotated values")


def list_llama3_factors(
    size: int, theta: float, factor: float, low: float, high: float, original: float
) -> list[float]:
    """The factors of Llama 3.1: 1 for short wavelengths, `factor` for long ones, and a ramp between them.

    Source: Llama 3.1's model card; the formula of transformers' `_compute_llama3_parameters`.
    """
    factors = []
    for i in range(0, size, 2):
        wavelength = 2 * math.pi * theta ** (i / size)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _refuse(header: GgufHeader, what: str) -> BaseModelError:
    return BaseModelError(
        f"{header.name!r} {what}.",
        "Choose another file of the model, or a folder that transformers' save_pretrained wrote.",
    )
