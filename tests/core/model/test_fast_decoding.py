"""Answers from 8-bit weights.

All weights and adapters here are -c, 0 or c, which 8 bits represent exactly, so that only the rounding of
activations to 16 bits remains, and logits can be compared with the base's own.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from core.model import families, fast_adapters, fast_decoding, fast_kernels
from core.model.base import Base, load_base
from core.model.decoding import CausalDecoder
from core.model.fast_decoding import PackedDecoder
from core.model.fast_kernels import LANES, Call, PackedWeight, compile_for, pack_weight, unpack_weight
from core.model.fast_layers import PackedBase, pack_base, unpackable_reason
from core.model.generate import generate
from core.model.mixing import MixRow
from core.model.resident import TRAINEE, Resident
from core.spec.gate import GateCalibration
from core.spec.mix import Mix, Sampling
from core.store.workspace import Workspace
from tests.conftest import build_tiny_tokenizer

CLOSE = 2e-3  # of logits up to about 5
SHAPE = {
    "vocab_size": 390,  # not a multiple of LANES
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
}
CONFIGS = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}
PROMPTS = [[7, 8, 9, 10, 11], [12, 13], [40, 41, 42, 43, 44, 45, 46, 47]]


def make_ternary(tensor: torch.Tensor, size: float) -> None:
    tensor.copy_(torch.randint(-1, 2, tensor.shape).float() * size)


def build_base(folder: Path, family: str = "llama", **changes: Any) -> Base:
    build_tiny_tokenizer(folder)
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[family](**{**SHAPE, **changes}))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                make_ternary(module.weight, 0.15)
                if module.bias is not None:
                    module.bias.normal_()
            elif hasattr(module, "weight") and module.weight.dim() == 1:
                module.weight.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return load_base(str(folder), quantization="none", device="cpu")


def pack(base: Base) -> PackedBase:
    packing = pack_base(base)
    while True:
        try:
            next(packing)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def add_adapter(
    resident: Resident, name: str, rank: int, targets: list[str], trainable: bool = False
) -> None:
    config = {"r": rank, "lora_alpha": 2 * rank, "target_modules": targets, "task_type": "CAUSAL_LM"}
    resident.add_adapter(name, config, trainable=trainable)
    with torch.no_grad():
        for key, parameter in resident.peft.named_parameters():
            if f".{name}.weight" in key:
                make_ternary(parameter, 0.05)


@pytest.fixture(scope="module")
def resident(tmp_path_factory: pytest.TempPathFactory) -> Resident:
    """A Llama with three adapters: on all layers, on queries and values, on the feed-forward layers."""
    base = build_base(tmp_path_factory.mktemp("base"))
    base.packed = pack(base)
    resident = Resident(base, Workspace(tmp_path_factory.mktemp("workspace")))
    add_adapter(resident, "all", 4, list(families.LLAMA_LIKE))
    add_adapter(resident, "query", 20, [families.ATTENTION[0], families.ATTENTION[2]])
    add_adapter(resident, "mlp", 8, list(families.LLAMA_LIKE[4:]))
    resident.update_layout()
    return resident


def decode(decoder: Any, tokens: list[list[int]]) -> list[torch.Tensor]:
    """The logits of the prefill and of one step per list of tokens, one token per row."""
    logits = [decoder.step().clone()]
    for new in tokens:
        decoder.append(torch.tensor(new))
        logits.append(decoder.step().clone())
    return logits


def compare(resident: Resident, prompts: list[list[int]], rows: list[Any]) -> float:
    base = resident.base
    tokens = [[20 + i + row for row in range(len(rows))] for i in range(4)]
    with torch.inference_mode(), resident.mixer.activate(rows):
        fast = decode(PackedDecoder(base, base.packed, resident.mixer, prompts, 8), tokens)
        exact = decode(CausalDecoder(base, prompts, 8), tokens)
    assert fast[0].shape == exact[0].shape == (len(rows), base.model.config.vocab_size)
    return max(float((f - e).abs().max()) for f, e in zip(fast, exact, strict=True))


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_logits_equal_the_own_ones_in_every_family(family: str, tmp_path: Path) -> None:
    base = build_base(tmp_path, family, tie_word_embeddings=False)
    assert unpackable_reason(base) == ""
    base.packed = pack(base)
    resident = Resident(base, Workspace(tmp_path / "workspace"))
    assert compare(resident, PROMPTS, [{}, {}, {}]) < CLOSE


@pytest.mark.parametrize(
    "rotary",
    [
        {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64},
    ],
    ids=["linear", "yarn"],
)
def test_scaled_rotary_positions_are_kept(rotary: dict[str, Any], tmp_path: Path) -> None:
    base = build_base(tmp_path, rope_parameters=rotary)
    base.packed = pack(base)
    assert compare(Resident(base, Workspace(tmp_path / "workspace")), PROMPTS, [{}, {}, {}]) < CLOSE


@pytest.mark.parametrize(
    "rows",
    [
        [{"all": 1.0}, {"all": 1.0}, {"all": 1.0}],
        [{}, {"query": 0.7}, {"all": 0.5, "mlp": -1.0}],
        [MixRow({"all": 1.0, "query": 0.5}, {"all": 1.0}), MixRow({"mlp": 1.0}, {"mlp": -0.5}), {}],
    ],
    ids=["equal", "different", "tilted"],
)
def test_packed_logits_equal_the_own_ones_under_mixes(resident: Resident, rows: list[Any]) -> None:
    base = [{}, {}, {}]
    with torch.inference_mode(), resident.mixer.activate(rows):
        moved = CausalDecoder(resident.base, PROMPTS, 8).step()
    with torch.inference_mode(), resident.mixer.activate(base):
        moved = moved - CausalDecoder(resident.base, PROMPTS, 8).step()
    assert moved.abs().max() > 0.1, "the mixes change nothing"
    assert compare(resident, PROMPTS, rows) < CLOSE


def test_a_row_never_depends_on_its_neighbours(resident: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    base, rows = resident.base, [{}, {"query": 0.7}, {"all": 0.5, "mlp": -1.0}]
    monkeypatch.setattr(resident.mixer, "packed_plan", None)
    for layer in resident.mixer.layers:  # values of many sizes, as trained adapters have them
        for block in layer.blocks:
            monkeypatch.setattr(block, "b", torch.randn_like(block.b) * 0.1)
    tokens = [[20, 21, 22], [23, 24, 25]]
    with torch.inference_mode(), resident.mixer.activate(rows):
        together = decode(PackedDecoder(base, base.packed, resident.mixer, PROMPTS, 8), tokens)
    for row, mix in enumerate(rows):
        with torch.inference_mode(), resident.mixer.activate([mix]):
            alone = decode(
                PackedDecoder(base, base.packed, resident.mixer, [PROMPTS[row]], 8),
                [[new[row]] for new in tokens],
            )
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[row])


def test_selected_rows_go_on_as_before(resident: Resident) -> None:
    base, rows = resident.base, [{}, {"query": 0.7}, {"all": 0.5}]
    with torch.inference_mode(), resident.mixer.activate(rows):
        fast = PackedDecoder(base, base.packed, resident.mixer, PROMPTS, 8)
        reference = decode(fast, [[20, 21, 22], [23, 24, 25]])
        again = PackedDecoder(base, base.packed, resident.mixer, PROMPTS, 8)
        decode(again, [[20, 21, 22]])
        again.append(torch.tensor([23, 24, 25]))
        again.select_rows(torch.tensor([2, 0]))
    with torch.inference_mode(), resident.mixer.activate([rows[2], rows[0]]):
        assert torch.equal(again.step(), reference[2][[2, 0]])


@pytest.mark.parametrize("limit", [3, 300])
@pytest.mark.parametrize("chunk", [4, 512])
def test_a_prefill_with_evidence_is_the_first_step_with_likelihoods(
    resident: Resident, monkeypatch: pytest.MonkeyPatch, limit: int, chunk: int
) -> None:
    monkeypatch.setattr(fast_decoding, "PREFILL_TOKENS", chunk)
    base, rows = resident.base, [{}, {"query": 0.7}, {"all": 0.5, "mlp": -1.0}]
    with torch.inference_mode(), resident.mixer.activate(rows):
        plain = PackedDecoder(base, base.packed, resident.mixer, PROMPTS, 8)
        expected = decode(plain, [[20, 21, 22]])
        fast = PackedDecoder(base, base.packed, resident.mixer, PROMPTS, 8)
        logits, likelihoods = fast.prefill_with_evidence(limit)
        fast.append(torch.tensor([20, 21, 22]))
        assert torch.equal(logits, expected[0]) and torch.equal(fast.step(), expected[1])
        own, reference = CausalDecoder(base, PROMPTS, 8).prefill_with_evidence(limit)
    assert (own - logits).abs().max() < CLOSE
    for prompt, ours, theirs in zip(PROMPTS, likelihoods, reference, strict=True):
        assert len(ours) == len(theirs) == min(len(prompt) - 1, limit)
        assert (ours - theirs).abs().max() < CLOSE


def test_a_gate_chooses_with_packed_weights(resident: Resident) -> None:
    calibration = GateCalibration(
        -100.0, 1.0, 1.0, (1.0, 0.1), (0.0, 0.1), (9, 9), base_fingerprint=resident.base.fingerprint
    )
    resident.digests["all"] = "as if it were in the library"
    resident.calibrations["all"] = "domain", calibration
    mix, sampling = Mix(weights={"all": 0.5}, auto={"all": "hard"}), Sampling(max_new_tokens=6)
    fixed = Mix(weights={"all": 0.5})
    gated, plain = list(generate(resident, [PROMPTS[2]] * 2, [mix, fixed], [sampling] * 2, fast=True))[-1]
    assert gated.ids == plain.ids and gated.stamp["answered_in"] == "int8"
    assert gated.stamp["weights"] == {"all": 0.5} and gated.stamp["auto"]["all"]["weight"] == 0.5


def test_a_mix_can_change_in_mid_answer(resident: Resident) -> None:
    base, answer = resident.base, [20, 21]
    fast = PackedDecoder(base, base.packed, resident.mixer, PROMPTS[:1], 8)
    with torch.inference_mode(), resident.mixer.activate([{}]):
        decode(fast, [[20], [21]])
        fast.append(torch.tensor([22]))
    fast.reset([0], [[*answer, 22]])
    with torch.inference_mode(), resident.mixer.activate([{"all": 1.0}]):
        changed = fast.step()
        fresh = CausalDecoder(base, [[*PROMPTS[0], *answer, 22]], 8).step()
    assert (changed - fresh).abs().max() < CLOSE


def test_the_adapter_in_training_answers_with_its_newest_weights(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base")
    base.packed = pack(base)
    resident = Resident(base, Workspace(tmp_path / "workspace"))
    add_adapter(resident, "resting", 4, list(families.LLAMA_LIKE))
    resident.trainee_id = "mine"
    add_adapter(resident, TRAINEE, 4, list(families.LLAMA_LIKE), trainable=True)
    resident.update_layout()
    rows = [{TRAINEE: 1.0}, {TRAINEE: 0.5, "resting": 1.0}, {}]
    assert compare(resident, PROMPTS, rows) < CLOSE
    with torch.no_grad():
        for key, parameter in resident.peft.named_parameters():
            if f".{TRAINEE}.weight" in key:
                parameter.mul_(-1.7)
    assert compare(resident, PROMPTS, rows) < CLOSE


def test_an_adapter_outside_the_packed_layers_uses_the_own_precision(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base", tie_word_embeddings=False)
    base.packed = pack(base)
    resident = Resident(base, Workspace(tmp_path / "workspace"))
    add_adapter(resident, "head", 4, ["lm_head"])
    resident.update_layout()
    with torch.inference_mode(), resident.mixer.activate([{"head": 1.0}]):
        fast = PackedDecoder(base, base.packed, resident.mixer, PROMPTS[:1], 8)
        assert torch.equal(fast.step(), CausalDecoder(base, PROMPTS[:1], 8).step())
    assert fast.precision == ""


def test_long_prompts_are_prefilled_in_chunks(resident: Resident, monkeypatch: Any) -> None:
    base = resident.base
    with torch.inference_mode(), resident.mixer.activate([{}, {}, {}]):
        whole = PackedDecoder(base, base.packed, resident.mixer, PROMPTS, 8).step()
        monkeypatch.setattr("core.model.fast_decoding.PREFILL_TOKENS", 6)
        assert torch.equal(PackedDecoder(base, base.packed, resident.mixer, PROMPTS, 8).step(), whole)


def test_the_stamp_names_the_precision_that_answered(resident: Resident) -> None:
    sampling = [Sampling(temperature=0, max_new_tokens=3)]
    for fast, stamped in ((True, "int8"), (False, None)):
        states = list(generate(resident, PROMPTS[:1], [Mix()], sampling, fast=fast))[-1]
        assert states[0].stamp.get("answered_in") == stamped


def test_packed_weights_differ_by_half_a_step_at_most() -> None:
    torch.manual_seed(0)
    weight = torch.randn(10, 192)
    packed = pack_weight(weight)
    assert (packed.block, packed.outputs) == (64, 16)
    steps = weight.view(10, 3, 64).abs().amax(-1, keepdim=True) / 127
    errors = (unpack_weight(packed)[:10] - weight).view(10, 3, 64).abs()
    assert bool((errors <= steps * 0.5001).all())
    assert not unpack_weight(packed)[10:].any()


def multiply(weight: PackedWeight, x: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """1 + W norm(x), by the kernels."""
    y, q = torch.ones(len(x), weight.outputs), torch.empty(x.shape, dtype=torch.int16)
    scales = torch.empty(len(x))
    Call(weight, x, y, norm.data_ptr(), 1e-5, (q.data_ptr(), scales.data_ptr()), add=True)(x)
    return y


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 13])
def test_products_equal_those_of_fp32(rows: int) -> None:
    torch.manual_seed(rows)
    weight, x = torch.randn(20, 128), torch.randn(rows, 128)
    x[:, 5] *= 300  # one large value must not cost the others their precision
    packed, norm = pack_weight(weight), torch.rand(128) + 0.5
    normed = torch.nn.functional.rms_norm(x, (128,), norm, 1e-5)
    assert (multiply(packed, x, norm) - 1 - normed @ unpack_weight(packed).t()).abs().max() < 6e-3
    assert packed.outputs == 2 * LANES


@pytest.mark.skipif(platform.machine().lower() not in {"x86_64", "amd64"}, reason="names x86 processors")
@pytest.mark.parametrize("tiles", [fast_kernels.TILES, fast_kernels.NARROW_TILES])
def test_products_are_the_same_bits_on_every_processor(
    tiles: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    cases = [(pack_weight(torch.randn(48, k)), torch.randn(13, k), torch.rand(k)) for k in (16, 96, 256)]
    here = [multiply(*case) for case in cases]
    monkeypatch.setattr(
        fast_kernels, "compile_kernels", lambda block: compile_for(block, "x86-64-v2", "", tiles)
    )
    for case, expected in zip(cases, here, strict=True):
        assert torch.equal(multiply(*case), expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_act": "gelu"}, "activation"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rotary"),
        ({"intermediate_size": 100}, "multiples of 16"),
    ],
)
def test_what_cannot_be_packed_is_named(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert reason in unpackable_reason(build_base(tmp_path, **changes))


def test_a_sliding_window_cannot_be_packed(tmp_path: Path) -> None:
    assert "window" in unpackable_reason(build_base(tmp_path, "mistral", sliding_window=64))


def test_decoders_that_take_turns_share_packed_adapters_and_keep_their_numbers(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, packs, pack_once = resident.base, [], fast_adapters._pack

    def count(*arguments: Any) -> Any:
        packs.append(1)
        return pack_once(*arguments)

    rows = [[MixRow({"all": 0.5})], [MixRow({"query": 1.0}), MixRow({"all": 1.0, "mlp": -0.5})]]
    prompts = [[PROMPTS[0]], PROMPTS[1:]]

    def step(decoder: PackedDecoder, row: list[MixRow], token: int = 0) -> torch.Tensor:
        with torch.inference_mode(), resident.mixer.activate(row):
            if token:
                decoder.append(torch.tensor([token] * len(row)))
            return decoder.step().clone()

    def make(i: int) -> PackedDecoder:
        return PackedDecoder(base, base.packed, resident.mixer, prompts[i], 8)

    alone = []
    for i in (0, 1):
        decoder = make(i)
        alone.append([step(decoder, rows[i]), *(step(decoder, rows[i], t) for t in (20, 21, 22))])
    monkeypatch.setattr(fast_adapters, "_pack", count)
    one, two = make(0), make(1)
    turns = [(step(one, rows[0]), step(two, rows[1]))]
    turns += [(step(one, rows[0], t), step(two, rows[1], t)) for t in (20, 21, 22)]
    assert not packs, "both selections of adapters were packed before"
    for i in (0, 1):
        assert all(torch.equal(a, turn[i]) for a, turn in zip(alone[i], turns, strict=True))
