"""Requests of other programs: they share one batch, and none of them depends on the others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from core.engine import Engine, serving
from core.engine.serving import Progress, Request
from core.errors import BaseModelError, Busy, NotFound, SpecError, StudioError
from core.model import generate
from core.model.continuous_batch import Answer, ContinuousBatch
from core.server.streams import finish
from core.spec.mix import Mix, Sampling

pytestmark = pytest.mark.slow
QUESTION = "Where is the red lamp?"
LONG = Sampling(max_new_tokens=200)


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("ws"), str(tiny_base), quantization="none", device="cpu") as made:
        resident = made.bases.current(wait=True) and made.resident_base.peek()
        assert resident is not None
        resident.base.model.generation_config.eos_token_id = []
        with torch.no_grad():  # the tied head gives the end token a logit of 0, so that answers are long
            head = resident.base.model.get_output_embeddings().weight
            head[resident.base.tokenizer.eos_token_id] = 0
        yield made


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """While it is not set, answers stay where they are after their first step."""
    gate, step = threading.Event(), ContinuousBatch.step

    def wait(batch: ContinuousBatch) -> list[Answer]:
        if not all(a.state.ids for a in batch.answers):
            return step(batch)
        gate.wait(0.02)
        return step(batch) if gate.is_set() else []

    monkeypatch.setattr(ContinuousBatch, "step", wait)
    yield gate
    gate.set()


def wait_until(condition: object, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.01)


def ask(engine: Engine, prompt: str = QUESTION, sampling: Sampling = LONG, **options: object) -> Progress:
    return engine.serving.submit(Request(prompt, Mix(), sampling, **options)).last()  # type: ignore[arg-type]


def test_an_answer_is_that_of_the_page(engine: Engine) -> None:
    sampling = Sampling(max_new_tokens=12, temperature=0.8, seed=4)
    progress = ask(engine, sampling=sampling)
    on_page = engine.chat.stream(QUESTION, [Mix()], sampling).last().columns[0]
    assert progress.done and progress.columns[0].text == on_page.text
    assert progress.columns[0].stamp["base_fingerprint"] == on_page.stamp["base_fingerprint"]
    assert progress.prompt_tokens > 3 and progress.first_token_seconds > 0


def test_requests_at_the_same_time_take_as_many_steps_as_one(engine: Engine, gate: threading.Event) -> None:
    sampling = Sampling(max_new_tokens=20)
    completions = [engine.serving.submit(Request(f"{i} lamps?", Mix(), sampling)) for i in range(6)]
    wait_until(lambda: engine.serving.active_count == 6)
    gate.set()
    before = engine.serving.steps
    texts = [c.last().columns[0].text for c in completions]
    assert engine.serving.steps - before <= 20, "one after the other they take 120"
    assert texts == [ask(engine, f"{i} lamps?", sampling).columns[0].text for i in range(6)]


def test_a_request_has_no_value_before_its_first_token(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other answers get a token between the arrival of its prompt and the reading of it."""
    step = ContinuousBatch.step
    steps: list[int] = []

    def read_prompts_late(batch: ContinuousBatch) -> list[Answer]:
        if len(batch.answers) < 2 or len(steps) > 5:
            return step(batch)
        steps.append(len(batch.answers))
        waiting, batch._waiting = batch._waiting, []
        try:
            time.sleep(1.5 * serving.FRAME_SECONDS)
            return step(batch)
        finally:
            batch._waiting = waiting

    monkeypatch.setattr(ContinuousBatch, "step", read_prompts_late)
    first = engine.serving.submit(Request(QUESTION, Mix(), LONG))
    reading = iter(first)  # kept, so that it stays open
    next(reading)
    second = engine.serving.submit(Request(QUESTION, Mix(), Sampling(max_new_tokens=4)))
    values = list(second)
    first.close()
    assert len(steps) == 6, "it waited six steps"
    assert min(value.columns[0].tokens for value in values) >= 1
    assert values[-1].first_token_seconds > 6 * 1.5 * serving.FRAME_SECONDS


