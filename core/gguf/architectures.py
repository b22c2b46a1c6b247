"""The architectures of GGUF files: keys, names and rows of tensors, and what they are in transformers.

These tables are for both directions: `reading_plan.py` turns a file into a folder of transformers, and
`model_writer.py` and `adapter_writer.py` write files. Sources: the loaders of llama.cpp, and the configs of
transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from core.errors import BaseModelError
from core.gguf.header import GgufHeader

OTHER_MODEL = "Choose another model, or a folder that transformers' save_pretrained wrote."
LAYER_LIMIT = 1000
WIDTH_LIMIT = 1 << 20
HEAD_LIMIT = 65_536
# Key of the architecture -> entry of config.json, and the largest number that is read.
COUNTS = {
    "embedding_length": ("hidden_size", WIDTH_LIMIT),
    "feed_forward_length": ("intermediate_size", WIDTH_LIMIT),
    "block_count": ("num_hidden_layers", LAYER_LIMIT),
    "attention.head_count": ("num_attention_heads", HEAD_LIMIT),
    "attention.head_count_kv": ("num_key_value_heads", HEAD_LIMIT),
    "context_length": ("max_position_embeddings", 1 << 31),
}
EPSILON_KEY = "attention.layer_norm_rms_epsilon"
HEAD_SIZE_KEYS = ("attention.key_length", "attention.value_length")
WINDOW_KEY, WINDOW_PATTERN_KEY = "attention.sliding_window", "attention.sliding_window_pattern"
ATTENTION_CAP_KEY, FINAL_CAP_KEY = "attn_logit_softcapping", "final_logit_softcapping"
# llama.cpp's name of a tensor -> its name in a model of transformers; {n} is the number of the layer.
EMBEDDING = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
HEAD = {"output.weight": "lm_head.weight"}
ATTENTION = {
    "blk.{n}.attn_q": "model.layers.{n}.self_attn.q_proj",
    "blk.{n}.attn_k": "model.layers.{n}.self_attn.k_proj",
    "blk.{n}.attn_v": "model.layers.{n}.self_attn.v_proj",
    "blk.{n}.attn_output": "model.layers.{n}.self_attn.o_proj",
}
FUSED_ATTENTION = {
    "blk.{n}.attn_qkv": "model.layers.{n}.self_attn.qkv_proj",
    "blk.{n}.attn_output": "model.layers.{n}.self_attn.o_proj",
}
FEED_FORWARD = {
    "blk.{n}.ffn_gate": "model.layers.{n}.mlp.gate_proj",
    "blk.{n}.ffn_up": "model.layers.{n}.mlp.up_proj",
    "blk.{n}.ffn_down": "model.layers.{n}.mlp.down_proj",
}
FUSED_FEED_FORWARD = {
    "blk.{n}.ffn_up": "model.layers.{n}.mlp.gate_up_proj",
    "blk.{n}.ffn_down": "model.layers.{n}.mlp.down_proj",
}
TWO_NORMS = {
    "blk.{n}.attn_norm.weight": "model.layers.{n}.input_layernorm.weight",
    "blk.{n}.ffn_norm.weight": "model.layers.{n}.post_attention_layernorm.weight",
}
FOUR_NORMS = {
    "blk.{n}.attn_norm.weight": "model.layers.{n}.input_layernorm.weight",
    "blk.{n}.post_attention_norm.weight": "model.layers.{n}.post_attention_layernorm.weight",
    "blk.{n}.ffn_norm.weight": "model.layers.{n}.pre_feedforward_layernorm.weight",
    "blk.{n}.post_ffw_norm.weight": "model.layers.{n}.post_feedforward_layernorm.weight",
}
HEAD_NORMS = {
    "blk.{n}.attn_q_norm.weight": "model.layers.{n}.self_attn.q_norm.weight",
    "blk.{n}.attn_k_norm.weight": "model.layers.{n}.self_attn.k_norm.weight",
}


@dataclass(frozen=True)
class Architecture:
    """One value of `general.architecture`.

    Attributes:
        label: the name to show.
        model_type, model_class: of transformers.
        linear: names of its linear layers, without ".weight" and ".bias".
        norms: names of its other tensors in a layer.
        permutes: whether the rows of q and k are interleaved for the rotary embedding, as in llama.cpp's
            layout of Llama; those of the other architectures are stored as transformers has them.
        norm_offset: what is stored is the weight of a norm plus this.
        settings: further entries of the config.
        biases: names of the linear layers that always have a bias.
        is_tied: whether llama.cpp takes the embedding as the head in any case.
    """

    label: str
    model_type: str
    model_class: str
    linear: dict[str, str]
    norms: dict[str, str]
    permutes: bool = False
    norm_offset: float = 0.0
    settings: Callable[[GgufHeader, dict[str, Any]], dict[str, Any]] = lambda header, config: {}
    biases: tuple[str, ...] = ()
    is_tied: bool = False


@dataclass(frozen=True)
class TensorRule:
    """One tensor of a model and of its file.

    Attributes:
        source: its name in the file. name: in the model.
        shape: in both; rows first.
        heads: its rows are interleaved in the file, head by head; 0 where they are as transformers has them.
        offset: what is stored is the value plus this.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    heads: int = 0
    offset: float = 0.0


