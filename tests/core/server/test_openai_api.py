"""OpenAI's own client against a live server: models, answers, streams, errors."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from core.engine import Engine
from core.engine.serving import Request
from core.model.continuous_batch import Answer, ContinuousBatch
from core.spec.mix import Mix, Sampling

from .live_server import serve
from .random_library import calibrate_gate, find_id, open_engine

pytestmark = pytest.mark.slow
QUESTION: list[Any] = [{"role": "user", "content": "Where is the red lamp?"}]


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with open_engine(tiny_base, tmp_path_factory.mktemp("ws")) as made:
        yield made


@pytest.fixture(scope="module")
def address(engine: Engine) -> Iterator[str]:
    with serve(engine) as url:
        yield url


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Steps take 10 ms longer until the event is set, so that answers are open when they are stopped."""
    released, step = threading.Event(), ContinuousBatch.step

    def wait(batch: ContinuousBatch) -> list[Answer]:
        released.wait(0.01)
        return step(batch)

    monkeypatch.setattr(ContinuousBatch, "step", wait)
    return released


def ask(client: openai.OpenAI, model: str = "base", **options: Any) -> Any:
    given = {"messages": QUESTION, "temperature": 0, "max_tokens": 12, **options}
    return client.chat.completions.create(model=model, **given)


def expect(engine: Engine, mix: Mix, **sampling: Any) -> Any:
    """The answer of the engine itself."""
    asked = Sampling(**{"max_new_tokens": 12, **sampling})
    return engine.serving.submit(Request(QUESTION, mix, asked)).last().columns[0]


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_list_of_models_and_one_of_them(engine: Engine, client: openai.OpenAI) -> None:
    law = find_id(engine, "law")
    listed = {m.id: m for m in client.models.list()}
    assert {"base", law, find_id(engine, "chat")} <= set(listed) and listed[law].owned_by == "adapter-studio"
    found = client.models.retrieve("mix:law=0.5@1")
    assert found.id == "mix:law=0.5@1" and found.model_extra is not None
    assert found.model_extra["weights"] == {law: 0.5} and found.model_extra["tilt"] == {law: 1.0}


def test_an_answer_is_that_of_the_engine_and_names_what_was_active(
    engine: Engine, client: openai.OpenAI
) -> None:
    law, odd = find_id(engine, "law"), find_id(engine, "odd")
    mix = Mix(weights={law: 0.7, odd: -0.5}, tilt={law: 1.0})
    raw = client.chat.completions.with_raw_response.create(
        model="mix:law=0.7@1,odd=-0.5", messages=QUESTION, temperature=0, max_tokens=12
    )
    answer, expected = raw.parse(), expect(engine, mix)
    assert raw.headers["x-adapter-studio-mix"] == f"mix:{law}=0.7@1,{odd}=-0.5"
    choice = answer.choices[0]
    assert choice.message.content == expected.text and choice.message.role == "assistant"
    assert choice.finish_reason == "length" and answer.model == "mix:law=0.7@1,odd=-0.5"
    assert choice.model_extra is not None
    active = choice.model_extra["active"]
    assert active["weights"] == expected.stamp["weights"] == {law: 0.7, odd: -0.5}
    assert active["adapters"] == {a: engine.library.adapter(a).sha256 for a in (law, odd)}
    assert answer.usage.completion_tokens == 12 and answer.usage.prompt_tokens > 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    other = ask(client, "mix:law=0.7,odd=-0.5")
    assert answer.system_fingerprint.startswith("fp_") and answer.object == "chat.completion"
    assert ask(client, "mix:odd=-0.5,law=0.7@1").system_fingerprint == answer.system_fingerprint
    assert other.system_fingerprint != answer.system_fingerprint


def test_a_stream_adds_up_to_the_answer(engine: Engine, client: openai.OpenAI) -> None:
    whole = ask(client, "law", n=2, temperature=0.9, seed=3, logprobs=True, top_logprobs=2)
    chunks = list(
        ask(client, "law", n=2, temperature=0.9, seed=3, logprobs=True, top_logprobs=2, stream=True,
            stream_options={"include_usage": True})
    )  # fmt: skip
    assert len({c.id for c in chunks}) == 1 and chunks[0].object == "chat.completion.chunk"
    assert {c.system_fingerprint for c in chunks} == {whole.system_fingerprint}
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])
    for choice in whole.choices:
        parts = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == choice.index]
        assert parts[0].delta.role == "assistant"
        assert "".join(p.delta.content or "" for p in parts) == choice.message.content
        assert [p.finish_reason for p in parts] == [None] * (len(parts) - 1) + ["length"]
        tokens = [t.token for p in parts if p.logprobs for t in p.logprobs.content]
        assert tokens == [t.token for t in choice.logprobs.content] and len(tokens) == 12
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_a_stream_begins_with_the_mix_that_is_active_and_ends_with_done(engine: Engine, address: str) -> None:
    body = {"model": "law", "messages": QUESTION, "stream": True, "max_tokens": 3}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as response:
        assert response.headers["x-adapter-studio-mix"] == f"mix:{find_id(engine, 'law')}"
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    last = json.loads(lines[-2].removeprefix("data: "))
    assert last["choices"][0]["active"]["weights"] == {find_id(engine, "law"): 1.0}