def test_choices_have_seeds_of_their_own(engine: Engine) -> None:
    sampling = Sampling(max_new_tokens=10, temperature=1.0, seed=7)
    progress = ask(engine, sampling=sampling, choices=3)
    alone = [
        ask(engine, sampling=Sampling(max_new_tokens=10, temperature=1.0, seed=7 + i)).columns[0].text
        for i in range(3)
    ]
    assert [c.text for c in progress.columns] == alone and len(set(alone)) == 3


def test_log_probabilities_come_with_the_tokens(engine: Engine) -> None:
    progress = ask(engine, sampling=Sampling(max_new_tokens=5), top_tokens=2)
    (tokens,) = progress.tokens
    assert len(tokens) == 5 and all(t.log_prob == t.top[0][1] and len(t.top) == 2 for t in tokens)
    assert ask(engine, sampling=Sampling(max_new_tokens=5)).tokens == ((),)


def test_a_reader_that_leaves_stops_its_answer(engine: Engine, gate: threading.Event) -> None:
    completion = engine.serving.submit(Request(QUESTION, Mix(), LONG))
    for progress in completion:
        assert not progress.done
        break
    wait_until(lambda: engine.serving.active_count == 0)
    gate.set()
    assert ask(engine, sampling=Sampling(max_new_tokens=3)).columns[0].tokens == 3


