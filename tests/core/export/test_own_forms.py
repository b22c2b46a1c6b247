"""Adapters that are more than products of two factors leave alone, and answer as in plain peft."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from core.errors import AdapterError, BaseModelError
from core.export.base_layout import BaseLayout, describe_layout
from core.export.peft_folder import write_peft_folder
from core.model.families import FAMILIES
from core.store import adapters
from core.store.workspace import Workspace
from tests.core.export.makers import add_adapter, build_base, load_model, logits, read
from tests.core.export.test_merged_folder import merge

TOKENS = {"model.embed_tokens": [40, 3, 9], "lm_head": [7, 3]}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("llama", {"use_dora": True}),
    "dora-gpt2": ("gpt2", {"use_dora": True, "fan_in_fan_out": True}),
    "head": ("llama", {"modules_to_save": ["lm_head", "model.norm"]}),
    "tied": ("mistral", {"modules_to_save": ["lm_head"]}),
    "tokens": ("llama", {"trainable_token_indices": TOKENS}),
    "experts": ("minimax_m2", {"target_parameters": ["mlp.experts.gate_up_proj"]}),
}


def make(tmp_path: Path, kind: str) -> tuple[Workspace, BaseLayout, torch.Tensor]:
    """An adapter that peft makes, in a library; and the logits of plain peft."""
    family, settings = KINDS[kind]
    changes = {"tie_word_embeddings": True} if kind == "tied" else {}
    base = build_base(tmp_path / "base", family, **changes)
    layout, workspace = describe_layout(str(base)), Workspace(tmp_path / "ws")
    options = {"r": 4, "lora_alpha": 8, "target_modules": list(FAMILIES[family].targets), **settings}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(load_model(base), LoraConfig(task_type="CAUSAL_LM", **options)).eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if p.requires_grad:
                    p.add_(torch.randn(p.shape, generator=generator) * 0.15)
        model.save_pretrained(tmp_path / "made")
        raw = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
        fields = ("peft_type", "task_type", "r", "lora_alpha", "use_dora", "fan_in_fan_out", *settings)
        config = {k: raw[k] for k in fields} | {"target_modules": sorted(raw["target_modules"])}
        data = (tmp_path / "made" / "adapter_model.safetensors").read_bytes()
        meta = {"kind": "task", "base": {"name": str(base), "fingerprint": layout.fingerprint}}
        adapters.add(workspace, "own", "own", lambda p: p.write_bytes(data) and None, config, meta)
        expected = logits(PeftModel.from_pretrained(load_model(base), str(tmp_path / "made")).eval())
    return workspace, layout, expected


@pytest.mark.parametrize("kind", KINDS)
def test_peft_folder_of_an_own_form_answers_as_peft(tmp_path, kind) -> None:
    workspace, layout, expected = make(tmp_path, kind)
    (tmp_path / "out").mkdir()
    write_peft_folder(tmp_path / "out", read(workspace, layout, {"own": 1.0}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(load_model(layout.folder), str(tmp_path / "out")).eval()
    assert (logits(model) - expected).abs().max() < 1e-5
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert "lora_dropout" not in config and None not in config.values()
    made, written = (load_file(tmp_path / f / "adapter_model.safetensors") for f in ("made", "out"))
    assert made.keys() == written.keys() and all(torch.equal(made[k].float(), written[k]) for k in made)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "experts"])
def test_merged_folder_of_an_own_form_answers_as_peft(tmp_path, kind) -> None:
    workspace, layout, expected = make(tmp_path, kind)
    merge(read(workspace, layout, {"own": 1.0}, form="merged"), tmp_path / "out", shard_bytes=40_000)
    found = logits(load_model(tmp_path / "out"))
    assert (found - expected).abs().max() < 1e-4
    assert (found - logits(load_model(layout.folder))).abs().max() > 0.1


def test_tokens_of_shared_weights_are_not_merged(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(KINDS, "x", ("mistral", {"trainable_token_indices": {"lm_head": [3]}}))
    workspace, layout, _ = make(tmp_path, "x")
    object.__setattr__(layout, "ties", {"lm_head.weight": "model.embed_tokens.weight"})
    with pytest.raises(BaseModelError, match="shares its weight"):
        merge(read(workspace, layout, {"own": 1.0}, form="merged"), tmp_path / "out")


def test_own_forms_in_a_mix_or_bundle_say_what_to_do(tmp_path) -> None:
    workspace, layout, _ = make(tmp_path, "dora")
    add_adapter(workspace, layout, "law")
    for weights, options in (
        ({"own": 0.5}, {}),
        ({"own": 1.0, "law": 1.0}, {}),
        ({"own": 1.0}, {"tilt": {"own": 1.0}}),
        ({"own": 1.0}, {"form": "bundle"}),
    ):
        with pytest.raises(AdapterError, match="a DoRA adapter.*exported alone") as caught:
            read(workspace, layout, weights, **options)
        assert "import it again" in caught.value.fix


def test_experts_are_exported_as_peft_only(tmp_path) -> None:
    workspace, layout, _ = make(tmp_path, "experts")
    for form in ("merged", "gguf"):
        with pytest.raises(AdapterError, match="trained on experts") as caught:
            read(workspace, layout, {"own": 1.0}, form=form)
        assert "Export it as PEFT" in caught.value.fix