def _set_llama(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    names = ("attn_q", "attn_k", "attn_v", "attn_output")
    return {
        "hidden_act": "silu",
        "attention_bias": _has_biases(header, names),
        "mlp_bias": _has_biases(header, ("ffn_gate", "ffn_up", "ffn_down")),
    }


def _has_biases(header: GgufHeader, names: tuple[str, ...]) -> bool:
    """Whether all of these layers have a bias; with only some of them, the plan refuses the file."""
    return all(f"blk.0.{name}.bias" in header.tensors for name in names)


def _set_qwen2(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    if config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]:
        raise make_damage_error(header, "its heads do not divide its width")
    return {"hidden_act": "silu", "use_sliding_window": False}


def _set_qwen3(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    return {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}


def _set_phi3(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    if config["head_dim"] * config["num_attention_heads"] != config["hidden_size"]:
        raise make_damage_error(header, "its heads do not divide its width")
    window = header.get(WINDOW_KEY)
    settings = {
        "hidden_act": "silu",
        "sliding_window": window if window and window < config["max_position_embeddings"] else None,
    }
    original = header.get("rope.scaling.original_context_length")
    return {**settings, "original_max_position_embeddings": original} if original else settings


def _set_gemma(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    # transformers up to 4.57 reads "hidden_activation" of Gemma, and its own name of the function.
    return {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


def _set_gemma2(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": header.get(ATTENTION_CAP_KEY, 50.0),
        "final_logit_softcapping": header.get(FINAL_CAP_KEY, 30.0),
        "sliding_window": header.get(WINDOW_KEY, 4096),
        "layer_types": ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)],
        "query_pre_attn_scalar": _query_scalar(config, 46),
    }


def _set_gemma3(header: GgufHeader, config: dict[str, Any]) -> dict[str, Any]:
    layers, pattern = config["num_hidden_layers"], header.get(WINDOW_PATTERN_KEY, 6)
    if not isinstance(pattern, int) or pattern < 1:
        raise make_damage_error(header, "its pattern of windows is not a number")
    kinds = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(layers)]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "attn_logit_softcapping": None,
        "final_logit_softcapping": header.get(FINAL_CAP_KEY),
        "sliding_window": header.get(WINDOW_KEY, 1024),
        "layer_types": kinds,
        "query_pre_attn_scalar": _query_scalar(config, 62),
    }


def _query_scalar(config: dict[str, Any], layers_of_27b: int) -> int:
    """What attention scores are scaled by; no key states it. The models of 27B differ from the others."""
    if config["num_hidden_layers"] == layers_of_27b:
        return int(config["hidden_size"] // config["num_attention_heads"])
    return int(config["head_dim"])


_LLAMA = Architecture(
    "Llama",
    "llama",
    "LlamaForCausalLM",
    {**ATTENTION, **FEED_FORWARD},
    TWO_NORMS,
    permutes=True,
    settings=_set_llama,
)
ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, label="Mistral"),
    "qwen2": Architecture(
        "Qwen2",
        "qwen2",
        "Qwen2ForCausalLM",
        {**ATTENTION, **FEED_FORWARD},
        TWO_NORMS,
        settings=_set_qwen2,
        biases=("attn_q", "attn_k", "attn_v"),
    ),
    "qwen3": Architecture(
        "Qwen3",
        "qwen3",
        "Qwen3ForCausalLM",
        {**ATTENTION, **FEED_FORWARD},
        {**TWO_NORMS, **HEAD_NORMS},
        settings=_set_qwen3,
    ),
    "gemma": Architecture(
        "Gemma",
        "gemma",
        "GemmaForCausalLM",
        {**ATTENTION, **FEED_FORWARD},
        TWO_NORMS,
        norm_offset=1.0,
        settings=_set_gemma,
        is_tied=True,
    ),
    "gemma2": Architecture(
        "Gemma 2",
        "gemma2",
        "Gemma2ForCausalLM",
        {**ATTENTION, **FEED_FORWARD},
        FOUR_NORMS,
        norm_offset=1.0,
        settings=_set_gemma2,
        is_tied=True,
    ),
    "gemma3": Architecture(
        "Gemma 3 (text)",
        "gemma3_text",
        "Gemma3ForCausalLM",
        {**ATTENTION, **FEED_FORWARD},
        {**FOUR_NORMS, **HEAD_NORMS},
        norm_offset=1.0,
        settings=_set_gemma3,
    ),
    "phi3": Architecture(
        "Phi-3",
        "phi3",
        "Phi3ForCausalLM",
        {**FUSED_ATTENTION, **FUSED_FEED_FORWARD},
        TWO_NORMS,
        settings=_set_phi3,
    ),
}


