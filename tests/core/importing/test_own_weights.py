"""Adapters with trained embeddings, heads, norms or tokens are kept whole, and used alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from core.engine import Engine
from core.errors import AdapterError, DamagedRecord
from core.spec.mix import Mix, Sampling
from studio.components import mixer
from tests.core.importing.makers import PREFIX, add_tokens, load_model, make_peft
from tests.core.importing.test_refusals import factors, open_findings, put

ALONE = ["use-alone"]


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), "none", "cpu") as made:
        made.bases.current(wait=True)
        yield made


@pytest.fixture(autouse=True)
def an_empty_library(engine: Engine) -> Iterator[None]:
    yield
    for adapter in engine.library.adapters():
        engine.library.delete("adapters", adapter.id)


def head(rows: int = 384) -> dict[str, torch.Tensor]:
    return {f"{PREFIX}lm_head.weight": torch.randn(rows, 64, generator=torch.Generator().manual_seed(2))}


def answer(engine: Engine, mixes: list[Mix], tokens: int = 6) -> Any:
    return engine.chat.stream("The red", mixes, Sampling(max_new_tokens=tokens, temperature=0.0)).last()


def test_the_stored_folder_says_what_it_replaces(engine: Engine, tmp_path: Path) -> None:
    adapter = engine.adapter_imports.add(str(put(tmp_path / "a", {**factors(), **head()})), "Tall", ALONE)
    folder = engine.workspace.path("adapters", adapter.id)
    stored = load_file(folder / "adapter_model.safetensors")
    assert torch.equal(stored[f"{PREFIX}lm_head.weight"], head()[f"{PREFIX}lm_head.weight"])
    assert json.loads((folder / "adapter_config.json").read_text())["modules_to_save"] == ["lm_head"]
    assert "(lm_head), so it is used alone" in adapter.alone and adapter.form
    assert "5 tensors" in " ".join(engine.library.verify(adapter.id))
    (listed,) = engine.library.mixable_adapters()
    assert listed.fits and listed.alone == adapter.alone
    assert [m.weights for m in engine.library.default_mixes()] == [{}]  # none is suggested beside others


def test_a_column_with_it_answers_beside_any_other_columns(engine: Engine, tmp_path: Path) -> None:
    own = engine.adapter_imports.add(str(put(tmp_path / "a", {**factors(), **head()})), "Own", ALONE)
    plain = engine.adapter_imports.add(str(put(tmp_path / "b")), "Plain")
    alone = answer(engine, [Mix(weights={own.id: 1.0})]).columns[0].text
    mixes = [Mix(), Mix(weights={own.id: 1.0}), Mix(weights={plain.id: 0.5})]
    frame = answer(engine, mixes)
    assert frame.columns[1].text == alone != frame.columns[0].text
    for mix in (Mix(weights={own.id: 1.0, plain.id: 0.5}), Mix(weights={own.id: 0.5})):
        with pytest.raises(AdapterError, match="'Own' replaces weights of the base"):
            answer(engine, [Mix(), mix])
        (said,) = engine.library.mix_warnings(mix)
        assert said.startswith("Own cannot answer in this mix: it replaces") and "switch the other" in said
    assert engine.library.mix_warnings(mixes[1]) == []
    assert answer(engine, mixes).columns[1].text == alone
    rows = mixer.adapter_rows(engine)
    assert [bool(r["alone"]) for r in rows] == [True, False]


def test_an_added_stop_token_ends_the_answer(engine: Engine, tmp_path: Path, tiny_base: Path) -> None:
    model = add_tokens(load_model(tiny_base), 2, 1.0)
    with torch.no_grad():
        model.lm_head.weight[384] = 0.0  # the other one is answered
    folder = tmp_path / "grown"
    reference = make_peft(folder, tiny_base, model=model, save_embeddings=True)
    added = {"added_tokens_decoder": {"385": {"content": "<|done|>"}}, "eos_token": "<|done|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(added))
    assert open_findings(engine, folder) == {"vocabulary": ("drop-copies", "use-alone")}
    preflight = engine.adapter_imports.examine(str(folder), ALONE)
    stop = next(f for f in preflight.findings if f.id == "stop-token")
    assert [r.id for r in stop.repairs] == ["add-stop"]
    with_stop = engine.adapter_imports.add(str(folder), "With", [*ALONE, "add-stop"])
    without = engine.adapter_imports.add(str(folder), "Without", ALONE)
    assert with_stop.metadata["imported"]["stop_ids"] == [385]

    def work(adapter: str) -> list[int]:
        from core.model.generate import encode_prompt, generate

        resident, mix = engine.resident_base.get(), Mix(weights={adapter: 1.0})
        ids = encode_prompt(resident, "The red", False, 8)
        for states in generate(resident, [ids], [mix], [Sampling(max_new_tokens=8, temperature=0.0)]):
            found = list(states[0].ids)
        with torch.no_grad():
            out = reference.generate(input_ids=torch.tensor([ids]), max_new_tokens=8, do_sample=False)
        expected.append(out[0, len(ids) :].tolist())
        return found

    expected: list[list[int]] = []
    whole = engine.worker.call(lambda: work(without.id))
    assert whole == expected[0] and 385 in whole
    assert engine.worker.call(lambda: work(with_stop.id)) == whole[: whole.index(385)]
    proof = engine.adapter_imports.prove(without.id, "The red", chat=False)
    assert 0 < proof.divergence < 100


def test_tied_ends_are_replaced_as_peft_loads_them(engine: Engine, tmp_path: Path) -> None:
    embedding = {f"{PREFIX}model.embed_tokens.weight": torch.randn(384, 64)}
    adapter = engine.adapter_imports.add(
        str(put(tmp_path / "a", {**factors(), **embedding})), "Embedding", ALONE
    )
    assert "(embed_tokens)" in adapter.alone  # this base is not tied


BROKEN: dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]] = {
    "a narrow head": ({f"{PREFIX}lm_head.weight": torch.ones(384, 32)}, {}),
    "a short head": (head(300), {}),
    "a whole projection": ({f"{PREFIX}model.layers.0.mlp.up_proj.weight": torch.ones(128, 64)}, {}),
    "a norm of another width": ({f"{PREFIX}model.norm.weight": torch.ones(32)}, {}),
    "an unknown layer": ({f"{PREFIX}score.weight": torch.ones(2, 64)}, {}),
    "tokens beyond the vocabulary": (
        {f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 64)},
        {"trainable_token_indices": [3, 999]},
    ),
    "a token twice": (
        {f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 64)},
        {"trainable_token_indices": [3, 3]},
    ),
    "more vectors than tokens": (
        {f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(3, 64)},
        {"trainable_token_indices": {"embed_tokens": [3, 4]}},
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_weights_that_fit_no_module_can_only_be_left_out(name: str, engine: Engine, tmp_path: Path) -> None:
    tensors, config = BROKEN[name]
    folder = put(tmp_path / "a", {**factors(), **tensors}, **config)
    assert open_findings(engine, folder) == {"trained-copies": ("drop-copies",)}
    with pytest.raises(AdapterError, match="was not imported"):
        engine.adapter_imports.add(str(folder), repairs=ALONE)
    adapter = engine.adapter_imports.add(str(folder), repairs=["drop-copies"])
    assert adapter.alone == adapter.form == ""


def test_values_that_are_not_finite_are_refused(engine: Engine, tmp_path: Path) -> None:
    weights = head()
    weights[f"{PREFIX}lm_head.weight"][5, 5] = float("nan")
    folder = put(tmp_path / "a", {**factors(), **weights})
    assert "not-finite" in open_findings(engine, folder, *ALONE)
    assert engine.library.adapters() == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"modules_to_save": []}, "is not a LoRA factor"),
        ({"modules_to_save": ["lm_head", "model.norm"]}, "model.norm are missing"),
        ({"modules_to_save": ["lm_head", ".*norm"]}, "modules_to_save must be"),
        ({"modules_to_save": "lm_head"}, "modules_to_save must be"),
        ({"trainable_token_indices": {"model.embed_tokens": [1, 1]}}, "trainable_token_indices must be"),
        ({"trainable_token_indices": {"model.embed_tokens": [-1]}}, "trainable_token_indices must be"),
        ({"trainable_token_indices": {"model.embed_tokens": [1]}}, "embed_tokens are missing"),
    ],
    ids=str,
)
def test_a_stored_config_that_was_changed_is_refused(
    engine: Engine, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    adapter = engine.adapter_imports.add(str(put(tmp_path / "a", {**factors(), **head()})), "Own", ALONE)
    file = engine.workspace.path("adapters", adapter.id) / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    (file.parent / "checksums.txt").unlink()
    with pytest.raises((AdapterError, DamagedRecord), match=words.replace("(", r"\(")):
        from core.store.adapter_config import parse_config
        from core.store.adapter_weights import check_weights

        check_weights(file.parent, parse_config(json.loads(file.read_text()), only_plain=False))
