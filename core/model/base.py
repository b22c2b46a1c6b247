"""Loading a base model: embedded, a local folder, or a Hub id, in 4 bits where the device allows it.

Knows devices, quantisation and fingerprints. Knows nothing of adapters or training.
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

from core.errors import BaseModelError
from core.model import nf4_cpu
from core.model.experts import quantize_experts
from core.model.families import Family, family_of
from core.store.base_models import EMBEDDED as EMBEDDED  # those who load it find it here too
from core.store.base_models import locate as locate

logger = logging.getLogger(__name__)

FALLBACK_CONTEXT = 512  # tokens, where neither the config nor the tokenizer names a limit
SAMPLE_BYTES = 1 << 20  # read from each end of a large weight file for its fingerprint


@dataclass
class Base:
    """A resident base model.

    Attributes:
        name: what the user asked for ("embedded", a folder, a Hub id).
        model: the frozen transformers model, in eval mode.
        fingerprint: hex digest of the weights and config; the same for a copy in another place.
        quantization: "nf4", "int8" or "none".
        context: longest sequence in tokens; where an encoder reads and a decoder writes, of each.
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
    has_own_template: bool  # the tokenizer brought a chat template

    @property
    def eos_ids(self) -> list[int]:
        """Tokens that end an answer."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return sorted({i for i in (*ids, self.tokenizer.eos_token_id) if i is not None})


def choose_device(device: str = "auto") -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def fingerprint(folder: Path) -> str:
    """A digest of a model folder that does not depend on where it lies.

    Reads config.json and the ends and sizes of every safetensors file (files up to 2 MiB whole), so
    that a 100 GB model takes milliseconds.
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
    name: str = "embedded", quantization: str = "auto", device: str = "auto", sharded: bool = False
) -> Base:
    """Loads a base model, frozen and in eval mode.

    Args:
        name: "embedded", a local folder, or a Hub id.
        quantization: "nf4" (4 bits, double quantisation; works on the CPU too), "int8" (LLM.int8()), "none", or "auto":
            nf4 on a GPU, none on a CPU, where 4 bits save memory but cost speed.
        device: "auto", "cpu" or "cuda".
        sharded: it will be spread over processes: 4-bit weights are stored in the compute type, which is what FSDP can cut up.

    Raises:
        BaseModelError: not found, gated, offline, an unsupported architecture, or a broken folder.

    Source: QLoRA, Dettmers et al. 2023, arXiv 2305.14314 (nf4, double quantisation); Dettmers et al. 2022, arXiv 2208.07339 (int8).
    """
    source, local = locate(name)
    transformers_logging.disable_progress_bar()  # the page and the terminal show progress of their own
    place = choose_device(device)
    if quantization == "auto":
        quantization = "nf4" if place.type == "cuda" else "none"
    # fp32 is the fastest compute type on a CPU, also below nf4.
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    common: dict[str, Any] = {"trust_remote_code": False, "local_files_only": local}
    try:
        config = AutoConfig.from_pretrained(source, **common)
        family = family_of(config)
        _refuse_prequantized(name, config)
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
        auto = AutoModelForSeq2SeqLM if family.seq2seq else AutoModelForCausalLM
        model = auto.from_pretrained(
            source,
            dtype=dtype,
            device_map={"": place},
            attn_implementation=_attention(auto, config),
            use_safetensors=True,
            **common,
            **_quantised(quantization, dtype, sharded),
        )
        parameters = _count(model)
        if quantization == "nf4":
            quantize_experts(model)
            nf4_cpu.settle(model.eval())
    except BaseModelError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as e:
        raise _explained(name, local, e) from e
    model.eval().requires_grad_(False)
    has_own_template = bool(tokenizer.chat_template)
    if not has_own_template:
        tokenizer.chat_template = family.template
    if tokenizer.pad_token_id is None:  # batches mask by attention, never by this id
        tokenizer.pad_token = tokenizer.eos_token
    if family.seq2seq:
        tokenizer.decoder_start_token_id = model.config.decoder_start_token_id
    return Base(
        name=name,
        model=model,
        tokenizer=tokenizer,
        family=family,
        fingerprint=fingerprint(folder_of(source, local)),
        quantization=quantization,
        device=place,
        context=_context(config, tokenizer),
        parameters=parameters,
        has_own_template=has_own_template,
    )


def _quantised(quantization: str, dtype: torch.dtype, sharded: bool) -> dict[str, Any]:
    """What `from_pretrained` is told of a quantisation."""
    if quantization == "nf4":
        stored = {"bnb_4bit_quant_storage": dtype} if sharded else {}
        four = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            **stored,
        )
        return {"quantization_config": four}
    return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)} if quantization == "int8" else {}


def _attention(auto: Any, config: Any) -> str:
    """The attention kernel, always named by us and never by a config file; a few models (Gemma 2, with its capped scores) have only the plain one."""
    kind = auto._model_mapping.get(type(config), None)
    return "sdpa" if getattr(kind, "_supports_sdpa", True) else "eager"


def _context(config: Any, tokenizer: Any) -> int:
    """Longest sequence; T5 counts distances and names no limit, so what its tokenizer was made for counts."""
    named = getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0)
    return int(
        named or (tokenizer.model_max_length if tokenizer.model_max_length < 1 << 20 else FALLBACK_CONTEXT)
    )


def _refuse_prequantized(name: str, config: Any) -> None:
    """A checkpoint that is packed already cannot be packed again, nor can adapters be trained on all kinds of it.

    Raises:
        BaseModelError: with how to get a 16-bit copy of an fp8 one, as MiniMax-M2 is published.
    """
    quantized = getattr(config, "quantization_config", None) or {}
    method = (
        quantized.get("quant_method", "")
        if isinstance(quantized, dict)
        else str(getattr(quantized, "quant_method", ""))
    )
    if not method or "bitsandbytes" in method:
        return
    fix = "Choose a 16-bit version of the model: adapters are trained on that, in 4 bits."
    if "fp8" in method:
        fix = (
            "Its weights are 8-bit numbers with scales, which 4 bits cannot be made of. Write a 16-bit copy once (twice the size of the download) with transformers: "
            f"AutoModelForCausalLM.from_pretrained({name!r}, quantization_config=FineGrainedFP8Config(dequantize=True), dtype='bfloat16').save_pretrained(folder), "
            "save the tokenizer beside it, and choose that folder."
        )
    raise BaseModelError(f"{name!r} is already quantised ({method}).", fix)


def folder_of(source: str, local: bool) -> Path:
    """Where the files of what `locate` found lie on this machine."""
    if local:
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(source, local_files_only=True, allow_patterns=["config.json", "*.safetensors"])
    )


def _count(model: Any) -> int:
    """Parameters of the model as they were before packing into 4 bits."""
    total = 0
    for p in model.parameters():
        state = getattr(p, "quant_state", None)
        total += state.shape.numel() if state is not None else p.numel()
    return total


def _explained(name: str, local: bool, error: Exception) -> BaseModelError:
    """What a loading error of the libraries means; never contains a token, because they never print it."""
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
