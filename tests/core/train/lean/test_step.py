"""The loss and the gradients of a lean step are those of the model's own forward, on many architectures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch.nn import functional

from core.data.tokens.collation import collate
from core.data.tokens.encoded_sequence import EncodedSequence
from core.data.tokens.packing import build_rows
from core.engine import Engine
from core.model.base import Base
from core.model.families import family_of
from core.model.resident import Resident
from core.spec.training import RULES, RunStatus
from core.store.workspace import Workspace
from core.train.lean import step as lean
from core.train.lean.step import LeanStep
from core.train.lean.tree_attention import NAME
from tests.core.train.test_training import domain_spec, losses

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
CHANGES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 4},
    "gpt2": {
        "n_embd": 32,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 64,
        "attn_pdrop": 0,
        "resid_pdrop": 0,
        "embd_pdrop": 0,
    },
    "phi3": {"resid_pdrop": 0.0},
    "gemma2": {"attn_logit_softcapping": None, "final_logit_softcapping": 2.0, "sliding_window": 4},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
}
FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "phi3",
    "gpt2",
    "granite",
    "minimax_m2",
    "mixtral",
)
OWN_HEAD = ("gemma2",)  # caps its logits


def make_resident(
    family: str,
    folder: Path,
    dropout: float = 0.0,
    parent: bool = False,
    attention: str = "sdpa",
    **changes: Any,
) -> Resident:
    """A random model with an adapter in training whose B is not zero."""
    torch.manual_seed(5)
    config = hf.AutoConfig.for_model(family, **SHAPE, **CHANGES.get(family, {}) | changes)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model = model.eval().requires_grad_(False)
    base = Base("random", model, None, family_of(config), "", "none", torch.device("cpu"), 64, 1, False)
    resident = Resident(base, Workspace(folder))
    targets: Any = "all-linear" if "all-linear" in base.family.targets else list(base.family.targets)
    if family == "mixtral":
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    settings = {
        "r": 2,
        "lora_alpha": 4,
        "task_type": "CAUSAL_LM",
        "fan_in_fan_out": base.family.fan_in_fan_out,
        "target_modules": targets,
    }
    if parent:
        resident.add_adapter("parent", settings)
    resident.trainee_id, resident.parent_ids = "trainee", {"parent"} if parent else set()
    resident.add_adapter("default", {**settings, "lora_dropout": dropout}, trainable=True)
    resident.update_layout()
    assert resident.peft is not None
    for name, weight in resident.peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    if parent:
        resident._restore_training_state(resident._gradient_flags())
    return resident


def make_batch(packed: bool) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(3)
    shared = torch.randint(1, 96, (6,), generator=rng).tolist()
    sequences = []
    for length in (9, 4, 3, 12, 7):
        ids = shared[: 7 - length // 3] + torch.randint(1, 96, (length,), generator=rng).tolist()
        sequences.append(EncodedSequence(ids, [0] * 6 + [1] * (len(ids) - 6)))
    rows, _ = build_rows(sequences, 32, packed)
    batch = collate(rows, 0)
    batch.pop("row_lengths", None)
    return batch


def own_nats(resident: Resident, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Nats from the model's own forward, one sequence after the other."""
    total = torch.zeros(())
    for ids, trained in lean.split_batch(batch):
        if any(trained[1:]):
            logits = resident.peft(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]  # type: ignore[misc]
            at = torch.tensor(trained[1:]).nonzero()[:, 0]
            total = total + functional.cross_entropy(logits[at], torch.tensor(ids[1:])[at], reduction="sum")
    return total


def gradients_of(resident: Resident, nats: torch.Tensor) -> dict[str, torch.Tensor]:
    assert resident.peft is not None
    nats.backward()
    found = {n: p.grad.clone() for n, p in resident.peft.named_parameters() if p.grad is not None}
    resident.peft.zero_grad()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_the_models_own_forward(family: str, tmp_path: Path) -> None:
    resident = make_resident(family, tmp_path, attention="eager" if family == "gemma2" else "sdpa")
    step = LeanStep(resident)
    assert step.check(resident.peft) == ""
    assert step.has_head == (family not in OWN_HEAD)
    resident.peft.train()  # type: ignore[union-attr]
    for packed in (True, False):
        batch = make_batch(packed)
        nats = step.sum_nats(resident.peft, batch)
        assert nats is not None
        expected = own_nats(resident, batch)
        assert nats.item() == pytest.approx(expected.item(), rel=1e-5)
        ours, theirs = gradients_of(resident, nats), gradients_of(resident, expected)
        assert ours.keys() == theirs.keys() and len(ours) >= 6
        for name, gradient in theirs.items():
            assert torch.allclose(ours[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max())), (
                name
            )


