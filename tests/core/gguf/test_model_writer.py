"""A folder of transformers becomes a GGUF file that is read back as the same model, or is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from core.errors import BaseModelError, Cancelled, SpecError
from core.gguf import model_writer, quantization
from core.gguf.header import read_header
from core.gguf.model_tensors import FolderTensors
from core.gguf.model_writer import plan_model, write_model
from core.store import resumable_files
from tests.core.gguf.export_maker import read_json, save_model, write
from tests.core.gguf.gguf_maker import FAMILIES
from tests.core.gguf.test_conversion import LLAMA3, load, logits, run

HAS_NATIVE = quantization.find_library() is not None


def return_trip(folder: Path, family: str, **changes: Any) -> tuple[Any, Any]:
    """(the model, the model after it was a GGUF file)"""
    model = save_model(folder / "base", family, **changes)
    write(folder / "base", folder / "model.gguf")
    run(folder / "model.gguf", folder / "again")
    return model, load(folder / "again")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_read_back_with_the_same_logits(family: str, tmp_path: Path) -> None:
    model, again = return_trip(tmp_path, family)
    expected = logits(model)
    assert float(expected.std()) > 0.5
    assert float((expected - logits(again)).abs().max()) <= 1e-6
    assert again.config.tie_word_embeddings == model.config.tie_word_embeddings
    with open(tmp_path / "model.gguf", "rb") as file:
        header = read_header(file, "model.gguf")
    assert header.metadata["tokenizer.chat_template"] == read_template(tmp_path / "base")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert [t.name for t in reader.tensors] == list(header.tensors)
    assert all(reader.fields[key].contents() == value for key, value in header.metadata.items())


def read_template(folder: Path) -> str:
    return (folder / "chat_template.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("llama", {"head_dim": 32}),
        ("qwen3", {"tie_word_embeddings": False}),
        ("gemma3_text", {"tie_word_embeddings": False}),
        ("mistral", {"sliding_window": 8}),
        ("phi3", {"sliding_window": 8}),
        ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"] * 3 + ["sliding_attention"]}),
        ("gemma3_text", {"final_logit_softcapping": 5.0}),
        ("gemma2", {"attn_logit_softcapping": 7.0, "final_logit_softcapping": 3.0, "sliding_window": 5}),
    ],
)
def test_settings_of_a_family_are_read_back(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model, again = return_trip(tmp_path, family, **changes)
    assert float((logits(model) - logits(again)).abs().max()) <= 1e-6


SHORT, LONG = [1.0 + i / 10 for i in range(8)], [2.0 + i for i in range(8)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10_000.0}
SCALINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("qwen2", {"rope_type": "linear", "factor": 4.0, "rope_theta": 20_000.0}),
    "yarn": ("qwen2", YARN),
    "yarn, all settings": ("llama", {**YARN, "attention_factor": 1.7, "beta_fast": 20.0, "beta_slow": 2.0}),
    "llama3": ("llama", LLAMA3),
    "llama3, other numbers": ("llama", {**LLAMA3, "factor": 5.0, "original_max_position_embeddings": 1000}),
    "longrope": (
        "phi3",
        {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "rope_theta": 10_000.0},
    ),
    "gemma 3": (
        "gemma3_text",
        {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
        },
    ),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_rotary_embeddings_are_read_back(name: str, tmp_path: Path) -> None:
    family, parameters = SCALINGS[name]
    more = {"original_max_position_embeddings": 16} if family == "phi3" else {}
    model, again = return_trip(tmp_path, family, rope_parameters=dict(parameters), **more)
    for length in (12, 24):
        assert float((logits(model, length) - logits(again, length)).abs().max()) < 2e-5


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("gemma2", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar = 64.*llama.cpp takes 32"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping = None"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("qwen3", {"attention_bias": True}, "cannot hold this model: .*attn_q.bias"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 5}, "layer_types"),
        ("gemma", {"tie_word_embeddings": False}, "takes the embedding of Gemma as its head"),
        ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "yarn without truncation"),
        ("gpt2", {"n_embd": 64, "n_layer": 1, "n_head": 4}, "type 'gpt2' cannot be written as GGUF; these"),
    ],
)
def test_a_setting_that_gguf_cannot_state_is_refused_by_name(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    if family == "gpt2":
        import transformers as hf

        hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=384, **changes)).save_pretrained(tmp_path / "base")
    else:
        save_model(tmp_path / "base", family, **changes)
    with pytest.raises(BaseModelError, match=message):
        write(tmp_path / "base", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_missing_foreign_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    save_model(tmp_path / "base")

    def plan_with(change: Any) -> None:
        tensors = FolderTensors(tmp_path / "base")
        change(tensors.shapes)
        plan_model(tensors, tmp_path / "base", "F16", "Tiny")

    name = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(BaseModelError, match=f"no tensor {name}"):
        plan_with(lambda shapes: shapes.pop(name))
    with pytest.raises(BaseModelError, match=r"shape \[95, 64\], and the config implies \[96, 64\]"):
        plan_with(lambda shapes: shapes.update({name: (95, 64)}))
    with pytest.raises(BaseModelError, match="does not have: model.layers.0.extra.weight"):
        plan_with(lambda shapes: shapes.update({"model.layers.0.extra.weight": (4, 4)}))
    plan_with(lambda shapes: shapes.update({"model.layers.0.self_attn.rotary_emb.inv_freq": (8,)}))
    with pytest.raises(SpecError, match="must be one of F32, F16, BF16, Q8_0, Q4_0, Q4_K_M, got 'Q9'"):
        write(tmp_path / "base", tmp_path / "model.gguf", "Q9")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0"])
def test_a_report_has_the_size_and_the_types_of_the_file(kind: str, tmp_path: Path) -> None:
    model = save_model(tmp_path / "base", "qwen2", hidden_size=256, intermediate_size=160, head_dim=64)
    report = write(tmp_path / "base", tmp_path / "model.gguf", kind)
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    types = [t.tensor_type.name for t in reader.tensors]
    assert report.bytes == (tmp_path / "model.gguf").stat().st_size
    assert report.types == {name: types.count(name) for name in sorted(set(types))}
    assert report.parameters == sum(p.numel() for p in model.parameters())
    assert report.types["F32"] >= 11, "norms and biases"
    by_name = {t.name: t for t in reader.tensors}
    stored = by_name["blk.1.ffn_down.weight"]
    original = model.state_dict()["model.layers.1.mlp.down_proj.weight"].numpy()
    assert stored.tensor_type.name == kind
    expected = gguf.quantize(original, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(np.asarray(stored.data).view(np.uint8), expected.view(np.uint8))
    if kind == "Q4_0":
        head = by_name["output.weight"].tensor_type.name
        assert head == ("Q6_K" if HAS_NATIVE else "Q8_0")
        assert [f.split(" is stored")[0] for f in report.fallbacks] == [] if HAS_NATIVE else ["output.weight"]


def test_rows_that_no_block_divides_are_stored_as_f16_and_named(tmp_path: Path) -> None:
    save_model(tmp_path / "base", "llama", intermediate_size=100)
    report = write(tmp_path / "base", tmp_path / "model.gguf", "Q8_0")
    assert report.types["F16"] == 2
    assert report.fallbacks == [
        "2 tensors (blk.0.ffn_down.weight, ...) are stored as F16: Q8_0 cannot store rows of 100 values, "
        "which are not a multiple of 32."
    ]
    run(tmp_path / "model.gguf", tmp_path / "again")


@pytest.mark.skipif(not HAS_NATIVE, reason="no package with llama.cpp's quantizer is installed")
def test_q4_k_m_mixes_types_as_llama_cpp_does(tmp_path: Path) -> None:
    save_model(tmp_path / "base", "llama", hidden_size=256, intermediate_size=256, head_dim=64,
               num_hidden_layers=9)  # fmt: skip
    report = write(tmp_path / "base", tmp_path / "model.gguf", "Q4_K_M")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    # The first and the last eighth of the layers, and every third between them.
    better = [i for i in range(9) if types[f"blk.{i}.ffn_down.weight"] == "Q6_K"]
    assert better == [0, 3, 6, 7, 8]
    assert [i for i in range(9) if types[f"blk.{i}.attn_v.weight"] == "Q6_K"] == better
    assert types["output.weight"] == "Q6_K" and types["token_embd.weight"] == "Q4_K"
    assert report.types == {"F32": 19, "Q4_K": 54, "Q6_K": 11} and report.fallbacks == []
    assert report.kept == [
        "19 vectors (norms and biases) are stored as F32.",
        "11 tensors (output.weight, ...) are stored as Q6_K, as Q4_K_M has it in llama.cpp.",
    ]
    run(tmp_path / "model.gguf", tmp_path / "again")
    again = load(tmp_path / "again").state_dict()["model.layers.2.mlp.gate_proj.weight"]
    original = FolderTensors(tmp_path / "base").read("model.layers.2.mlp.gate_proj.weight")
    assert 0.02 < float(np.abs(again.numpy() - original).mean() / np.abs(original).mean()) < 0.12


def test_q4_k_m_without_its_quantizer_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "base")
    monkeypatch.setattr(model_writer, "find_library", lambda: None)
    with pytest.raises(BaseModelError, match="pip install xllamacpp"):
        write(tmp_path / "base", tmp_path / "model.gguf", "Q4_K_M")


def test_values_that_a_type_cannot_hold_are_refused_with_the_tensor(tmp_path: Path) -> None:
    import safetensors.torch

    save_model(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    for value, kind, message in (
        (7e4, "F16", rf"{name} has values up to 7e\+04, which F16 cannot store. Choose BF16"),
        (math.nan, "F32", f"{name} has values that are not finite"),
        (math.inf, "Q8_0", f"{name} has values that are not finite"),
    ):
        weights[name][3, 4] = value
        safetensors.torch.save_file(weights, path)
        with pytest.raises(BaseModelError, match=message):
            write(tmp_path / "base", tmp_path / "model.gguf", kind)
    weights[name][3, 4] = 7e4
    safetensors.torch.save_file(weights, path)
    for kind in ("BF16", "Q8_0"):
        write(tmp_path / "base", tmp_path / f"{kind}.gguf", kind)


def test_memory_stays_small_because_rows_are_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_model(tmp_path / "base")
    write(tmp_path / "base", tmp_path / "whole.gguf", "Q8_0")
    monkeypatch.setattr(model_writer, "CHUNK_VALUES", 64 * 24)
    largest = 0

    class Watched(FolderTensors):
        def read(self, name: str, begin_row: int = 0, end_row: int | None = None) -> Any:
            nonlocal largest
            values = super().read(name, begin_row, end_row)
            largest = max(largest, values.size)
            return values

    tensors = Watched(tmp_path / "base")
    plan = plan_model(tensors, tmp_path / "base", "Q8_0", "Tiny")
    write_model(plan, tensors, tmp_path / "parts.gguf", "weights")
    assert largest == 64 * 24 and model.config.vocab_size * 64 > largest
    assert (tmp_path / "parts.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_an_export_that_broke_off_is_continued_and_a_stopped_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "base")
    write(tmp_path / "base", tmp_path / "whole.gguf", "Q8_0")
    path = tmp_path / "model.gguf"
    monkeypatch.setattr(resumable_files, "SYNC_BYTES", 4096)

    def break_off(done: int, total: int) -> None:
        if done > total // 2:
            raise MemoryError

    with pytest.raises(MemoryError):
        write(tmp_path / "base", path, "Q8_0", report=break_off)
    first: list[int] = []
    polls = iter([False, False, True])
    with pytest.raises(Cancelled):
        write(tmp_path / "base", path, "Q8_0", report=lambda done, _: first.append(done),
              poll_stop=lambda: next(polls))  # fmt: skip
    assert first[0] > path.with_name("model.gguf.part").stat().st_size // 2 and not path.exists()
    write(tmp_path / "base", path, "Q8_0")
    assert path.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "model.gguf", "whole.gguf"]


def test_general_keys_name_the_model_and_its_quantization(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    tensors = FolderTensors(tmp_path / "base")
    more = {"general.license": "apache-2.0"}
    plan = plan_model(tensors, tmp_path / "base", "Q8_0", "Red lamp", more)
    write_model(plan, tensors, tmp_path / "model.gguf", "weights")
    with open(tmp_path / "model.gguf", "rb") as file:
        header = read_header(file, "model.gguf")
    metadata = header.metadata
    assert (metadata["general.name"], metadata["general.license"]) == ("Red lamp", "apache-2.0")
    assert (metadata["general.type"], header.quantization) == ("model", "Q8_0")
    assert metadata["general.quantization_version"] == 2 and metadata["llama.vocab_size"] == 384
    assert all(info.start % 32 == 0 for info in header.tensors.values())
    assert read_json(tmp_path / "base" / "config.json")["model_type"] == header.architecture == "llama"
