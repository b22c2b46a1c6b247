"""Loading a base model: the embedded one, a local folder or a Hub id, in 4 bits where the device allows it.

Devices, quantization and fingerprints are handled here; `core.store.base_models` finds and downloads bases.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
)
from transformers.utils import logging as transformers_logging

from core.data.tokens.template_review import TemplateReview
from core.errors import BaseModelError
from core.model import nf4_cpu
from core.model.experts import quantize_experts
from core.model.families import Family, family_of
from core.model.template_choice import choose_template
from core.model.token_ids import check_config, complete_tokenizer, read_ids
from core.store.base_models import EMBEDDED as EMBEDDED  # re-exported for callers of `load_base`
from core.store.base_models import locate as locate
from core.store.workspace import Workspace

logger = logging.getLogger(__name__)

FALLBACK_CONTEXT = 512  # tokens, where neither the config nor the tokenizer has a limit
SAMPLE_BYTES = 1 << 20  # read from each end of a large weight file for its fingerprint


@dataclass
class Base:
    """A resident base model.

    Attributes:
        name: as the user gave it ("embedded", a folder, a Hub id).
        model: the frozen transformers model, in eval mode.
        fingerprint: hex digest of weights and config; a copy in another folder has the same.
        quantization: "nf4", "int8" or "none".
        context: longest sequence in tokens; of an encoder-decoder base, on each side.
        parameters: how many the model has, before quantization.
        has_own_template: whether the tokenizer came with a chat template.
        packed: 8-bit weights for answers (`core.model.fast_layers.PackedBase`), or None.
    """

    name: str
    model: Any
    tokenizer: Any
    family: Family
    fingerprint: str
    quantization: str
    device: torch.device
    context: int
    parameters: int
    has_own_template: bool
    template: TemplateReview = TemplateReview()
    packed: Any = None

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end an answer."""
        ids = read_ids(self.model.generation_config, "eos_token_id")
        return sorted({*ids, *read_ids(self.tokenizer, "eos_token_id")})


