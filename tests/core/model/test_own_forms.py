"""DoRA adapters, and adapters with weights of their own, answer in a mix as in plain peft."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel
from safetensors.torch import load_file

from core.analyze.attribution import attribute_answer
from core.analyze.interference import compare_weights
from core.analyze.output_comparison import compare_outputs
from core.analyze.weight_optimizers import activate_differentiable
from core.errors import AdapterError
from core.model.base import load_base
from core.model.deltas import load_factors
from core.model.fast_decoding import PackedDecoder
from core.model.generate import generate, inference_mode_for
from core.model.nf4_cpu import unpack_for_backward
from core.model.resident import TRAINEE, Resident
from core.spec.mix import Mix, Sampling
from core.store import adapters
from core.store.files import read_json
from core.store.workspace import Workspace
from tests.core.importing.makers import make_peft
from tests.core.model.test_fast_decoding import pack
from tests.core.model.test_mixing import IDS

MADE: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True, "r": 3},
    "dora2": {"use_dora": True, "use_rslora": True, "target_modules": ["q_proj", "down_proj"], "seed": 5},
    "plain": {"r": 2, "seed": 6},
    "own": {"modules_to_save": ["lm_head", "embed_tokens", "norm"], "seed": 7},
    "tokens": {"trainable_token_indices": {"embed_tokens": [40, 3, 9], "lm_head": [7, 3]}, "seed": 8},
}


def add_to_library(workspace: Workspace, base: Any, name: str, folder: Path) -> None:
    """Stores what peft has saved, with full names of its modules."""
    raw = read_json(folder / "adapter_config.json")
    tensors = load_file(folder / "adapter_model.safetensors")
    paths = {k.removeprefix("base_model.model.").removesuffix(".weight") for k in tensors if "lora_" not in k}
    config = {k: raw[k] for k in ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "use_dora")}
    config["target_modules"] = sorted(raw["target_modules"])
    if raw["modules_to_save"]:
        config["modules_to_save"] = sorted(paths)
    if tokens := raw["trainable_token_indices"]:
        full = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}
        config["trainable_token_indices"] = {full[k]: v for k, v in tokens.items()}
    adapters.add(
        workspace,
        name,
        name.title(),
        lambda path: path.write_bytes((folder / "adapter_model.safetensors").read_bytes()) and None,
        config,
        {"kind": "task", "base": {"name": base.name, "fingerprint": base.fingerprint}},
    )


@pytest.fixture(scope="module")
def folders(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("made")
    for name, settings in MADE.items():
        make_peft(root / name, tiny_base, **settings)
    return {name: root / name for name in MADE}


@pytest.fixture(scope="module")
def resident(
    tiny_base: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Resident]:
    base = load_base(str(tiny_base), "none", "cpu")
    workspace = Workspace(tmp_path_factory.mktemp("ws"))
    for name, folder in folders.items():
        add_to_library(workspace, base, name, folder)
    resident = Resident(base, workspace)
    resident.load_adapters([Mix(weights=dict.fromkeys(MADE, 1.0))])
    yield resident


def logits_of(resident: Resident, *mixes: Mix | dict[str, float]) -> torch.Tensor:
    rows = [m if isinstance(m, Mix) else Mix(weights=m) for m in mixes]
    resident.load_adapters(rows)
    with inference_mode_for(resident, resident.rows(rows)):
        logits: torch.Tensor = resident.base.model(IDS.repeat(len(rows), 1)).logits.clone()
    return logits


def by_peft(base: Path, folder: Path) -> torch.Tensor:
    """The logits of plain peft."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(hf.AutoModelForCausalLM.from_pretrained(base), folder).eval()
        logits: torch.Tensor = model(IDS).logits
    return logits


