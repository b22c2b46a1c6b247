"""Every family mixes like peft: one mix per row of a batch, at any ranks, padding and beams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.checkpoint import CheckpointError

from core.errors import AdapterError
from core.model.families import FAMILIES, expand_groups
from core.model.mixing import Mixer, MixRow
from core.model.nf4_cpu import unpack_for_backward

VOCABULARY = 96
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
PICKY = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@cache
def tiny(family: str) -> Any:
    """A random model of three layers (T5: two and two), in eval mode; cached."""
    torch.manual_seed(5)
    if family == "gpt2":
        config: Any = hf.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=64,
            n_embd=32,
            n_layer=3,
            n_head=4,
            bos_token_id=1,
            eos_token_id=1,
        )
        model: Any = hf.GPT2LMHeadModel(config)
    elif family == "t5":
        model = hf.T5ForConditionalGeneration(
            hf.T5Config(
                vocab_size=VOCABULARY,
                d_model=32,
                d_kv=8,
                d_ff=48,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                decoder_start_token_id=0,
            )
        )
    else:
        config = hf.AutoConfig.for_model(
            family,
            **SHAPE,
            **({"num_local_experts": 4, "num_experts_per_tok": 2} if family == "minimax_m2" else {}),
        )
        config.tie_word_embeddings = family == "qwen2"
        model = hf.AutoModelForCausalLM.from_config(config)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Shape:
    """The settings of a test adapter."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    rslora: bool = False
    parameters: tuple[str, ...] = ()


@contextmanager
def with_adapters(model: Any, shapes: list[Shape]) -> Iterator[tuple[PeftModel, Mixer]]:
    """Adds random adapters "a0", "a1", …, each of which changes the logits, and removes them on exit."""
    peft: Any = None
    for i, s in enumerate(shapes):
        config = LoraConfig(
            r=s.rank,
            lora_alpha=s.alpha,
            target_modules=list(s.targets),
            use_rslora=s.rslora,
            target_parameters=list(s.parameters) or None,
            fan_in_fan_out=isinstance(model, hf.GPT2LMHeadModel),
        )
        if peft is None:
            peft = get_peft_model(model, config, adapter_name=f"a{i}")
        else:
            peft.add_adapter(f"a{i}", config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, p in peft.named_parameters():
            if "lora_" in key:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.05)
    peft.eval()
    mixer = Mixer(model)
    mixer.update_layout()
    try:
        yield peft, mixer
    finally:
        peft.unload()
        mixer.update_layout()


@contextmanager
def by_peft(mixer: Mixer, weights: dict[str, float], tilt: dict[str, float] | None = None) -> Iterator[None]:
    """While open, peft's own forward has these adapters active and scaled, layer by layer."""
    before = [(layer, dict(layer.scaling), list(layer.active_adapters)) for layer in mixer.layers]
    try:
        for layer in mixer.layers:
            layer._active_adapter = list(weights)
            slope = 2 * mixer.depths[layer.depth] - 1
            for name, weight in weights.items():
                if name in layer.scaling:
                    layer.scaling[name] *= weight * (1 + (tilt or {}).get(name, 0.0) * slope)
        with torch.no_grad():
            yield
    finally:
        for layer, scaling, active in before:
            layer.scaling.update(scaling)
            layer._active_adapter = active


def batch(rows: int, pads: list[int], tokens: int = 7) -> dict[str, torch.Tensor]:
    """Random token ids, (rows, tokens); the first `pads[b]` tokens of row b are padding."""
    ids = torch.randint(2, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    for b, count in enumerate(pads[:rows]):
        ids[b, :count], mask[b, :count] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    extra: dict[str, Any] = {"use_cache": False}
    if model.config.is_encoder_decoder:
        extra["decoder_input_ids"] = inputs["input_ids"].flip(1)[:, :5]
    else:
        extra["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return model(**inputs, **extra).logits  # type: ignore[no-any-return]


WEIGHTS = st.floats(-2, 2, allow_nan=False).map(lambda w: round(w, 2))


@st.composite
def cases(
    draw: st.DrawFn, targets: tuple[str, ...]
) -> tuple[list[Shape], list[dict[str, float]], list[int], int]:
    """(adapters, rows, left padding of each row, beams)."""
    some = st.lists(st.sampled_from(targets), min_size=1, unique=True).map(tuple)
    shapes = draw(
        st.lists(
            st.builds(Shape, st.integers(1, 9), st.integers(1, 9), some, st.booleans()),
            min_size=1,
            max_size=4,
        )
    )
    rows = draw(
        st.lists(
            st.dictionaries(st.sampled_from([f"a{i}" for i in range(len(shapes))]), WEIGHTS),
            min_size=1,
            max_size=4,
        )
    )
    return (
        shapes,
        rows,
        draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows))),
        draw(st.integers(1, 3)),
    )