def test_a_seed_repeats_an_answer_and_none_varies_it(client: openai.OpenAI) -> None:
    sampled = {"temperature": openai.NOT_GIVEN, "max_tokens": 24}  # OpenAI's default is 1
    one, same = (ask(client, seed=7, **sampled).choices[0].message.content for _ in range(2))
    assert one == same == ask(client, seed=7 + 2**31, **sampled).choices[0].message.content
    free = [ask(client, **sampled).choices[0] for _ in range(3)]
    assert len({c.message.content for c in free}) > 1
    seed = free[0].model_extra["active"]["seed"]
    assert ask(client, seed=seed, **sampled).choices[0].message.content == free[0].message.content


def test_log_probs_are_those_of_the_answer(client: openai.OpenAI) -> None:
    choice = ask(client, logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert len(tokens) == 12
    for token in tokens:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.logprob == max(t.logprob for t in token.top_logprobs), "greedy takes the likeliest"
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    assert ask(client).choices[0].logprobs is None


@pytest.mark.parametrize("as_list", [False, True])
def test_no_part_of_a_stop_string_is_sent(client: openai.OpenAI, as_list: bool) -> None:
    text = ask(client, max_tokens=40).choices[0].message.content
    stop = text[20:26]
    end = text.index(stop)
    options = {"max_tokens": 40, "stop": [stop, "never there"] if as_list else stop, "logprobs": True}
    answer = ask(client, **options).choices[0]
    assert (answer.message.content, answer.finish_reason) == (text[:end].rstrip(), "stop")
    assert (
        0
        < len(answer.logprobs.content)
        < len(ask(client, max_tokens=40, logprobs=True).choices[0].logprobs.content)
    )
    sent = "".join(c.choices[0].delta.content or "" for c in ask(client, stream=True, **options))
    assert sent == text[:end].rstrip()


def test_content_parts_and_developer_messages_are_texts(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "Where is"}, {"type": "text", "text": "the red lamp?"}]
    plain = ask(client, messages=[{"role": "system", "content": "Be brief."},
                                  {"role": "user", "content": "Where is\nthe red lamp?"}])  # fmt: skip
    split = ask(client, messages=[{"role": "developer", "content": "Be brief."},
                                  {"role": "user", "content": parts}])  # fmt: skip
    assert split.choices[0].message.content == plain.choices[0].message.content
    assert split.usage.prompt_tokens == plain.usage.prompt_tokens


def test_completions_continue_every_prompt(engine: Engine, client: openai.OpenAI) -> None:
    prompts = ["The red lamp", "The old bell"]
    options: dict[str, Any] = {"temperature": 0.7, "seed": 5, "max_tokens": 8, "logprobs": 2, "n": 2}
    both = client.completions.create(model="law", prompt=prompts, **options)
    assert [c.index for c in both.choices] == [0, 1, 2, 3] and both.object == "text_completion"
    for number, prompt in enumerate(prompts):
        alone = client.completions.create(model="law", prompt=prompt, **options)
        texts = [c.text for c in both.choices[2 * number : 2 * number + 2]]
        assert texts == [c.text for c in alone.choices] and texts[0] != texts[1]
    for choice in both.choices:
        found = choice.logprobs
        assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 8
        for at, token, log_prob, top in zip(
            found.text_offset, found.tokens, found.token_logprobs, found.top_logprobs, strict=True
        ):
            assert 2 <= len(top) <= 3 and top[token] >= log_prob
            assert 0 <= at <= len(choice.text) and ("\ufffd" in token or token.strip() in choice.text[at:])
    assert both.usage.completion_tokens == 32
    streamed: dict[int, str] = {}
    for chunk in client.completions.create(model="law", prompt=prompts, stream=True, **options):
        for part in chunk.choices:
            streamed[part.index] = streamed.get(part.index, "") + part.text
    assert [streamed[i] for i in range(4)] == [c.text for c in both.choices]
    short = client.completions.create(model="base", prompt="The", temperature=0)
    assert short.usage.completion_tokens == 16, "OpenAI's default"


