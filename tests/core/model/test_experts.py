"""Adapters on experts in rank space equal peft's forward, row by row, without a dense delta."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from core.errors import AdapterError
from core.model import experts
from core.model.base import load_base
from core.model.generate import generate
from core.model.mixing import Mixer, MixRow
from core.model.resident import Resident
from core.spec.mix import Mix, Sampling
from core.store import adapters
from core.store.adapter_config import parse_config
from core.store.workspace import Workspace
from tests.conftest import build_tiny_tokenizer
from tests.core.model.test_families import PICKY, SHAPE, WEIGHTS, Shape, batch, by_peft, logits, with_adapters

BOTH = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
SIZES = {
    "num_local_experts": 6,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
# gpt_oss has transposed weights, biases, and its own gate.
MODELS = ("minimax_m2", "mixtral", "qwen2_moe", "gpt_oss")


@cache
def tiny(family: str) -> Any:
    torch.manual_seed(5)
    config = hf.AutoConfig.for_model(family, **SHAPE, **SIZES)
    config.layer_types = (
        ["full_attention"] * 3 if family == "gpt_oss" else getattr(config, "layer_types", None)
    )
    model = (
        hf.AutoModelForCausalLM.from_config(config, experts_implementation="eager")
        .eval()
        .requires_grad_(False)
    )
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "experts" in key:
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(len(key)))
    return model


@contextmanager
def dispatched(model: Any, how: str) -> Iterator[None]:
    before = model.config._experts_implementation
    model.set_experts_implementation(how)
    try:
        yield
    finally:
        model.set_experts_implementation(before)


@pytest.mark.parametrize("family", MODELS)
@PICKY
@given(
    shapes=st.lists(
        st.builds(
            Shape,
            st.integers(1, 5),
            st.integers(1, 6),
            st.sampled_from([(), ("q_proj",)]),
            st.booleans(),
            st.just(BOTH),
        ),
        min_size=1,
        max_size=3,
    ),
    rows=st.lists(st.dictionaries(st.sampled_from(["a0", "a1", "a2"]), WEIGHTS), min_size=1, max_size=3),
    tokens=st.sampled_from([1, 2, 7, 20]),
    beams=st.integers(1, 2),
    how=st.sampled_from(["eager", "grouped_mm", "batched_mm"]),
)
def test_every_row_equals_pefts_forward(
    family: str, shapes: list[Shape], rows: list[dict[str, float]], tokens: int, beams: int, how: str
) -> None:
    model = tiny(family)
    rows = [{a: w for a, w in row.items() if int(a[1]) < len(shapes)} for row in rows]
    inputs = {
        k: v.repeat_interleave(beams, 0) for k, v in batch(len(rows), [0, min(1, tokens - 1)], tokens).items()
    }
    with dispatched(model, how), with_adapters(model, shapes) as (_, mixer):
        with torch.inference_mode(), mixer.activate(rows):
            ours = logits(model, inputs)
        for b, row in enumerate(rows):
            with by_peft(mixer, row):
                assert (logits(model, inputs) - ours)[b * beams : (b + 1) * beams].abs().max() <= 1e-5


@pytest.mark.parametrize("tokens", [1, 9])
def test_tilt_and_gradients_reach_the_experts(tokens: int) -> None:
    model, inputs = tiny("minimax_m2"), batch(2, [], tokens)
    with with_adapters(model, [Shape(3, 6, (), False, BOTH), Shape(2, 2, (), False, BOTH)]) as (_, mixer):
        with (
            torch.inference_mode(),
            mixer.activate([MixRow({"a0": 1.0, "a1": 0.5}, {"a0": -1.0, "a1": 0.5}), {}]),
        ):
            ours = logits(model, inputs)
        with by_peft(mixer, {"a0": 1.0, "a1": 0.5}, {"a0": -1.0, "a1": 0.5}):
            assert (logits(model, inputs)[0] - ours[0]).abs().max() <= 1e-5
        weights = torch.zeros(2, 2, requires_grad=True)
        with mixer.activate(weights):
            nats = logits(model, inputs).logsumexp(-1).sum(1)
            (nats[0] + 2 * nats[1]).backward()
        assert weights.grad is not None and weights.grad.abs().min() > 0


def test_our_expert_layout_equals_pefts() -> None:
    with with_adapters(tiny("mixtral"), [Shape(3, 6, (), False, BOTH)]) as (_, mixer):
        layer = mixer.layers[0]
        block = layer.blocks[0]
        dense = torch.stack(
            [block.b[block.rows_b[e]].T @ block.a[block.rows_a[e]] for e in range(layer.num_experts)]
        )
        assert torch.allclose(dense * layer.scaling["a0"], layer.get_delta_weight("a0"), atol=1e-6)


def test_expert_factors_are_stored_once() -> None:
    with with_adapters(tiny("mixtral"), [Shape(3, 6, (), False, BOTH), Shape(2, 6, (), False, BOTH)]) as (
        _,
        mixer,
    ):
        for layer in mixer.layers:
            for side, stored in (("lora_A", layer.blocks[0].a), ("lora_B", layer.blocks[0].b)):
                assert {
                    getattr(layer, side)[n].weight.untyped_storage().data_ptr() for n in ("a0", "a1")
                } == {stored.untyped_storage().data_ptr()}


def test_without_a_mix_experts_are_unchanged_and_training_is_pefts() -> None:
    model = tiny("minimax_m2")
    with torch.no_grad():
        base = logits(model, batch(2, []))
    plain = [m for m in model.modules() if hasattr(m, "_apply_gate")]
    configs = [m.config for m in plain]
    with with_adapters(model, [Shape(3, 6, (), False, BOTH), Shape(2, 6, (), False, BOTH)]) as (peft, mixer):
        assert {m.config._experts_implementation for m in plain} == {experts.NAME}
        assert model.config._experts_implementation == "eager"
        with torch.inference_mode(), mixer.activate([{}, {"a0": 1.0}]):
            mixed = logits(model, batch(2, []))
        assert (mixed[0] - base[0]).abs().max() < 1e-6 and (mixed[1] - base[1]).abs().max() > 1e-3
        mixer.update_layout("a0")
        peft.set_adapter("a0")
        loss = peft(**batch(2, []), labels=batch(2, [])["input_ids"]).loss
        loss.backward()
        learned = [k for k, p in peft.named_parameters() if p.grad is not None and bool(p.grad.any())]
        assert len(learned) == 2 * 2 * 3 and all(".a0." in k for k in learned)
        # a0 is in training, a1 is not.
        with torch.inference_mode(), mixer.activate([{"a0": 1.0, "a1": -1.0}]):
            ours = logits(model, batch(2, []))
        with by_peft(mixer, {"a0": 1.0, "a1": -1.0}):
            assert (logits(model, batch(2, [])) - ours).abs().max() <= 1e-5
    assert [m.config for m in plain] == configs and all(m.config is c for m, c in zip(plain, configs))
    assert not any(hasattr(m, "expert_adapters") for m in plain)


def test_experts_refuse_tokens_that_do_not_match_the_rows() -> None:
    with (
        with_adapters(tiny("minimax_m2"), [Shape(3, 6, (), False, BOTH)]) as (_, mixer),
        torch.inference_mode(),
    ):
        with (
            mixer.activate([{"a0": 1.0}, {}]),
            pytest.raises(AdapterError, match="9 tokens, and the mix has 2 rows"),
        ):
            logits(tiny("minimax_m2"), batch(1, [], 9))


def test_an_adapter_on_another_bare_parameter_is_refused_by_name() -> None:
    model = tiny("minimax_m2")
    peft = get_peft_model(
        model, LoraConfig(r=2, target_modules=[], target_parameters=["mlp.gate.weight"]), adapter_name="odd"
    )
    try:
        with pytest.raises(
            AdapterError,
            match=r"mlp.gate' cannot be mixed: "
            "it is trained on the bare parameter 'weight' of MiniMaxM2TopKRouter",
        ):
            Mixer(model).update_layout()
    finally:
        peft.unload()


def test_an_adapter_on_experts_loads_from_the_library_and_answers(tmp_path: Path) -> None:
    build_tiny_tokenizer(tmp_path)
    torch.manual_seed(4)
    config = hf.AutoConfig.for_model("minimax_m2", **{**SHAPE, **SIZES, "vocab_size": 384})
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    made = get_peft_model(
        hf.AutoModelForCausalLM.from_pretrained(tmp_path),
        LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj"], target_parameters=list(BOTH)),
    )
    with torch.no_grad():
        for key, p in made.named_parameters():
            if "lora_" in key:
                p.normal_(std=0.1)
    made.save_pretrained(tmp_path / "theirs")
    raw, tensors = (
        json.loads((tmp_path / "theirs" / "adapter_config.json").read_text()),
        load_file(tmp_path / "theirs" / "adapter_model.safetensors"),
    )

    resident = Resident(load_base(str(tmp_path), "none", "cpu"), Workspace(tmp_path / "ws"))
    meta = {"kind": "task", "base": {"name": "tiny", "fingerprint": resident.base.fingerprint}}
    adapters.add(
        resident.workspace,
        "theirs-0001",
        "theirs",
        lambda p: save_file(tensors, p),
        parse_config(raw),
        meta,
    )
    mix = Mix(weights={"theirs-0001": 1.0})
    resident.load_adapters([mix])
    ids = torch.tensor([[5, 9, 40, 77]])
    with torch.inference_mode(), resident.mixer.activate(resident.rows([mix, Mix()])):
        ours = resident.base.model(ids.repeat(2, 1)).logits
    theirs = PeftModel.from_pretrained(
        hf.AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path / "theirs"
    ).eval()
    with torch.inference_mode():
        assert (theirs(ids).logits[0] - ours[0]).abs().max() <= 1e-5
        assert (ours[1] - ours[0]).abs().max() > 1e-3
    for states in generate(resident, [ids[0].tolist()] * 2, [mix, Mix()], [Sampling(max_new_tokens=4)] * 2):
        pass
    assert states[0].stamp["weights"] == {"theirs-0001": 1.0}
    resident.unload("theirs-0001")
    assert not resident.mixer.layers and not any(
        hasattr(m, "expert_adapters") for m in resident.base.model.modules()
    )
    resident.load_adapters([mix])
    with torch.inference_mode(), resident.mixer.activate(resident.rows([mix, Mix()])):
        assert torch.equal(resident.base.model(ids.repeat(2, 1)).logits, ours)
