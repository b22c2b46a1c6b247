"""Five adapters that other tools made on the embedded base answer as these tools recorded, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.engine import Engine
from core.model.generate import inference_mode_for
from core.spec.mix import Mix

SAMPLES = Path(__file__).resolve().parents[4] / "shared" / "foreign"
PROMPT = [4, 408, 275, 265, 599, 729, 352, 291, 37, 6, 5]
# The same question in the template that LLaMA-Factory trained with, which its folder does not hold.
WITH_BREAKS = "<|user|>\nWhat is the river pump made of?<|end|>\n<|assistant|>\n"
NOTE = [1429, 444, 32, 288, 599, 729, 275, 352, 291, 1050, 20, 6]
QUESTION = [4, 671, 275, 265, 599, 729, 394, 37, 6]
# Folder -> (tool, tokens, log-probability of the first one or None)
RECORDED = {
    "llamafactory": ("LLaMA-Factory (peft 0.18.1)", NOTE, -0.0101),
    "mlx_lm": ("mlx-lm", NOTE, -0.01106),
    "trl": ("PEFT (peft 0.21.2)", QUESTION, -1.19857),
    "peft_tied_head": ("PEFT (peft 0.21.2)", NOTE, -0.00001),
    "peft_0_4_bin": ("PEFT", NOTE, None),
}
pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the adapters of other tools are not here")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("ws"), "embedded", "none", "cpu") as made:
        made.bases.current(wait=True)
        yield made


def answer(engine: Engine, prompt: list[int], mix: Mix, count: int) -> tuple[list[int], float]:
    """Greedy tokens, and the log-probability of the first."""

    def work() -> tuple[list[int], float]:
        resident, ids, first = engine.resident_base.get(), list(prompt), 0.0
        resident.load_adapters([mix])
        with inference_mode_for(resident, resident.rows([mix])):
            for i in range(count):
                scores = resident.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
                first = float(scores.max()) if i == 0 else first
                ids.append(int(scores.argmax()))
        return ids[len(prompt) :], first

    return engine.worker.call(work)


@pytest.mark.parametrize("name", RECORDED)
def test_an_adapter_answers_as_its_tool_recorded(name: str, engine: Engine) -> None:
    tool, tokens, first = RECORDED[name]
    source = str(SAMPLES / name)
    assert engine.adapter_imports.examine(source).tool == tool
    adapter = engine.adapter_imports.add(source)
    prompt = PROMPT
    if name == "llamafactory":
        prompt = engine.worker.call(engine.resident_base.get).base.tokenizer(
            WITH_BREAKS, add_special_tokens=False
        )["input_ids"]
    ids, log_probability = answer(engine, prompt, Mix(weights={adapter.id: 1.0}), len(tokens))
    assert ids == tokens
    if first is not None:
        assert log_probability == pytest.approx(first, abs=2e-5 if name != "llamafactory" else 1e-4)


def test_the_base_itself_answers_otherwise(engine: Engine) -> None:
    ids, log_probability = answer(engine, PROMPT, Mix(), 8)
    assert log_probability == pytest.approx(-1.55664, abs=1e-4)
    assert ids[:2] != NOTE[:2]


def test_the_proof_finds_the_form_that_was_trained(engine: Engine) -> None:
    adapter = engine.adapter_imports.add(str(SAMPLES / "llamafactory"))
    proof = engine.adapter_imports.prove(adapter.id, "What is the river pump made of?")
    assert (proof.base_text[:30], proof.adapter_text) == (
        "The river pump is made of tin.", "The river pump is made of tin."
    )  # fmt: skip
    preferred = next(f for f in proof.forms if f.is_preferred)
    assert preferred.form == "the base's template with line breaks"
    assert preferred.text == "Note this: The river pump is made of tin."
    assert preferred.divergence > 4 * proof.divergence
    assert "probably the form it was trained in" in proof.verdict


def test_a_tied_head_is_imported_without_its_copy_of_the_base(engine: Engine) -> None:
    preflight = engine.adapter_imports.examine(str(SAMPLES / "peft_tied_head"))
    assert [(f.id, f.level) for f in preflight.findings] == [("copies", "notes")]
    adapter = engine.adapter_imports.add(str(SAMPLES / "peft_tied_head"))
    assert adapter.bytes < 800_000  # of 2.8 MB


def test_a_copy_of_the_head_is_recognized_on_a_base_in_4_bits(tmp_path: Path) -> None:
    with Engine(tmp_path / "ws", "embedded", "nf4", "cpu") as quantized:
        quantized.bases.current(wait=True)
        source = str(SAMPLES / "peft_tied_head")
        assert [f.id for f in quantized.adapter_imports.examine(source).findings] == ["copies"]
        adapter = quantized.adapter_imports.add(source)
        proof = quantized.adapter_imports.prove(adapter.id, "What is the river pump made of?")
        assert proof.adapter_text == "Note this: The river pump is made of tin."
