"""Mixing in rank space equals peft's own forward, row by row, at any ranks, layers and weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import AdapterError
from core.model import nf4_cpu
from core.model.base import load_base
from core.model.generate import inference_mode_for
from core.model.nf4_cpu import unpack_for_backward
from core.model.resident import TRAINEE, Resident
from core.spec.mix import Mix
from core.store.workspace import Workspace

IDS = torch.tensor([[5, 9, 40, 77, 101, 12, 3, 260]])
SHAPES = {
    "one": (4, 8, ["q_proj", "down_proj"]),
    "two": (7, 3, ["q_proj", "v_proj", "o_proj"]),
    "three": (2, 64, ["gate_proj"]),
}


def add_random_adapters(
    resident: Resident, shapes: dict[str, tuple[int, int, list[str]]], trainable: str = ""
) -> None:
    """Adds adapters with random factors, so that each of them changes the logits."""
    generator = torch.Generator().manual_seed(7)
    for name, (rank, alpha, targets) in shapes.items():
        config = {
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": targets,
            "lora_dropout": 0.1,
        }
        config["fan_in_fan_out"] = resident.base.family.fan_in_fan_out
        if name == trainable:
            resident.add_trainee(name, config)
        else:
            resident.add_adapter(name, config)
            resident.digests[name] = f"sha-{name}"
    assert resident.peft is not None
    with torch.no_grad():
        for key, p in resident.peft.named_parameters():
            if "lora_" in key:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.15)
    resident.update_layout()


def by_peft(resident: Resident, weights: dict[str, float]) -> torch.Tensor:
    """Computes the logits of peft's own forward, with these adapters active and scaled."""
    assert resident.peft is not None
    resident.peft.eval()
    names = {resident.peft_name(a): w for a, w in weights.items()}
    layers = resident.mixer.layers
    scalings = [dict(layer.scaling) for layer in layers]
    active = [list(layer.active_adapters) for layer in layers]
    try:
        for layer in layers:
            layer._active_adapter = list(names)
            for name, weight in names.items():
                if name in layer.scaling:
                    layer.scaling[name] *= weight
        with torch.no_grad():
            return resident.peft(IDS).logits
    finally:
        for layer, scaling, names_before in zip(layers, scalings, active, strict=True):
            layer.scaling.update(scaling)
            layer._active_adapter = names_before


@pytest.fixture(scope="module", params=["none", "nf4"])
def resident(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Resident]:
    base = load_base(str(tiny_base), request.param, "cpu")
    resident = Resident(base, Workspace(tmp_path_factory.mktemp("ws")))
    add_random_adapters(resident, SHAPES)
    yield resident