@pytest.mark.parametrize("family", list(FAMILIES))
@PICKY
@given(data=st.data())
def test_every_row_equals_pefts_forward_under_its_own_mix(family: str, data: st.DataObject) -> None:
    shapes, rows, pads, beams = data.draw(cases(FAMILIES[family].targets))
    model = tiny(family)
    inputs = {k: v.repeat_interleave(beams, 0) for k, v in batch(len(rows), pads).items()}
    with with_adapters(model, shapes) as (_, mixer):
        with torch.inference_mode(), mixer.activate(rows):
            ours = logits(model, inputs)
        for b, row in enumerate(rows):
            with by_peft(mixer, row):
                theirs = logits(model, inputs)
            here = slice(b * beams, (b + 1) * beams)
            assert (theirs[here] - ours[here]).abs().max() <= 1e-5


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_default_layer_of_a_family_is_mixed(family: str) -> None:
    model = tiny(family)
    with with_adapters(model, [Shape(3, 6, FAMILIES[family].targets)]) as (_, mixer):
        assert {path.rpartition(".")[2] for path, m in model.named_modules() if m in mixer.layers} == set(
            FAMILIES[family].targets
        )
        assert mixer.depths[0] == 0 and mixer.depths[-1] == 1
        with torch.inference_mode(), mixer.activate([{}, {"a0": 1.0}]):
            both = logits(model, {k: v.repeat(2, 1) for k, v in batch(1, [0]).items()})
        assert (both[0] - both[1]).abs().max() > 1e-3


def test_encoder_decoder_and_cross_attention_use_the_right_row() -> None:
    model = tiny("t5")
    rows: list[dict[str, float]] = [{"a0": 1.0}, {"a0": -1.5}, {}]
    for part in (
        "encoder.block.1.layer.0.SelfAttention.q",
        "encoder.block.0.layer.1.DenseReluDense.wi_1",
        "decoder.block.0.layer.0.SelfAttention.v",
        "decoder.block.1.layer.1.EncDecAttention.k",
        "decoder.block.0.layer.1.EncDecAttention.q",
        "decoder.block.1.layer.2.DenseReluDense.wi_0",
    ):
        with with_adapters(model, [Shape(4, 4, (part,))]) as (_, mixer):
            assert len(mixer.layers) == 1
            with torch.inference_mode(), mixer.activate(rows):
                ours = logits(model, batch(3, [0, 2, 1]))
            for b, row in enumerate(rows):
                with by_peft(mixer, row):
                    assert (logits(model, batch(3, [0, 2, 1]))[b] - ours[b]).abs().max() <= 1e-5
            with torch.no_grad():
                assert (ours[0] - logits(model, batch(3, [0, 2, 1]))[0]).abs().max() < 1e-5, (
                    "a0 alone is what peft has active"
                )


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_beams_and_several_answers_keep_the_mix_of_their_prompt(family: str) -> None:
    model, rows = tiny(family), [{"a0": 1.0}, {}, {"a0": -2.0}]
    inputs = batch(3, [0, 3, 1])
    with with_adapters(model, [Shape(4, 8, FAMILIES[family].targets)]) as (_, mixer):
        options: dict[str, Any] = {
            "max_new_tokens": 6,
            "num_beams": 3,
            "num_return_sequences": 2,
            "do_sample": False,
        }
        with torch.inference_mode(), mixer.activate(rows):
            ours = model.generate(**inputs, **options)
        alone = []
        for row in rows:
            with torch.inference_mode(), mixer.activate([row]):
                alone.append(model.generate(**inputs, **options))
    width = min(t.shape[1] for t in (ours, *alone))
    assert all(
        torch.equal(ours[2 * b : 2 * b + 2, :width], alone[b][2 * b : 2 * b + 2, :width]) for b in range(3)
    )