def test_eight_mixes_at_once_answer_as_one_after_the_other(engine: Engine, client: openai.OpenAI) -> None:
    models = ["base", "law", "chat", "odd", "mix:law=0.5,chat=0.5", "mix:law@1", "mix:odd=-1", "mix:chat=2"]

    def answer(model: str) -> tuple[str, str]:
        found = ask(client, model, max_tokens=30)
        return found.choices[0].message.content, found.system_fingerprint

    one_by_one = [answer(model) for model in models]
    begun = engine.serving.steps
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(answer, models))
    assert at_once == one_by_one
    assert len({text for text, _ in at_once}) == len({mark for _, mark in at_once}) == 8
    assert engine.serving.steps - begun < 8 * 30, "they share steps"


def test_auto_answers_with_the_weights_that_its_gates_chose(engine: Engine, client: openai.OpenAI) -> None:
    with pytest.raises(openai.ConflictError, match="none has a calibration"):
        ask(client, "auto")
    law, chat = find_id(engine, "law"), find_id(engine, "chat")
    calibrate_gate(engine, law)
    calibrate_gate(engine, chat, threshold=100.0)
    active = ask(client, "auto").choices[0].model_extra["active"]
    assert active["weights"] == {law: 1.0} and active["auto"][chat]["weight"] == 0
    assert active["mix"] == f"mix:{law}"


def test_errors_have_the_classes_of_the_client(client: openai.OpenAI, address: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "lawn")
    assert caught.value.code == "model_not_found" and "'law'" in caught.value.message
    assert caught.value.param == "model" and caught.value.response.headers["content-type"] == (
        "application/problem+json"
    )
    with pytest.raises(openai.UnprocessableEntityError, match="between -2 and 2"):
        ask(client, "mix:law=7")
    with pytest.raises(openai.UnprocessableEntityError, match="at most 256 tokens"):
        ask(client, messages=[{"role": "user", "content": "lamp " * 4000}])
    assert ask(client).choices[0].finish_reason == "length", "nothing is blocked"


def test_a_client_that_leaves_ends_its_answer(
    engine: Engine, client: openai.OpenAI, address: str, slow_steps: threading.Event
) -> None:
    stream = ask(client, stream=True, max_tokens=200, n=4)
    next(iter(stream))
    assert engine.serving.active_count == 1
    stream.close()
    wait_until(lambda: engine.serving.active_count == 0)
    with pytest.raises(httpx.ReadTimeout):
        body = {"model": "base", "messages": QUESTION, "max_tokens": 200, "n": 4}
        httpx.post(f"{address}/v1/chat/completions", json=body, timeout=0.5)
    wait_until(lambda: engine.serving.active_count == 0 and engine.serving.queue_length == 0)
    slow_steps.set()
    assert ask(client).usage.completion_tokens == 12


def test_the_base_answers_for_a_saved_mix_without_its_adapter_and_says_so(
    engine: Engine, client: openai.OpenAI, address: str
) -> None:
    odd = find_id(engine, "Odd")
    saved = engine.library.save_mix("Lasting", {odd: 1.0})
    entry = engine.library.delete("adapters", odd).entry
    try:
        answer = client.chat.completions.with_raw_response.create(
            model="Lasting", messages=QUESTION, temperature=0, max_tokens=12
        )
        whole = answer.parse()
        assert whole.choices[0].message.content == expect(engine, Mix()).text
        assert answer.headers["X-Adapter-Studio-Mix"] == "base"
        assert odd in answer.headers["X-Adapter-Studio-Fallback"]
        assert odd in whole.choices[0].model_extra["active"]["fallback"]
        rated = httpx.post(f"{address}/api/answers/{whole.id}-0/rating", json={"good": False})
        assert rated.json() == {"answer": f"{whole.id}-0", "good": False}
        figures = {f["name"]: f for f in httpx.get(f"{address}/api/answers").json()}
        assert (figures["Lasting"]["fallbacks"], figures["Lasting"]["poor"]) == (1, 1)
        with pytest.raises(openai.NotFoundError, match="has no adapter"):
            ask(client, model=f"mix:{odd}=1")
    finally:
        engine.library.restore(entry)
        engine.library.delete("mixes", saved.id)


def test_an_error_in_mid_stream_is_an_event_and_the_end(
    engine: Engine, client: openai.OpenAI, slow_steps: threading.Event
) -> None:
    from core.errors import BaseModelError

    stream = iter(ask(client, stream=True, max_tokens=200))
    next(stream)
    error = BaseModelError("The base was changed.", "Send the request again.")
    engine.worker.call(lambda: engine.worker.end_streams(error))
    with pytest.raises(openai.APIError, match="The base was changed. Send the request again."):
        list(stream)
    slow_steps.set()
    assert ask(client).usage.completion_tokens == 12


def test_a_full_queue_is_answered_429(
    engine: Engine, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.engine import serving

    monkeypatch.setattr(serving, "WAITING_LIMIT", 0)
    with pytest.raises(openai.RateLimitError, match="wait for an answer already") as caught:
        ask(client)
    assert int(caught.value.response.headers["retry-after"]) >= 1
