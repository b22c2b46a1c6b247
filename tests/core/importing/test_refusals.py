"""What cannot be imported is refused with a reason and what to do, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from core.engine import Engine
from core.errors import AdapterError, BaseModelError, DataError, DiskFull, NotFound, StorageError, StudioError
from core.importing.templates import render
from core.model.generate import inference_mode_for
from core.spec.mix import Mix
from core.store import files
from tests.core.importing.makers import (
    PREFIX,
    build_tiny_experts,
    make_gguf,
    make_peft,
    read_config,
    write_config,
)

LAYER = "model.layers.{}.self_attn.q_proj"
IDS = torch.tensor([[5, 9, 40, 77]])
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def factors(rank: int = 2, width: int = 64, layers: int = 2) -> dict[str, torch.Tensor]:
    """The tensors of an adapter on the queries of the tiny Llama."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"{PREFIX}{LAYER.format(i)}.lora_{part}.weight": torch.randn(shape, generator=generator) * 0.2
        for i in range(layers)
        for part, shape in (("A", (rank, width)), ("B", (width, rank)))
    }


def put(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(factors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), "none", "cpu") as made:
        made.bases.current(wait=True)
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "made"


@pytest.fixture(autouse=True)
def nothing_is_left(engine: Engine) -> Iterator[None]:
    """Neither drafts nor temporary folders, after whatever a test does."""
    yield
    for adapter in engine.library.adapters():
        engine.workspace.delete("adapters", adapter.id)
    root = engine.workspace.root
    assert not [p for kind in ("adapters", "exports") for p in (root / kind).glob(".*.partial")]


def logits(engine: Engine) -> torch.Tensor:
    def work() -> torch.Tensor:
        resident = engine.resident_base.get()
        with inference_mode_for(resident, resident.rows([Mix()])):
            values: torch.Tensor = resident.model(input_ids=IDS).logits
            return values

    return engine.worker.call(work)


def open_findings(engine: Engine, source: Path, *repairs: str) -> dict[str, tuple[str, ...]]:
    """Finding -> its repairs, for what blocks the import."""
    preflight = engine.adapter_imports.examine(str(source), repairs)
    return {f.id: tuple(r.id for r in f.repairs) for f in preflight.open_findings}


def test_an_import_leaves_the_resident_model_bit_equal(engine: Engine, folder: Path) -> None:
    before = logits(engine)
    adapter = engine.adapter_imports.add(str(put(folder)), "Style")
    assert torch.equal(logits(engine), before)
    assert engine.worker.call(lambda: engine.resident_base.get().digests) == {}
    assert adapter.name == "Style"
    assert adapter.base_fingerprint == engine.resident_base.info.fingerprint
    assert engine.library.verify(adapter.id)
    assert [a.fits for a in engine.library.mixable_adapters()] == [True]


def test_only_weights_and_a_new_configuration_are_stored(engine: Engine, folder: Path) -> None:
    put(
        folder,
        auto_mapping={"x": "y"},
        base_model_name_or_path="/home/me/gone",
        lora_dropout=0.3,
        revision=None,
    )
    (folder / "training_args.bin").write_bytes(b"pickled")
    (folder / "code.py").write_text("raise SystemExit")
    adapter = engine.adapter_imports.add(str(folder))
    stored = engine.workspace.path("adapters", adapter.id)
    assert {p.name for p in stored.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "EXPERIMENT_METADATA.json", "checksums.txt",
        "README.md",
    }  # fmt: skip
    config = json.loads((stored / "adapter_config.json").read_text())
    assert config["target_modules"] == [LAYER.format(0), LAYER.format(1)]
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 4.0, 0.0)
    assert not {"auto_mapping", "revision", "base_model_name_or_path"} & set(config)
    assert "gone" not in (stored / "README.md").read_text()
    origin = adapter.metadata["imported"]
    assert (origin["tool"], origin["claimed_base"]) == ("PEFT", "/home/me/gone")


