"""Attribution: every figure is the difference of two plain log-likelihoods."""

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
from tests.core.model.test_mixing import SHAPES, add_random_adapters

QUESTION = "Where is the red lamp?"
ANSWER = "The red lamp is kept in the north room."
MIX = Mix(weights={"one": 0.8, "two": -0.5, "three": 1.0})


@pytest.fixture(scope="module", params=["none", "nf4"])
def resident(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Resident]:
    made = Resident(load_base(str(tiny_base), request.param, "cpu"), Workspace(tmp_path_factory.mktemp("ws")))
    add_random_adapters(made, SHAPES)
    yield made


def attribute(
    resident: Resident, mix: Mix, answer: str = "", sampling: Sampling | None = None
) -> Attribution:
    attribution = list(attribute_answer(resident, QUESTION, mix, answer, sampling))[-1].attribution
    assert attribution is not None and resident.mixer.weights is None
    return attribution


def log_probabilities(resident: Resident, weights: dict[str, float]) -> list[float]:
    """Log-probabilities of the answer's tokens, from a separate forward."""
    ids = resident.base.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]
    prompt = encode_prompt(resident, QUESTION, True, 64)
    with inference_mode_for(resident, resident.rows([Mix(weights=weights)])):
        logits = resident.base.model(torch.tensor([prompt + ids])).logits[0].double()
    return [float(logits[len(prompt) + i - 1].log_softmax(-1)[t]) for i, t in enumerate(ids)]


def test_every_figure_equals_single_forwards(resident: Resident) -> None:
    attribution = attribute(resident, MIX, ANSWER)
    # bitsandbytes' 4-bit kernel on a CPU rounds activations to bf16
    limit = 1e-4 if resident.base.quantization == "none" else 5e-3
    assert attribution.full == pytest.approx(log_probabilities(resident, MIX.weights), abs=limit)
    assert attribution.base == pytest.approx(log_probabilities(resident, {}), abs=limit)
    assert set(attribution.by_adapter) == {"one", "two", "three"}
    for left, nats in attribution.by_adapter.items():
        without = log_probabilities(resident, {a: w for a, w in MIX.weights.items() if a != left})
        assert nats == pytest.approx(
            [f - w for f, w in zip(log_probabilities(resident, MIX.weights), without)], abs=2 * limit
        )
        assert max(map(abs, nats)) > 1e-2


def test_the_share_of_a_single_adapter_is_the_mix_minus_the_base(resident: Resident) -> None:
    attribution = attribute(resident, Mix(weights={"one": 0.8}), ANSWER)
    assert attribution.by_adapter["one"] == pytest.approx(attribution.joint, abs=1e-6)


def test_token_texts_join_to_the_given_or_generated_answer(resident: Resident) -> None:
    odd = "Ünïcode — 東京 🦊, <|end|> and  spaces"
    for answer in (ANSWER, odd):
        attribution = attribute(resident, MIX, answer)
        assert attribution.answer == answer and len(attribution.tokens) == len(attribution.full)
    sampling = Sampling(max_new_tokens=12, temperature=0.7, seed=3)
    generated = attribute(resident, MIX, sampling=sampling)
    state = list(generate(resident, [encode_prompt(resident, QUESTION, True, 12)], [MIX], [sampling]))[-1][0]
    assert (
        len(generated.tokens) == len(state.ids)
        and generated.answer.strip() == state.column(resident.base.tokenizer).text
    )


def test_a_character_of_several_tokens_belongs_to_the_last_of_them(resident: Resident) -> None:
    ids = resident.base.tokenizer("a🦊b", add_special_tokens=False)["input_ids"]
    assert decode_tokens(resident.base.tokenizer, ids) == ["a", "", "", "", "🦊", "b"]
    assert "".join(decode_tokens(resident.base.tokenizer, ids[:3])).startswith("a"), (
        "an unfinished character at the end loses nothing"
    )


def test_closing_during_generation_deactivates_the_mix(resident: Resident) -> None:
    steps = attribute_answer(resident, QUESTION, MIX, sampling=Sampling(max_new_tokens=12))
    next(steps)
    steps.close()
    assert resident.mixer.weights is None


def test_the_summary_names_the_effect_of_each_adapter() -> None:
    attribution = Attribution({"d": 1.0}, ("The", " lamp"), (-1.0, -0.5), (-1.25, -3.0), {"d": (-1.25, -3.0)})
    assert (
        attribution.summary({"d": "Domain"})
        == "The mix adds +2.75 nats to the 2 tokens of this answer, compared with the base. "
        "Domain adds +2.75, most of it at 'lamp' (+2.50)."
    )
    assert attribution.to_json()["by_adapter"] == {"d": (0.25, 2.5)}
    assert "has no adapters" in Attribution({}, ("x",), (-1.0,), (-1.0,), {}).summary()


def test_an_empty_prompt_or_one_too_long_is_refused(resident: Resident) -> None:
    with pytest.raises(SpecError, match="The prompt is empty"):
        next(attribute_answer(resident, " ", MIX, ANSWER))
    with pytest.raises(SpecError, match="prompt and answer together may have at most 256 tokens"):
        next(attribute_answer(resident, QUESTION, MIX, "word " * 300))
