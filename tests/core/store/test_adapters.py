"""Adapters on disk: complete or absent, checked before use, refused with a reason."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.engine import Engine
from core.errors import AdapterError, InvalidName, NotFound, SpecError
from core.spec.mix import Mix, Sampling
from core.store import adapters, mixes
from core.store.adapter_config import OWN_FORMS, UNMIXABLE, parse_config
from core.store.adapter_files import write_checksums
from core.store.model_card import format_model_card
from core.store.workspace import Workspace
from tests.conftest import build_tiny_llama

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj"],
    "bias": "none",
}


def factors(scale: float = 0.1) -> dict[str, torch.Tensor]:
    """The tensors of a rank 2 adapter on the queries of the tiny Llama."""
    generator = torch.Generator().manual_seed(1)
    name = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    return {
        name.format(i, s): torch.randn((2, 64) if s == "A" else (64, 2), generator=generator) * scale
        for i in (0, 1)
        for s in "AB"
    }


def spoilt(value: float, dtype: torch.dtype) -> torch.Tensor:
    """A factor whose last number is not finite."""
    tensor = torch.full((2, 64), 0.1, dtype=dtype)
    tensor[-1, -1] = value
    return tensor


def put(
    workspace: Workspace, name: str, fingerprint: str, tensors: dict[str, torch.Tensor] | None = None
) -> adapters.Adapter:
    meta = {"kind": "domain", "base": {"name": "tiny", "fingerprint": fingerprint}}
    return adapters.add(
        workspace, f"{name}-0001", name, lambda p: save_file(tensors or factors(), p), CONFIG, meta
    )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


@pytest.fixture
def engine(tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as made:
        made.bases.current(wait=True)
        yield made


def test_an_adapter_appears_with_checksums_that_hold(workspace: Workspace) -> None:
    adapter = put(workspace, "mine", "f" * 64)
    folder = workspace.path("adapters", adapter.id)
    assert {p.name for p in folder.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "EXPERIMENT_METADATA.json",
        "checksums.txt",
        "README.md",
    }
    assert adapter.rank == 2 and adapter.alpha == 4 and adapter.target_modules == ("q_proj",)
    assert (
        adapters.verify(workspace, adapter.id)[1]
        == "All 4 tensors have the names and shapes of a rank-2 adapter."
    )


@pytest.mark.parametrize(
    "file", ["adapter_model.safetensors", "adapter_config.json", "EXPERIMENT_METADATA.json"]
)
def test_t13_one_flipped_byte_is_found(workspace: Workspace, file: str) -> None:
    adapter = put(workspace, "mine", "f" * 64)
    path = workspace.path("adapters", adapter.id, file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(AdapterError, match="has changed since it was saved"):
        adapters.verify(workspace, adapter.id)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda t: t.pop(next(iter(t))), "factor is missing"),
        (lambda t: t.update({next(iter(t)): torch.full((2, 64), torch.nan)}), "NaN or infinite"),
        *[
            (lambda t, x=x, d=d: t.update({next(iter(t)): spoilt(x, d)}), "NaN or infinite")
            for x in (torch.inf, -torch.inf, torch.nan)
            for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        ],
        *[
            (lambda t, d=d: t.update({next(iter(t)): spoilt(torch.nan, d)}), "NaN or infinite")
            for d in (torch.complex64, torch.float8_e5m2, torch.float8_e4m3fn)
        ],
        (
            lambda t: t.update({next(iter(t)): torch.zeros(2, 64).to(torch.float8_e4m3fnuz)}),
            "has the type F8_E4M3FNUZ, which cannot be checked",
        ),
        (lambda t: t.update({next(iter(t)): torch.zeros(3, 64)}), "not a LoRA factor of rank 2"),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(2, 2)}),
            "trained copies of embedding or head weights",
        ),
        (
            lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(2, 2)}),
            "trained copies of embedding or head weights",
        ),
        (
            lambda t: t.update(
                {next(iter(t)).replace("lora_A.weight", "lora_magnitude_vector"): torch.zeros(2)}
            ),
            "DoRA rescales the base weights",
        ),
        (
            lambda t: t.update({next(iter(t)).replace("lora_A.weight", "lora_B.bias"): torch.zeros(2)}),
            "biases beside the low-rank factors",
        ),
        (
            lambda t: t.update({"base_model.model.odd.weight": torch.zeros(2, 2)}),
            "not a LoRA factor of rank 2. Convert",
        ),
    ],
)
def test_t13_invalid_weights_never_enter_the_library(workspace: Workspace, spoil: Any, said: str) -> None:
    tensors = factors()
    spoil(tensors)
    with pytest.raises(AdapterError, match=said):
        put(workspace, "mine", "f" * 64, tensors)
    assert workspace.ids("adapters") == []


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.int8]
)
def test_finite_weights_of_every_type_are_accepted_without_torch(
    workspace: Workspace, dtype: torch.dtype
) -> None:
    largest = torch.finfo(dtype).max if dtype.is_floating_point else 127
    tensors = {k: torch.full(v.shape, largest, dtype=torch.float64).to(dtype) for k, v in factors().items()}
    put(workspace, "mine", "f" * 64, tensors)
    code = (
        "import sys\nfrom core.store import adapters\nfrom core.store.workspace import Workspace\n"
        "said = adapters.verify(Workspace(sys.argv[1]), 'mine-0001')\n"
        "print(said[2], 'torch' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(workspace.root)], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "All 512 values are finite. False\n"


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": ".*_proj"},
        {"target_modules": [".*_proj"]},
        {"target_modules": []},
        {"target_parameters": [".*_proj"]},
        {"rank_pattern": {".*_proj": 4}},
        {"rank_pattern": {"q_proj": 0}},
        {"rank_pattern": ["q_proj"]},
        {"alpha_pattern": {"q_proj": "x"}},
        {"peft_type": "PREFIX_TUNING"},
        {"r": 10**6},
        {"r": True},
    ],
    ids=str,
)
def test_t10_t11_configs_are_read_from_an_allow_list(change: dict[str, Any]) -> None:
    with pytest.raises(AdapterError, match=next(iter(change))):
        parse_config({**CONFIG, **change})


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("modules_to_save", ["lm_head"], "trained copies of embedding or head weights"),
        ("trainable_token_indices", [1, 2], "trained copies of embedding or head weights"),
        ("trainable_token_indices", {"embed_tokens": [1]}, "trained copies of embedding or head weights"),
        *[
            ("init_lora_weights", start, "subtracted from the base weights")
            for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", ["x"])
        ],
        ("bias", "all", "biases of the base"),
        ("lora_bias", True, "biases beside the low-rank factors"),
        ("use_dora", True, "DoRA rescales the base weights"),
        ("layers_to_transform", 0, "selects layers by rules"),
        ("layers_to_transform", [0, 1], "selects layers by rules"),
        ("exclude_modules", ".*_proj", "selects layers by rules"),
        ("layer_replication", [[0, 1]], "number of layers of the base"),
        ("use_qalora", True, "not the plain product"),
        ("alora_invocation_tokens", [5], "not the plain product"),
        ("arrow_config", {"top_k": 2}, "not the plain product"),
    ],
    ids=str,
)
def test_a_setting_beyond_plain_lora_is_refused_by_name_with_the_reason(
    name: str, value: Any, why: str
) -> None:
    with pytest.raises(AdapterError) as caught:
        parse_config({**CONFIG, name: value})
    what = "is not plain LoRA" if name in OWN_FORMS else "cannot be mixed"
    assert (
        caught.value.what.startswith(f"The adapter {what} because {name} is {json.dumps(value)}: ")
        and why in caught.value.what
    )
    assert caught.value.fix.endswith(".")


def test_every_default_of_peft_is_mixable() -> None:
    from peft import LoraConfig

    plain = LoraConfig(**{k: v for k, v in CONFIG.items() if k != "peft_type"}).to_dict()
    assert set(UNMIXABLE) <= set(plain), "a reason for a field that peft does not have"
    made = parse_config({**json.loads(json.dumps(plain, default=list)), "peft_type": "LORA"})
    assert made["target_modules"] == ["q_proj"] and made["r"] == 2


def test_t10_paths_and_classes_in_a_config_are_ignored() -> None:
    raw = {
        **CONFIG,
        "base_model_name_or_path": "https://evil",
        "auto_mapping": {"base_model_class": "X", "parent_library": "os"},
    }
    assert set(parse_config(raw)) == set(CONFIG)


def test_t8_a_folder_with_a_pickle_is_refused(workspace: Workspace) -> None:
    adapter = put(workspace, "mine", "f" * 64)
    workspace.path("adapters", adapter.id, "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(AdapterError, match="could run code"):
        adapters.verify(workspace, adapter.id)


def test_t12_an_adapter_of_another_base_is_refused_with_both_names(engine: Engine) -> None:
    put(engine.workspace, "foreign", "0" * 64)
    with pytest.raises(AdapterError, match="was trained on 'tiny', and the resident base is"):
        engine.chat.stream("Hi", [Mix(weights={"foreign-0001": 1.0})], Sampling(max_new_tokens=4)).last()
    assert (
        engine.library.mixable_adapters()[0].fits is False
        and "another base" in engine.library.mixable_adapters()[0].reason
    )
    assert engine.library.default_mixes() == [Mix(name="Base")]


def test_t12_tensors_of_another_shape_are_refused_and_leave_no_trace(engine: Engine) -> None:
    tensors = {k.replace("layers.1", "layers.7"): v for k, v in factors().items()}
    put(engine.workspace, "odd", engine.bases.current().fingerprint, tensors)
    with pytest.raises(AdapterError, match="do not fit the base"):
        engine.chat.stream("Hi", [Mix(weights={"odd-0001": 1.0})], Sampling(max_new_tokens=4)).last()
    assert engine.chat.stream("Hi", [Mix()], Sampling(max_new_tokens=4)).last().done


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_proj", "nothing_here"], None),
        (["nothing_here"], "cannot be added to the base"),
        (["embed_tokens"], "embed_tokens' cannot be mixed: it is trained on the embedding"),
        (["q_proj", "input_layernorm"], "cannot be added to the base"),
    ],
)
def test_unsupported_target_layers_are_refused_and_leave_no_trace(
    tiny_base: Path, workspace: Workspace, targets: list[str], said: str | None
) -> None:
    from core.model.base import load_base
    from core.model.resident import Resident

    resident = Resident(load_base(str(tiny_base), "none", "cpu"), workspace)
    config = parse_config({**CONFIG, "target_modules": targets})
    for beside in (False, True):
        if beside:
            resident.add_adapter("good", parse_config(CONFIG))
        before = [k for k, _ in resident.base.model.named_parameters()]
        if said is None:
            resident.add_adapter(f"odd-{beside}", config)
            continue
        with pytest.raises(AdapterError, match=said):
            resident.add_adapter("odd", config)
        assert [k.replace(".base_layer", "") for k, _ in resident.base.model.named_parameters()] == [
            k.replace(".base_layer", "") for k in before
        ]
        assert (resident.peft is not None) == beside
        resident.update_layout()


@pytest.mark.parametrize("rslora", [False, True])
def test_rank_and_alpha_patterns_and_rslora_are_mixed_as_in_peft(
    engine: Engine, tmp_path: Path, tiny_base: Path, rslora: bool
) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    from core.model.base import load_base
    from core.model.resident import Resident

    patterns: dict[str, Any] = {
        "rank_pattern": {"layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"up_proj": 3},
    }
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], use_rslora=rslora, **patterns)
    torch.manual_seed(2)
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), lora)
    with torch.no_grad():
        for key, p in made.named_parameters():
            if "lora_" in key:
                p.normal_(std=0.1)
    made.save_pretrained(tmp_path / "theirs")
    raw, tensors = (
        json.loads((tmp_path / "theirs" / "adapter_config.json").read_text()),
        load_file(tmp_path / "theirs" / "adapter_model.safetensors"),
    )
    meta = {"kind": "task", "base": {"name": "tiny", "fingerprint": engine.bases.current().fingerprint}}
    adapters.add(
        engine.workspace,
        "theirs-0001",
        "theirs",
        lambda p: save_file(tensors, p),
        parse_config(raw),
        meta,
    )
    resident = Resident(load_base(str(tiny_base), "none", "cpu"), engine.workspace)
    mix = Mix(weights={"theirs-0001": 1.0})
    resident.load_adapters([mix])
    ids = torch.tensor([[5, 9, 40, 77]])
    with torch.inference_mode(), resident.mixer.activate(resident.rows([mix])):
        ours = resident.base.model(ids).logits
        assert resident.stamp(0)["weights"] == {"theirs-0001": 1.0} and resident.stamp(0)["tilt"] == {}
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), tmp_path / "theirs"
    ).eval()
    with torch.inference_mode():
        assert (theirs(ids).logits - ours).abs().max() <= 1e-5
    with pytest.raises(AdapterError, match="not a LoRA factor of rank 3"):
        adapters.add(
            engine.workspace,
            "odd-0001",
            "odd",
            lambda p: save_file(tensors, p),
            {**parse_config(raw), "rank_pattern": {"q_proj": 3}},
            meta,
        )


def test_an_unknown_adapter_and_a_path_for_an_id_are_refused(engine: Engine) -> None:
    with pytest.raises(NotFound, match="no adapter 'nobody-0001'"):
        engine.chat.stream("Hi", [Mix(weights={"nobody-0001": 1.0})]).last()
    with pytest.raises(InvalidName):
        engine.chat.stream("Hi", [Mix(weights={"../../etc": 1.0})]).last()
    with pytest.raises(InvalidName):
        engine.library.delete("adapters", "../mine")


def test_a_deleted_adapter_leaves_the_model_and_can_be_added_again(engine: Engine) -> None:
    put(engine.workspace, "mine", engine.bases.current().fingerprint, factors(0.5))
    mix = Mix(weights={"mine-0001": 2.0})
    first = engine.chat.stream("Hi", [mix], Sampling(max_new_tokens=8)).last().columns[0]
    assert first.stamp["adapters"] == {"mine-0001": engine.library.adapter("mine-0001").sha256}
    engine.library.delete("adapters", "mine-0001")
    with pytest.raises(NotFound):
        engine.chat.stream("Hi", [mix], Sampling(max_new_tokens=8)).last()
    put(engine.workspace, "mine", engine.bases.current().fingerprint, factors(0.5))
    assert engine.chat.stream("Hi", [mix], Sampling(max_new_tokens=8)).last().columns[0].text == first.text


def test_a_saved_mix_warns_when_its_adapters_change(engine: Engine) -> None:
    put(engine.workspace, "mine", engine.bases.current().fingerprint)
    saved = engine.library.save_mix("Half", {"mine-0001": 0.5, "unused": 0.0})
    assert (
        engine.library.mix(saved.id).weights == {"mine-0001": 0.5}
        and engine.library.mix(saved.id).warnings == []
    )
    with pytest.raises(SpecError, match="already a mix called 'Half'"):
        engine.library.save_mix("Half", {})
    engine.library.rename("mixes", saved.id, "Half of it")
    assert engine.library.mixes()[0].name == "Half of it"
    engine.library.delete("adapters", "mine-0001")
    put(engine.workspace, "mine", engine.bases.current().fingerprint, factors(0.3))
    assert engine.library.mix(saved.id).warnings == [
        "The adapter 'mine' has changed since this mix was saved."
    ]
    engine.library.delete("adapters", "mine-0001")
    assert "was deleted from the library" in engine.library.mix(saved.id).warnings[0]
    engine.library.delete("mixes", saved.id)
    assert engine.library.mixes() == []


def test_a_saved_mix_keeps_its_tilt_and_an_old_mix_without_tilts_loads(workspace: Workspace) -> None:
    put(workspace, "mine", "f" * 64)
    saved = mixes.save(workspace, "Deep", {"mine-0001": 0.5}, {"mine-0001": 1.0, "other": 1.0})
    assert mixes.load(workspace, saved.id).mix == Mix("Deep", {"mine-0001": 0.5}, {"mine-0001": 1.0})
    assert mixes.rename(workspace, saved.id, "Deeper").tilt == {"mine-0001": 1.0}
    file = workspace.path("mixes", saved.id)
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "tilt"}))
    assert mixes.load(workspace, saved.id).mix == Mix("Deeper", {"mine-0001": 0.5})


def test_renaming_keeps_weights_and_checksums(workspace: Workspace) -> None:
    before = put(workspace, "mine", "f" * 64)
    after = adapters.rename(workspace, before.id, "Ours")
    assert after.name == "Ours" and after.sha256 == before.sha256
    assert adapters.verify(workspace, before.id)
    with pytest.raises(InvalidName):
        adapters.rename(workspace, before.id, "../x")


def test_the_archive_holds_the_folder_as_peft_reads_it(
    workspace: Workspace, tmp_path: Path, tiny_base: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    put(workspace, "mine", "f" * 64)
    with zipfile.ZipFile(adapters.export_zip(workspace, "mine-0001")) as z:
        z.extractall(tmp_path / "out")
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), tmp_path / "out" / "mine-0001"
    )
    loaded = model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight
    assert torch.equal(loaded, factors()["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"])


def test_t19_a_name_cannot_write_into_the_model_card() -> None:
    meta = {"kind": "domain", "base": {"name": 'x"\nlicense: evil', "fingerprint": "f"}}
    card = format_model_card({"name": "# [click](javascript:1) <img>", **meta}, CONFIG)
    front = card.split("---")[1]
    assert "license" not in [line.split(":")[0] for line in front.splitlines()]
    assert "\\[click\\]\\(javascript:1\\) \\<img\\>" in card


def test_another_base_has_another_fingerprint_and_a_copy_has_the_same(
    tiny_base: Path, tmp_path: Path
) -> None:
    import shutil

    from core.model.base import fingerprint

    shutil.copytree(tiny_base, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == fingerprint(tiny_base)
    assert fingerprint(build_tiny_llama(tmp_path / "other", seed=1)) != fingerprint(tiny_base)


def test_files_of_the_library_are_plain_safetensors_and_json(workspace: Workspace) -> None:
    adapter = put(workspace, "mine", "f" * 64)
    folder = workspace.path("adapters", adapter.id)
    assert set(load_file(folder / "adapter_model.safetensors")) == set(factors())
    assert json.loads((folder / "EXPERIMENT_METADATA.json").read_text())["sha256"] == adapter.sha256


def test_metadata_of_other_weights_is_refused_despite_valid_checksums(
    workspace: Workspace,
) -> None:
    adapter = put(workspace, "mine", "f" * 64)
    folder = workspace.find("adapters", adapter.id)
    meta = json.loads((folder / adapters.METADATA).read_text())
    (folder / adapters.METADATA).write_text(json.dumps({**meta, "sha256": "0" * 64}))
    write_checksums(folder)
    with pytest.raises(AdapterError, match="is not that of adapter_model.safetensors"):
        adapters.verify(workspace, adapter.id)
