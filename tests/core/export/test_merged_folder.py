"""A merged folder answers as base and adapter do, in plain transformers, for every family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import BaseModelError, Cancelled, SpecError
from core.export.base_layout import BaseLayout, describe_layout
from core.export.merged_folder import count_weight_bytes, write_settings, write_weights
from core.export.merged_tensors import MergedTensors
from core.export.sources import ExportSource
from core.gguf.model_tensors import FolderTensors
from core.model.base import load_base
from core.model.families import FAMILIES
from core.model.generate import inference_mode_for
from core.model.resident import Resident
from core.spec.mix import Mix
from core.store.workspace import Workspace
from tests.core.export.makers import IDS, add_adapter, build_base, load_model, logits, peft_logits, read


def merge(source: ExportSource, folder: Path, precision: str = "f32", **options: Any) -> MergedTensors:
    folder.mkdir(exist_ok=True)
    tensors = MergedTensors(FolderTensors(source.layout.folder), source)
    write_weights(folder, tensors, "plan", precision, **options)
    write_settings(folder, tensors, source.layout, precision, source.stop_tokens)
    return tensors


def make(tmp_path: Path, family: str, **changes: Any) -> tuple[Workspace, BaseLayout]:
    base = build_base(tmp_path / "base", family, **changes)
    return Workspace(tmp_path / "ws"), describe_layout(str(base))


@pytest.mark.parametrize(
    ("family", "changes", "targets"),
    [
        *((family, {}, ()) for family in FAMILIES),
        ("llama", {"tie_word_embeddings": True}, ()),
        ("llama", {"tie_word_embeddings": True}, ("q_proj", "lm_head")),
        ("llama", {"tie_word_embeddings": False}, ("q_proj", "lm_head")),
        ("gemma2", {"tie_word_embeddings": True}, ("lm_head",)),
        ("gpt2", {}, ("lm_head", "c_attn")),
        ("t5", {}, ("lm_head", "q")),
        ("t5", {"tie_word_embeddings": False}, ("lm_head", "q")),
    ],
    ids=lambda v: "-".join(map(str, v.values() if isinstance(v, dict) else [v] if isinstance(v, str) else v)),
)
def test_merged_folder_equals_base_and_adapter(tmp_path, family, changes, targets) -> None:
    workspace, layout = make(tmp_path, family, **changes)
    add_adapter(workspace, layout, "law", targets=targets)
    tensors = merge(read(workspace, layout, {"law": 1.0}), tmp_path / "out")
    expected = peft_logits(layout.folder, workspace.path("adapters", "law"))
    found = logits(load_model(tmp_path / "out"))
    assert (found - expected).abs().max() < 1e-4
    assert (found - logits(load_model(layout.folder))).abs().max() > 0.1, "the adapter changes the answers"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    if "lm_head" in targets:
        assert config["tie_word_embeddings"] is False and "lm_head.weight" in tensors.shapes
    saved = load_file(tmp_path / "out" / "model.safetensors")
    base = load_file(layout.folder / "model.safetensors")
    changed = {n for n in saved if n not in base or not torch.equal(saved[n], base[n])}
    assert len(changed) == len(read(workspace, layout, {"law": 1.0}).modules)
    assert not [n for n in changed if n.endswith(".bias") or "norm" in n or "embed" in n]


def rename_tensors(folder: Path, rename: Any, drop: tuple[str, ...] = ()) -> None:
    file = folder / "model.safetensors"
    tensors = {rename(k): v for k, v in load_file(file).items() if k not in drop}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("targets", [(), ("c_attn", "lm_head")], ids=["", "head"])
def test_gpt2_files_may_leave_out_the_prefix(tmp_path, targets) -> None:
    base = build_base(tmp_path / "base", "gpt2")
    rename_tensors(base, lambda name: name.removeprefix("transformer."))
    workspace, layout = Workspace(tmp_path / "ws"), describe_layout(str(base))
    add_adapter(workspace, layout, "law", targets=targets)
    tensors = merge(read(workspace, layout, {"law": 1.0}), tmp_path / "out")
    assert "h.0.attn.c_attn.weight" in tensors.shapes
    found = logits(load_model(tmp_path / "out"))
    assert (found - peft_logits(base, workspace.path("adapters", "law"))).abs().max() < 1e-4


def test_masks_of_old_files_are_passed_over_and_quantized_weights_refused(tmp_path) -> None:
    workspace, layout = make(tmp_path, "gpt2")
    file = layout.folder / "model.safetensors"
    whole = load_file(file)
    masks = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.uint8),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    save_file({**whole, **masks}, file, metadata={"format": "pt"})
    layout = describe_layout(layout.name)
    add_adapter(workspace, layout, "law")
    tensors = merge(read(workspace, layout, {"law": 1.0}), tmp_path / "out")
    assert "transformer.h.0.attn.bias" not in tensors.shapes
    expected = peft_logits(layout.folder, workspace.path("adapters", "law"))
    assert (logits(load_model(tmp_path / "out")) - expected).abs().max() < 1e-4
    name = "transformer.h.0.mlp.c_fc.weight"
    save_file({**whole, name: whole[name].to(torch.int8)}, file, metadata={"format": "pt"})
    with pytest.raises(BaseModelError, match="values of the type I8"):
        FolderTensors(layout.folder)


def test_experts_of_minimax_keep_the_layout_of_its_files(tmp_path) -> None:
    workspace, layout = make(tmp_path, "minimax_m2")
    add_adapter(workspace, layout, "law")
    tensors = merge(read(workspace, layout, {"law": 1.0}), tmp_path / "out")
    assert tensors.shapes["model.layers.1.block_sparse_moe.experts.3.w2.weight"] == (32, 48)


def test_missing_tensors_are_refused_and_never_left_random(tmp_path) -> None:
    workspace, layout = make(tmp_path, "llama")
    add_adapter(workspace, layout, "law")
    source = read(workspace, layout, {"law": 1.0})
    rename_tensors(layout.folder, str, drop=("model.layers.1.self_attn.q_proj.weight",))
    with pytest.raises(BaseModelError, match=r"no tensor for model\.layers\.1\.self_attn\.q_proj\.weight"):
        MergedTensors(FolderTensors(layout.folder), source)


def test_updates_of_parameters_without_a_tensor_are_refused(tmp_path, monkeypatch) -> None:
    workspace, layout = make(tmp_path, "llama")
    add_adapter(workspace, layout, "law")
    source = read(workspace, layout, {"law": 1.0})
    whole = type(layout).map_tensors

    def fuse(self: BaseLayout, names: Any) -> Any:  # as if a tensor became several parameters
        return {
            n: (parameter, is_part or "q_proj" in n) for n, (parameter, is_part) in whole(self, names).items()
        }

    monkeypatch.setattr(type(layout), "map_tensors", fuse)
    with pytest.raises(BaseModelError, match="no tensor for model.layers.0.self_attn.q_proj alone"):
        MergedTensors(FolderTensors(layout.folder), source)


def test_shards_are_small_and_read_as_one_model(tmp_path) -> None:
    workspace, layout = make(tmp_path, "llama", tie_word_embeddings=True)
    add_adapter(workspace, layout, "law", targets=("q_proj", "lm_head"))
    source = read(workspace, layout, {"law": 1.0})
    reported: list[tuple[int, int]] = []
    tensors = merge(source, tmp_path / "out", shard_bytes=60_000, report=lambda *r: reported.append(r))
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) == 3 and files[0].name == "model-00001-of-00003.safetensors"
    assert all(f.stat().st_size < 65_000 for f in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors.shapes)
    assert index["metadata"]["total_size"] == count_weight_bytes(tensors, "f32")
    total = sum(f.stat().st_size for f in files)
    assert reported[-1] == (total, total) and reported == sorted(reported)
    expected = peft_logits(layout.folder, workspace.path("adapters", "law"))
    assert (logits(load_model(tmp_path / "out")) - expected).abs().max() < 1e-4


def test_stopped_merge_continues_to_the_same_bytes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("core.store.resumable_files.SYNC_BYTES", 1)
    monkeypatch.setattr("core.export.weight_files.CHUNK_VALUES", 2000)
    workspace, layout = make(tmp_path, "llama")
    add_adapter(workspace, layout, "law")
    source = read(workspace, layout, {"law": 1.0})
    merge(source, tmp_path / "whole", shard_bytes=60_000)
    stops = 0
    (tmp_path / "parts").mkdir()
    while True:
        countdown = iter([False] * (1 + stops % 7) + [True])
        try:
            merge(source, tmp_path / "parts", shard_bytes=60_000, poll_stop=lambda c=countdown: next(c))
            break
        except Cancelled:
            stops += 1
    assert stops > 8
    files = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "parts").iterdir())
    for name in files:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_mix_with_tilts_merges_as_the_studio_mixes(tmp_path) -> None:
    workspace, layout = make(tmp_path, "qwen2")
    add_adapter(workspace, layout, "law")
    add_adapter(workspace, layout, "chat", rank=2, rslora=True, targets=("q_proj", "down_proj"))
    mix = Mix(weights={"law": 0.7, "chat": -1.3}, tilt={"law": 0.5, "chat": -1.0})
    resident = Resident(load_base(layout.name, "none", "cpu"), workspace)
    resident.load_adapters([mix])

    def answer() -> torch.Tensor:
        with inference_mode_for(resident, resident.rows([mix])):
            return resident.base.model(IDS).logits[0].double().clone()

    before = answer()
    merge(read(workspace, layout, mix.weights, tilt=mix.tilt), tmp_path / "out")
    assert (logits(load_model(tmp_path / "out")) - before).abs().max() < 1e-4
    assert torch.equal(answer(), before), "the resident base is untouched"


def test_precision_of_the_base_is_kept_or_chosen(tmp_path) -> None:
    workspace, layout = make(tmp_path, "llama", dtype=torch.bfloat16)
    add_adapter(workspace, layout, "law")
    source = read(workspace, layout, {"law": 1.0})
    expected = peft_logits(layout.folder, workspace.path("adapters", "law"))
    differences = {}
    for precision, name in (("base", "bfloat16"), ("f32", "float32"), ("f16", "float16")):
        folder = tmp_path / f"out-{precision}"
        merge(source, folder, precision)
        config = json.loads((folder / "config.json").read_text())
        assert config["dtype"] == config["torch_dtype"] == name
        assert {str(t.dtype) for t in load_file(folder / "model.safetensors").values()} == {f"torch.{name}"}
        differences[precision] = float((logits(load_model(folder)) - expected).abs().max())
    assert differences["f32"] < 1e-4 < differences["f16"] < differences["base"] < 0.1, differences


def test_values_beyond_float16_are_refused(tmp_path) -> None:
    workspace, layout = make(tmp_path, "llama")
    file = layout.folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"][3] = 70_000.0
    save_file(tensors, file, metadata={"format": "pt"})
    layout = describe_layout(layout.name)
    add_adapter(workspace, layout, "law")
    with pytest.raises(SpecError, match="up to 7e.04, which float16 cannot hold") as caught:
        merge(read(workspace, layout, {"law": 1.0}), tmp_path / "out", "f16")
    assert caught.value.field == "precision"
    assert not (tmp_path / "out" / "model.safetensors").exists()
