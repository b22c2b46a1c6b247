"""Folders of transformers for tests of the export: random models of two layers with a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.gguf.model_tensors import FolderTensors
from core.gguf.model_writer import GgufReport, plan_model, write_model
from tests.conftest import build_tiny_tokenizer
from tests.core.gguf.gguf_maker import build_model, sentencepiece_tokens


def save_model(
    folder: Path, family: str = "llama", tokenizer: Any = build_tiny_tokenizer, **changes: Any
) -> Any:
    """Saves a model of `gguf_maker.build_model` with a tokenizer; returns the model."""
    model = build_model(family, **changes)
    model.save_pretrained(folder)
    tokenizer(folder)
    return model


def write(folder: Path, path: Path, quantization: str = "F32", **more: Any) -> GgufReport:
    """Writes a folder as GGUF."""
    tensors = FolderTensors(folder)
    plan = plan_model(tensors, folder, quantization, more.pop("name", "Tiny"))
    return write_model(plan, tensors, path, "weights", **more)


def build_sentencepiece_tokenizer(folder: Path, **changes: Any) -> None:
    """Saves a tokenizer of characters, bytes and merges as a fast tokenizer of transformers.

    Args:
        changes: "normalizer" and "pre_tokenizer" of the library tokenizers, and `merges`, which returns the
            merges to use instead of all.
    """
    import transformers as hf
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    vocabulary = sentencepiece_tokens()
    ids = {token: i for i, token in enumerate(vocabulary["tokens"])}
    backend = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=list_all_merges(vocabulary),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = changes.get(
        "normalizer", normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    )
    if "pre_tokenizer" in changes:
        backend.pre_tokenizer = changes["pre_tokenizer"]
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = changes.get("template")
    fast.save_pretrained(folder)


def list_all_merges(vocabulary: dict[str, Any]) -> list[tuple[str, str]]:
    """Every pair of pieces that is a piece together, the best score first, as Llama 2 has them."""
    pieces = {t: i for i, t in enumerate(vocabulary["tokens"]) if vocabulary["types"][i] == 1}
    found = []
    for token, i in pieces.items():
        for cut in range(1, len(token)):
            if token[:cut] in pieces and token[cut:] in pieces:
                found.append((-vocabulary["scores"][i], i, cut, token[:cut], token[cut:]))
    return [(left, right) for *_, left, right in sorted(found)]


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value