def test_a_model_whose_attention_does_more_keeps_its_own_forward(tmp_path: Path) -> None:
    resident = make_resident("gemma2", tmp_path, attention="eager", attn_logit_softcapping=1.0)
    assert "softcap" in LeanStep(resident).check(resident.peft)
    assert resident.base.model.config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("family", "changes"), [("gpt2", {"attn_pdrop": 0.1}), ("llama", {"attention_dropout": 0.1})]
)
def test_a_model_whose_attention_drops_keeps_its_own_forward(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    resident = make_resident(family, tmp_path, **changes)
    assert resident.peft is not None
    random_state, mode = torch.get_rng_state(), resident.peft.training
    assert "dropout" in LeanStep(resident).check(resident.peft)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert resident.peft.training is mode


def test_the_modules_of_a_llama_are_recognised_and_put_back(tmp_path: Path) -> None:
    resident = make_resident("llama", tmp_path)
    step = LeanStep(resident)
    assert step.check(resident.peft) == ""
    found = {type(m).__name__ for m, _ in step._find_forwards(resident.mixer.modules)}
    assert {"LlamaMLP", "LlamaRMSNorm", "MixedLinear"} <= found
    config = resident.base.model.config
    with step.replace_modules():
        assert config._attn_implementation == NAME
    assert config._attn_implementation == "sdpa"
    assert not any("forward" in vars(m) for m in resident.base.model.modules())


def test_a_parent_adapter_takes_part_until_it_is_switched_off(tmp_path: Path) -> None:
    resident = make_resident("llama", tmp_path, parent=True)
    step, batch = LeanStep(resident), make_batch(True)
    assert step.check(resident.peft) == ""
    with_parent = step.sum_nats(resident.peft, batch)
    assert with_parent is not None and with_parent.item() == pytest.approx(
        own_nats(resident, batch).item(), rel=1e-5
    )
    for layer in resident.mixer.layers:
        layer.scaling["parent"] = 0.0
    without = step.sum_nats(resident.peft, batch)
    assert without is not None and without.item() == pytest.approx(own_nats(resident, batch).item(), rel=1e-5)
    assert abs(without.item() - with_parent.item()) > 1e-3


def test_dropout_is_drawn_again_from_the_same_seed(tmp_path: Path) -> None:
    resident = make_resident("llama", tmp_path, dropout=0.5)
    step, batch = LeanStep(resident), make_batch(True)
    assert step.check(resident.peft) == ""
    resident.peft.train()  # type: ignore[union-attr]
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nats = step.sum_nats(resident.peft, batch)
        assert nats is not None
        drawn.append((nats.item(), {n: g.sum().item() for n, g in gradients_of(resident, nats).items()}))
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2]


def test_an_adapter_that_a_chat_loads_changes_no_number(tmp_path: Path) -> None:
    resident = make_resident("llama", tmp_path, dropout=0.5)
    step, batch = LeanStep(resident), make_batch(True)
    assert step.check(resident.peft) == ""
    resident.peft.train()  # type: ignore[union-attr]
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        nats = step.sum_nats(resident.peft, batch)
        assert nats is not None
        results.append((nats.item(), {n: g.sum().item() for n, g in gradients_of(resident, nats).items()}))
        if "of-a-chat" not in resident.peft.peft_config:  # type: ignore[union-attr]
            settings = {
                "r": 2,
                "lora_alpha": 4,
                "task_type": "CAUSAL_LM",
                "target_modules": ["up_proj", "o_proj"],
            }
            resident.add_adapter("of-a-chat", settings)
            resident.update_layout()
    assert results[0] == results[1] and resident.peft.training  # type: ignore[union-attr]


def test_a_batch_that_trains_nothing_has_no_lean_loss(tmp_path: Path) -> None:
    resident = make_resident("llama", tmp_path)
    batch = {"input_ids": torch.ones(1, 4, dtype=torch.long), "labels": torch.full((1, 4), -100)}
    assert LeanStep(resident).sum_nats(resident.peft, batch) is None


def test_runs_of_earlier_rules_have_the_same_losses_but_for_rounding(
    tiny_base: Path, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    whole = LeanStep.sum_nats
    monkeypatch.setattr(LeanStep, "sum_nats", lambda *args: calls.append(1) or whole(*args))  # type: ignore[func-returns-value]
    with Engine(tmp_path / "ws", str(tiny_base), device="cpu") as engine:
        spec = domain_spec(engine, corpus, max_steps=6, dropout=0.0, learning_rate=1e-3)
        before = engine.runs.wait(engine.runs.start(replace(spec, rules=2)))
        assert not calls
        after = engine.runs.wait(engine.runs.start(replace(spec, rules=RULES)))
        assert calls and before.status is after.status is RunStatus.DONE
        assert losses(engine, after.id) == pytest.approx(losses(engine, before.id), rel=1e-4)