def logits_of(resident: Resident, mixes: list[dict[str, float]]) -> torch.Tensor:
    with inference_mode_for(resident, resident.rows([Mix(weights=m) for m in mixes])):
        return resident.base.model(IDS.repeat(len(mixes), 1)).logits.clone()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.dictionaries(
            st.sampled_from(list(SHAPES)),
            st.floats(-2, 2, allow_nan=False).map(lambda w: round(w, 2)),
            max_size=3,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_every_row_of_a_batch_equals_pefts_forward_under_its_own_mix(
    resident: Resident, rows: list[dict[str, float]]
) -> None:
    ours = logits_of(resident, rows)
    # bitsandbytes' 4-bit kernel on a CPU rounds activations to bf16, so the last bit of a sum changes later
    # values by 2^-9, layer after layer. Of 250 mixes, the worst logit was 3.7e-3 off and the worst mean
    # 1.8e-4. A weight that is wrong by 0.05 changes the mean by 1.9e-3.
    most, mean = (1e-5, 1e-5) if resident.base.quantization == "none" else (8e-3, 4e-4)
    for b, row in enumerate(rows):
        off = (by_peft(resident, row)[0] - ours[b]).abs()
        assert off.max() <= most and off.mean() <= mean


def test_a_weight_of_0_gives_exactly_the_base(resident: Resident) -> None:
    alone = logits_of(resident, [{}])
    beside = logits_of(resident, [{"one": 0.0}, {"one": 1.0}, {"two": -2.0}])
    assert torch.equal(alone[0], beside[0]) or (alone[0] - beside[0]).abs().max() < 1e-6
    assert (beside[1] - alone[0]).abs().max() > 1e-2
    assert (beside[2] - alone[0]).abs().max() > 1e-2


def test_the_mixers_tensors_are_pefts_parameters(resident: Resident) -> None:
    for layer in resident.mixer.layers:
        for block in layer.blocks:
            for side, stored in (("lora_A", block.down.a), ("lora_B", block.b)):
                assert {p.weight.untyped_storage().data_ptr() for p in getattr(layer, side).values()} == {
                    stored.untyped_storage().data_ptr()
                }
    assert resident.peft is not None
    layer = next(x for x in resident.mixer.layers if "one" in x.lora_A)
    before = logits_of(resident, [{"one": 1.0}])
    with torch.no_grad():
        layer.lora_B["one"].weight.mul_(3.0)
    after = logits_of(resident, [{"one": 1.0}])
    with torch.no_grad():
        layer.lora_B["one"].weight.div_(3.0)
    assert (after - before).abs().max() > 1e-3


def test_layers_share_the_first_product_only_for_the_same_input(
    resident: Resident,
) -> None:
    attention = resident.model.model.layers[0].self_attn
    q, v, o = attention.q_proj, attention.v_proj, attention.o_proj
    down = q.blocks[0].down
    assert down is v.blocks[0].down is not o.blocks[0].down
    assert down.readers == 2 and down.a.shape[1] == 4 + 7 + 7  # q has both adapters, v the second
    text, other = torch.randn(2, 2, 3, resident.model.config.hidden_size).unbind()
    with torch.no_grad():
        base = {(layer, x): layer.base_layer(x) for layer in (q, v) for x in (text, other)}
        for weights in ({"two": 1.0}, {"two": -0.5, "one": 2.0}, {}):
            with resident.mixer.activate([weights, {}]):
                for layer, x in (
                    (q, text),
                    (v, text),
                    (q, text),
                    (v, other),
                    (q, other),
                    (v, text),
                    (v, text),
                ):
                    own = {n: w for n, w in weights.items() if n in layer.lora_A}
                    due = sum(
                        w * layer.scaling[n] * (x[0] @ layer.lora_A[n].weight.T @ layer.lora_B[n].weight.T)
                        for n, w in own.items()
                    )
                    got = layer(x) - base[layer, x]
                    assert (got[0] - due).abs().max() < 1e-4 and got[1].abs().max() == 0.0
            assert (down.inner is None) is (down.pending == 0)


def test_the_stamp_is_read_back_from_the_multiplied_weights(resident: Resident) -> None:
    with resident.mixer.activate([{"one": 0.5}, {}, {"two": -1.0, "three": 2.0}]):
        assert resident.stamp(0)["weights"] == {"one": 0.5}
        assert resident.stamp(1)["weights"] == {}
        assert resident.stamp(2)["weights"] == {"three": 2.0, "two": -1.0}
        assert resident.stamp(2)["adapters"] == {"three": "sha-three", "two": "sha-two"}
    assert resident.mixer.weights is None


def test_an_unknown_adapter_is_refused_by_name(resident: Resident) -> None:
    with (
        pytest.raises(AdapterError, match="'unknown' is not loaded"),
        resident.mixer.activate([{"unknown": 1.0}]),
    ):
        pass


def test_training_takes_effect_at_once_and_peft_state_is_untouched(tiny_base: Path, tmp_path: Path) -> None:
    resident = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path))
    add_random_adapters(resident, SHAPES, trainable="two")
    assert resident.peft is not None
    before = logits_of(resident, [{"two": 1.0}])
    optimizer = torch.optim.AdamW([p for p in resident.peft.parameters() if p.requires_grad], lr=0.05)
    resident.peft.train()
    loss = resident.peft(input_ids=IDS, labels=IDS).loss
    loss.backward()
    optimizer.step()
    assert (logits_of(resident, [{"two": 1.0}]) - before).abs().max() > 1e-3
    assert resident.peft.training, "train mode is restored"
    trained = {k for k, p in resident.peft.named_parameters() if p.requires_grad}
    assert trained and all(f".{TRAINEE}." in k for k in trained)
    assert all(layer.active_adapters == [TRAINEE] for layer in resident.mixer.layers)


