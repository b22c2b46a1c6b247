"""A baked adapter gives the live mix's logits in plain peft, and its losses are measured."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from core.errors import AdapterError, Busy, NotFound, SpecError
from core.merge import bake as bake_module
from core.merge.bake import bake
from core.merge.bake_result import BakeResult
from core.merge.methods import METHODS, BakeSpec, compute_rank
from core.model.base import load_base
from core.model.deltas import load_factors, make_weight_function
from core.model.generate import inference_mode_for
from core.model.low_rank import pad
from core.model.resident import Resident
from core.progress import Progress
from core.spec.mix import Mix
from core.store import adapters
from core.store.files import read_json
from core.store.workspace import Workspace

IDS = torch.tensor([[5, 9, 40, 77, 101, 12, 3, 260]])
SIZES = {
    "q_proj": (64, 64),
    "k_proj": (32, 64),
    "v_proj": (32, 64),
    "o_proj": (64, 64),
    "gate_proj": (128, 64),
    "up_proj": (128, 64),
    "down_proj": (64, 128),
}
SHAPES: dict[str, tuple[int, int, tuple[str, ...], bool]] = {  # rank, alpha, targets, rsLoRA
    "law": (4, 8, ("q_proj", "down_proj"), False),
    "chat": (4, 4, ("q_proj", "v_proj"), False),
    "odd": (6, 9, ("q_proj", "gate_proj"), True),
}


def add_random_adapter(
    resident: Resident, name: str, rank: int, alpha: int, targets: tuple[str, ...], rslora: bool
) -> str:
    """Adds an adapter of random factors to the library."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    tensors = {}
    for layer in (0, 1):
        for target in targets:
            block = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            place = f"base_model.model.model.layers.{layer}.{block}.{target}"
            outputs, inputs = SIZES[target]
            tensors[f"{place}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * 0.15
            tensors[f"{place}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.15
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.1,
        "target_modules": list(targets),
        "bias": "none",
        "use_rslora": rslora,
        "fan_in_fan_out": False,
    }
    meta = {"kind": "domain", "base": {"name": resident.base.name, "fingerprint": resident.base.fingerprint}}
    return adapters.add(resident.workspace, name, name, lambda p: save_file(tensors, p), config, meta).id


@pytest.fixture(scope="module")
def resident(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resident]:
    made = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path_factory.mktemp("ws")))
    for name, shape in SHAPES.items():
        add_random_adapter(made, name, *shape)
    yield made


def bake_mix(
    resident: Resident, weights: dict[str, float], name: str = "baked", **settings: Any
) -> BakeResult:
    *steps, last = bake(resident, Mix(weights=weights), BakeSpec(name=name, **settings))
    assert all(isinstance(s, Progress) for s in steps) and isinstance(last, BakeResult)
    assert [s.done for s in steps] == list(range(1, steps[-1].total + 1)) and steps[
        -1
    ].report == last.adapter.id  # type: ignore[union-attr]
    return last


def live_logits(resident: Resident, mix: Mix) -> torch.Tensor:
    resident.load_adapters([mix])
    with inference_mode_for(resident, resident.rows([mix])):
        return resident.base.model(IDS).logits[0].clone()


def peft_logits(resident: Resident, adapter_id: str, tiny_base: Path) -> torch.Tensor:
    """Loads the saved folder into a fresh base with plain peft."""
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), str(resident.workspace.path("adapters", adapter_id))
    ).eval()
    with torch.no_grad():
        return model(IDS).logits[0]


def products(resident: Resident, adapter_id: str) -> dict[str, torch.Tensor]:
    stored = load_factors(resident.workspace, adapter_id)
    return {m: stored.scaling[m] * p.b.double() @ p.a.double() for m, p in stored.factors.items()}


@pytest.mark.parametrize(
    "weights", [{"law": 0.7, "chat": 1.0}, {"law": 1.0, "chat": -0.5, "odd": 2.0}, {"odd": -1.3}], ids=str
)
def test_concat_in_plain_peft_equals_the_live_mix(
    resident: Resident, tiny_base: Path, weights: dict[str, float]
) -> None:
    baked = bake_mix(resident, weights, method="concat")
    assert (
        peft_logits(resident, baked.adapter.id, tiny_base) - live_logits(resident, Mix(weights=weights))
    ).abs().max() <= 1e-5
    assert baked.rank == baked.adapter.rank == baked.adapter.alpha == sum(SHAPES[a][0] for a in weights)
    assert baked.changed < 1e-12 and baked.kept == dict.fromkeys(weights, 1.0)
    assert baked.logit_difference is not None and baked.logit_difference <= 1e-5
    assert "equals the mix, except for rounding" in baked.summary()


def test_svd_at_full_rank_equals_the_live_mix_too(resident: Resident, tiny_base: Path) -> None:
    weights = {"law": 1.0, "chat": -0.5, "odd": 1.0}
    baked = bake_mix(resident, weights, method="svd", rank=100)
    assert baked.rank == 14, "beyond the sum of the ranks, factors would be zero"
    assert (
        peft_logits(resident, baked.adapter.id, tiny_base) - live_logits(resident, Mix(weights=weights))
    ).abs().max() <= 1e-5


def test_svd_at_a_lower_rank_is_the_best_and_reports_its_loss(resident: Resident) -> None:
    weights = {"law": 1.0, "chat": -0.5, "odd": 1.0}
    baked = bake_mix(resident, weights, method="svd", rank=3)
    parts, small = {a: products(resident, a) for a in weights}, products(resident, baked.adapter.id)
    lost = whole = 0.0
    assert len(small) == len(baked.modules) == 8
    for module, product in small.items():
        dense = sum(w * parts[a][module] for a, w in weights.items() if module in parts[a])
        assert isinstance(dense, torch.Tensor)
        u, s, vh = torch.linalg.svd(dense, full_matrices=False)
        assert torch.dist(product, (u[:, :3] * s[:3]) @ vh[:3]) <= 1e-5 * s.norm()
        report = next(m for m in baked.modules if f".{m.layer}." in module and module.endswith(m.module))
        assert report.changed == pytest.approx(float(s[3:].square().sum() / s.square().sum()), abs=1e-6)
        assert {p.id: p.weight for p in report.parts} == {
            a: w for a, w in weights.items() if module in parts[a]
        }
        for p in report.parts:  # the dense projection onto the remaining directions
            projected = u[:, :3] @ u[:, :3].T @ parts[p.id][module] @ vh[:3].T @ vh[:3]
            assert p.kept == pytest.approx(
                float(projected.square().sum() / parts[p.id][module].square().sum()), abs=1e-5
            )
        lost, whole = lost + float(s[3:].square().sum()), whole + float(s.square().sum())
    assert baked.changed == pytest.approx(lost / whole, abs=1e-6) and 0.1 < baked.changed < 0.9
    assert baked.adapter.results["discarded_energy"] == baked.changed
    assert baked.divergence is not None and baked.divergence > 0
    assert set(baked.kept) == set(weights) and all(0 < k < 1 for k in baked.kept.values())
    assert (
        f"loses {baked.changed:.2%}" in baked.summary()
        and f"It keeps {baked.kept['law']:.1%} of law" in baked.summary()
    )


def test_the_loss_of_a_small_adapter_is_reported(
    resident: Resident,
) -> None:
    baked = bake_mix(resident, {"law": 2.0, "chat": 0.05}, method="svd", rank=4)
    assert baked.changed < 0.01 and baked.kept["law"] > 0.99
    assert baked.kept["chat"] < 0.7


@pytest.mark.parametrize("method", ["ties", "magnitude_prune", "ties_svd"])
def test_methods_of_peft_equal_peft_on_a_fresh_model(
    resident: Resident, tiny_base: Path, method: str
) -> None:
    weights = {"law": 0.8, "chat": 1.3}
    baked = bake_mix(resident, weights, method=method, density=0.4)
    root = resident.workspace.path("adapters", "law").parent
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), str(root / "law"), adapter_name="law"
    )
    model.load_adapter(str(root / "chat"), "chat")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(
            list(weights), list(weights.values()), "own", combination_type=method, density=0.4
        )
    for module, pair in load_factors(resident.workspace, baked.adapter.id).factors.items():
        layer = model.base_model.model.get_submodule(module)
        own = layer.lora_B["own"].weight @ layer.lora_A["own"].weight * layer.scaling["own"]
        assert (pair.b @ pair.a - own).abs().max() <= 1e-5, module
    model.set_adapter("own")
    with torch.no_grad():
        assert (
            model.eval()(IDS).logits[0] - peft_logits(resident, baked.adapter.id, tiny_base)
        ).abs().max() <= 1e-5
    assert baked.changed > 0.01
    assert "combines adapters in another way" in baked.summary()


def test_rslora_adapters_keep_their_scale_which_plain_peft_inflates(
    resident: Resident, tiny_base: Path
) -> None:
    for name in ("rs-one", "rs-two"):
        add_random_adapter(resident, name, 4, 8, ("q_proj",), True)
    weights = {"rs-one": 1.0, "rs-two": 0.5}
    ours = products(resident, bake_mix(resident, weights, method="magnitude_prune", density=0.9).adapter.id)
    root = resident.workspace.path("adapters", "rs-one").parent
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_base), str(root / "rs-one"), adapter_name="rs-one"
    )
    model.load_adapter(str(root / "rs-two"), "rs-two")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_weighted_adapter(
            list(weights), list(weights.values()), "own", combination_type="magnitude_prune", density=0.9
        )
    for module, product in ours.items():
        layer = model.base_model.model.get_submodule(module)
        assert layer.scaling["own"] == 2.0, (
            "peft 0.21 keeps use_rslora of the first adapter, a factor sqrt(r) too much"
        )
        assert (product - layer.lora_B["own"].weight @ layer.lora_A["own"].weight).abs().max() <= 1e-5


def test_dare_depends_on_its_seed_only(resident: Resident) -> None:
    weights = {"law": 1.0, "chat": 1.0}
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    same, again, other = (
        load_file(
            resident.workspace.path(
                "adapters",
                bake_mix(resident, weights, method="dare_ties", seed=s).adapter.id,
                adapters.WEIGHTS,
            )
        )
        for s in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state()), (
        "the random state of the process is used by training"
    )
    assert all(torch.equal(same[k], again[k]) for k in same)
    assert any(not torch.equal(same[k], other[k]) for k in same)
    assert any(float((t == 0).float().mean()) > 0.15 for t in same.values())


@pytest.mark.parametrize(
    ("method", "weights", "message"),
    [
        ("concat", {}, "The mix is empty"),
        ("ties", {"law": 1.0}, "ties needs at least two adapters"),
        ("ties", {"law": 1.0, "odd": 1.0}, r"different ranks \(law 4, odd 6\).*Use svd"),
        ("magnitude_prune", {"law": 1.0, "odd": 1.0}, "needs adapters of the same rank"),
        ("dare_ties", {"law": 1.0, "chat": -0.5}, "cannot subtract 'chat'.*keep signs"),
        ("ties_svd", {"law": -1.0, "odd": 1.0}, "cannot subtract 'law'"),
    ],
)
def test_a_mix_that_a_method_cannot_bake_is_refused(
    resident: Resident, method: str, weights: dict[str, float], message: str
) -> None:
    before = resident.workspace.ids("adapters")
    with pytest.raises(AdapterError, match=message):
        list(bake(resident, Mix(weights=weights), BakeSpec(name="no", method=method)))
    assert resident.workspace.ids("adapters") == before


def test_limits_and_unknown_adapters_are_refused(resident: Resident) -> None:
    with pytest.raises(SpecError, match="must be one of concat, svd, ties"):
        BakeSpec(name="x", method="linear")
    with pytest.raises(AdapterError, match="at most 1024, got 1200.*svd"):
        compute_rank(
            BakeSpec(name="x", method="concat"), {"a": {"m": 600}, "b": {"m": 600}}, {"a": 1.0, "b": 1.0}
        )
    with pytest.raises(NotFound, match="'unknown'"):
        list(bake(resident, Mix(weights={"unknown": 1.0}), BakeSpec(name="x")))
    assert set(METHODS) == {"concat", "svd", "ties", "dare_ties", "magnitude_prune", "ties_svd"}


def test_a_baked_adapter_records_its_parts_and_verifies(resident: Resident) -> None:
    baked = bake_mix(resident, {"law": 0.7, "odd": -1.0}, name="Law, less odd", method="svd")
    folder = resident.workspace.path("adapters", baked.adapter.id)
    meta = read_json(folder / adapters.METADATA)
    assert baked.adapter.kind == meta["kind"] == "mix"
    assert [(p["id"], p["sha256"], p["weight"]) for p in meta["baked_from"]] == [
        (a, adapters.load(resident.workspace, a).sha256, w) for a, w in (("law", 0.7), ("odd", -1.0))
    ]
    assert meta["bake"] == {"method": "svd", "rank": 6}
    assert meta["base"]["fingerprint"] == resident.base.fingerprint
    assert (
        meta["results"]["discarded_energy"] == baked.changed
        and meta["results"]["max_logit_difference"] == baked.logit_difference
    )
    assert len(meta["baked_modules"]) == 6
    assert (
        adapters.verify(resident.workspace, baked.adapter.id)[1]
        == "All 12 tensors have the names and shapes of a rank-6 adapter."
    )
    card = (folder / "README.md").read_text()
    assert "Baked from: law, weight 0.7" in card and "Dataset" not in card
    config = read_json(folder / adapters.CONFIG)
    assert (
        config["use_rslora"] is False
        and config["lora_alpha"] == config["r"] == 6
        and config["target_modules"] == ["down_proj", "gate_proj", "q_proj"]
    )
    json.dumps(baked.to_json())


def test_a_baked_adapter_can_be_mixed_and_baked_again(resident: Resident, tiny_base: Path) -> None:
    first = bake_mix(resident, {"law": 0.5, "chat": 1.0}, method="concat").adapter.id
    mix = {first: 2.0, "odd": -0.5}
    assert (
        live_logits(resident, Mix(weights=mix))
        - live_logits(resident, Mix(weights={"law": 1.0, "chat": 2.0, "odd": -0.5}))
    ).abs().max() <= 1e-5
    second = bake_mix(resident, mix, method="svd", rank=14).adapter.id
    assert (
        peft_logits(resident, second, tiny_base) - live_logits(resident, Mix(weights=mix))
    ).abs().max() <= 1e-5


def test_a_tilt_over_the_depth_is_baked_in(resident: Resident) -> None:
    mix = Mix(weights={"law": 1.0, "chat": 0.5}, tilt={"law": -0.8})
    weights = make_weight_function(mix, 2)
    *_, baked = bake(resident, mix, BakeSpec(name="tilted", method="concat"), weight_function=weights)
    assert isinstance(baked, BakeResult) and baked.logit_difference is None
    parts, whole = {a: products(resident, a) for a in mix.weights}, products(resident, baked.adapter.id)
    for module, product in whole.items():
        factor = 1.8 if ".layers.0." in module else 0.2
        expected = sum(
            w * parts[a][module] for a, w in (("law", factor), ("chat", 0.5)) if module in parts[a]
        )
        assert (product - expected).abs().max() <= 1e-6


def test_a_tilted_mix_bakes_to_its_live_logits(resident: Resident, tiny_base: Path) -> None:
    mix = Mix.from_json({"weights": {"law": 1.0, "chat": 0.5}, "tilt": {"law": -0.8}})
    *_, baked = bake(resident, mix, BakeSpec(name="tilted", method="concat"))
    assert isinstance(baked, BakeResult) and baked.logit_difference is not None
    assert (
        peft_logits(resident, baked.adapter.id, tiny_base) - live_logits(resident, mix)
    ).abs().max() <= 1e-5
    assert (live_logits(resident, Mix(weights=mix.weights)) - live_logits(resident, mix)).abs().max() > 1e-2


def test_ranks_and_alphas_by_pattern_are_read_for_each_layer(resident: Resident, tiny_base: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in (0, 1):
        for target, rank in (("q_proj", 3), ("v_proj", 5)):
            place, (outputs, inputs) = (
                f"base_model.model.model.layers.{layer}.self_attn.{target}",
                SIZES[target],
            )
            tensors[f"{place}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * 0.15
            tensors[f"{place}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.15
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 3,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 5},
        "alpha_pattern": {"v_proj": 20},
    }
    meta = {"kind": "domain", "base": {"name": resident.base.name, "fingerprint": resident.base.fingerprint}}
    adapters.add(resident.workspace, "uneven-1", "uneven", lambda p: save_file(tensors, p), config, meta)
    weights = {"uneven-1": 0.7, "law": 1.0}
    baked = bake_mix(resident, weights, method="concat")
    assert baked.rank == 7, "q_proj has ranks 3 and 4; v_proj has only 5"
    assert (
        peft_logits(resident, baked.adapter.id, tiny_base) - live_logits(resident, Mix(weights=weights))
    ).abs().max() <= 1e-5
    with pytest.raises(AdapterError, match=r"uneven 3/5"):
        bake_mix(resident, weights, method="ties")


def test_an_exact_bake_that_differs_from_the_mix_is_removed(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = resident.workspace.ids("adapters")
    monkeypatch.setattr(bake_module, "pad", lambda pair, rank: pad(pair, rank).scale(1.01))
    with pytest.raises(AdapterError, match="must be within .* got a distance of"):
        bake_mix(resident, {"law": 1.0, "chat": 1.0}, method="concat")
    monkeypatch.setattr(bake_module, "check_files", lambda *args: iter(()))
    with pytest.raises(AdapterError, match="logits of the baked adapter must be within"):
        bake_mix(resident, {"law": 1.0, "chat": 1.0}, method="concat")
    assert resident.workspace.ids("adapters") == before
    assert set(resident.digests) <= set(before)


def test_a_closed_bake_leaves_no_adapter(resident: Resident) -> None:
    before = resident.workspace.ids("adapters")
    steps = bake(resident, Mix(weights={"law": 1.0, "chat": 1.0}), BakeSpec(name="half", method="concat"))
    for step in steps:
        if isinstance(step, Progress) and step.text == "Comparing with the mix":
            break
    steps.close()  # type: ignore[attr-defined]
    assert resident.workspace.ids("adapters") == before


def test_baking_during_training_leaves_gradients_unchanged(tiny_base: Path, tmp_path: Path) -> None:
    def gradients(disturb: bool) -> dict[str, torch.Tensor]:
        resident = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path / str(disturb)))
        for name, shape in SHAPES.items():
            add_random_adapter(resident, name, *shape)
        torch.manual_seed(3)
        resident.add_trainee(
            "learner",
            {
                "task_type": "CAUSAL_LM",
                "r": 4,
                "lora_alpha": 4,
                "target_modules": ["q_proj", "up_proj"],
                "lora_dropout": 0.1,
            },
            "law",
        )
        if disturb:
            bake_mix(resident, {"law": 1.0, "chat": 0.5}, method="ties")
            with pytest.raises(Busy, match="'learner' is still in training"):
                list(bake(resident, Mix(weights={"learner": 1.0}), BakeSpec(name="no")))
        assert resident.peft is not None
        resident.peft.train()
        resident.peft(input_ids=IDS, labels=IDS).loss.backward()
        return {k: p.grad for k, p in resident.peft.named_parameters() if p.grad is not None}

    calm, disturbed = gradients(False), gradients(True)
    assert calm.keys() == disturbed.keys() and len(calm) == 8
    assert all(torch.equal(calm[k], disturbed[k]) for k in calm)


def test_a_4_bit_base_bakes_the_same_file(resident: Resident, tiny_base: Path) -> None:
    small = Resident(load_base(str(tiny_base), "nf4", "cpu"), resident.workspace)
    weights = {"law": 1.0, "odd": -0.5}
    ours, theirs = bake_mix(small, weights, method="concat"), bake_mix(resident, weights, method="concat")
    assert ours.adapter.sha256 == theirs.adapter.sha256
    assert ours.logit_difference is not None and ours.logit_difference <= 0.05


def test_gpt2_adapters_bake_on_transposed_layers(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.conftest import build_tiny_tokenizer

    folder = tmp_path / "gpt2"
    folder.mkdir()
    build_tiny_tokenizer(folder)
    GPT2LMHeadModel(
        GPT2Config(
            vocab_size=384, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1
        )
    ).save_pretrained(folder)
    resident = Resident(load_base(str(folder), "none", "cpu"), Workspace(tmp_path / "ws"))
    generator = torch.Generator().manual_seed(1)
    for name, target, place, outputs in (
        ("first", "c_attn", "attn.c_attn", 96),
        ("second", "c_fc", "mlp.c_fc", 128),
    ):
        tensors = {
            f"base_model.model.transformer.h.{i}.{place}.lora_{s}.weight": torch.randn(
                (2, 32) if s == "A" else (outputs, 2), generator=generator
            )
            for i in (0, 1)
            for s in "AB"
        }
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": 2,
            "lora_alpha": 2,
            "target_modules": [target],
            "fan_in_fan_out": True,
        }
        meta = {"kind": "domain", "base": {"name": "gpt2", "fingerprint": resident.base.fingerprint}}
        adapters.add(resident.workspace, name, name, lambda p, t=tensors: save_file(t, p), config, meta)  # type: ignore[misc]
    weights = {"first": 1.0, "second": -0.5}
    # Each layer belongs to one adapter, so all of these methods are exact.
    for method in ("concat", "magnitude_prune", "svd"):
        baked = bake_mix(resident, weights, method=method, density=1.0)
        assert baked.rank == 2, "the two adapters change different layers"
        assert (
            peft_logits(resident, baked.adapter.id, folder) - live_logits(resident, Mix(weights=weights))
        ).abs().max() <= 1e-4
