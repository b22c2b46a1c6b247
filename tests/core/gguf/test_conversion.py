"""A GGUF file becomes the model that it was written from: logits, tokenizer, config, and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers as hf

from core.errors import BaseModelError
from core.gguf import architectures, weights
from core.gguf.conversion import Conversion, Request, convert, status_of
from core.gguf.header import TENSOR_TYPES, read_header
from core.model.base import fingerprint, load_base
from tests.core.gguf.gguf_maker import (
    FAMILIES,
    build_model,
    byte_tokens,
    sentencepiece_tokens,
    write_gguf,
)

TEXTS = ("The red lamp is kept in the north room.", "  two blanks, 1234 and été 中文 🙂\n\nnext", "a")


def tokens_of(family: str, tokens: dict[str, Any]) -> dict[str, Any]:
    """The vocabulary for a family: transformers splits texts of Qwen2 in one way only."""
    return {**tokens, "pre": "qwen2"} if family == "qwen2" else tokens


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return byte_tokens(tmp_path_factory.mktemp("tokenizer"))


def run(path: Path, folder: Path, **more: Any) -> Conversion:
    folder.mkdir()
    with open(path, "rb") as file:
        return convert(Request(str(path), path.name, status_of(file), str(folder), **more))


def logits(model: Any, length: int = 24) -> torch.Tensor:
    ids = torch.randint(5, 380, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


def load(folder: Path) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_logits_it_was_written_from(
    family: str, tokens: dict[str, Any], tmp_path: Path
) -> None:
    model = build_model(family)
    path = write_gguf(tmp_path / "model.gguf", model, tokens_of(family, tokens))
    result = run(path, tmp_path / "base")
    again = load(tmp_path / "base")
    assert result.parameters == sum(p.numel() for p in model.parameters())
    assert again.config.tie_word_embeddings == model.config.tie_word_embeddings
    expected, got = logits(model), logits(again)
    assert float(expected.std()) > 0.5
    assert float((expected - got).abs().max()) < 1e-4
    base = load_base(str(tmp_path / "base"), "none", "cpu")
    assert base.context == 256 and base.parameters == result.parameters and base.has_own_template


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "phi3"])
def test_a_tied_model_needs_no_head_and_biases_are_kept(
    family: str, tokens: dict[str, Any], tmp_path: Path
) -> None:
    more = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    model = build_model(family, tie_word_embeddings=True, **more)
    run(write_gguf(tmp_path / "model.gguf", model, tokens_of(family, tokens)), tmp_path / "base")
    assert float((logits(model) - logits(load(tmp_path / "base"))).abs().max()) < 1e-4
    if family == "llama":
        assert json.loads((tmp_path / "base" / "config.json").read_text())["attention_bias"] is True


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
}
SCALINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "linear": (
        "llama",
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 20_000.0},
        {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0},
    ),
    "yarn": (
        "qwen2",
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "rope_theta": 10_000.0,
        },
        {
            "rope__scaling__type": "yarn",
            "rope__scaling__factor": 4.0,
            "rope__scaling__original_context_length": 64,
        },
    ),
    "gemma 3": (
        "gemma3_text",
        {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
        },
        {
            "rope__scaling__type": "linear",
            "rope__scaling__factor": 8.0,
            "rope__freq_base_swa": 5_000.0,
        },
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_rotary_embeddings_are_kept(name: str, tokens: dict[str, Any], tmp_path: Path) -> None:
    family, parameters, keys = SCALINGS[name]
    model = build_model(family, rope_parameters=parameters)
    run(write_gguf(tmp_path / "model.gguf", model, tokens_of(family, tokens), **keys), tmp_path / "base")
    assert float((logits(model) - logits(build_model(family))).abs().max()) > 1e-2, "the scaling counts"
    assert float((logits(model) - logits(load(tmp_path / "base"))).abs().max()) < 1e-4


def add_tensor(path: Path, target: Path, name: str, values: Any) -> Path:
    """A copy of a file with one more float32 tensor."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, str(bytes(reader.fields["general.architecture"].parts[-1]), "utf-8"))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind, sub = field.types[0], field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor(name, np.asarray(values, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def llama3_factors(config: Any) -> list[float]:
    """The factors of Llama 3.1 from the frequencies that transformers computes."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1.0 / 500_000.0 ** (torch.arange(0, 16, 2).float() / 16)
    return (plain / scaled).tolist()


def test_the_factors_of_llama_3_become_its_scaling(tokens: dict[str, Any], tmp_path: Path) -> None:
    model = build_model("llama", rope_parameters=dict(LLAMA3), max_position_embeddings=131_072)
    plain = write_gguf(tmp_path / "plain.gguf", model, tokens)
    path = add_tensor(plain, tmp_path / "model.gguf", "rope_freqs.weight", llama3_factors(model.config))
    run(path, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert config["rope_parameters"] == LLAMA3 and config["rope_theta"] == 500_000.0
    assert config["rope_scaling"] == {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    assert float((logits(model) - logits(load(tmp_path / "base"))).abs().max()) < 1e-4
    other = [1.0, 1.0, 1.5, 2.0, 3.0, 3.0, 5.0, 7.0]
    run(add_tensor(plain, tmp_path / "other.gguf", "rope_freqs.weight", other), tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    assert config["rope_parameters"]["long_factor"] == other, "unknown factors are kept as they are"
    scaled = load(tmp_path / "other").model.rotary_emb.inv_freq
    plain_frequencies = 1.0 / 500_000.0 ** (torch.arange(0, 16, 2).float() / 16)
    assert torch.allclose(scaled, plain_frequencies / torch.tensor(other))


def test_long_and_short_factors_of_phi_3_are_kept(tokens: dict[str, Any], tmp_path: Path) -> None:
    short, long = [1.0 + i / 10 for i in range(8)], [2.0 + i for i in range(8)]
    rope = {"rope_type": "longrope", "short_factor": short, "long_factor": long, "rope_theta": 10_000.0}
    model = build_model(
        "phi3", rope_parameters=rope, original_max_position_embeddings=16, max_position_embeddings=256
    )
    plain = write_gguf(tmp_path / "a.gguf", model, tokens, rope__scaling__original_context_length=16)
    one = add_tensor(plain, tmp_path / "b.gguf", "rope_factors_long.weight", long)
    path = add_tensor(one, tmp_path / "model.gguf", "rope_factors_short.weight", short)
    run(path, tmp_path / "base")
    for length in (12, 24):  # within and beyond the original context
        apart = logits(model, length) - logits(load(tmp_path / "base"), length)
        assert float(apart.abs().max()) < 1e-4
    with pytest.raises(BaseModelError, match="has no rotary factors for short texts"):
        run(one, tmp_path / "half")


@pytest.mark.parametrize("quantization", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantized_weights_are_rounded_once_to_bfloat16(
    quantization: str, tokens: dict[str, Any], tmp_path: Path
) -> None:
    model = build_model("llama")
    path = write_gguf(tmp_path / "model.gguf", model, tokens, quantization)
    result = run(path, tmp_path / "base")
    assert result.quantization == quantization
    name = "model.layers.1.mlp.down_proj.weight"
    original = model.state_dict()[name].numpy()
    stored = gguf.dequantize(
        gguf.quantize(original, gguf.GGMLQuantizationType[quantization]),
        gguf.GGMLQuantizationType[quantization],
    )
    expected = torch.from_numpy(np.array(stored)).bfloat16().float()
    assert torch.equal(load(tmp_path / "base").state_dict()[name], expected)


def test_every_quantization_has_the_block_and_the_reader_of_gguf() -> None:
    for kind in TENSOR_TYPES.values():
        number = gguf.GGMLQuantizationType[kind.name]
        assert TENSOR_TYPES[int(number)] is kind
        assert gguf.GGML_QUANT_SIZES[number] == (kind.block, kind.bytes)
        gguf.dequantize(np.zeros((1, kind.bytes), dtype=np.uint8), number) if kind.block > 1 else None
    readable = {t.name for t in gguf.quants._type_traits} | {"F32", "F16", "BF16"}
    assert {t.name for t in TENSOR_TYPES.values()} <= readable


def test_ties_round_to_the_even_bfloat16() -> None:
    numbers = np.array([1.00390625, 1.01171875, -1.00390625, 3.0e38, 1e-40, 0.0], dtype=np.float32)
    bits = np.frombuffer(weights._round(numbers.reshape(1, -1), "x", None, 0.0), dtype="<u2")  # type: ignore[arg-type]
    expected = torch.from_numpy(numbers).bfloat16().view(torch.uint16).numpy()
    assert bits.tolist() == expected.tolist()


def test_large_models_are_written_in_shards_that_load(
    tokens: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model("llama")
    path = write_gguf(tmp_path / "model.gguf", model, tokens)
    whole = run(path, tmp_path / "whole")
    monkeypatch.setattr(weights, "SHARD_BYTES", 60_000)
    monkeypatch.setattr(weights, "CHUNK_VALUES", 640)
    parts = run(path, tmp_path / "parts")
    assert "model.safetensors" in whole.files
    assert sum(f.endswith(".safetensors") for f in parts.files) > 2
    assert torch.equal(logits(load(tmp_path / "parts")), logits(load(tmp_path / "whole")))


def test_two_conversions_of_one_file_have_one_fingerprint(tokens: dict[str, Any], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", build_model("llama"), tokens)
    run(path, tmp_path / "one")
    run(path, tmp_path / "two")
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "two")


# --- tokenizers


def test_a_byte_level_tokenizer_keeps_ids_template_and_end(tokens: dict[str, Any], tmp_path: Path) -> None:
    run(write_gguf(tmp_path / "model.gguf", build_model("llama"), tokens), tmp_path / "base")
    from tests.conftest import build_tiny_tokenizer

    build_tiny_tokenizer(tmp_path / "original")
    original = hf.AutoTokenizer.from_pretrained(tmp_path / "original")
    again = hf.AutoTokenizer.from_pretrained(tmp_path / "base")
    chat = [{"role": "user", "content": "Where is the red lamp?"}]
    for text in (*TEXTS, "a<|end|>b <|user|>"):
        assert (
            again(text).input_ids == original(text).input_ids and again.decode(again(text).input_ids) == text
        )
    assert again.apply_chat_template(chat, tokenize=False) == original.apply_chat_template(
        chat, tokenize=False
    )
    assert (again.eos_token, again.pad_token) == ("<|end|>", "<|pad|>")
    assert json.loads((tmp_path / "base" / "generation_config.json").read_text())["eos_token_id"] == 1


def test_a_sentencepiece_tokenizer_puts_bos_and_falls_back_to_bytes(tmp_path: Path) -> None:
    tokens = sentencepiece_tokens()
    result = run(write_gguf(tmp_path / "model.gguf", build_model("llama"), tokens), tmp_path / "base")
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "base")
    ids = tokenizer("The lamp é").input_ids
    assert ids[0] == 1 and ids[-2:] == [tokens["tokens"].index(f"<0x{b:02X}>") for b in "é".encode()]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The lamp é"
    assert tokenizer("a</s>").input_ids[-1] == 2, "a control token stays whole"
    assert result.notes == ["The file has no chat template: the studio's default is used."]


def test_end_tokens_of_the_file_and_of_its_store_end_an_answer(
    tokens: dict[str, Any], tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", build_model("llama"), tokens)
    run(path, tmp_path / "base", stops=["<|user|>", "lamp", "not a token"])
    generation = json.loads((tmp_path / "base" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, tokens["tokens"].index("<|user|>")]
    assert load_base(str(tmp_path / "base"), "none", "cpu").eos_ids == generation["eos_token_id"]


def test_a_template_of_ollama_is_recognized_and_not_run(tokens: dict[str, Any], tmp_path: Path) -> None:
    spelled = [{"<|user|>": "<|im_start|>", "<|end|>": "<|im_end|>"}.get(t, t) for t in tokens["tokens"]]
    plain = {**tokens, "tokens": spelled, "template": ""}
    path = write_gguf(tmp_path / "model.gguf", build_model("llama"), plain)
    go = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>{{ end }}"
    result = run(path, tmp_path / "base", template=go)
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "base")
    chat = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert "was recognized" in result.notes[0]
    run(path, tmp_path / "other", template="{{ .Prompt }}")
    assert not hf.AutoTokenizer.from_pretrained(tmp_path / "other").chat_template


# --- refusals


def test_an_unknown_architecture_or_split_is_named_with_the_known_ones(
    tokens: dict[str, Any], tmp_path: Path
) -> None:
    model = build_model("llama")
    path = write_gguf(tmp_path / "model.gguf", model, tokens)
    path.write_bytes(path.read_bytes().replace(b"llama", b"lamma"))
    with pytest.raises(
        BaseModelError, match="the architecture 'lamma'; these can be converted: llama, mistral"
    ):
        run(path, tmp_path / "a")
    other = write_gguf(tmp_path / "other.gguf", model, {**tokens, "pre": "viking"})
    with pytest.raises(
        BaseModelError, match=r"\('viking'\) that is not supported. These are: default, gpt-2"
    ):
        run(other, tmp_path / "b")
    qwen = write_gguf(tmp_path / "qwen.gguf", build_model("qwen2"), tokens)
    with pytest.raises(BaseModelError, match=r"\('gpt-2'\) that is not supported. These are: qwen2, deep"):
        run(qwen, tmp_path / "c")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"expert_count": 8}, "is a mixture of experts"),
        ({"block_count": 3}, "the tensor blk.2.attn_q.weight is missing"),
        ({"block_count": 1}, r"has tensors that a model of the architecture 'llama' does not have: blk\.1\."),
        ({"feed_forward_length": 95}, r"ffn_gate.weight has the shape \[96, 64\] and not \[95, 64\]"),
        ({"attention__head_count": 0}, "its attention.head_count is 0"),
        ({"attention__head_count_kv": [2, 1]}, "The layers of 'model.gguf' have different shapes"),
        ({"attention__layer_norm_rms_epsilon": None}, "it states no epsilon"),
        ({"context_length": None}, "its header has no llama.context_length"),
        ({"rope__scaling__type": "odd", "rope__scaling__factor": 2.0}, r"\('odd'\) that is not supported"),
        ({"rope__dimension_count": 8}, "rotates 8 of the 16 values"),
    ],
)
def test_settings_that_do_not_fit_end_in_a_sentence(
    keys: dict[str, Any], message: str, tokens: dict[str, Any], tmp_path: Path
) -> None:
    if "rope__dimension_count" in keys:
        keys = {**keys, "attention__key_length": 16}
    path = write_gguf(tmp_path / "model.gguf", build_model("llama"), tokens, **keys)
    with pytest.raises(BaseModelError, match=message):
        run(path, tmp_path / "base")


def test_values_that_are_not_finite_are_refused(tokens: dict[str, Any], tmp_path: Path) -> None:
    model = build_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = math.nan
    path = write_gguf(tmp_path / "model.gguf", model, tokens)
    with pytest.raises(BaseModelError, match="blk.1.ffn_up.weight has values that are not finite"):
        run(path, tmp_path / "base")


def test_a_file_that_changes_while_it_is_read_is_refused(tokens: dict[str, Any], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", build_model("llama"), tokens)
    with open(path, "rb") as file:
        before = status_of(file)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)  # the same bytes in a new file
    (tmp_path / "base").mkdir()
    with pytest.raises(BaseModelError, match="was changed while it was read"):
        convert(Request(str(path), path.name, before, str(tmp_path / "base")))

    def write_to_it(text: str, done: int, total: int) -> None:
        if text == "Converting" and done == total:
            with open(path, "r+b") as file:
                file.write(b"GGUF")

    (tmp_path / "again").mkdir()
    with open(path, "rb") as file:
        request = Request(str(path), path.name, status_of(file), str(tmp_path / "again"))
    with pytest.raises(BaseModelError, match="was changed while it was read"):
        convert(request, write_to_it)


def test_the_pictures_part_of_a_model_is_left_out(tokens: dict[str, Any], tmp_path: Path) -> None:
    plain = write_gguf(tmp_path / "plain.gguf", build_model("gemma3_text"), tokens)
    path = add_tensor(plain, tmp_path / "model.gguf", "v.blk.0.attn_q.weight", np.ones((4, 4)))
    assert "The part that reads pictures is left out." in run(path, tmp_path / "base").notes


def test_every_architecture_is_one_that_gguf_names() -> None:
    names = {*gguf.MODEL_ARCH_NAMES.values(), "mistral"}
    assert set(architectures.ARCHITECTURES) <= names
    assert {a.model_type for a in architectures.ARCHITECTURES.values()} | {"mistral"} == set(FAMILIES)


def test_a_header_is_read_as_the_gguf_package_reads_it(tokens: dict[str, Any], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", build_model("qwen2"), tokens, "Q8_0")
    with open(path, "rb") as file:
        header = read_header(file, path.name)
    reader = gguf.GGUFReader(path)
    for key, value in header.metadata.items():
        assert reader.fields[key].contents() == value
    assert len(header.tensors) == len(reader.tensors)
    for tensor in reader.tensors:
        info = header.tensors[tensor.name]
        assert (info.start, info.bytes) == (tensor.data_offset, tensor.n_bytes)
        assert info.shape == tuple(int(d) for d in reversed(tensor.shape))
        assert info.type.name == tensor.tensor_type.name
