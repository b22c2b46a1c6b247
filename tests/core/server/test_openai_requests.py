"""Bodies of requests: what is refused, in which words, and what becomes of the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from core.engine import Engine
from core.server.access import OpenAccess
from core.server.app import make_app
from core.server.model_names import Model
from core.server.openai_requests import ChatRequest, CompletionRequest
from core.spec.mix import Mix

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER: list[Any] = [{"role": "user", "content": "Where?"}]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with Engine(tmp_path_factory.mktemp("ws"), load=False) as engine:
        yield TestClient(make_app(engine, OpenAccess()))


def refuse(client: TestClient, path: str = CHAT, **fields: Any) -> dict[str, Any]:
    own: dict[str, Any] = {"messages": USER} if path == CHAT else {"prompt": "The"}
    answer = client.post(path, json={"model": "base", **own, **fields})
    assert answer.status_code == 422 and answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["error"]["message"] == problem["detail"] and problem["error"]["param"] == problem["field"]
    return problem


@pytest.mark.parametrize(
    "fields, field, part",
    [
        ({"tools": [{"type": "function"}]}, "tools", "not implemented"),
        ({"tool_choice": "required"}, "tool_choice", "tools cannot be called"),
        ({"response_format": {"type": "json_object"}}, "response_format", '{"type": "text"}'),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not implemented"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "`repetition_penalty`"),
        ({"presence_penalty": -1}, "presence_penalty", "`repetition_penalty`"),
        ({"modalities": ["text", "audio"]}, "modalities", '["text"]'),
        ({"audio": {"voice": "x"}}, "audio", "answers are texts"),
        ({"temprature": 1}, "temprature", "Did you mean `temperature`?"),
        ({"prompt": "x"}, "prompt", "is unknown"),
        ({"temperature": 4.5}, "temperature", "less than or equal to 4, got 4.5"),
        ({"temperature": "0.5"}, "temperature", "valid number, got '0.5'"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 17}, "n", "less than or equal to 16"),
        ({"n": 1.5}, "n", "valid integer"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_completion_tokens": 4097}, "max_completion_tokens", "less than or equal to 4096"),
        ({"seed": 2**63 - 1, "stop": [""]}, "stop.0", "at least 1 character"),
        ({"stop": ["a"] * 17}, "stop", "at most 16 items"),
        ({"stop": 3}, "stop", "valid list"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        ({"top_logprobs": 2}, "top_logprobs", "Set `logprobs` to true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "x"}, "messages", "valid list"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "Field required"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'assistant', got 'tool'"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", "The last message is empty"),
        (
            {"messages": [*USER, {"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.1.content",
            "images, sounds and files cannot be read",
        ),
        ({"model": ""}, "model", "at least 1 character"),
        ({"model": 5}, "model", "valid string"),
        ({"reasoning_effort": "huge"}, "reasoning_effort", "'high'"),
    ],
)
def test_a_wrong_chat_request_is_named(client: TestClient, fields: Any, field: str, part: str) -> None:
    problem = refuse(client, **fields)
    assert problem["field"] == field and part in problem["detail"]


@pytest.mark.parametrize(
    "fields, field, part",
    [
        ({"echo": True}, "echo", "not repeated"),
        ({"suffix": "."}, "suffix", "continued at their end"),
        ({"best_of": 3}, "best_of", "Use `n`"),
        ({"prompt": [1, 2, 3]}, "prompt", "not token ids"),
        ({"prompt": ["a", " "]}, "prompt", "The prompt is empty"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({"prompt": ["a"] * 65}, "prompt", "at most 64 items"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"messages": USER}, "messages", "is unknown"),
    ],
)
def test_a_wrong_completion_request_is_named(client: TestClient, fields: Any, field: str, part: str) -> None:
    problem = refuse(client, TEXT, **fields)
    assert problem["field"] == field and part in problem["detail"]


@pytest.mark.parametrize(
    "body, part",
    [
        (b'{"temperature": NaN}', "NaN is not JSON"),
        (b'{"x": -Infinity}', "-Infinity is not JSON"),
        (b'["base"]', "does not hold a JSON object"),
        (b"", "Expecting value"),
        (b'{"model": ', "Expecting value"),
        (b"\xff", "not UTF-8"),
        (b'{"model": "\\ud800"}', "half of a character"),
        (b'{"x": ' + b"[" * 40 + b"]" * 40 + b"}", "nested deeper than 32"),
        (b'{"seed": ' + b"9" * 40 + b"}", "40 digits"),
    ],
)
def test_a_body_that_is_not_strict_json_is_refused(client: TestClient, body: bytes, part: str) -> None:
    answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and part in answer.json()["detail"]


def test_infinite_numbers_are_refused(client: TestClient) -> None:
    body = json.dumps({"model": "base", "messages": USER, "temperature": 5}).replace("5", "1e999")
    answer = client.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and answer.json()["field"] == "temperature"


def test_a_body_of_another_type_is_refused(client: TestClient) -> None:
    answer = client.post(CHAT, content=b'{"model": "base"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 415 and "application/json" in answer.json()["fix"]


def test_defaults_of_openai_and_fields_without_effect_are_accepted() -> None:
    fields = {
        "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tools": [], "tool_choice": "auto",
        "response_format": {"type": "text"}, "modalities": ["text"], "user": "me", "metadata": {"a": "b"},
        "store": False, "service_tier": "auto", "parallel_tool_calls": True, "audio": None, "seed": None,
        "stop": None, "n": None, "temperature": None, "stream_options": None, "max_tokens": None,
    }  # fmt: skip
    request = ChatRequest.model_validate({"model": "base", "messages": USER, **fields}).make_requests(
        Model("base", "Base", "base", Mix()), "me", "chatcmpl-1"
    )[0]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (1.0, 1.0, 4096)
    assert request.choices == 1 and request.top_tokens is None and not request.thinking and request.chat


def test_every_setting_reaches_the_engine() -> None:
    given = {
        "n": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.2, "seed": -1,
        "stop": "END", "max_tokens": 9, "max_completion_tokens": 8, "logprobs": True, "top_logprobs": 4,
        "reasoning_effort": "low",
    }  # fmt: skip
    mix = Mix(weights={"a": 0.5})
    model = Model("m", "M", "mix", mix, falls_back=True, fallback="Why")
    chat = ChatRequest.model_validate({"model": "m", "messages": USER, **given})
    [request] = chat.make_requests(model, "me", "chatcmpl-1")
    sampling = request.sampling.to_json()
    assert sampling == {
        "max_new_tokens": 8, "temperature": 0.5, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2,
        "seed": 2**31 - 1, "stop": ["END"],
    }  # fmt: skip
    assert (request.choices, request.top_tokens, request.thinking, request.mix) == (3, 4, True, mix)
    body = {"model": "m", "prompt": ["a", "b"], "logprobs": 0, "n": 2}
    assert (request.id, request.falls_back, request.fallback) == ("chatcmpl-1", True, "Why")
    two = CompletionRequest.model_validate(body).make_requests(model, "me", "cmpl-1")
    assert [r.id for r in two] == ["cmpl-1-0", "cmpl-1-1"]
    assert [r.prompt for r in two] == ["a", "b"] and all(r.sampling == two[0].sampling for r in two)
    assert two[0].top_tokens == 0 and not two[0].chat and two[0].sampling.max_new_tokens == 16