def test_flattened_tokens_use_their_row_or_are_refused() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(6, 5)).requires_grad_(False)
    x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1))
    with with_adapters(layer, [Shape(2, 2, ("0",))]) as (_, mixer), torch.inference_mode():
        with mixer.activate([{"a0": w} for w in (1.0, -1.0, 0.5, 0.0)]):
            whole = layer(x)
            assert torch.allclose(layer(x.flatten(0, 1)).view_as(whole), whole, atol=1e-6)
            assert torch.allclose(layer(x.unsqueeze(1))[:, 0], whole, atol=1e-6)
            for mismatch in (x.flatten(0, 1)[:11], x[:3], x.view(1, 12, 6)):
                with pytest.raises(AdapterError, match="the mix has 4 rows. Give a multiple"):
                    layer(mismatch)
        with mixer.activate([{"a0": 0.5}] * 4):  # equal rows apply to any number of rows
            assert torch.allclose(layer(x.view(1, 12, 6))[0], layer(x.flatten(0, 1)), atol=1e-6)


def test_layers_of_single_experts_accept_one_mix_at_a_time() -> None:
    class Routed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = torch.nn.ModuleList(
                torch.nn.ModuleDict({"up": torch.nn.Linear(6, 5)}) for _ in range(2)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.experts[0]["up"](x)  # type: ignore[index, no-any-return]

    model = Routed().requires_grad_(False)
    with with_adapters(model, [Shape(2, 2, ("up",))]) as (_, mixer), torch.inference_mode():
        with (
            mixer.activate([{"a0": 1.0}, {}]),
            pytest.raises(AdapterError, match="tokens without their rows"),
        ):
            model(torch.randn(4, 6))
        with mixer.activate([{"a0": 1.0}, {"a0": 1.0}]):
            assert model(torch.randn(3, 6)).shape == (3, 5)


# ------------------------------------------------------------ weights that vary with depth


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@PICKY
@given(data=st.data())
def test_a_tilted_weight_is_pefts_scale_layer_by_layer(family: str, data: st.DataObject) -> None:
    model, names = tiny(family), ["a0", "a1"]
    tilts = st.dictionaries(st.sampled_from(names), st.floats(-1, 1).map(lambda t: round(t, 2)))
    rows = data.draw(
        st.lists(st.tuples(st.dictionaries(st.sampled_from(names), WEIGHTS), tilts), min_size=1, max_size=3)
    )
    inputs = batch(len(rows), [0, 1, 2])
    with with_adapters(
        model, [Shape(4, 8, FAMILIES[family].targets), Shape(2, 3, FAMILIES[family].targets[:2])]
    ) as (
        _,
        mixer,
    ):
        with torch.inference_mode(), mixer.activate([MixRow(weights, tilt) for weights, tilt in rows]):
            ours = logits(model, inputs)
            stamps = [(mixer.active_weights(b), mixer.active_tilt(b)) for b in range(len(rows))]
        for b, (weights, tilt) in enumerate(rows):
            with by_peft(mixer, weights, tilt):
                assert (logits(model, inputs)[b] - ours[b]).abs().max() <= 1e-5
            on = {a: w for a, w in weights.items() if w}
            assert stamps[b] == (
                pytest.approx(on),
                pytest.approx({a: t for a, t in tilt.items() if t and a in on}),
            )


def test_tilt_1_is_zero_in_the_first_layer_and_double_in_the_last() -> None:
    model = tiny("llama")
    with (
        with_adapters(model, [Shape(4, 8, FAMILIES["llama"].targets)]) as (_, mixer),
        mixer.activate([MixRow({"a0": 0.7}, {"a0": 1.0})]),
    ):
        rows = mixer.active_mix.rows[0]  # type: ignore[union-attr]
        assert rows[0] is None, "a weight of 0 is skipped"
        assert rows[1].flatten()[0] == pytest.approx(0.7 * 2)  # type: ignore[union-attr]
        assert rows[2].flatten()[0] == pytest.approx(1.4 * 2)  # type: ignore[union-attr]


def test_fitted_weights_can_have_points_along_the_depth() -> None:
    model, inputs = tiny("llama"), batch(2, [0, 1])
    with with_adapters(
        model, [Shape(4, 8, FAMILIES["llama"].targets), Shape(2, 2, FAMILIES["llama"].targets)]
    ) as (
        _,
        mixer,
    ):
        # one point per layer
        points = torch.tensor(
            [[[0.0, 1.0], [0.0, 0.0]], [[0.5, 1.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]], requires_grad=True
        )
        with mixer.activate(points):
            ours = logits(model, inputs)
            ours[0].logsumexp(-1).sum().backward()
        with torch.no_grad(), mixer.activate([MixRow({"a0": 0.5, "a1": 1.0}, {"a0": 1.0}), {}]):
            assert (logits(model, inputs) - ours).abs().max() <= 1e-5
        assert points.grad is not None
        assert bool((points.grad[:, 0] != 0).all()) and not points.grad[:, 1].any()
        with (
            pytest.raises(
                AdapterError,
                match=r"the shape \(rows, 2\) or \(points, rows, 2\), got \(2, 3\)\. Give one column",
            ),
            mixer.activate(torch.zeros(2, 3)),
        ):
            pass


# ------------------------------------------------------------ nothing leaks into training


def test_activation_checkpointing_recomputes_with_the_same_rows() -> None:
    model, inputs = tiny("llama"), batch(4, [0, 1])
    calls: list[bool] = []

    def gradient(checkpointing: bool, weights: torch.Tensor) -> torch.Tensor:
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        calls.clear()
        try:
            with mixer.activate(weights):
                nats = logits(model, inputs).logsumexp(-1).sum(1)
                (nats * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
        finally:
            if checkpointing:
                model.activation_checkpointing_disable()
                model.disable_input_require_grads()
        assert weights.grad is not None and len(calls) == (2 if checkpointing else 1)
        return weights.grad

    try:
        with with_adapters(
            model, [Shape(4, 8, FAMILIES["llama"].targets), Shape(2, 2, FAMILIES["llama"].targets[:3])]
        ) as (_, mixer):
            model.train()
            mixer.layers[-1].register_forward_pre_hook(lambda *_: calls.append(True))
            for start in (
                torch.zeros(4, 2),  # four rows
                torch.tensor([[0.5, -1.0], [1.0, 0.0]]),  # two rows, of two answers each
                torch.full((3, 4, 2), 0.3),  # three points of four rows
            ):
                plain = gradient(False, start.clone().requires_grad_())
                again = gradient(True, start.clone().requires_grad_())
                assert plain.abs().min() > 0 and torch.equal(plain, again)
    finally:
        model.eval()


def test_a_backward_outside_its_mix_raises() -> None:
    model = tiny("llama")
    with with_adapters(model, [Shape(4, 8, FAMILIES["llama"].targets)]) as (_, mixer):
        model.train()
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        try:
            with mixer.activate(torch.full((2, 1), 0.5, requires_grad=True)):
                nats = logits(model, batch(2, [0, 1])).logsumexp(-1).sum()
            with pytest.raises(
                CheckpointError, match="during the (original forward and recomputation|forward pass)"
            ):
                nats.backward()
        finally:
            model.activation_checkpointing_disable()
            model.disable_input_require_grads()
            model.eval()


def test_answers_between_training_steps_do_not_change_training() -> None:
    model = tiny("llama")

    def steps(chatting: bool) -> tuple[list[float], list[torch.Tensor]]:
        torch.manual_seed(11)
        losses = []
        with with_adapters(
            model, [Shape(4, 8, FAMILIES["llama"].targets), Shape(2, 2, FAMILIES["llama"].targets[:3])]
        ) as (peft, mixer):
            mixer.update_layout("a0")
            peft.set_adapter("a0")
            model.activation_checkpointing_enable({"use_reentrant": False})
            peft.enable_input_require_grads()
            learned = [p for k, p in peft.named_parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(learned, lr=0.01)
            for _ in range(3):
                peft.train()
                loss = peft(**batch(2, [0, 1]), labels=batch(2, [0, 1])["input_ids"]).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
                if chatting:
                    peft.eval()
                    with (
                        torch.inference_mode(),
                        mixer.activate(
                            [{"a0": 1.0}, {"a1": -1.0}, MixRow({"a0": 0.3, "a1": 1.0}, {"a1": -1.0})]
                        ),
                    ):
                        logits(model, batch(3, []))
            weights = [p.detach().clone() for p in learned]
            model.activation_checkpointing_disable()
            model.disable_input_require_grads()
        return losses, weights

    (losses, weights), (losses_chatting, weights_chatting) = steps(False), steps(True)
    assert losses == losses_chatting and len(weights) == 2 * 7 * 3
    assert all(torch.equal(a, b) for a, b in zip(weights, weights_chatting))


# ------------------------------------------------------------ activating a mix


def test_activating_equal_rows_reuses_the_mix_and_changes_do_not() -> None:
    model = tiny("llama")
    with with_adapters(model, [Shape(4, 8, FAMILIES["llama"].targets)]) as (_, mixer):
        with torch.inference_mode(), mixer.activate([{"a0": 1.0}, {}]):
            first = mixer.active_mix
        with mixer.activate([{"a0": 1.0}, {}]):
            assert mixer.active_mix is first
            assert mixer.weights is not None and not mixer.weights.is_inference()
            with mixer.activate([{"a0": 0.5}]):
                assert mixer.active_weights(0) == {"a0": 0.5}
            assert mixer.active_mix is first
        with mixer.activate([MixRow({"a0": 1.0}, {"a0": 0.5}), {}]):
            assert mixer.active_mix is not first and mixer.active_tilt(0) == {"a0": 0.5}
        assert len(mixer.columns) == 3, (
            "one for q, k and v together, one for gate and up, one for the others, shared by all layers"
        )
        assert mixer.active_mix is None and mixer.weights is None


# ------------------------------------------------------------ 16, 8 and 4 bits


def test_16_bit_sums_equal_pefts() -> None:
    model = (
        hf.AutoModelForCausalLM.from_config(tiny("llama").config)
        .to(torch.bfloat16)
        .eval()
        .requires_grad_(False)
    )
    rows: list[dict[str, float]] = [{"a0": 1.0}, {}, {"a0": -0.5, "a1": 2.0}]
    with with_adapters(
        model, [Shape(4, 8, FAMILIES["llama"].targets), Shape(3, 3, FAMILIES["llama"].targets)]
    ) as (
        _,
        mixer,
    ):
        with torch.inference_mode(), mixer.activate(rows):
            ours = logits(model, batch(3, [0, 1, 2]))
        for b, row in enumerate(rows):
            with by_peft(mixer, row):
                theirs = logits(model, batch(3, [0, 1, 2]))[b]
            assert ours.dtype == torch.bfloat16
            difference = (theirs.float() - ours[b].float()).abs().max()
            assert difference <= 2**-7 * theirs.float().abs().max()


@pytest.mark.parametrize(("bits", "limit"), [("nf4", 1e-5), ("int8", 1e-5)])
def test_quantized_layers_mix_like_pefts(bits: str, limit: float, tmp_path: Any) -> None:
    """4-bit layers are compared unpacked: bitsandbytes' packed kernel on a CPU rounds activations to bf16."""
    tiny("llama").save_pretrained(tmp_path)
    four: dict[str, Any] = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": torch.float32,
    }
    how = hf.BitsAndBytesConfig(**({"load_in_8bit": True} if bits == "int8" else four))
    model = hf.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=how, dtype=torch.float32, device_map={"": "cpu"}
    ).eval()
    rows: list[dict[str, float]] = [{"a0": 1.0}, {}, {"a0": -0.5, "a1": 2.0}]
    with (
        unpack_for_backward(model),
        with_adapters(
            model, [Shape(4, 8, FAMILIES["llama"].targets), Shape(3, 3, FAMILIES["llama"].targets)]
        ) as (
            _,
            mixer,
        ),
    ):
        assert {type(layer.base_layer).__name__ for layer in mixer.layers} == {
            "Linear8bitLt" if bits == "int8" else "Linear4bit"
        }
        with torch.inference_mode(), mixer.activate(rows):
            ours = logits(model, batch(3, [0, 1, 2]))
        for b, row in enumerate(rows):
            with by_peft(mixer, row):
                assert (logits(model, batch(3, [0, 1, 2]))[b] - ours[b]).abs().max() <= limit


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "minimax_m2"])
def test_attention_and_down_name_the_layers_of_a_family(family: str) -> None:
    row = FAMILIES[family]
    found = expand_groups(["attention", "down"], row.groups)
    assert set(found) < set(row.targets) and len(found) == len(set(found)) >= 2
    leaves = {name.rpartition(".")[2] for name, _ in tiny(family).named_modules()}
    assert set(found) <= leaves
    assert expand_groups(["q_proj", "attention"], {}) == ("q_proj", "attention")
