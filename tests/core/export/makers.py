"""Tiny bases of every family on disk, and adapters of random factors in a library."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import save_file

from core.export.base_layout import BaseLayout
from core.export.sources import ExportSource, read_source
from core.model.families import FAMILIES
from core.spec.export import ExportSpec
from core.store import adapters
from core.store.workspace import Workspace
from tests.conftest import build_tiny_tokenizer

SHAPE = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
IDS = torch.tensor([[5, 9, 40, 77, 101, 12, 3, 260]])


def build_base(folder: Path, family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A random model of two layers with its tokenizer, as transformers saves it."""
    build_tiny_tokenizer(folder)
    torch.manual_seed(7)
    if family == "gpt2":
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        config: Any = hf.GPT2Config(vocab_size=384, **sizes, bos_token_id=1, eos_token_id=1, **changes)
        model: Any = hf.GPT2LMHeadModel(config)
    elif family == "t5":
        settings = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, **changes}
        config = hf.T5Config(
            vocab_size=384, feed_forward_proj="gated-gelu", decoder_start_token_id=0, **settings
        )
        model = hf.T5ForConditionalGeneration(config)
    else:
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2} if family == "minimax_m2" else {}
        config = hf.AutoConfig.for_model(family, **{**SHAPE, **experts, **changes})
        model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.normal_(std=0.15)
    model.to(dtype).save_pretrained(folder)
    return folder


def add_adapter(
    workspace: Workspace,
    layout: BaseLayout,
    name: str,
    rank: int = 4,
    alpha: float = 8,
    targets: Sequence[str] = (),
    rslora: bool = False,
    **fields: Any,
) -> str:
    """Adds an adapter of random factors on the layers that a family adapts, or on `targets`."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    chosen = tuple(targets) or FAMILIES[layout.family.model_type].targets
    tensors = {}
    for parameter, shape in layout.parameters.items():
        module = parameter.removesuffix(".weight")
        if parameter == module or module.split(".")[-1] not in chosen or len(shape) != 2:
            continue
        outputs, inputs = shape[::-1] if layout.is_transposed(module) else shape
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * 0.15
        tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.15
    config = {
        "peft_type": "LORA",
        "task_type": layout.family.task_type,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.1,
        "target_modules": list(chosen),
        "bias": "none",
        "use_rslora": rslora,
        "fan_in_fan_out": layout.family.fan_in_fan_out,
        **fields.pop("config", {}),
    }
    meta = {"kind": "task", "base": {"name": layout.name, "fingerprint": layout.fingerprint}, **fields}
    return adapters.add(workspace, name, name, lambda p: save_file(tensors, p), config, meta).id


def read(workspace: Workspace, layout: BaseLayout, weights: Mapping[str, float], **spec: Any) -> ExportSource:
    return read_source(workspace, ExportSpec(name="My mix", weights=dict(weights), **spec), layout)


def load_model(folder: Path, **settings: Any) -> Any:
    """A model as plain transformers loads it."""
    config = hf.AutoConfig.from_pretrained(folder)
    auto = hf.AutoModelForSeq2SeqLM if config.is_encoder_decoder else hf.AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32, **settings).eval()


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **extra).logits[0].double()


def peft_logits(base: Path, folder: Path) -> torch.Tensor:
    """Those of plain peft with an adapter's folder."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True.*")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # GPT-2's head is Linear
        return logits(PeftModel.from_pretrained(load_model(base), str(folder)).eval())