def changes_of(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Layer -> the change of its weight, as peft merges it."""
    plain = hf.AutoModelForCausalLM.from_pretrained(base)
    before = copy.deepcopy(plain.state_dict())
    merged = PeftModel.from_pretrained(plain, folder).merge_and_unload()
    return {k: v - before[k] for k, v in merged.state_dict().items() if not torch.equal(v, before[k])}


def by_weights(base: Path, changes: list[tuple[float, dict[str, torch.Tensor]]]) -> torch.Tensor:
    """The logits of the base with weighted changes added to its weights."""
    model = hf.AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        for weight, deltas in changes:
            for key, delta in deltas.items():
                model.get_parameter(key).add_(weight * delta)
        logits: torch.Tensor = model(IDS).logits
    return logits


@pytest.mark.parametrize("name", MADE)
def test_alone_at_weight_1_it_equals_plain_peft(
    name: str, resident: Resident, folders: dict[str, Path], tiny_base: Path
) -> None:
    expected = by_peft(tiny_base, folders[name])
    assert (logits_of(resident, {name: 1.0}) - expected).abs().max() < 1e-4
    assert (logits_of(resident, {})[0] - expected[0]).abs().max() > 0.05


def test_eight_columns_with_dora_equal_the_scaled_changes(
    resident: Resident, folders: dict[str, Path], tiny_base: Path
) -> None:
    changes = {n: changes_of(tiny_base, folders[n]) for n in ("dora", "dora2", "plain")}
    mixes: list[dict[str, float]] = [
        {"dora": 1.0}, {}, {"dora": 0.4}, {"dora": -0.7, "plain": 1.0}, {"plain": 0.5},
        {"dora": 1.0, "dora2": 1.0}, {"dora2": 1.3}, {"dora": 0.3, "dora2": 0.2, "plain": -1.0},
    ]  # fmt: skip
    ours = logits_of(resident, *mixes)
    for row, mix in zip(ours, mixes, strict=True):
        expected = by_weights(tiny_base, [(w, changes[n]) for n, w in mix.items()])[0]
        assert (row - expected).abs().max() < 1e-4
    assert torch.equal(ours[1], logits_of(resident, {})[0])
    off = logits_of(resident, {"dora": 0.0}, {"plain": 0.5})
    assert (off[0] - ours[1]).abs().max() < 1e-6 and (off[1] - ours[4]).abs().max() < 1e-6


def test_a_tilt_of_dora_scales_its_change_by_depth(
    resident: Resident, folders: dict[str, Path], tiny_base: Path
) -> None:
    changes = changes_of(tiny_base, folders["dora"])
    first = {k: v for k, v in changes.items() if ".layers.0." in k}
    last = {k: v for k, v in changes.items() if ".layers.1." in k}
    ours = logits_of(resident, Mix(weights={"dora": 0.8}, tilt={"dora": 0.5}), Mix())[0]
    assert (ours - by_weights(tiny_base, [(0.4, first), (1.2, last)])[0]).abs().max() < 1e-4


def test_dora_on_4_bits_equals_pefts_own_forward_there(
    folders: dict[str, Path], tiny_base: Path, tmp_path: Path
) -> None:
    base = load_base(str(tiny_base), "nf4", "cpu")
    resident = Resident(base, Workspace(tmp_path / "ws"))
    add_to_library(resident.workspace, base, "dora", folders["dora"])
    ours = logits_of(resident, {"dora": 1.0})
    plain = load_base(str(tiny_base), "nf4", "cpu").model
    wrapped = PeftModel.from_pretrained(plain, folders["dora"]).eval()
    with torch.no_grad(), unpack_for_backward(wrapped):  # peft reads the weights to find their norms
        theirs = wrapped(IDS).logits
    # 4-bit products are rounded to bf16; see test_mixing.
    assert (ours - theirs).abs().max() < 2e-2 and (ours - theirs).abs().mean() < 2e-3
    assert (ours - logits_of(resident, {})).abs().mean() > 2e-2


def test_the_gradient_of_a_dora_weight_is_that_of_its_change(
    resident: Resident, folders: dict[str, Path], tiny_base: Path
) -> None:
    names = resident.mixer.names
    weights = torch.zeros(2, len(names))
    weights[0, names.index("dora")], weights[1, names.index("plain")] = 0.6, 1.0
    weights.requires_grad_()
    with activate_differentiable(resident, weights):
        loss = resident.base.model(IDS.repeat(2, 1)).logits.pow(2).sum()
    (gradient,) = torch.autograd.grad(loss, weights)
    plain = hf.AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    changes, weight = changes_of(tiny_base, folders["dora"]), torch.tensor(0.6, requires_grad=True)
    changed = {k: plain.get_parameter(k).detach() + weight * delta for k, delta in changes.items()}
    logits = torch.func.functional_call(plain, changed, (IDS,)).logits
    (expected,) = torch.autograd.grad(logits.pow(2).sum(), weight)
    assert float(gradient[0, names.index("dora")]) == pytest.approx(float(expected), rel=1e-3) != 0


def test_rows_with_own_weights_leave_the_other_rows_as_they_are(
    resident: Resident, folders: dict[str, Path], tiny_base: Path
) -> None:
    ours = logits_of(resident, {}, {"own": 1.0}, {"dora": 0.5, "plain": 1.0}, {"tokens": 1.0}, {"own": 1.0})
    for row, name in ((1, "own"), (3, "tokens"), (4, "own")):
        assert (ours[row] - by_peft(tiny_base, folders[name])[0]).abs().max() < 1e-4
    others = logits_of(resident, {}, {"dora": 0.5, "plain": 1.0})
    assert (ours[[0, 2]] - others).abs().max() < 1e-6
    assert not any(m._forward_hooks for m in resident.base.model.modules())


@pytest.mark.parametrize(
    ("mix", "given"),
    [
        (Mix(weights={"own": 0.5}), "got 0.5"),
        (Mix(weights={"tokens": -1.0}), "got -1"),
        (Mix(weights={"own": 1.0, "plain": 0.1}), "got 1 other adapter beside it"),
        (Mix(weights={"own": 1.0, "plain": 0.1, "dora": 1.0}), "got 2 other adapters beside it"),
        (Mix(weights={"own": 1.0}, tilt={"own": 1.0}), "got a tilt"),
    ],
)
def test_own_weights_in_a_weighted_mix_are_refused(resident: Resident, mix: Mix, given: str) -> None:
    with pytest.raises(AdapterError, match="alone and at weight 1") as caught:
        logits_of(resident, Mix(), mix)
    assert given in caught.value.what and "column of its own" in caught.value.fix
    name = "Tokens" if "tokens" in mix.weights else "Own"
    assert repr(name) in caught.value.what
    with pytest.raises(AdapterError, match="alone and at weight 1"):
        weights = resident.mixer.to_tensor([dict(mix.weights)]) * 0.7
        with resident.mixer.activate(weights):
            pass
    assert resident.mixer.active_mix is None


def answers(resident: Resident, *mixes: dict[str, float]) -> list[list[int]]:
    sampling = Sampling(max_new_tokens=10, temperature=0.0)
    rows = [Mix(weights=m) for m in mixes]
    states: Any = []
    for states in generate(resident, [IDS[0].tolist()] * len(rows), rows, [sampling] * len(rows), fast=True):  # noqa: B007
        pass
    return [list(s.ids) for s in states]


def test_greedy_answers_of_own_weights_equal_pefts(
    resident: Resident, folders: dict[str, Path], tiny_base: Path
) -> None:
    ours = answers(resident, {"own": 1.0}, {}, {"tokens": 1.0}, {"dora": 1.0})
    for name, tokens in (("own", ours[0]), ("tokens", ours[2]), ("dora", ours[3])):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = PeftModel.from_pretrained(
                hf.AutoModelForCausalLM.from_pretrained(tiny_base), folders[name]
            ).eval()
        out = model.generate(input_ids=IDS, max_new_tokens=10, do_sample=False)[0, IDS.shape[1] :].tolist()
        assert tokens == [t for t in out if t != resident.base.eos_ids[0]]


def test_8_bit_answers_fall_back_where_such_an_adapter_is_active(resident: Resident) -> None:
    base = resident.base
    packed = pack(base)

    def decode(mix: dict[str, float]) -> tuple[torch.Tensor, str, str]:
        decoder = PackedDecoder(base, packed, resident.mixer, [IDS[0].tolist()], 4)
        with torch.inference_mode(), resident.mixer.activate(resident.rows([Mix(weights=mix)])):
            logits = decoder.step()
            return logits, decoder.precision, decoder._plan.describe_obstacle()

    for mix, said in (({"dora": 0.5}, "DoRA"), ({"own": 1.0}, "of its own"), ({"tokens": 1.0}, "of its own")):
        logits, precision, obstacle = decode(mix)
        assert precision == "" and said in obstacle
        assert (logits[0] - logits_of(resident, mix)[0, -1]).abs().max() < 1e-4
    assert decode({"plain": 1.0})[1:] == ("int8", "") and decode({"dora": 0.0})[1:] == ("int8", "")


def test_attribution_and_contributions_count_the_whole_of_dora(
    resident: Resident, folders: dict[str, Path], tiny_base: Path
) -> None:
    mix = Mix(weights={"dora": 1.0, "plain": 1.0})
    *_, last = attribute_answer(resident, "The red lamp", mix, "is kept", chat=False)
    assert last.attribution is not None
    assert last.attribution.without["dora"] != last.attribution.full
    *_, alone = attribute_answer(resident, "The red lamp", Mix(weights={"own": 1.0}), "is kept", chat=False)
    assert alone.attribution is not None and alone.attribution.without["own"] == alone.attribution.base
    *_, outputs = compare_outputs(resident, mix, [IDS[0].tolist()])
    changes = changes_of(tiny_base, folders["dora"])
    seen: dict[str, torch.Tensor] = {}
    path = "model.layers.0.self_attn.q_proj"
    layer = resident.base.model.get_submodule(path)
    handle = layer.register_forward_hook(lambda _, x, y: seen.update(x=x[0][-1], y=y[-1]))
    logits_of(resident, mix)
    handle.remove()
    expected = float((seen["x"] @ changes[f"{path}.weight"].t()).norm() / seen["y"].norm())
    share = next(m for m in outputs.modules if m.layer == 0 and m.module == "self_attn.q_proj").shares[0]
    assert share == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "form"), [("dora", "DoRA"), ("own", "trained weights"), ("tokens", "tokens")]
)
def test_what_needs_plain_factors_says_that_there_are_none(resident: Resident, name: str, form: str) -> None:
    for work in (
        lambda: load_factors(resident.workspace, name),
        lambda: list(compare_weights(resident, Mix(weights={name: 1.0, "plain": 1.0}))),
    ):
        with pytest.raises(AdapterError, match="not a product of two factors") as caught:
            work()
        assert form in caught.value.what and "import it again" in caught.value.fix
    with pytest.raises(AdapterError, match="cannot be stacked on"):
        resident.add_trainee("new", {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}, stack_on=name)
    assert (
        resident.trainee_id == "" and resident.peft is not None and TRAINEE not in resident.peft.peft_config
    )


def test_a_trainee_beside_such_adapters_trains_as_without_them(resident: Resident, tiny_base: Path) -> None:
    config = {"task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]}

    def train(disturb: bool) -> list[float]:
        torch.manual_seed(4)
        resident.add_trainee("fresh", {**config, "lora_dropout": 0.0})
        assert resident.peft is not None
        own = [p for p in resident.peft.parameters() if p.requires_grad]
        optimizer, losses = torch.optim.SGD(own, 0.5), []
        resident.peft.train()
        for _ in range(4):
            loss = resident.peft(input_ids=IDS, labels=IDS).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            if disturb:
                logits_of(resident, {"dora": 1.0}, {"own": 1.0}, {"fresh": 1.0, "dora2": 0.5})
        resident.remove_trainee()
        return losses

    calm = train(False)
    assert train(True) == calm and calm[-1] < calm[0]


def test_an_unloaded_adapter_leaves_nothing_and_loads_again(resident: Resident) -> None:
    before = logits_of(resident, {"dora": 1.0}, {"own": 1.0})
    for name in ("dora", "own"):
        resident.unload(name)
        assert name not in resident.mixer.gains and name not in resident.mixer.own_weights
    assert torch.equal(logits_of(resident, {"dora": 1.0}, {"own": 1.0}), before)


def test_a_library_folder_with_own_weights_loads_in_plain_peft(
    resident: Resident, folders: dict[str, Path], tiny_base: Path
) -> None:
    for name in ("dora", "own", "tokens"):
        ours = by_peft(tiny_base, resident.workspace.path("adapters", name))
        assert (ours - by_peft(tiny_base, folders[name])).abs().max() < 1e-6
    assert adapters.load(resident.workspace, "own").alone.startswith("it replaces weights of the base")
    assert adapters.load(resident.workspace, "plain").form == ""
