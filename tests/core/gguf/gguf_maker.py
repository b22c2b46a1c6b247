"""GGUF files for tests: random models of two layers, written by the `gguf` package as llama.cpp has them.

The names of the tensors come from that package, and the rows of q and k are interleaved as llama.cpp does,
so that nothing here is taken from the code under test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers as hf

from tests.conftest import CHATML, SENTENCES, build_tiny_tokenizer

SHAPE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
}
# model_type of transformers -> (architecture in the file, further settings of the model)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("llama", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma": ("gemma", {"head_dim": 32, "hidden_activation": "gelu_pytorch_tanh"}),
    "gemma2": ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}),
    "gemma3_text": ("gemma3", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8,
                               "num_hidden_layers": 7}),
    "phi3": ("phi3", {}),
}  # fmt: skip
FILE_TYPES = {"F32": "ALL_F32"}  # whose name is another one
TIED = ("qwen3", "gemma", "gemma2", "gemma3_text")


def build_model(family: str, **changes: Any) -> Any:
    """A random model whose weights are bfloat16 numbers, and whose norms and biases are not trivial."""
    torch.manual_seed(5)
    config = hf.AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family][1], **changes})
    config.tie_word_embeddings = changes.get("tie_word_embeddings", family in TIED)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.add_(torch.randn_like(p) * 0.2)
            elif name.endswith("bias"):
                p.normal_(std=0.3)
            else:
                p.normal_(std=0.15)
            p.copy_(p.bfloat16().float())
    return model


def interleave(weights: Any, heads: int) -> Any:
    """The rows of q or k of a Llama as llama.cpp stores them."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def byte_tokens(folder: Path) -> dict[str, Any]:
    """The vocabulary of the tests' byte-level tokenizer, as keys of a file."""
    build_tiny_tokenizer(folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [t for t, _ in sorted(state["vocab"].items(), key=lambda x: x[1])]
    missing = SHAPE["vocab_size"] - len(tokens)
    control = {"<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"}
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*tokens, *[f"[PAD{i}]" for i in range(len(tokens), SHAPE["vocab_size"])]],
        "types": [3 if t in control else 1 for t in tokens] + [5] * missing,  # control, normal, unused
        "merges": [" ".join(m) for m in state["merges"]],
        "ids": {"eos": 1, "pad": 0, "bos": 1},
        "template": CHATML,
    }


def sentencepiece_tokens(size: int = 384) -> dict[str, Any]:
    """A vocabulary of characters, bytes and merges, with scores: as Llama 2 has it."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    trained.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=110, show_progress=False))
    pieces = [t for t, _ in sorted(trained.get_vocab().items(), key=lambda x: x[1])]
    head = ["<unk>", "<s>", "</s>", *[f"<0x{b:02X}>" for b in range(256)]]
    tokens = [*head, *pieces][:size]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces)][:size]
    tokens += [f"<extra_{i}>" for i in range(size - len(tokens))]
    kinds += [4] * (size - len(kinds))
    letters = {c for t in pieces for c in t}
    # As sentencepiece writes them: merges by their order, single characters behind all merges.
    scores = [0.0 if i < 259 else float(-(i - 259) - (1000 if t in letters else 0))
              for i, t in enumerate(tokens)]  # fmt: skip
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "types": kinds,
        "scores": scores,
        "ids": {"eos": 2, "bos": 1, "unk": 0},
        "template": "",
    }


def write_gguf(
    path: Path, model: Any, tokens: dict[str, Any], quantization: str = "F32", **keys: Any
) -> Path:
    """Writes a model of `build_model` as a GGUF file.

    Args:
        tokens: of `byte_tokens` or `sentencepiece_tokens`.
        quantization: of the matrices; a name of `gguf.GGMLQuantizationType`.
        keys: further keys without the name of the architecture; None leaves out one that is written here.
            Dots are two underscores.
    """
    config = model.config
    architecture = FAMILIES[config.model_type][0]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES.get(quantization, f"MOSTLY_{quantization}")])
    _write_shape(writer, architecture, config, {k.replace("__", "."): v for k, v in keys.items()})
    _write_tokens(writer, tokens)
    names = gguf.get_tensor_name_map(
        next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture), config.num_hidden_layers
    )
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        target = names.get_name(name, (".weight", ".bias"))
        assert target, name
        weights = tensor.float().numpy()
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weights = interleave(weights, heads)
        if config.model_type.startswith("gemma") and "norm" in name:
            weights = weights + np.float32(1)
        kind = gguf.GGMLQuantizationType[quantization if weights.ndim > 1 else "F32"]
        writer.add_tensor(target, gguf.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_shape(writer: Any, architecture: str, config: Any, keys: dict[str, Any]) -> None:
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    values: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if architecture == "llama":
        values["rope.dimension_count"] = config.head_dim
    if architecture in ("qwen3", "gemma", "gemma2", "gemma3"):
        values |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if architecture in ("gemma2", "gemma3"):
        values["attention.sliding_window"] = config.sliding_window
    if architecture == "gemma2":
        values["attn_logit_softcapping"] = float(config.attn_logit_softcapping)
        values["final_logit_softcapping"] = float(config.final_logit_softcapping)
    if architecture == "phi3":
        values["rope.dimension_count"] = config.hidden_size // config.num_attention_heads
    for key, value in {**values, **keys}.items():
        if value is None:
            continue
        name = f"{architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_uint32(name, value)


def _write_tokens(writer: Any, tokens: dict[str, Any]) -> None:
    writer.add_tokenizer_model(tokens["model"])
    writer.add_tokenizer_pre(tokens["pre"])
    writer.add_token_list(tokens["tokens"])
    writer.add_token_types(tokens["types"])
    if "scores" in tokens:
        writer.add_token_scores(tokens["scores"])
    if "merges" in tokens:
        writer.add_token_merges(tokens["merges"])
    ids = tokens["ids"]
    for key, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("unk", writer.add_unk_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if key in ids:
            add(ids[key])
    if tokens["template"]:
        writer.add_chat_template(tokens["template"])
