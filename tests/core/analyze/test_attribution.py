"""Attributing an answer: each figure is a difference of two plain likelihoods."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.analyze.attribution import Attribution, attribute_answer, decode_tokens
from core.errors import SpecError
from core.model.base import load_base
from core.model.generate import encode_prompt, generate, inference_mode_for
from core.model.resident import Resident
from core.spec.mix import Mix, Sampling
from core.store.workspace import Workspace
from tests.core.model.test_mixing import SHAPES, hang_random

QUESTION = "Where is the red lamp?"
ANSWER = "The red lamp is kept in the north room."
MIX = Mix(weights={"one": 0.8, "two": -0.5, "three": 1.0})


@pytest.fixture(scope="module", params=["none", "nf4"])
def resident(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Resident]:
    made = Resident(load_base(str(tiny_base), request.param, "cpu"), Workspace(tmp_path_factory.mktemp("ws")))
    hang_random(made, SHAPES)
    yield made


def attributed(
    resident: Resident, mix: Mix, answer: str = "", sampling: Sampling | None = None
) -> Attribution:
    found = list(attribute_answer(resident, QUESTION, mix, answer, sampling))[-1].attribution
    assert found is not None and resident.mixer.weights is None
    return found


def alone(resident: Resident, weights: dict[str, float]) -> list[float]:
    """Log-probabilities of the answer's tokens, from a forward of its own."""
    ids = resident.base.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    prompt = encode_prompt(resident, QUESTION, True, 64)
    with inference_mode_for(resident, resident.rows([Mix(weights=weights)])):
        logits = resident.base.model(torch.tensor([prompt + ids])).logits[0].double()
    return [float(logits[len(prompt) + i - 1].log_softmax(-1)[t]) for i, t in enumerate(ids)]


def test_every_figure_equals_forwards_one_at_a_time(resident: Resident) -> None:
    found = attributed(resident, MIX, ANSWER)
    # bitsandbytes' 4-bit kernel on a CPU rounds activations to bf16
    limit = 1e-4 if resident.base.quantization == "none" else 5e-3
    assert found.full == pytest.approx(alone(resident, MIX.weights), abs=limit)
    assert found.base == pytest.approx(alone(resident, {}), abs=limit)
    assert set(found.by_adapter) == {"one", "two", "three"}
    for left, nats in found.by_adapter.items():
        without = alone(resident, {a: w for a, w in MIX.weights.items() if a != left})
        assert nats == pytest.approx(
            [f - w for f, w in zip(alone(resident, MIX.weights), without)], abs=2 * limit
        )
        assert max(map(abs, nats)) > 1e-2


def test_of_a_single_adapter_the_difference_is_the_mix_minus_the_base(resident: Resident) -> None:
    found = attributed(resident, Mix(weights={"one": 0.8}), ANSWER)
    assert found.by_adapter["one"] == pytest.approx(found.joint, abs=1e-6)


def test_texts_join_to_the_answer_given_or_written(resident: Resident) -> None:
    odd = "Ünïcode — 東京 🦊, <|end|> and  spaces"
    for answer in (ANSWER, odd):
        found = attributed(resident, MIX, answer)
        assert found.answer == answer and len(found.tokens) == len(found.full)
    sampling = Sampling(max_new_tokens=12, temperature=0.7, seed=3)
    written = attributed(resident, MIX, sampling=sampling)
    state = list(generate(resident, [encode_prompt(resident, QUESTION, True, 12)], [MIX], [sampling]))[-1][0]
    assert (
        len(written.tokens) == len(state.ids)
        and written.answer.strip() == state.column(resident.base.tokenizer).text
    )


def test_a_character_of_several_tokens_belongs_to_the_last_of_them(resident: Resident) -> None:
    ids = resident.base.tokenizer("a🦊b", add_special_tokens=False)["input_ids"]
    assert decode_tokens(resident.base.tokenizer, ids) == ["a", "", "", "", "🦊", "b"]
    assert "".join(decode_tokens(resident.base.tokenizer, ids[:3])).startswith("a"), (
        "an unfinished character at the end loses nothing"
    )


def test_closing_while_it_writes_leaves_nothing_engaged(resident: Resident) -> None:
    steps = attribute_answer(resident, QUESTION, MIX, sampling=Sampling(max_new_tokens=12))
    next(steps)
    steps.close()
    assert resident.mixer.weights is None


def test_the_reading_names_who_did_what_and_where() -> None:
    found = Attribution({"d": 1.0}, ("The", " lamp"), (-1.0, -0.5), (-1.25, -3.0), {"d": (-1.25, -3.0)})
    assert (
        found.summary({"d": "Domain"})
        == "Over the base, the mix adds +2.75 nats to the 2 tokens of this answer. Domain adds +2.75, most at 'lamp' (+2.50)."
    )
    assert found.to_json()["by_adapter"] == {"d": (0.25, 2.5)}
    assert "no adapter" in Attribution({}, ("x",), (-1.0,), (-1.0,), {}).summary()


def test_an_empty_prompt_or_one_too_long_is_refused(resident: Resident) -> None:
    with pytest.raises(SpecError, match="The prompt is empty"):
        next(attribute_answer(resident, " ", MIX, ANSWER))
    with pytest.raises(SpecError, match="the context of the base is 256"):
        next(attribute_answer(resident, QUESTION, MIX, "word " * 300))
