"""A PEFT folder answers as the studio does, in plain peft, and an old peft reads its configuration."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch
from safetensors.torch import load_file

from core.errors import AdapterError, Cancelled, SpecError
from core.export.base_layout import BaseLayout, describe_layout
from core.export.peft_folder import build_config, write_peft_folder
from core.export.provenance import write_all_checksums, write_records
from core.model.base import load_base
from core.model.generate import inference_mode_for
from core.model.resident import Resident
from core.spec.export import ExportSpec
from core.spec.mix import Mix
from core.store.adapter_files import verify_folder
from core.store.workspace import Workspace
from tests.core.export.makers import IDS, add_adapter, build_base, peft_logits, read

OLD_FIELDS = {  # of LoraConfig in peft 0.6
    "peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "r",
    "target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "modules_to_save",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
}  # fmt: skip


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, BaseLayout]:
    base = build_base(tmp_path_factory.mktemp("base"), "llama")
    workspace, layout = Workspace(tmp_path_factory.mktemp("ws")), describe_layout(str(base))
    add_adapter(workspace, layout, "law")
    add_adapter(workspace, layout, "odd", rank=6, alpha=9, rslora=True, targets=("q_proj", "lm_head"))
    patterns = {"rank_pattern": {}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}}
    add_adapter(workspace, layout, "pattern", targets=("q_proj", "v_proj"), config=patterns)
    return workspace, layout


def studio_logits(workspace: Workspace, layout: BaseLayout, mix: Mix) -> torch.Tensor:
    resident = Resident(load_base(layout.name, "none", "cpu"), workspace)
    resident.load_adapters([mix])
    with inference_mode_for(resident, resident.rows([mix])):
        return resident.base.model(IDS).logits[0].double()


@pytest.mark.parametrize(
    ("weights", "tilt"),
    [
        ({"law": 1.0}, {}),
        ({"odd": 1.0}, {}),
        ({"pattern": 1.0}, {}),
        ({"law": 0.7, "odd": -0.5, "pattern": 1.3}, {"law": 0.5, "odd": -1.0}),
        ({"law": 1.0, "odd": 0.0}, {"law": 1.0}),
    ],
    ids=str,
)
def test_plain_peft_gives_the_logits_of_the_studio(tmp_path, studio, weights, tilt) -> None:
    workspace, layout = studio
    write_peft_folder(tmp_path, read(workspace, layout, weights, tilt=tilt))
    expected = studio_logits(workspace, layout, Mix(weights=weights, tilt=tilt))
    assert (peft_logits(layout.folder, tmp_path) - expected).abs().max() < 1e-5
    assert verify_folder(tmp_path), "an exported folder passes the checks of the library"
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(config) <= OLD_FIELDS and not config.get("use_rslora")


def test_single_adapters_keep_their_factors_bit_by_bit(tmp_path, studio) -> None:
    workspace, layout = studio
    names = write_peft_folder(tmp_path, read(workspace, layout, {"odd": 1.0}), plain_copy=True)
    stored = load_file(workspace.path("adapters", "odd") / "adapter_model.safetensors")
    written = load_file(tmp_path / "adapter_model.safetensors")
    assert written.keys() == stored.keys() and all(torch.equal(written[k], stored[k]) for k in stored)
    assert sorted(names) == sorted(p.name for p in tmp_path.iterdir())
    assert (tmp_path / "adapter.safetensors").read_bytes() == (
        tmp_path / "adapter_model.safetensors"
    ).read_bytes()
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 6 and config["lora_alpha"] / 6 == pytest.approx(9 / 6**0.5, rel=1e-15)


def test_ranks_of_a_mix_are_stated_per_module(studio) -> None:
    workspace, layout = studio
    config = build_config(read(workspace, layout, {"law": 1.0, "odd": 1.0}))
    # lm_head has no pattern that peft 0.6 can match, so that its values are the common ones.
    assert (config["r"], config["lora_alpha"]) == (6, 6)
    ranks = config["rank_pattern"]
    assert ranks["layers.0.self_attn.q_proj"] == 10 and ranks["layers.1.mlp.down_proj"] == 4
    assert config["alpha_pattern"] == ranks
    assert config["target_modules"] == [
        "down_proj", "gate_proj", "k_proj", "lm_head", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip


def test_modules_of_one_name_that_are_not_adapted_get_whole_paths(studio) -> None:
    workspace, layout = studio
    source = read(workspace, layout, {"law": 1.0}, tilt={"law": 1.0})  # its weight is 0 in the first layer
    targets = build_config(source)["target_modules"]
    assert len(targets) == 7 and all(t.startswith("model.layers.1.") for t in targets)


def test_no_path_of_this_machine_leaves_in_an_export(tmp_path, studio) -> None:
    workspace, layout = studio
    write_peft_folder(tmp_path, read(workspace, layout, {"law": 1.0, "odd": 0.5}))
    for name in ("README.md", "adapter_config.json", "EXPERIMENT_METADATA.json"):
        assert str(layout.folder.parent) not in (tmp_path / name).read_text(), name
    metadata = json.loads((tmp_path / "EXPERIMENT_METADATA.json").read_text())
    assert [(p["name"], p["weight"]) for p in metadata["baked_from"]] == [("law", 1.0), ("odd", 0.5)]
    assert re.search(r"weight 0\.5", (tmp_path / "README.md").read_text())


def test_card_says_how_other_runtimes_use_the_folder(tmp_path, studio) -> None:
    workspace, layout = studio
    for weights, allowed, alpha in (({"odd": 1.0}, 8, "3.6742346142"), ({"law": 1.0, "odd": 0.5}, 16, "1")):
        write_peft_folder(tmp_path, read(workspace, layout, weights))
        card = (tmp_path / "README.md").read_text()
        assert f"--max-lora-rank {allowed} --lora-modules" in card
        assert f"AdapterConfig(adapter, {alpha})" in card
    write_peft_folder(tmp_path, read(workspace, layout, {"pattern": 1.0}))
    assert "scaling differs between the layers" in (tmp_path / "README.md").read_text()


def test_records_name_parents_and_hide_where_an_import_lay(tmp_path, studio) -> None:
    workspace, layout = studio
    add_adapter(
        workspace,
        layout,
        "task",
        imported={"source": "/home/me/private/task.zip", "tool": "peft"},
        stacked_on={"id": "law", "name": "law [1]"},
    )
    source = read(workspace, layout, {"task": 1.0})
    write_peft_folder(tmp_path, source)
    texts = [(tmp_path / n).read_text() for n in ("README.md", "EXPERIMENT_METADATA.json")]
    assert all("task" in t and "/home/me" not in t and "private" not in t for t in texts)
    write_records(tmp_path, source, "merged", ["Use it."], precision="bf16")
    card = (tmp_path / "README.md").read_text()
    assert r"on top of law \[1\], which is not in this export" in card and "Use it." in card
    both = read(workspace, layout, {"task": 1.0, "law": 1.0})
    write_records(tmp_path, both, "merged")
    assert "not in this export" not in (tmp_path / "README.md").read_text()
    (tmp_path / "ollama" / "x").mkdir(parents=True)
    (tmp_path / "ollama" / "x" / "Modelfile").write_text("FROM x")
    write_all_checksums(tmp_path)
    lines = (tmp_path / "checksums.txt").read_text().splitlines()
    digest = hashlib.sha256(b"FROM x").hexdigest()
    assert f"{digest}  ollama/x/Modelfile" in lines and len(lines) == 5


def test_stopped_export_continues_to_the_same_bytes(tmp_path, studio) -> None:
    workspace, layout = studio
    source = read(workspace, layout, {"law": 1.0})
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    write_peft_folder(whole, source)
    with pytest.raises(Cancelled):
        write_peft_folder(parts, source, poll_stop=iter([False] * 5 + [True]).__next__)
    assert not (parts / "adapter_model.safetensors").exists()
    write_peft_folder(parts, source)
    assert sorted(p.name for p in parts.iterdir()) == sorted(p.name for p in whole.iterdir())
    assert (parts / "adapter_model.safetensors").read_bytes() == (
        whole / "adapter_model.safetensors"
    ).read_bytes()


def test_what_cannot_be_exported_says_what_to_do(tmp_path, studio) -> None:
    workspace, layout = studio
    with pytest.raises(SpecError, match="at least one adapter"):
        read(workspace, layout, {"law": 0.0})
    assert len(read(workspace, layout, {"law": 0.0, "odd": 1.0}, form="bundle").parts) == 2
    other = describe_layout(str(build_base(tmp_path / "other", "llama", hidden_size=64)))
    with pytest.raises(AdapterError, match="was trained on"):
        read(workspace, other, {"law": 1.0})


def test_file_names_of_adapters_of_one_name_differ(studio) -> None:
    workspace, layout = studio
    source = read(workspace, layout, {"law": 1.0, "odd": 1.0}, form="bundle")
    assert [p.file_name for p in source.parts] == ["law", "odd"]
    assert ExportSpec(name=source.name).file_name == "My-mix"