@pytest.mark.parametrize(
    "request_of, error, words",
    [
        (lambda: Request("  ", Mix(), LONG), SpecError, "prompt is empty"),
        (lambda: Request("lamp " * 400, Mix(), LONG), SpecError, "together may have at most 256 tokens"),
        (lambda: Request(QUESTION, Mix(weights={"lost": 1.0}), LONG), NotFound, "'lost'"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(
    engine: Engine, request_of: object, error: type[StudioError], words: str
) -> None:
    beside = engine.serving.submit(Request(QUESTION, Mix(), Sampling(max_new_tokens=30)))
    with pytest.raises(error, match=words):
        engine.serving.submit(request_of()).last()  # type: ignore[operator]
    assert beside.last().columns[0].tokens == 30


def test_a_defect_ends_its_request_and_no_other(
    engine: Engine, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = generate.encode_prompt

    def fail(resident: object, prompt: str, *options: object) -> object:
        if prompt == "fail":
            raise TypeError("a defect")
        return encode(resident, prompt, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(generate, "encode_prompt", fail)
    running = engine.serving.submit(Request(QUESTION, Mix(), Sampling(max_new_tokens=9)))
    wait_until(lambda: engine.serving.active_count == 1)
    requests = [
        engine.serving.submit(Request(p, Mix(), Sampling(max_new_tokens=3))) for p in ("fail", "Where?")
    ]
    gate.set()
    with pytest.raises(TypeError, match="a defect"):
        requests[0].last()
    assert requests[1].last().columns[0].tokens == 3 and running.last().columns[0].tokens == 9


@pytest.mark.parametrize("options", [{"choices": 0}, {"choices": 17}, {"top_tokens": 21}, {"top_tokens": -1}])
def test_counts_outside_their_limits_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="must be between"):
        Request(QUESTION, Mix(), LONG, **options)  # type: ignore[arg-type]


def test_further_requests_wait_and_too_many_are_refused(
    engine: Engine, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "ROW_LIMIT", 2)
    monkeypatch.setattr(serving, "WAITING_LIMIT", 1)
    running = [engine.serving.submit(Request(QUESTION, Mix(), LONG))]
    wait_until(lambda: engine.serving.active_count == 1)
    running.append(engine.serving.submit(Request(QUESTION, Mix(), LONG)))
    wait_until(lambda: engine.serving.active_count == 2)
    waiting = engine.serving.submit(Request(QUESTION, Mix(), Sampling(max_new_tokens=4)))
    with pytest.raises(Busy, match="wait for an answer"):
        engine.serving.submit(Request(QUESTION, Mix(), LONG))
    gate.set()
    assert waiting.last().columns[0].tokens == 4
    assert [c.last().columns[0].tokens for c in running] == [200, 200]


def test_one_caller_has_a_share_and_others_still_get_answers(
    engine: Engine, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "CALLER_LIMIT", 2)
    greedy = [engine.serving.submit(Request(QUESTION, Mix(), LONG, caller="a")) for _ in range(2)]
    with pytest.raises(Busy, match="You have 2 requests"):
        engine.serving.submit(Request(QUESTION, Mix(), LONG, caller="a"))
    other = engine.serving.submit(Request(QUESTION, Mix(), Sampling(max_new_tokens=4), caller="b"))
    gate.set()
    assert other.last().columns[0].tokens == 4
    for completion in greedy:
        completion.close()
    wait_until(lambda: engine.serving.active_count == 0)
    again = Request(QUESTION, Mix(), Sampling(max_new_tokens=2), caller="a")
    assert engine.serving.submit(again).last().columns[0].tokens == 2


def test_requests_that_are_just_beginning_count_as_their_callers(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "CALLER_LIMIT", 2)
    begun, go, begin = threading.Event(), threading.Event(), serving.Serving._begin

    def wait(self: serving.Serving, *arguments: object) -> None:
        begun.set()
        assert go.wait(30)
        begin(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(serving.Serving, "_begin", wait)
    short = Request(QUESTION, Mix(), Sampling(max_new_tokens=2), caller="a")
    two = [engine.serving.submit(short), engine.serving.submit(short)]
    try:
        assert begun.wait(30)
        wait_until(lambda: engine.serving.queue_length < 2)
        with pytest.raises(Busy, match="You have 2 requests"):
            engine.serving.submit(short)
    finally:
        go.set()
    assert [c.last().columns[0].tokens for c in two] == [2, 2]


def test_a_reader_of_the_whole_answer_gets_one_value(engine: Engine, gate: threading.Event) -> None:
    sampling = Sampling(max_new_tokens=30)
    completion = engine.serving.submit(Request(QUESTION, Mix(), sampling, top_tokens=1, follows=False))
    gate.set()
    values = list(completion)
    assert [v.done for v in values] == [True] and len(values[0].tokens[0]) == 30


def test_a_change_of_the_base_ends_the_answers_with_the_reason(engine: Engine, gate: threading.Event) -> None:
    running = engine.serving.submit(Request(QUESTION, Mix(), LONG))
    wait_until(lambda: engine.serving.active_count == 1)
    reason = BaseModelError("The base model was changed.", "Send the prompt again.")
    engine.worker.call(lambda: engine.worker.end_streams(reason))
    with pytest.raises(BaseModelError, match="was changed"):
        running.last()
    gate.set()
    assert ask(engine, sampling=Sampling(max_new_tokens=3)).columns[0].tokens == 3


def test_closing_the_studio_ends_waiting_requests(tiny_base: Path, tmp_path: Path) -> None:
    engine = Engine(tmp_path / "ws", str(tiny_base), quantization="none", device="cpu")
    engine.bases.current(wait=True)
    running = engine.serving.submit(Request(QUESTION, Mix(), LONG))
    engine.close()
    with pytest.raises(StudioError, match="is closing"):
        running.last()
    with pytest.raises(StudioError, match="is closing"):
        engine.serving.submit(Request(QUESTION, Mix(), LONG))


def test_an_asynchronous_reader_gets_the_same_answer(engine: Engine) -> None:
    sampling = Sampling(max_new_tokens=16)

    async def ask_all() -> list[Progress]:
        completions = [engine.serving.submit(Request(f"{i} bells?", Mix(), sampling)) for i in range(5)]
        return await asyncio.gather(*(finish(c) for c in completions))

    texts = [p.columns[0].text for p in asyncio.run(ask_all())]
    assert texts == [ask(engine, f"{i} bells?", sampling).columns[0].text for i in range(5)]