def test_loading_during_training_changes_neither_gradients_nor_rng(tiny_base: Path, tmp_path: Path) -> None:
    def gradients(disturb: bool) -> dict[str, torch.Tensor]:
        resident = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path))
        torch.manual_seed(3)
        add_random_adapters(resident, {"one": SHAPES["one"]}, trainable="one")
        if disturb:  # adds LoRA layers where no adapter had any
            resident.add_adapter(
                "late",
                {
                    "task_type": "CAUSAL_LM",
                    "r": 3,
                    "lora_alpha": 3,
                    "target_modules": ["v_proj", "up_proj", "q_proj"],
                },
            )
            resident.update_layout()
        assert resident.peft is not None
        resident.peft.train()
        resident.peft(input_ids=IDS, labels=IDS).loss.backward()
        return {k: p.grad for k, p in resident.peft.named_parameters() if p.grad is not None}

    undisturbed, disturbed = gradients(False), gradients(True)
    assert undisturbed.keys() == disturbed.keys() and len(undisturbed) == 8
    assert all(torch.equal(undisturbed[k], disturbed[k]) for k in undisturbed)


def test_gpt2_layers_mix_like_peft_too(tmp_path: Path) -> None:
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
    add_random_adapters(
        resident, {"first": (4, 8, ["c_attn", "c_proj"]), "second": (2, 2, ["c_fc", "c_attn"])}
    )
    rows: list[dict[str, float]] = [{"first": 1.0, "second": -0.5}, {}, {"second": 2.0}]
    ours = logits_of(resident, rows)
    for b, row in enumerate(rows):
        assert (by_peft(resident, row)[0] - ours[b]).abs().max() <= 1e-5


def test_gradients_reach_the_weights_of_a_mix(resident: Resident) -> None:
    weights = torch.zeros(2, 3, requires_grad=True)
    with unpack_for_backward(resident.base.model), resident.mixer.activate(weights):
        logits = resident.base.model(IDS.repeat(2, 1)).logits
        (logits[0].logsumexp(-1).sum() + 2 * logits[1].logsumexp(-1).sum()).backward()
    assert weights.grad is not None
    assert weights.grad.abs().min() > 0
    assert torch.allclose(2 * weights.grad[0], weights.grad[1], rtol=1e-2)  # both rows are the base here


def test_nf4_weights_do_not_drift_between_answers_and_training(
    tiny_base: Path,
) -> None:
    base = load_base(str(tiny_base), "nf4", "cpu")
    ids = torch.arange(5, 40)[None]

    def training_logits() -> torch.Tensor:
        with unpack_for_backward(base.model):
            return base.model(ids).logits.detach()

    def answer_logits() -> torch.Tensor:
        with torch.inference_mode():
            return base.model(ids).logits.clone()

    in_training, in_answer = training_logits(), answer_logits()
    for _ in range(3):
        assert torch.equal(training_logits(), in_training) and torch.equal(answer_logits(), in_answer)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_direct_kernel_calls_equal_bitsandbytes_to_the_bit(
    bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = (
        torch.nn.ModuleList([bnb.nn.Linear4bit(128, 64, bias=bias, compute_dtype=dtype, quant_type="nf4")])
        .to("cpu")
        .eval()
        .requires_grad_(False)
    )
    layer, x = model[0], torch.randn(3, 5, 128, dtype=dtype)
    nf4_cpu.round_trip(model)
    if nf4_cpu._kernel() is None:
        pytest.skip("this bitsandbytes has no such kernel for this CPU")
    assert type(layer) is nf4_cpu.Direct4bit
    if not layer.support_avx512bf16_for_cpu:
        pytest.skip("this CPU has no such kernel")
    kernel, calls = nf4_cpu._kernel(), []
    monkeypatch.setattr(nf4_cpu, "_kernel", lambda: lambda *a: calls.append(kernel(*a)))
    layer(torch.zeros(1, 128, dtype=dtype))  # the first one packs
    for shape in (x, x[:, :1], x.transpose(0, 1), x[0]):
        with torch.no_grad():
            ours, called = layer(shape), len(calls)
            own = bnb.nn.Linear4bit.forward(layer, shape)
        assert called == len(calls) > 0, "only our layer calls the kernel here"
        assert ours.dtype is own.dtype and ours.shape == own.shape and torch.equal(ours, own)
    with nf4_cpu.unpack_for_backward(model):
        y = layer(x.float().requires_grad_())
        assert y.requires_grad, "for a backward it is bitsandbytes' own forward, unpacked"


def test_only_known_kinds_of_layers_can_be_mixed() -> None:
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    from core.model.peft_patch import patch_layer, unmixable_reason

    class TorchaoLoraLinear(Linear):
        pass

    for kind, reason in ((Linear, ""), (TorchaoLoraLinear, "its layers are of the kind TorchaoLoraLinear")):
        layer = kind(torch.nn.Linear(4, 4), "a", r=2, config=LoraConfig(r=2))
        assert unmixable_reason(layer) == reason
        patch_layer(layer)
        assert unmixable_reason(layer) == reason
