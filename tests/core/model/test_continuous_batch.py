"""Continuous batching: whenever an answer begins and whatever runs beside it, it is the one it is alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import NotFound, SpecError
from core.model.base import load_base
from core.model.continuous_batch import Answer, ContinuousBatch
from core.model.generate import generate
from core.model.resident import Resident
from core.spec.mix import Mix, Sampling
from core.store.workspace import Workspace
from tests.core.engine.test_bases import build_tiny
from tests.core.model.test_fast_decoding import resident as packed_resident  # noqa: F401 (a fixture)
from tests.core.model.test_mixing import SHAPES, add_random_adapters

PROMPTS = ([7, 8, 9, 10, 11], [12, 13], [40, 41, 42, 43, 44, 45, 46, 47], [21])
SAMPLINGS = (
    Sampling(max_new_tokens=9),
    Sampling(max_new_tokens=4, seed=3),
    Sampling(max_new_tokens=7, temperature=0.9, top_k=50, seed=5),
    Sampling(max_new_tokens=6, temperature=1.1, top_p=0.9, repetition_penalty=1.2, seed=5),
    Sampling(max_new_tokens=8, repetition_penalty=1.3),
)


@pytest.fixture(scope="module")
def resident(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Resident]:
    resident = Resident(load_base(str(tiny_base), "none", "cpu"), Workspace(tmp_path_factory.mktemp("ws")))
    add_random_adapters(resident, SHAPES)
    yield resident


@pytest.fixture(scope="module")
def packed(packed_resident: Resident) -> Resident:  # noqa: F811
    packed_resident.digests |= dict.fromkeys(("all", "query", "mlp"), "made by this test")
    return packed_resident


def answer_alone(resident: Resident, prompt: Sequence[int], mix: Mix, sampling: Sampling) -> list[int]:
    return next(reversed(list(generate(resident, [prompt], [mix], [sampling], fast=True))))[0].ids


def run_all(resident: Resident, arrivals: Sequence[tuple[int, Sequence[int], Mix, Sampling]]) -> list[Answer]:
    """Admits every (step, prompt, mix, sampling) at its step, and decodes until all have ended."""
    batch, answers, step = ContinuousBatch(resident), {}, 0
    while len(answers) < len(arrivals) or batch.answers:
        for i, (when, prompt, mix, sampling) in enumerate(arrivals):
            if when == step:
                answers[i] = batch.admit(prompt, [mix], [sampling])[0]
        batch.step()
        step += 1
    return [answers[i] for i in range(len(arrivals))]


def arrivals_of(names: Sequence[str]) -> st.SearchStrategy[list[tuple[int, list[int], Mix, Sampling]]]:
    weights = st.dictionaries(
        st.sampled_from(names), st.sampled_from([-1.0, 0.5, 1.0, 1.5]), max_size=len(names)
    )
    return st.lists(
        st.tuples(
            st.integers(0, 8),
            st.sampled_from(PROMPTS),
            weights.map(lambda w: Mix(weights=w)),
            st.sampled_from(SAMPLINGS),
        ),
        min_size=1,
        max_size=6,
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrivals=arrivals_of(list(SHAPES)))
def test_an_answer_is_the_one_it_is_alone_whenever_it_begins(
    resident: Resident, arrivals: list[tuple[int, list[int], Mix, Sampling]]
) -> None:
    answers = run_all(resident, arrivals)
    alone = [answer_alone(resident, *arrival[1:]) for arrival in arrivals]
    assert [a.state.ids for a in answers] == alone


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrivals=arrivals_of(["all", "query", "mlp"]))
def test_the_same_with_packed_weights_to_the_bit(
    packed: Resident, arrivals: list[tuple[int, list[int], Mix, Sampling]]
) -> None:
    answers = run_all(packed, arrivals)
    alone = [answer_alone(packed, *arrival[1:]) for arrival in arrivals]
    assert [a.state.ids for a in answers] == alone
    assert {a.state.stamp["answered_in"] for a in answers} == {"int8"}


@pytest.mark.parametrize("family", ["gpt2", "t5", "mistral", "gemma3_text", "minimax_m2"])
def test_every_kind_of_kv_cache_joins_or_takes_turns(family: str, tmp_path: Path) -> None:
    folder = build_tiny(tmp_path / "base", family)
    resident = Resident(load_base(str(folder), "none", "cpu"), Workspace(tmp_path / "ws"))
    arrivals = [
        (0, PROMPTS[0], Mix(), SAMPLINGS[0]),
        (2, PROMPTS[1], Mix(), SAMPLINGS[2]),
        (2, PROMPTS[2], Mix(), SAMPLINGS[3]),
        (5, PROMPTS[3], Mix(), SAMPLINGS[4]),
    ]
    answers = run_all(resident, arrivals)
    assert [a.state.ids for a in answers] == [answer_alone(resident, *arrival[1:]) for arrival in arrivals]


def test_running_answers_are_one_forward_of_the_model(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = resident.base.model.forward

    def count(*args: object, input_ids: torch.Tensor, **options: object) -> object:
        rows.append(len(input_ids))
        return forward(*args, input_ids=input_ids, **options)

    monkeypatch.setattr(resident.base.model, "forward", count)
    batch = ContinuousBatch(resident)
    for i, prompt in enumerate(PROMPTS):
        batch.admit(prompt, [Mix(weights={"one": 0.25 * i})], [Sampling(max_new_tokens=20)])
        batch.step()  # its prompt
        batch.step()  # a token of all that run
    assert rows == [1, 1, 1, 2, 1, 3, 1, 4], (
        "a prompt waits for no token of the others, and they for one prompt"
    )


def test_prompts_that_keep_arriving_do_not_stop_the_running_answers(resident: Resident) -> None:
    batch = ContinuousBatch(resident)
    (first,) = batch.admit(PROMPTS[0], [Mix()], [Sampling(max_new_tokens=40)])
    batch.step()
    tokens = []
    for _ in range(9):
        (arrived,) = batch.admit(PROMPTS[1], [Mix()], [Sampling(max_new_tokens=40)])
        batch.step()
        tokens.append((len(first.state.ids), len(arrived.state.ids)))
    read, decode = (lambda n: (n, 1)), (lambda n: (n, 0))  # a prompt, or a token of all that run
    assert tokens == [*[read(1)] * 2, decode(2), *[read(2)] * 3, decode(3), *[read(3)] * 2]


def test_padding_that_no_row_needs_any_more_is_dropped(resident: Resident) -> None:
    batch = ContinuousBatch(resident)
    lengths = []
    for _ in range(30):  # each answer ends before the one after the next begins
        batch.admit(PROMPTS[1], [Mix()], [Sampling(max_new_tokens=6)])
        for _ in range(4):
            batch.step()
        lengths.append(max(b._decoder._length for b in batch._batches))
    assert max(lengths) <= 2 * 6, "without it, 122 positions"


def test_log_probabilities_are_those_of_the_model(resident: Resident) -> None:
    batch = ContinuousBatch(resident)
    answer = batch.admit(PROMPTS[0], [Mix(weights={"two": 1.0})], [Sampling(max_new_tokens=5)], top=3)[0]
    while batch.answers:
        batch.step()
    ids = answer.state.ids
    tokens = torch.tensor([[*PROMPTS[0], *ids]])
    with torch.inference_mode(), resident.mixer.activate(resident.rows([Mix(weights={"two": 1.0})])):
        expected = resident.base.model(tokens).logits[0, len(PROMPTS[0]) - 1 : -1].log_softmax(-1)
    assert [t.token for t in answer.log_probs] == ids
    for i, recorded in enumerate(answer.log_probs):
        assert recorded.log_prob == pytest.approx(float(expected[i, ids[i]]), abs=1e-4)
        assert [t for t, _ in recorded.top] == expected[i].topk(3).indices.tolist()
        assert recorded.top[0] == (ids[i], pytest.approx(recorded.log_prob))  # greedy takes the likeliest


def test_a_cancelled_answer_leaves_and_the_others_stay(resident: Resident) -> None:
    batch = ContinuousBatch(resident)
    first = batch.admit(PROMPTS[0], [Mix()], [SAMPLINGS[0]])
    second = batch.admit(PROMPTS[1], [Mix(weights={"one": 1.0})], [SAMPLINGS[0]])
    batch.step()
    batch.step()
    batch.cancel(first)
    while batch.answers:
        batch.step()
    assert (len(first[0].state.ids), first[0].state.reason) == (2, "cancelled")
    alone = answer_alone(resident, PROMPTS[1], Mix(weights={"one": 1.0}), SAMPLINGS[0])
    assert second[0].state.ids == alone


def test_an_adapter_that_vanishes_ends_its_answers_only(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = ContinuousBatch(resident)
    lost = batch.admit(PROMPTS[0], [Mix(weights={"one": 1.0})], [SAMPLINGS[0]])[0]
    other = batch.admit(PROMPTS[1], [Mix(weights={"two": 1.0})], [SAMPLINGS[0]])[0]
    batch.step()
    load: Callable[..., None] = resident.load_adapters

    def refuse_one(mixes: Sequence[Mix]) -> None:
        if any("one" in m.weights for m in mixes):
            raise NotFound("The library has no adapter 'one'.")
        load(mixes)

    monkeypatch.setattr(resident, "load_adapters", refuse_one)
    while batch.answers:
        batch.step()
    assert isinstance(lost.error, NotFound) and lost.state.reason == "error"
    assert other.error is None
    monkeypatch.undo()
    assert other.state.ids == answer_alone(resident, PROMPTS[1], Mix(weights={"two": 1.0}), SAMPLINGS[0])


def test_a_prompt_without_room_is_refused_and_changes_nothing(resident: Resident) -> None:
    batch = ContinuousBatch(resident)
    with pytest.raises(SpecError, match="must leave room"):
        batch.admit([5] * 256, [Mix()], [Sampling()])
    assert batch.answers == [] and batch.step() == []
