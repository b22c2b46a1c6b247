"""An adapter becomes a GGUF file whose update is exactly the one that was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import AdapterError, BaseModelError
from core.gguf.adapter_writer import write_adapter
from core.gguf.header import read_header
from core.importing import gguf_form
from tests.core.gguf.gguf_maker import build_model

LAYERS = {
    "llama": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
              "mlp.up_proj", "mlp.down_proj"),
    "phi3": ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
}  # fmt: skip


def make_factors(family: str, ranks: tuple[int, ...]) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """(config, factors): random ones for both layers of a tiny model; ranks take turns."""
    model = build_model(family)
    generator = np.random.default_rng(7)
    factors = {}
    for n in range(2):
        for i, layer in enumerate(LAYERS.get(family, LAYERS["llama"])):
            module = f"model.layers.{n}.{layer}"
            outputs, inputs = model.get_submodule(module).weight.shape
            rank = ranks[i % len(ranks)]
            factors[module] = (
                generator.normal(size=(rank, inputs)).astype(np.float32),
                generator.normal(size=(outputs, rank)).astype(np.float32),
            )
    return model.config.to_dict(), factors


def read_updates(path: Path, config: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """module -> scaling x B A, as an import reads the file."""
    found = gguf_form.read(path)
    assert found.problem is None and not found.extras and not found.incomplete
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    updates = {}
    for module, (stored_a, stored_b, alpha) in found.factors.items():
        a, b = stored_a.read(), stored_b.read()
        layer = module.rpartition(".")[2]
        if gguf_form.permutes_rows(found.architecture) and layer in heads:
            b = gguf_form.restore_rows(b, heads[layer])
        assert alpha is not None
        updates[module] = (b.numpy() * np.float32(alpha / a.shape[0])) @ a.numpy()
    return updates


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"])
def test_the_update_of_every_module_is_read_back(family: str, tmp_path: Path) -> None:
    config, factors = make_factors(family, (4,))
    report = write_adapter(factors, config, tmp_path / "a.gguf", "Lamp", "Tiny base")
    updates = read_updates(tmp_path / "a.gguf", config)
    assert updates.keys() == factors.keys()
    for module, (a, b) in factors.items():
        assert np.array_equal(updates[module], b @ a)
    assert (report.alpha, report.ranks, report.modules) == (4.0, (4,), len(factors))
    assert report.bytes == (tmp_path / "a.gguf").stat().st_size
    found = gguf_form.read(tmp_path / "a.gguf")
    assert found.base == "Tiny base"
    assert found.architecture == report.architecture
    assert found.architecture == {"mistral": "llama", "gemma3_text": "gemma3"}.get(family, family)


def test_ranks_that_differ_are_padded_so_that_no_value_is_rounded(tmp_path: Path) -> None:
    config, factors = make_factors("llama", (3, 16, 5, 1, 8))
    report = write_adapter(factors, config, tmp_path / "a.gguf", "Lamp")
    assert (report.alpha, report.ranks) == (16.0, (1, 3, 5, 8, 16))
    found = gguf_form.read(tmp_path / "a.gguf").factors
    for module, (a, b) in factors.items():
        stored_a, stored_b, alpha = found[module]
        rank, padded = len(a), stored_a.shape[0]
        assert padded == {1: 1, 3: 4, 5: 8, 8: 8, 16: 16}[rank] and alpha == 16.0
        assert np.array_equal(stored_a.read()[:rank].numpy(), a) and not stored_a.read()[rank:].any()
        if "q_proj" not in module and "k_proj" not in module:
            assert np.array_equal(stored_b.read()[:, :rank].numpy() * np.float32(16 / padded), b)
    updates = read_updates(tmp_path / "a.gguf", config)
    for module, (a, b) in factors.items():
        assert float(np.abs(updates[module] - b @ a).max()) < 1e-5  # sums in another order


def test_prefixes_tensors_and_half_precision_are_taken(tmp_path: Path) -> None:
    config, factors = make_factors("qwen2", (2,))
    tensors = {
        f"base_model.model.{m}": (torch.from_numpy(a).bfloat16(), torch.nn.Parameter(torch.from_numpy(b)))
        for m, (a, b) in factors.items()
    }
    write_adapter(tensors, config, tmp_path / "a.gguf", "Lamp", precision="F16")
    with open(tmp_path / "a.gguf", "rb") as file:
        header = read_header(file, "a.gguf")
    assert {t.type.name for t in header.tensors.values()} == {"F16"}
    updates = read_updates(tmp_path / "a.gguf", config)
    for module, (a, b) in factors.items():
        assert float(np.abs(updates[module] - b @ a).max()) < 0.02 * float(np.abs(b @ a).max())


@pytest.mark.parametrize(
    ("module", "shapes", "message"),
    [
        ("model.embed_tokens", ((2, 64), (384, 2)), "cannot have a change of an embedding or a head"),
        ("lm_head", ((2, 64), (384, 2)), "changes lm_head.*Export a merged model instead"),
        ("model.layers.0.mlp.experts", ((2, 64), (96, 2)), "no name for in the architecture 'llama'"),
        ("model.layers.2.mlp.up_proj", ((2, 64), (96, 2)), "no name for"),
        (
            "model.layers.0.mlp.up_proj",
            ((2, 64), (64, 2)),
            r"\[2, 64\] and \[64, 2\].* 96 outputs and 64 inputs",
        ),
        ("model.layers.0.mlp.up_proj", ((2, 64), (96, 3)), "shapes"),
        ("model.layers.0.mlp.up_proj", ((0, 64), (96, 0)), "shapes"),
    ],
)
def test_what_llama_cpp_cannot_have_is_refused(
    module: str, shapes: tuple[Any, Any], message: str, tmp_path: Path
) -> None:
    config, factors = make_factors("llama", (2,))
    factors[module] = (np.ones(shapes[0], np.float32), np.ones(shapes[1], np.float32))
    with pytest.raises(AdapterError, match=message):
        write_adapter(factors, config, tmp_path / "a.gguf", "Lamp")
    assert list(tmp_path.iterdir()) == []


def test_empty_and_damaged_adapters_and_foreign_bases_are_refused(tmp_path: Path) -> None:
    config, factors = make_factors("llama", (2,))
    with pytest.raises(AdapterError, match="has no layers"):
        write_adapter({}, config, tmp_path / "a.gguf", "Lamp")
    factors["model.layers.1.mlp.up_proj"][0][1, 1] = np.nan
    with pytest.raises(AdapterError, match="factors of model.layers.1.mlp.up_proj have values that are not"):
        write_adapter(factors, config, tmp_path / "a.gguf", "Lamp")
    with pytest.raises(BaseModelError, match="type 'gpt2' cannot be written as GGUF"):
        write_adapter(factors, {"model_type": "gpt2"}, tmp_path / "a.gguf", "Lamp")
