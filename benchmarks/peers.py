"""The work of the mixing benchmark: random bases and adapters, on our resident base and in peft."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoTokenizer, LlamaConfig, MistralConfig, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from core.model.base import EMBEDDED, Base, load_base
from core.model.mixing import Mixer
from core.model.nf4_cpu import Direct4bit
from core.model.resident import Resident
from core.store.workspace import Workspace

_TOKENS = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}


def shape(name: str, vocabulary: int = 8192) -> Any:
    """The config of a random base; 0.5b and 7b have the shapes of Qwen2.5, except for the vocabulary.

    Args:
        name: "tiny", "30m", "0.5b", "7b", or "mistral-7b".
    """
    if name == "tiny":
        sizes = {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 128,
        }
        return LlamaConfig(vocab_size=vocabulary, **sizes, **_TOKENS)
    if name == "mistral-7b":
        sizes = {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
        }
        return MistralConfig(
            vocab_size=vocabulary, sliding_window=None, **sizes, **{**_TOKENS, "tie_word_embeddings": False}
        )
    if name == "30m":
        sizes = {
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 1408,
        }
        return LlamaConfig(vocab_size=vocabulary, **sizes, **_TOKENS)
    if name == "0.5b":
        sizes = {
            "hidden_size": 896,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
        }
        return Qwen2Config(vocab_size=vocabulary, **sizes, **_TOKENS)
    sizes = {
        "hidden_size": 3584,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
    }
    return Qwen2Config(vocab_size=vocabulary, **sizes, **{**_TOKENS, "tie_word_embeddings": False})


def build(name: str, folder: Path, vocabulary: int = 8192) -> str:
    """Saves a random base with the tokenizer of the embedded base; returns the source for `load_base`."""
    if name == "embedded":
        return name
    target = folder / name
    if not target.exists():
        on_gpu = torch.cuda.is_available()
        torch.manual_seed(0)
        with torch.device("cuda" if on_gpu else "cpu"):
            model = AutoModelForCausalLM.from_config(
                shape(name, vocabulary), dtype=torch.bfloat16 if on_gpu else torch.float32
            )
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(target)
    return str(target)


def build_moe() -> Any:
    """A random mixture of experts: 4 layers of 32 experts, 4 of them active per token."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
    }
    return (
        AutoModelForCausalLM.from_config(
            AutoConfig.for_model("minimax_m2", vocab_size=1024, **sizes, **_TOKENS)
        )
        .eval()
        .requires_grad_(False)
    )


def build_moe_with_adapters(names: tuple[str, str]) -> tuple[Any, Mixer]:
    """The same with two random adapters on the experts, both active in peft."""
    model = build_moe()
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=[],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )
    wrapped = get_peft_model(model, config, adapter_name=names[0])
    wrapped.add_adapter(names[1], config)
    with torch.no_grad():
        for key, p in wrapped.named_parameters():
            if "lora_" in key:
                p.normal_(std=0.05)
    wrapped.eval()
    mixer = Mixer(model)
    mixer.update_layout()
    wrapped.base_model.set_adapter(list(names), inference_mode=True)
    return model, mixer


class EndlessBase(Base):
    """A base without an end-of-sequence token, so that all sides generate the same number of tokens."""

    @property
    def eos_ids(self) -> list[int]:
        return []


def load(source: str, quantization: str, device: str, folder: Path, plain: bool = False) -> Resident:
    """A resident base without adapters.

    Args:
        plain: use the 4-bit layers of bitsandbytes instead of ours.
    """
    base = load_base(source, quantization, device)
    return Resident(
        EndlessBase(
            **{**vars(base), "model": restore_bitsandbytes_layers(base.model) if plain else base.model}
        ),
        Workspace(folder / "workspace"),
    )


def restore_bitsandbytes_layers(model: Any) -> Any:
    """Replaces our 4-bit layers, which call the kernel directly, by those of bitsandbytes."""
    for module in model.modules():
        if type(module) is Direct4bit:
            module.__class__ = Linear4bit
    return model