def explain_refusal(architecture: str, name: str) -> BaseModelError | None:
    """The error for a file of an architecture that cannot be converted; None for one that can."""
    if architecture in ARCHITECTURES:
        return None
    if architecture in ("clip", "mmproj"):
        return BaseModelError(
            f"{name!r} is the part of a model that reads pictures, not a language model.",
            "Choose the file of the language model beside it.",
        )
    known = ", ".join(ARCHITECTURES)
    return BaseModelError(
        f"{name!r} is a model of the architecture {architecture!r}; these can be converted: {known}.",
        OTHER_MODEL,
    )


def name_architecture(model_type: str) -> str | None:
    """The value of `general.architecture` for a model type of transformers; None for an unknown one."""
    if model_type == "mistral":
        return "llama"  # as llama.cpp's own conversion names it
    return next((name for name, a in ARCHITECTURES.items() if a.model_type == model_type), None)


def make_damage_error(header: GgufHeader, reason: str) -> BaseModelError:
    """The error for a file whose content contradicts itself."""
    return BaseModelError(f"{header.name!r} is damaged: {reason}.", "Copy or download the file again.")


def list_tensors(architecture: Architecture, config: dict[str, Any]) -> list[TensorRule]:
    """The tensors of a model of this config, in the order of the model.

    Args:
        config: with every entry that the shapes follow from, `head_dim` among them.
    """
    shapes = _shapes_of(config)
    names = {**EMBEDDING} if config["tie_word_embeddings"] else {**EMBEDDING, **HEAD}
    rules = [
        TensorRule(
            source,
            name,
            shapes[source],
            offset=architecture.norm_offset if source == "output_norm.weight" else 0.0,
        )
        for source, name in names.items()
    ]
    for n in range(config["num_hidden_layers"]):
        rules += _list_layer(architecture, config, shapes, n)
    return rules


def _list_layer(
    architecture: Architecture, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], n: int
) -> list[TensorRule]:
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    has_bias = set(architecture.biases)
    if config.get("attention_bias"):
        has_bias |= {"attn_q", "attn_k", "attn_v", "attn_output"}
    if config.get("mlp_bias"):
        has_bias |= {"ffn_gate", "ffn_up", "ffn_down"}
    rules = []
    for pattern, target in architecture.linear.items():
        source, name, kind = pattern.format(n=n), target.format(n=n), pattern.removeprefix("blk.{n}.")
        head_count = heads.get(kind, 0) if architecture.permutes else 0
        shape = shapes["gate_up" if kind == "ffn_up" and _is_fused(architecture) else kind]
        rules.append(TensorRule(f"{source}.weight", f"{name}.weight", shape, head_count))
        if kind in has_bias:
            rules.append(TensorRule(f"{source}.bias", f"{name}.bias", shape[:1], head_count))
    for pattern, target in architecture.norms.items():
        size = config["head_dim"] if pattern in HEAD_NORMS else config["hidden_size"]
        source, name = pattern.format(n=n), target.format(n=n)
        rules.append(TensorRule(source, name, (size,), offset=architecture.norm_offset))
    return rules


def _is_fused(architecture: Architecture) -> bool:
    return "blk.{n}.ffn_gate" not in architecture.linear


def _shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors, rows (outputs) first."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    return {
        "token_embd.weight": (config["vocab_size"], width),
        "output.weight": (config["vocab_size"], width),
        "output_norm.weight": (width,),
        "attn_q": (queries, width),
        "attn_k": (keys, width),
        "attn_v": (keys, width),
        "attn_qkv": (queries + 2 * keys, width),
        "attn_output": (width, queries),
        "ffn_gate": (inner, width),
        "ffn_up": (inner, width),
        "gate_up": (2 * inner, width),
        "ffn_down": (width, inner),
    }