def choose_device(device: str = "auto") -> torch.device:
    """Returns the device to load on; "auto" is the first CUDA device if there is one, otherwise the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def fingerprint(folder: Path) -> str:
    """Returns a hex digest of a model folder that does not depend on its path.

    It covers config.json, and the size, first MiB and last MiB of every safetensors file (files up to 2 MiB
    completely), so a model of 100 GB takes milliseconds.
    """
    sha = hashlib.sha256()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for volatile in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        config.pop(volatile, None)
    sha.update(json.dumps(config, sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        sha.update(f"{file.name}:{size}".encode())
        with open(file, "rb") as f:
            sha.update(f.read(SAMPLE_BYTES))
            f.seek(max(f.tell(), size - SAMPLE_BYTES))
            sha.update(f.read(SAMPLE_BYTES))
    return sha.hexdigest()


def load_base(
    name: str = "embedded",
    quantization: str = "auto",
    device: str = "auto",
    sharded: bool = False,
    workspace: Workspace | None = None,
) -> Base:
    """Loads a base model, frozen and in eval mode.

    Args:
        name: "embedded", a local folder, or a Hub id.
        quantization: "nf4" (4 bits with double quantization; works on a CPU too), "int8" (LLM.int8()),
            "none", or "auto": nf4 on a GPU, none on a CPU, where 4 bits save memory but cost speed.
        device: "auto", "cpu" or "cuda".
        sharded: whether FSDP will shard the model. 4-bit weights are then stored in the compute type, because
            FSDP shards floating-point tensors only.
        workspace: knows whether a chat template that differs from the family's is accepted.

    Raises:
        BaseModelError: not found, gated, offline, an unsupported architecture, or a damaged folder.

    Sources: QLoRA, Dettmers et al. 2023, arXiv 2305.14314 (nf4, double quantization); LLM.int8(),
    Dettmers et al. 2022, arXiv 2208.07339 (int8).

    Example:
        >>> base = load_base("embedded", quantization="nf4", device="cpu")
        >>> base.model.generate(**base.tokenizer("The red lamp", return_tensors="pt"))
    """
    source, local = locate(name)
    transformers_logging.disable_progress_bar()  # the page and the terminal show their own progress
    torch_device = choose_device(device)
    if quantization == "auto":
        quantization = "nf4" if torch_device.type == "cuda" else "none"
    # On a CPU fp32 is the fastest compute type, for nf4 too.
    dtype = torch.bfloat16 if torch_device.type == "cuda" else torch.float32
    common: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local}
    try:
        config = AutoConfig.from_pretrained(source, **common)
        family = family_of(config)
        _refuse_quantized_checkpoint(name, config)
        _refuse_foreign_kernel(name, config)
        check_config(name, config)
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
        auto = AutoModelForSeq2SeqLM if family.seq2seq else AutoModelForCausalLM
        kernel = _attention_kernel(auto, config)
        # The setting of a config would win over the argument alone.
        config._attn_implementation = kernel
        model = auto.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            device_map={"": torch_device},
            attn_implementation=kernel,
            use_safetensors=True,
            **common,
            **_quantization_arguments(quantization, dtype, sharded),
        )
        parameters = _count_parameters(model)
        if quantization == "nf4":
            quantize_experts(model)
            nf4_cpu.round_trip(model.eval())
        template, has_own_template = choose_template(
            tokenizer, family, workspace, lambda: fingerprint(folder_of(source, local))
        )
        if not has_own_template:
            tokenizer.chat_template = family.template_for(tokenizer)
        complete_tokenizer(name, tokenizer, model, family.seq2seq)
    except BaseModelError:
        raise
    except Exception as e:  # whatever a damaged folder makes the libraries raise
        raise _to_base_model_error(name, local, e) from e
    model.eval().requires_grad_(False)
    return Base(
        name=name,
        model=model,
        tokenizer=tokenizer,
        family=family,
        fingerprint=fingerprint(folder_of(source, local)),
        quantization=quantization,
        device=torch_device,
        context=_context_length(config, tokenizer),
        parameters=parameters,
        has_own_template=has_own_template,
        template=template,
    )


def _quantization_arguments(quantization: str, dtype: torch.dtype, sharded: bool) -> dict[str, Any]:
    """The arguments of `from_pretrained` that quantize."""
    if quantization == "nf4":
        storage = {"bnb_4bit_quant_storage": dtype} if sharded else {}
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            **storage,
        )
        return {"quantization_config": config}
    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)} if quantization == "int8" else {}


def _attention_kernel(auto: Any, config: Any) -> str:
    """The attention implementation: sdpa, or eager for models that it does not support.

    It is always passed, so that a config file cannot choose one.
    """
    kind = auto._model_mapping.get(type(config), None)
    return "sdpa" if getattr(kind, "_supports_sdpa", True) else "eager"


def _refuse_foreign_kernel(name: str, config: Any) -> None:
    """Checks that a config names no attention kernel of the Hub: code that would be downloaded and run.

    Raises:
        BaseModelError: it does, at any level.
    """
    configs = [config, *(getattr(config, key, None) for key in getattr(config, "sub_configs", ()))]
    for part in configs:
        kernel = getattr(part, "_attn_implementation", None)
        named = kernel.values() if isinstance(kernel, dict) else [kernel]
        for text in named:
            if isinstance(text, str) and "/" in text:
                raise BaseModelError(
                    f"The config of {name!r} names the kernel {text[:80]!r}, which is code of the Hub.",
                    "Remove attn_implementation from its config.json.",
                )


def _context_length(config: Any, tokenizer: Any) -> int:
    """The longest sequence in tokens. A model with relative positions has a limit only in its tokenizer."""
    limit = getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0)
    if limit:
        return int(limit)
    return int(tokenizer.model_max_length if tokenizer.model_max_length < 1 << 20 else FALLBACK_CONTEXT)


def _refuse_quantized_checkpoint(name: str, config: Any) -> None:
    """Checks that a checkpoint is not quantized: it could not be quantized again, nor always be trained on.

    Raises:
        BaseModelError: it is quantized. For fp8, the fix says how to write a 16-bit copy.
    """
    quantized = getattr(config, "quantization_config", None) or {}
    method = (
        quantized.get("quant_method", "")
        if isinstance(quantized, dict)
        else str(getattr(quantized, "quant_method", ""))
    )
    if not method or "bitsandbytes" in method:
        return
    fix = "Choose a 16-bit version of the model; adapters are trained on it in 4 bits."
    if "fp8" in method:
        fix = (
            "fp8 weights cannot be quantized to 4 bits. Write a 16-bit copy once (twice the size of the "
            f"download) with transformers: AutoModelForCausalLM.from_pretrained({name!r}, "
            "quantization_config=FineGrainedFP8Config(dequantize=True), dtype='bfloat16')"
            ".save_pretrained(folder), save the tokenizer to the same folder, and choose that folder."
        )
    raise BaseModelError(f"{name!r} is already quantized ({method}).", fix)


def folder_of(source: str, local: bool) -> Path:
    """Returns the local folder of a base that `locate` has found; for a Hub id, its snapshot in the cache."""
    if local:
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(source, local_files_only=True, allow_patterns=["config.json", "*.safetensors"])
    )


def _count_parameters(model: Any) -> int:
    """Counts the model's parameters as before quantization."""
    total = 0
    for p in model.parameters():
        state = getattr(p, "quant_state", None)
        total += state.shape.numel() if state is not None else p.numel()
    return total


def _to_base_model_error(name: str, local: bool, error: Exception) -> BaseModelError:
    """Converts a loading error of the libraries. Their messages never contain the Hub token."""
    text = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    if local:
        return BaseModelError(
            f"{name!r} could not be loaded ({text}).",
            "The folder needs config.json, a tokenizer and *.safetensors weights.",
        )
    if "gated" in text.lower() or "401" in text or "403" in text:
        return BaseModelError(
            f"{name!r} is gated.",
            "Ask for access on its Hub page, then log in with `hf auth login` or set HF_TOKEN.",
        )
    return BaseModelError(
        f"{name!r} could not be loaded from the Hub ({text}).",
        "Check the id and the network, or give a local folder.",
    )