def test_a_preflight_card_has_the_numbers_of_the_file(engine: Engine, folder: Path) -> None:
    card = engine.adapter_imports.examine(str(put(folder, peft_version="0.19.0", use_rslora=True)))
    assert (card.tool, card.form, card.ranks, card.modules, card.layers) == (
        "PEFT (peft 0.19.0)",
        "PEFT",
        (2,),
        2,
        2,
    )
    assert card.scalings == (pytest.approx(4 / 2**0.5, abs=1e-6),)
    assert (card.parameters, card.targets, card.properties) == (512, ("self_attn.q_proj",), ("rsLoRA",))
    assert card.can_import


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "IA3": ({"peft_type": "IA3"}, "kind"),
    "a start that needs data": ({"init_lora_weights": "corda"}, "start"),
    "random projections": ({"init_lora_weights": "pissa_niter_16"}, "start"),
    "activated LoRA": ({"alora_invocation_tokens": [1, 2]}, "variant"),
    "QALoRA": ({"use_qalora": True}, "variant"),
    "a setting of the future": ({"use_more_magic": True}, "variant"),
    "layers that are repeated": ({"layer_replication": [[0, 2], [1, 2]]}, "layer-replication"),
    "another base by name": ({"base_model_name_or_path": "x/other-7B"}, "claimed-base"),
    "alpha that is not a number": ({"lora_alpha": "16"}, "no-alpha"),
    "alpha of zero": ({"lora_alpha": 0}, "alpha"),
    "a rule that takes long": ({"alpha_pattern": {"(ab)*": 3}}, "alpha-rules"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_changes_the_sum_is_refused(
    name: str, engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, finding = REFUSED[name]
    if finding == "claimed-base":
        monkeypatch.setattr(engine.worker.call(engine.resident_base.get).base, "name", "x/this-7B")
    put(folder, **settings)
    assert finding in open_findings(engine, folder)
    with pytest.raises(AdapterError, match="was not imported") as e:
        engine.adapter_imports.add(str(folder))
    assert e.value.fix
    assert engine.library.adapters() == []


def with_extra(name: str, *shape: int) -> dict[str, torch.Tensor]:
    return {**factors(), f"{PREFIX}{name}": torch.ones(shape)}


EXTRAS: dict[str, tuple[dict[str, torch.Tensor], str, str]] = {
    "a trained head": (with_extra("lm_head.weight", 384, 64), "trained-copies", "drop-copies"),
    "modules_to_save": (
        with_extra("model.embed_tokens.modules_to_save.default.weight", 384, 64), "trained-copies",
        "drop-copies"),
    "single tokens": (
        with_extra("model.embed_tokens.token_adapter.trainable_tokens_delta", 2, 64), "trained-copies",
        "drop-copies"),
    "a vocabulary of another size": (with_extra("lm_head.weight", 386, 64), "trained-copies", "drop-copies"),
    "biases": (with_extra("model.layers.0.self_attn.q_proj.bias", 64), "bias", "drop-biases"),
    "biases of factors": (
        with_extra("model.layers.0.self_attn.q_proj.lora_B.bias", 64), "bias", "drop-biases"),
    "an embedding": (with_extra("model.embed_tokens.lora_embedding_A", 2, 384), "layer-kind", "drop-layers"),
    "a norm": (
        {**factors(), f"{PREFIX}model.norm.lora_A.weight": torch.ones(2, 64),
         f"{PREFIX}model.norm.lora_B.weight": torch.ones(64, 2)}, "layer-kind", "drop-layers"),
    "a head of another size": (
        {**factors(), f"{PREFIX}lm_head.lora_A.weight": torch.ones(2, 64),
         f"{PREFIX}lm_head.lora_B.weight": torch.ones(386, 2)}, "vocabulary", "drop-layers"),
}  # fmt: skip


USABLE = ("a trained head", "modules_to_save", "a vocabulary of another size")


@pytest.mark.parametrize("name", EXTRAS)
def test_a_part_that_cannot_be_mixed_is_named_and_can_be_left_out(
    name: str, engine: Engine, folder: Path
) -> None:
    tensors, finding, repair = EXTRAS[name]
    put(folder, tensors)
    also = ("use-alone",) if name in USABLE else ()
    assert open_findings(engine, folder) == {finding: (repair, *also)}
    with pytest.raises(AdapterError):
        engine.adapter_imports.add(str(folder))
    adapter = engine.adapter_imports.add(str(folder), repairs=[repair])
    stored = load_file(engine.workspace.path("adapters", adapter.id) / "adapter_model.safetensors")
    assert stored.keys() == factors().keys()
    assert adapter.metadata["imported"]["repairs"] == [repair]


def test_the_sizes_of_two_vocabularies_are_named(engine: Engine, folder: Path) -> None:
    preflight = engine.adapter_imports.examine(str(put(folder, with_extra("lm_head.weight", 386, 64))))
    assert "386 against 384 tokens" in preflight.open_findings[0].what


def test_another_base_of_the_same_shape_needs_a_choice(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident = engine.worker.call(engine.resident_base.get)
    monkeypatch.setattr(resident.base, "name", "x/Tiny-1B")
    put(folder, base_model_name_or_path="unsloth/tiny-1b-bnb-4bit")
    assert open_findings(engine, folder) == {}  # a copy of the same model
    put(folder, base_model_name_or_path="x/Small-1B")
    assert open_findings(engine, folder) == {"claimed-base": ("use-base",)}
    adapter = engine.adapter_imports.add(str(folder), repairs=["use-base"])
    assert adapter.base == "x/Tiny-1B"


def test_alpha_can_be_chosen_where_no_configuration_is(engine: Engine, folder: Path) -> None:
    put(folder)
    (folder / "adapter_config.json").unlink()
    assert open_findings(engine, folder) == {"no-alpha": ("alpha-rank", "alpha-twice")}
    assert engine.adapter_imports.add(str(folder), repairs=["alpha-rank"]).alpha == 2
    assert engine.adapter_imports.add(str(folder), repairs=["alpha-twice"]).alpha == 4


def test_both_readings_of_an_early_mlx_file_can_be_chosen(engine: Engine, folder: Path) -> None:
    folder.mkdir()
    parts = {"A": "lora_a", "B": "lora_b"}
    tensors = {
        f"{LAYER.format(0)}.{parts[p]}": factors()[f"{PREFIX}{LAYER.format(0)}.lora_{p}.weight"]
        .t()
        .contiguous()
        for p in "AB"
    }
    save_file(tensors, folder / "adapters.safetensors")
    settings = {"rank": 2, "alpha": 16, "scale": 10.0}
    (folder / "adapter_config.json").write_text(
        json.dumps({"fine_tune_type": "lora", "lora_parameters": settings})
    )
    assert open_findings(engine, folder) == {"mlx-scale": ("mlx-scale", "mlx-alpha")}
    assert engine.adapter_imports.add(str(folder), repairs=["mlx-scale"]).alpha == 20
    assert engine.adapter_imports.add(str(folder), repairs=["mlx-alpha"]).alpha == 160


def spoil(tensors: dict[str, torch.Tensor], value: float) -> dict[str, torch.Tensor]:
    next(iter(tensors.values()))[0, 0] = value
    return tensors


DAMAGED: dict[str, tuple[dict[str, torch.Tensor], str, str]] = {
    "NaN": (spoil(factors(), float("nan")), "not-finite", "NaN"),
    "infinite": (spoil(factors(), float("inf")), "not-finite", "infinite"),
    "a missing factor": (dict(list(factors().items())[:3]), "missing-factor", "missing in"),
    "a huge rank": (factors(rank=1025), "rank", "1,025"),
    "another width": (factors(width=32), "other-base", "64 x 64"),
    "more layers": (factors(layers=4), "other-base", "Only some"),
    "two ranks in one layer": (
        {**factors(), f"{PREFIX}{LAYER.format(1)}.lora_B.weight": torch.ones(64, 3)}, "damaged", "different"),
    "DoRA without its magnitudes": (factors(), "damaged", "magnitude"),
    "no factors": ({"model.norm.bias": torch.ones(64)}, "no-factors", "no low-rank"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_or_foreign_file_is_refused_without_a_way_around(
    name: str, engine: Engine, folder: Path
) -> None:
    tensors, finding, words = DAMAGED[name]
    put(folder, tensors, **({"use_dora": True} if "DoRA" in name else {}))
    found = engine.adapter_imports.examine(str(folder)).open_findings[0]
    assert (found.id, found.repairs) == (finding, ())
    assert words in found.what
    assert found.follows


def test_an_adapter_of_zeros_is_named(engine: Engine, folder: Path) -> None:
    put(folder, {k: torch.zeros_like(v) if "_B" in k else v for k, v in factors().items()})
    findings = engine.adapter_imports.examine(str(folder)).findings
    assert [(f.id, f.level) for f in findings] == [("no-effect", "warns")]


def test_a_file_that_was_cut_off_is_refused(engine: Engine, folder: Path) -> None:
    file = put(folder) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="damaged: it is not a complete safetensors file"):
        engine.adapter_imports.examine(str(folder))


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe{}", b""])
def test_a_configuration_that_cannot_be_read_is_refused(content: bytes, engine: Engine, folder: Path) -> None:
    (put(folder) / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match="adapter_config.json cannot be read"):
        engine.adapter_imports.examine(str(folder))


def test_a_path_without_an_adapter_says_what_to_give(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="There is nothing at"):
        engine.adapter_imports.examine(str(tmp_path / "gone"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match="holds no adapter that can be read"):
        engine.adapter_imports.examine(str(tmp_path / "empty"))
    (tmp_path / "notes.txt").write_text("no adapter")
    with pytest.raises(AdapterError, match="is not a file of an adapter"):
        engine.adapter_imports.examine(str(tmp_path / "notes.txt"))
    put(tmp_path / "two" / "a")
    put(tmp_path / "two" / "b")
    with pytest.raises(AdapterError, match="several adapters: 'a', 'b'"):
        engine.adapter_imports.examine(str(tmp_path / "two"))


def test_a_folder_with_an_adapter_and_a_base_gives_the_adapter(engine: Engine, folder: Path) -> None:
    put(folder)
    save_file({"model.norm.weight": torch.ones(64)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    assert engine.adapter_imports.examine(str(folder)).modules == 2


def pack(path: Path, members: dict[str, bytes], link: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in members.items():
            z.writestr(name, content)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            z.writestr(info, "/etc/hostname")
    return path


def adapter_bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in put(folder).iterdir()}


def test_a_zip_file_gives_its_adapter_and_nothing_else(engine: Engine, folder: Path, tmp_path: Path) -> None:
    members = {f"run/{n}": b for n, b in adapter_bytes(folder).items()}
    file = pack(tmp_path / "my run.zip", {**members, "run/": b"", "../up.txt": b"x", "run/a.py": b"x"})
    adapter = engine.adapter_imports.add(str(file))
    assert (adapter.name, adapter.rank) == ("my run", 2)


def test_zip_files_that_break_a_rule_are_refused(engine: Engine, folder: Path, tmp_path: Path) -> None:
    members = adapter_bytes(folder)
    broken = {
        "is a link": pack(tmp_path / "link.zip", members, "run/linked"),
        "is not allowed": pack(tmp_path / "up.zip", {"/adapter_model.safetensors": b"x"}),
        "compression ratio": pack(
            tmp_path / "bomb.zip", {**members, "adapter_config.json": b" " * (3 << 20)}
        ),
    }
    for words, file in broken.items():
        with pytest.raises(DataError, match=words):
            engine.adapter_imports.examine(str(file))
    (tmp_path / "no.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="cannot be read as a zip file"):
        engine.adapter_imports.examine(str(tmp_path / "no.zip"))
    assert not (tmp_path / "up.txt").exists()


def test_a_pickled_file_of_another_kind_is_not_loaded(engine: Engine, folder: Path) -> None:
    put(folder)
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(AdapterError, match="saved by a version of torch before 1.6"):
        engine.adapter_imports.examine(str(folder))


def test_a_full_disk_leaves_nothing(engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(folder)
    monkeypatch.setattr(files, "MARGIN_BYTES", 1 << 62)
    with pytest.raises(DiskFull, match="The disk is full"):
        engine.adapter_imports.add(str(folder))
    assert engine.library.adapters() == []


def test_without_a_base_nothing_is_examined(folder: Path, tmp_path: Path) -> None:
    with Engine(tmp_path / "ws", load=False) as idle, pytest.raises(BaseModelError):
        idle.adapter_imports.examine(str(put(folder)))


def test_a_name_that_is_not_allowed_is_refused_first(engine: Engine, folder: Path) -> None:
    with pytest.raises(StudioError, match="is not allowed"):
        engine.adapter_imports.add(str(put(folder)), "a/b")


def test_links_and_special_files_are_not_read(engine: Engine, folder: Path) -> None:
    put(folder)
    os.mkfifo(folder / "README.md")
    assert engine.adapter_imports.examine(str(folder)).can_import


def test_a_stop_token_is_added_only_to_answers_of_its_adapter(engine: Engine, folder: Path) -> None:
    put(folder, {k: torch.zeros_like(v) for k, v in factors().items()})
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|user|>"}}))
    findings = {f.id: f for f in engine.adapter_imports.examine(str(folder)).findings}
    assert [r.id for r in findings["stop-token"].repairs] == ["add-stop"]
    plain = engine.adapter_imports.add(str(folder))
    stopped = engine.adapter_imports.add(str(folder), repairs=["add-stop"])
    mixes = [
        Mix(),
        Mix(weights={plain.id: 1.0}),
        Mix(weights={stopped.id: 1.0}),
        Mix(weights={stopped.id: 0.0}),
    ]

    def work() -> tuple[list[frozenset[int]], list[str]]:
        resident = engine.resident_base.get()
        resident.load_adapters(mixes)
        return [resident.find_stop_ids(m) for m in mixes], resident.base.tokenizer.convert_ids_to_tokens([2])

    stops, token = engine.worker.call(work)
    assert token == ["<|user|>"]
    assert stops == [frozenset(), frozenset(), frozenset({2}), frozenset()]


def test_a_stop_token_that_the_base_lacks_is_named(engine: Engine, folder: Path) -> None:
    put(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|elsewhere|>"}))
    (finding,) = engine.adapter_imports.examine(str(folder)).findings
    assert (finding.id, finding.level, finding.repairs) == ("stop-token", "warns", ())
    assert "no such token" in finding.follows


def test_a_template_of_its_own_is_tried_in_the_proof(engine: Engine, folder: Path) -> None:
    put(folder)
    (folder / "chat_template.jinja").write_text("Q: {{ messages[0]['content'] }} A:")
    (finding,) = engine.adapter_imports.examine(str(folder)).findings
    assert finding.id == "prompt-form"
    adapter = engine.adapter_imports.add(str(folder))
    proof = engine.adapter_imports.prove(adapter.id, "Where is the red lamp?")
    assert [f.form for f in proof.forms][:2] == ["the base's template", "the template in its folder"]
    assert sum(f.is_preferred for f in proof.forms) == 1
    assert proof.divergence == proof.forms[0].divergence > 0


def test_the_proof_names_an_adapter_that_changes_nothing(engine: Engine, folder: Path) -> None:
    put(folder, {k: torch.zeros_like(v) for k, v in factors().items()})
    adapter = engine.adapter_imports.add(str(folder))
    proof = engine.adapter_imports.prove(adapter.id, "Where is the red lamp?")
    assert (proof.divergence, proof.is_suspicious, proof.forms) == (0.0, True, ())
    assert proof.base_text == proof.adapter_text
    assert "changes nothing" in proof.verdict
    with pytest.raises(StudioError, match="is empty"):
        engine.adapter_imports.prove(adapter.id, "  ")


@pytest.mark.parametrize("template", ["{% for x in", "{{ raise_exception('no') }}", "{{ messages[9].x.y }}"])
def test_t16_a_template_that_fails_is_left_out(template: str) -> None:
    assert render(template, "a") == ""


def test_an_adapter_of_another_studio_proves_its_base(engine: Engine, folder: Path) -> None:
    first = engine.adapter_imports.add(str(put(folder)), "Style")
    archive = engine.library.archive(first.id)
    preflight = engine.adapter_imports.examine(str(archive))
    assert (preflight.tool, preflight.base_is_proven, preflight.name) == ("Adapter Studio", True, "Style")
    record = json.loads(
        (engine.workspace.path("adapters", first.id) / "EXPERIMENT_METADATA.json").read_text()
    )
    record["base"]["fingerprint"] = "0" * 64
    (folder / "EXPERIMENT_METADATA.json").write_text(json.dumps(record))
    assert open_findings(engine, folder) == {"claimed-base": ("use-base",)}


def test_a_start_that_cannot_be_computed_names_the_folder_that_is_needed(
    engine: Engine, folder: Path
) -> None:
    put(folder, init_lora_weights="corda")
    (found,) = engine.adapter_imports.examine(str(folder)).open_findings
    assert "initial_adapter" in found.follows and found.repairs == ()
    put(folder / "initial_adapter", factors(rank=3))
    assert open_findings(engine, folder) == {"start": ()}  # other shapes
    put(folder / "initial_adapter")
    assert open_findings(engine, folder) == {"start": ("subtract-start",)}
    put(folder, init_lora_weights="loftq")  # its base was rounded, too
    assert open_findings(engine, folder) == {"start": ()}


def test_dora_of_torchtune_is_refused(engine: Engine, folder: Path) -> None:
    magnitudes = {f"{PREFIX}{LAYER.format(i)}.lora_magnitude_vector": torch.ones(64) for i in (0, 1)}
    put(folder, {**factors(), **magnitudes}, use_dora=True)
    assert open_findings(engine, folder) == {"dora": ()}
    put(folder, {**factors(), **magnitudes}, use_dora=True, peft_version="0.21.2")
    assert open_findings(engine, folder) == {}  # DoRA is mixed live; the repair is a choice


def test_unsloth_experts_of_unknown_order_name_both_readings(tmp_path: Path) -> None:
    base = build_tiny_experts(tmp_path / "base")
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    make_peft(tmp_path / "made", base, target_modules=["q_proj"], target_parameters=names)
    with Engine(tmp_path / "ws", str(base), "none", "cpu") as own:
        own.bases.current(wait=True)
        for settings, expected in (
            ({}, {}),
            ({"auto_mapping": {"unsloth_fixed": True}}, {"experts": ("experts-grouped", "experts-peft")}),
            ({"lora_B_layout": "rank_major"}, {}),
            ({"lora_B_layout": "grouped_by_expert"}, {}),
            ({"target_parameters": names[:1]}, {"experts": ()}),
        ):
            config = {**read_config(tmp_path / "made"), **settings}
            copied = tmp_path / "copied"
            shutil.copytree(tmp_path / "made", copied, dirs_exist_ok=True)
            write_config(copied, config)
            assert open_findings(own, copied) == expected
        write_config(copied, {**config, "target_parameters": names, "auto_mapping": {"unsloth_fixed": True}})
        as_peft = own.adapter_imports.add(str(copied), repairs=["experts-peft"])
        stored = load_file(own.workspace.path("adapters", as_peft.id) / "adapter_model.safetensors")
        assert all(
            torch.equal(v, stored[k]) for k, v in load_file(copied / "adapter_model.safetensors").items()
        )


def test_an_adapter_as_gguf_needs_its_own_architecture(
    engine: Engine, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_gguf(tmp_path / "style.gguf", tiny_base).source
    assert open_findings(engine, file) == {}
    resident = engine.worker.call(engine.resident_base.get)
    monkeypatch.setattr(resident.model.config, "model_type", "qwen2")
    assert open_findings(engine, file) == {"other-base": ()}
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(AdapterError, match="is not complete"):
        engine.adapter_imports.examine(str(file))


def test_a_whole_model_as_gguf_is_not_taken_for_an_adapter(
    engine: Engine, tiny_base: Path, tmp_path: Path
) -> None:
    file = make_gguf(tmp_path / "model.gguf", tiny_base, general__type="model").source
    file = file.rename(tmp_path / "style.gguf")
    with pytest.raises(AdapterError, match="is a model, not an adapter"):
        engine.adapter_imports.examine(str(file))


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"use_rslora": "yes"}, "setting"),
        ({"alpha_pattern": [1]}, "alpha-rules"),
        ({"alpha_pattern": {"q_proj": "8"}}, "no-alpha"),
        ({"lora_alpha": float("nan")}, "alpha"),
        ({"init_lora_weights": {"a": 1}}, "start"),
        ({"peft_type": ["LORA"]}, "kind"),
        ({"target_modules": 7, "target_parameters": 3, "auto_mapping": [1], "rank_pattern": "x"}, ""),
    ],
)
def test_values_of_the_wrong_type_are_found(
    settings: dict[str, Any], finding: str, engine: Engine, folder: Path
) -> None:
    assert list(open_findings(engine, put(folder, **settings))) == ([finding] if finding else [])


def test_a_write_that_fails_leaves_nothing(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    put_before = sorted(p.name for p in (engine.workspace.root / "adapters").iterdir())
    file = folder / "adapter_model.safetensors"
    folder.mkdir()
    file.write_bytes(save(factors()))
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(StorageError):
        engine.adapter_imports.add(str(folder))
    assert sorted(p.name for p in (engine.workspace.root / "adapters").iterdir()) == put_before
