"""What the harness asks of a mix: log-likelihoods and answers equal transformers' own with peft."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import AutoModelForCausalLM

from core.errors import SpecError
from core.evaluate.harness_scoring import (
    Answer,
    Continuation,
    Likelihood,
    check_mix,
    cut_at_stop,
    make_sampling,
    score_continuations,
    write_answers,
)
from core.model.base import load_base
from core.model.resident import Resident
from core.progress import Progress
from core.spec.mix import Mix, Sampling
from core.store.workspace import Workspace
from tests.core.merge.test_bake import SHAPES, add_random_adapter

NAME = next(iter(SHAPES))
MIX = Mix(weights={NAME: 1.0})
VOCABULARY = 384


@pytest.fixture(scope="module")
def resident(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resident]:
    made = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path_factory.mktemp("ws")))
    add_random_adapter(made, NAME, *SHAPES[NAME])
    yield made


@pytest.fixture(scope="module")
def with_peft(resident: Resident, tiny_base: Path) -> Any:
    """The same base and adapter, as transformers and peft load them."""
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    return PeftModel.from_pretrained(model, resident.workspace.find("adapters", NAME)).eval()


def score(resident: Resident, requests: list[Continuation], length: int = 0) -> list[Likelihood]:
    *steps, last = score_continuations(resident, MIX, requests, length)
    assert all(isinstance(s, Progress) and s.total == len(requests) for s in steps)
    assert not requests or steps[-1].done == len(requests)  # type: ignore[union-attr]
    return last  # type: ignore[return-value]


def expect(model: Any, request: Continuation, length: int) -> tuple[float, bool]:
    """One sequence at a time, without padding: the harness's definition."""
    ids = torch.tensor([[*request.context, *request.ids][-(length + 1) :][:-1]])
    with torch.no_grad():
        scores = model(input_ids=ids).logits[0].log_softmax(-1)[-len(request.ids) :]
    tokens = torch.tensor(request.ids)
    return float(scores.gather(1, tokens[:, None]).sum()), bool((scores.argmax(-1) == tokens).all())


ids = st.integers(0, VOCABULARY - 1)
requests = st.builds(
    Continuation,
    st.lists(ids, min_size=1, max_size=40).map(tuple),
    st.lists(ids, min_size=1, max_size=6).map(tuple),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(requests, max_size=8), st.integers(6, 64))
def test_likelihoods_equal_peft_for_any_batch_and_length(
    resident: Resident, with_peft: Any, asked: list[Continuation], length: int
) -> None:
    found = score(resident, asked, length)
    assert len(found) == len(asked)
    for request, likelihood in zip(asked, found, strict=True):
        nats, is_greedy = expect(with_peft, request, length)
        assert likelihood.nats == pytest.approx(nats, abs=1e-4) and likelihood.is_greedy == is_greedy


def test_a_greedy_continuation_is_known_as_one(resident: Resident, with_peft: Any) -> None:
    context = (5, 6, 7)
    out = with_peft.generate(input_ids=torch.tensor([context]), max_new_tokens=3, do_sample=False)
    greedy = tuple(out[0, 3:].tolist())
    other = (*greedy[:2], (greedy[2] + 1) % VOCABULARY)
    # The last two read the same tokens, so they share a forward; one is longer than the other.
    asked = [
        Continuation(context, greedy),
        Continuation(context, other),
        Continuation((*context, *greedy[:2]), greedy[2:]),
    ]
    assert [f.is_greedy for f in score(resident, asked)] == [True, False, True]


@pytest.mark.parametrize(
    "request_", [Continuation((1,), ()), Continuation((), (1,)), Continuation((1,), (2,) * 9)]
)
def test_an_impossible_continuation_is_refused(resident: Resident, request_: Continuation) -> None:
    with pytest.raises(SpecError, match="must have 1 to 8 tokens after a context"):
        score(resident, [request_], 8)


def test_answers_equal_peft_and_end_at_their_stop_string(resident: Resident, with_peft: Any) -> None:
    tokenizer = resident.base.tokenizer
    prompts = [
        tuple(tokenizer.encode(t)) for t in ("The red lamp is", "The old", "Where is the blue bell?" * 30)
    ]
    longest = 12
    expected = []
    for prompt in prompts:
        kept = torch.tensor([prompt[-(resident.base.context - longest) :]])
        out = with_peft.generate(input_ids=kept, max_new_tokens=longest, do_sample=False)
        expected.append(tokenizer.decode(out[0, kept.shape[1] :], skip_special_tokens=True))
    plain = [Answer(p, Sampling(max_new_tokens=longest)) for p in prompts]
    *steps, texts = write_answers(resident, MIX, plain)
    assert texts == expected and steps[-1].done == 3  # type: ignore[union-attr]
    stop = expected[0][3:5]
    stopped = [Answer(a.ids, Sampling(max_new_tokens=longest, stop=(stop,))) for a in plain]
    *_, texts = write_answers(resident, MIX, stopped)
    assert texts == [text.split(stop)[0] for text in expected]


def test_an_answer_as_long_as_the_context_is_refused(resident: Resident) -> None:
    asked = [Answer((1, 2), Sampling(max_new_tokens=resident.base.context))]
    with pytest.raises(SpecError, match="answers of 256 tokens, and the base reads 256"):
        list(write_answers(resident, MIX, asked))


def test_the_settings_of_a_task_become_a_sampling() -> None:
    given_ = {"until": ["\n", ""], "max_gen_toks": 9000, "temperature": 0.7, "top_p": 0.5}
    assert make_sampling({**given_, "do_sample": False}, 0) == Sampling(max_new_tokens=4096, stop=("\n",))
    sampled = make_sampling({**given_, "do_sample": True, "top_k": 3}, 20)
    assert sampled == Sampling(max_new_tokens=20, temperature=0.7, top_p=0.5, top_k=3, stop=("\n",))
    with pytest.raises(SpecError, match="sets num_beams"):
        make_sampling({"until": [], "max_gen_toks": 1, "num_beams": 2}, 0)


def test_text_is_cut_at_whichever_stop_string_comes_first() -> None:
    assert cut_at_stop("one two three", ("three", "two", "")) == "one "


def test_auto_and_encoder_decoder_bases_are_refused(resident: Resident) -> None:
    check_mix(resident, MIX)
    with pytest.raises(SpecError, match="The harness needs a number"):
        check_mix(resident, Mix(weights={NAME: 1.0}, auto={NAME: "hard"}))