@dataclass(frozen=True)
class RandomAdapters:
    """Random adapters on all linear layers of the family."""

    count: int
    rank: int = 16

    @property
    def names(self) -> list[str]:
        return [f"adapter-{i}" for i in range(self.count)]

    def config(self, base: Base) -> dict[str, Any]:
        return {
            "task_type": "CAUSAL_LM",
            "r": self.rank,
            "lora_alpha": 2 * self.rank,
            "target_modules": list(base.family.targets),
            "lora_dropout": 0.0,
        }

    def add_to(self, resident: Resident) -> Resident:
        """Adds the adapters to a resident base, with weights so large that every mix answers differently."""
        generator = torch.Generator().manual_seed(7)
        for name in self.names:
            resident.add_adapter(name, self.config(resident.base))
            resident.digests[name] = "random"
        with torch.no_grad():
            for key, p in sorted(resident.peft.named_parameters()):
                if "lora_" in key:
                    p.copy_(
                        torch.randn(p.shape, generator=generator)
                        * (0.5 / p.shape[1]) ** 0.5
                        / (2 if "lora_A" in key else 8)
                    )
        resident.update_layout()
        return resident


class Peer:
    """peft as documented: several active adapters with scales, and `generate` of transformers."""

    def __init__(self, ours: Resident, source: str) -> None:
        base = load_base(source, ours.base.quantization, str(ours.base.device))
        restore_bitsandbytes_layers(base.model)
        self.device = base.device
        self.names = list(ours.digests)
        self.model: PeftModel | None = None
        for name in self.names:
            c = ours.peft.peft_config[name]
            config = LoraConfig(
                task_type=c.task_type,
                r=c.r,
                lora_alpha=c.lora_alpha,
                target_modules=set(c.target_modules),
                lora_dropout=0.0,
            )
            if self.model is None:
                self.model = get_peft_model(base.model, config, adapter_name=name)
            else:
                self.model.add_adapter(name, config)
            set_peft_model_state_dict(
                self.model, get_peft_model_state_dict(ours.peft, adapter_name=name), adapter_name=name
            )
        self.model.eval()
        self.layers = [m for m in self.model.modules() if isinstance(m, LoraLayer)]

    def set_mix(self, weights: Mapping[str, float]) -> None:
        """Activates the adapters of a mix, with their scales."""
        self.model.base_model.set_adapter(list(weights), inference_mode=True)
        for layer in self.layers:
            for name, weight in weights.items():
                layer.set_scale(name, weight)

    @contextlib.contextmanager
    def active_mix(self, weights: Mapping[str, float]) -> Iterator[None]:
        """Activates a mix; for the base, peft's `disable_adapter`."""
        if not weights:
            with self.model.disable_adapter():
                yield
        else:
            self.set_mix(weights)
            yield

    def generate_ids(self, ids: list[int], weights: Mapping[str, float], tokens: int) -> list[int]:
        """Greedy token ids of one answer."""
        prompt = torch.tensor([ids], device=self.device)
        with self.active_mix(weights):
            out = self.model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return out[0, len(ids) :].tolist()

    def logits(self, ids: torch.Tensor, weights: Mapping[str, float]) -> torch.Tensor:
        """Logits (T, V) of one text (1, T)."""
        with torch.no_grad(), self.active_mix(weights):
            return self.model(ids).logits[0]


def weight_bytes(model: Any) -> int:
    """Bytes of weights that one decoding step reads: all but an untied input embedding."""
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    total = 0
    for module in model.modules():
        for p in module.parameters(recurse=False):
            if module is model.get_input_embeddings() and not tied:
                continue
            total += p.numel() * p.element_size()
            state = getattr(p, "quant_state", None)
            if state is not None:
                total += state.absmax.numel() * state.absmax.element_size()
    return total
