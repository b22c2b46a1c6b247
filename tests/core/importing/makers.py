"""Adapters in the forms of many tools, each with the model that the tool itself would answer with.

Where peft can be the tool, it makes the adapter and is the reference. Elsewhere the reference is a copy of
the base whose weights are changed by the formula of the tool.
"""

from __future__ import annotations

import copy
import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from tests.conftest import build_tiny_tokenizer
from tests.core.gguf.gguf_maker import interleave

PREFIX = "base_model.model."
ATTENTION = ["q_proj", "v_proj"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class Made:
    """A foreign adapter.

    Attributes:
        source: what is imported.
        model: answers as the tool that made it does.
        repairs: ids of the repairs that the import needs.
    """

    source: Path
    model: Any
    repairs: tuple[str, ...] = ()


@cache
def _load_once(base: Path) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def load_model(base: Path) -> Any:
    return copy.deepcopy(_load_once(base))


def make_peft(
    folder: Path,
    base: Path,
    safe: bool = True,
    seed: int = 3,
    model: Any = None,
    save_embeddings: bool = False,
    start: str = "",
    **settings: Any,
) -> Any:
    """An adapter that peft makes and saves, with random factors; returns peft's model."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that peft cannot convert some of these itself
        model = get_peft_model(model or load_model(base), LoraConfig(**options)).eval()
    if start:  # as it is before its first step
        model.save_pretrained(folder / start)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                p.add_(torch.randn(p.shape, generator=generator) * 0.12)
            elif "magnitude" in name:
                p.mul_(1 + torch.rand(p.shape, generator=generator) * 0.3)
            elif "modules_to_save" in name or "trainable_tokens_delta" in name:
                p.add_(torch.randn(p.shape, generator=generator) * 0.3)
    model.save_pretrained(folder, safe_serialization=safe, save_embedding_layers=save_embeddings)
    return model


def read_config(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return value


def write_config(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))


def change_config(folder: Path, **values: Any) -> None:
    write_config(folder, {**read_config(folder), **values})


def rename_tensors(folder: Path, rename: Callable[[str], str]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({rename(k): v for k, v in load_file(file).items()}, file)


def add_tensors(folder: Path, **tensors: torch.Tensor) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), **{k.replace("__", "."): v for k, v in tensors.items()}}, file)


def add_tokens(model: Any, count: int, size: float) -> Any:
    """Adds tokens to a model, whose rows of the head are large, so that one of them is answered."""
    known = model.config.vocab_size
    model.resize_token_embeddings(known + count, mean_resizing=False)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for module, scale in ((model.model.embed_tokens, 0.02), (model.lm_head, size)):
            rows = module.weight[known:]
            rows.copy_(torch.randn(rows.shape, generator=generator) * scale)
    return model


def random_factors(
    model: Any, targets: list[str], rank: int = 4, seed: int = 5
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> A (r, I) and B (O, r)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(rank, m.in_features, generator=generator) * 0.12,
            torch.randn(m.out_features, rank, generator=generator) * 0.12,
        )
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and name.split(".")[-1] in targets
    }


def change_weights(model: Any, deltas: dict[str, torch.Tensor]) -> Any:
    with torch.no_grad():
        for name, delta in deltas.items():
            model.get_submodule(name).weight.add_(delta)
    return model


def make_mlx(folder: Path, base: Path, layers: str = "", scale: float = 5.0, **settings: Any) -> Made:
    """An adapter as mlx-lm writes it, on the layers whose name has `layers` in it."""
    model = load_model(base)
    factors = {m: f for m, f in random_factors(model, LINEAR).items() if layers in m}
    tensors, deltas = {}, {}
    for name, (a, b) in factors.items():
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = a.t().contiguous(), b.t().contiguous()
        deltas[name] = scale * b @ a
        if settings.get("fine_tune_type") == "dora":
            weight = model.get_submodule(name).weight.detach()
            m = weight.norm(dim=1) * 1.2
            changed = weight + deltas[name]
            tensors[f"{name}.m"] = m
            deltas[name] = (m / changed.norm(dim=1))[:, None] * changed - weight
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapters.safetensors")
    save_file(tensors, folder / "0000030_adapters.safetensors")
    parameters = {"rank": 4, "dropout": 0.0, "scale": scale, **settings.pop("lora_parameters", {})}
    write_config(
        folder,
        {
            "fine_tune_type": "lora",
            "model": "x/y",
            "num_layers": 1,
            "lora_parameters": parameters,
            **settings,
        },
    )
    return Made(folder, change_weights(model, deltas))


def make_gguf(path: Path, base: Path, alpha: float = 8.0, kind: str = "F32", **keys: str) -> Made:
    """An adapter as llama.cpp's converter writes it: rows of q and k interleaved."""
    model = load_model(base)
    config, rank = model.config, 4
    factors = random_factors(model, LINEAR, rank)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"general__type": "adapter", "adapter__type": "lora", **keys}.items():
        writer.add_string(key.replace("__", "."), value)
    writer.add_float32("adapter.lora.alpha", alpha)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    deltas = {}
    for name, (a, b) in factors.items():
        target = names.get_name(f"{name}.weight", (".weight",))
        stored = b
        if name.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if name.endswith("q_proj") else config.num_key_value_heads
            stored = torch.from_numpy(interleave(b.numpy(), heads).copy())
        for part, tensor in (("lora_a", a), ("lora_b", stored)):
            quantization = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(
                f"{target}.{part}", gguf.quantize(tensor.numpy(), quantization), raw_dtype=quantization
            )
        deltas[name] = (alpha / rank if alpha else 1.0) * b @ a
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Made(path, change_weights(model, deltas))


def make_start(folder: Path, base: Path, start: str, **settings: Any) -> Made:
    """PiSSA and OLoRA as peft makes them: their start is subtracted from the base."""
    return Made(
        folder,
        make_peft(folder, base, init_lora_weights=start, **settings),
        ("convert-start",),
    )


def pack(folder: Path, target: Path, root: str = "") -> Path:
    """A zip file of a folder."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as z:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                z.write(file, f"{root}{file.relative_to(folder).as_posix()}")
    shutil.rmtree(folder)
    return target


def build_tiny_tied(folder: Path) -> Path:
    """The tiny Llama with its head tied to its embedding."""
    build_tiny_tokenizer(folder)
    torch.manual_seed(1)
    config = hf.LlamaConfig(
        vocab_size=384,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=1,
        tie_word_embeddings=True,
    )
    model = hf.LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)
    model.save_pretrained(folder)
    return folder


def build_tiny_gpt2(folder: Path) -> Path:
    build_tiny_tokenizer(folder)
    torch.manual_seed(2)
    config = hf.GPT2Config(
        vocab_size=384,
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=256,
        eos_token_id=1,
        bos_token_id=1,
        tie_word_embeddings=True,
    )
    hf.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def build_tiny_experts(folder: Path) -> Path:
    build_tiny_tokenizer(folder)
    torch.manual_seed(2)
    config = hf.AutoConfig.for_model(
        "mixtral",
        vocab_size=384,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=3,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        eos_token_id=1,
        bos_token_id=1,
        pad_token_id=0,
    )
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder
