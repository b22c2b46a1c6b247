"""Comparisons by factors and forward hooks equal those of dense updates and plain logits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.analyze.interference import WeightComparison, compare_weights, describe_layers
from core.analyze.output_comparison import OutputComparison, compare_outputs
from core.errors import SpecError
from core.model.base import load_base
from core.model.deltas import read_deltas
from core.model.generate import inference_mode_for
from core.model.resident import Resident
from core.progress import Progress
from core.spec.mix import Mix
from core.store import adapters
from core.store.workspace import Workspace

PROMPTS = [[5, 9, 40, 77, 101, 12], [3, 260, 18]]
SIZES = {"q_proj": (64, 64), "v_proj": (32, 64), "down_proj": (64, 128)}


def random_factors(targets: Sequence[str], rank: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in (0, 1):
        for target in targets:
            block = "mlp" if target == "down_proj" else "self_attn"
            place = f"base_model.model.model.layers.{layer}.{block}.{target}"
            outputs, inputs = SIZES[target]
            tensors[f"{place}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * 0.15
            tensors[f"{place}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.15
    return tensors


def add_to_library(
    resident: Resident, name: str, tensors: dict[str, torch.Tensor], targets: Sequence[str], alpha: int = 4
) -> None:
    rank = next(t.shape[0] for k, t in tensors.items() if "lora_A" in k)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(targets),
    }
    meta = {"kind": "domain", "base": {"name": resident.base.name, "fingerprint": resident.base.fingerprint}}
    adapters.add(resident.workspace, name, name.title(), lambda p: save_file(tensors, p), config, meta)


@pytest.fixture(scope="module")
def resident(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resident]:
    made = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path_factory.mktemp("ws")))
    wide = ("q_proj", "down_proj")
    law = random_factors(wide, 4, 1)
    add_to_library(made, "law", law, wide)
    add_to_library(made, "chat", random_factors(("q_proj", "v_proj"), 2, 2), ("q_proj", "v_proj"), alpha=2)
    add_to_library(made, "values-1", random_factors(("v_proj",), 2, 3), ("v_proj",))
    add_to_library(made, "twin", {k: t.clone() for k, t in law.items()}, wide)
    half = {
        k: (-t if ".layers.1." in k and "lora_A" in k else t.clone()) for k, t in law.items()
    }  # equal in layer 1, opposite in layer 2
    add_to_library(made, "half-1", half, wide)
    sibling = {
        k: (t if "lora_A" in k else random_factors(wide, 4, 9)[k]) for k, t in law.items()
    }  # the same A, as adapters of one seed have
    add_to_library(made, "sibling", sibling, wide)
    add_to_library(made, "giant", {k: t * 3 for k, t in random_factors(wide, 4, 11).items()}, wide)
    add_to_library(
        made,
        "silent",
        {k: (t if "lora_A" in k else t * 0) for k, t in random_factors(wide, 4, 12).items()},
        wide,
    )
    yield made


def compare(resident: Resident, weights: dict[str, float]) -> list[WeightComparison]:
    *steps, last = compare_weights(resident, Mix(weights=weights))
    assert steps and all(isinstance(s, Progress) for s in steps) and isinstance(last, list)
    return last


def dense(resident: Resident, adapter: str) -> dict[str, torch.Tensor]:
    return {m: p.b @ p.a for m, p in read_deltas(resident, adapter).items()}


def test_cosines_and_norms_are_those_of_the_dense_scaled_updates(resident: Resident) -> None:
    (comparison,) = compare(resident, {"law": 0.5, "chat": -2.0})
    x, y = ({m: w * d for m, d in dense(resident, a).items()} for a, w in (("law", 0.5), ("chat", -2.0)))
    assert [(m.layer, m.module) for m in comparison.modules] == [
        (0, "self_attn.q_proj"),
        (1, "self_attn.q_proj"),
    ]
    for m in comparison.modules:
        p, q = (d[f"model.layers.{m.layer}.{m.module}"] for d in (x, y))
        assert m.cosine == pytest.approx(float((p * q).sum() / (p.norm() * q.norm())), abs=1e-9)
        assert m.norms == pytest.approx((float(p.norm()), float(q.norm())))
        assert (m.chance_output_overlap, m.chance_input_overlap, m.chance_cosine) == (4 / 64, 4 / 64, 1 / 64)
    inside = sum(float((x[m] * y[m]).sum()) for m in x.keys() & y.keys())
    sizes = [math.sqrt(sum(float(d.square().sum()) for d in u.values())) for u in (x, y)]
    assert comparison.overall.cosine == pytest.approx(inside / (sizes[0] * sizes[1]), abs=1e-9)
    assert comparison.overall.norms == pytest.approx(tuple(sizes))
    assert comparison.exclusive_modules == (("mlp.down_proj",), ("self_attn.v_proj",))
    json.dumps(comparison.to_json())


def test_summaries_describe_the_constructed_relations(resident: Resident) -> None:
    def read(a: str, b: str, weight: float = 1.0) -> str:
        return compare(resident, {a: 1.0, b: weight})[0].summary()

    assert read("law", "twin").startswith(
        "Law and Twin point the same way in layers 1 and 2, "
        "where they should amplify each other (cosine +1.00"
    )
    assert read("law", "twin", -1.0).startswith(
        "Law and Twin oppose each other in layers 1 and 2, where they should partly cancel (cosine -1.00"
    )
    both = read("law", "half-1")
    assert "point the same way in layer 1," in both and "oppose each other in layer 2," in both
    assert read("law", "giant").startswith(
        "Law and Giant are nearly orthogonal"
    ) and "Giant is 8.5 times as large" in read("law", "giant")
    assert "read from the same inputs (overlap 1.00, chance level 0.0" in read(
        "law", "sibling"
    ) and "trained from the same seed" in read("law", "sibling")
    assert read("law", "values-1") == (
        "Law and Values-1 change different modules, so their updates never add up in the same module. "
        "Each one still sees the effect of the other in its inputs."
    )
    assert "Modules that only one adapter changes: mlp.down_proj (Law); self_attn.v_proj (Chat)." in read(
        "law", "chat"
    )
    assert read("law", "silent") == "Silent changes nothing: its update is zero."


def test_three_adapters_are_compared_pairwise(resident: Resident) -> None:
    assert [c.ids for c in compare(resident, {"law": 1.0, "twin": 1.0, "chat": 1.0})] == [
        ("law", "twin"),
        ("law", "chat"),
        ("twin", "chat"),
    ]


def test_a_comparison_needs_two_adapters_and_readable_prompts(resident: Resident) -> None:
    with pytest.raises(SpecError, match="at least two adapters, got 1"):
        compare(resident, {"law": 1.0})
    with pytest.raises(SpecError, match="at least one prompt, got none"):
        list(compare_outputs(resident, Mix(weights={"law": 1.0, "chat": 1.0}), []))
    with pytest.raises(SpecError, match="must have 1 to 256 tokens, got 257 to 257"):
        list(compare_outputs(resident, Mix(weights={"law": 1.0, "chat": 1.0}), [[5] * 257]))


def test_layers_are_counted_from_one_and_joined_into_ranges() -> None:
    assert describe_layers([0]) == "layer 1"
    assert describe_layers([0, 1]) == "layers 1 and 2"
    assert describe_layers([1, 2, 3, 6]) == "layers 2 to 4 and 7"
    assert describe_layers([-1]) == "the modules outside the layers"


def compare_prompts(resident: Resident, mix: Mix) -> OutputComparison:
    *steps, last = compare_outputs(resident, mix, PROMPTS)
    assert [s.done for s in steps if isinstance(s, Progress)] == [1, 2] and isinstance(last, OutputComparison)
    return last


def test_divergences_are_sums_of_nats_over_sums_of_tokens(resident: Resident) -> None:
    mix = Mix(weights={"law": 1.0, "chat": -1.5})
    comparison = compare_prompts(resident, mix)

    def logs(weights: dict[str, float], prompt: list[int]) -> torch.Tensor:
        resident.load_adapters([mix])
        with inference_mode_for(resident, resident.rows([Mix(weights=weights)])):
            return resident.base.model(torch.tensor([prompt])).logits[0].double().log_softmax(-1).clone()

    def divergence(p: dict[str, float], q: dict[str, float]) -> float:
        return sum(float((logs(p, t).exp() * (logs(p, t) - logs(q, t))).sum()) for t in PROMPTS) / 9

    assert (comparison.prompts, comparison.tokens) == (2, 9)
    assert comparison.divergence_from_base == pytest.approx(divergence(mix.weights, {}), rel=1e-3)
    assert comparison.divergence_from_parts == pytest.approx(
        (divergence(mix.weights, {"law": 1.0}), divergence(mix.weights, {"chat": -1.5})), rel=1e-3
    )
    assert comparison.part_divergences_from_base == pytest.approx(
        (divergence({"law": 1.0}, {}), divergence({"chat": -1.5}, {})), rel=1e-3
    )
    json.dumps(comparison.to_json())


def test_contributions_are_computed_on_the_hidden_states_of_the_mix(resident: Resident) -> None:
    mix = Mix(weights={"law": 1.0, "chat": -1.5})
    comparison = compare_prompts(resident, mix)
    deltas = {a: dense(resident, a) for a in mix.weights}
    module = "model.layers.1.self_attn.q_proj"
    layer = resident.base.model.get_submodule(module)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = layer.register_forward_hook(lambda m, x, y: seen.append((x[0][0].double(), y[0].double())))
    for prompt in PROMPTS:
        with inference_mode_for(resident, resident.rows([mix])):
            resident.base.model(torch.tensor([prompt]))
    handle.remove()
    x, y = (torch.cat([s[i] for s in seen]) for i in (0, 1))
    law, chat = (x @ (w * deltas[a][module]).T for a, w in mix.weights.items())
    contribution = next(m for m in comparison.modules if (m.layer, m.module) == (1, "self_attn.q_proj"))
    assert contribution.shares == pytest.approx(
        (float(law.norm() / y.norm()), float(chat.norm() / y.norm())), rel=1e-4
    )
    assert contribution.cosines == pytest.approx(
        (float((law * chat).sum() / (law.norm() * chat.norm())),), abs=1e-5
    )
    assert next(m for m in comparison.modules if m.module == "mlp.down_proj").shares[1] == 0.0
    assert not layer._forward_hooks, "no hook is left on the model"


def test_output_summaries_name_the_nearest_adapter_and_opposition(resident: Resident) -> None:
    assert (
        compare_prompts(resident, Mix(weights={"silent": 1.0, "law": 0.05}))
        .summary()
        .startswith("On these 9 tokens the mix hardly changes the predictions of the base")
    )
    alone = compare_prompts(resident, Mix(weights={"silent": 1.0, "law": 2.0})).summary()
    assert "is closest to Law (divergence: Silent" in alone and "Silent 0%" in alone
    against = compare_prompts(resident, Mix(weights={"law": 2.0, "twin": -0.5})).summary()
    assert "The contributions of Law and Twin oppose each other in layers 1 and 2." in against


def test_comparing_an_adapter_in_training_does_not_change_it(tiny_base: Path, tmp_path: Path) -> None:
    resident = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path))
    add_to_library(resident, "law", random_factors(("q_proj",), 4, 1), ("q_proj",))
    resident.add_trainee(
        "learner", {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    )
    assert resident.peft is not None
    resident.peft.train()
    mix = Mix(weights={"law": 1.0, "learner": 1.0})
    *_, comparisons = compare_weights(resident, mix)
    assert (
        isinstance(comparisons, list)
        and comparisons[0].summary() == "learner changes nothing: its update is zero."
    )
    *_, outputs = compare_outputs(resident, mix, PROMPTS)
    assert isinstance(outputs, OutputComparison) and outputs.part_divergences_from_base[1] == pytest.approx(
        0.0, abs=1e-6
    )
    assert resident.peft.training and all(
        ".default." in k for k, p in resident.peft.named_parameters() if p.requires_grad
    )
