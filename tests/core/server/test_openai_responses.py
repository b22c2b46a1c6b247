"""Tokens of an answer have their places in its text, and the pieces of a stream add up to the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.engine.serving import Progress, ScoredToken
from core.model.columns import Column, SequenceState
from core.server.openai_responses import (
    Answer,
    list_shown_tokens,
    make_fingerprint,
    name_active,
)
from core.spec.mix import Mix, Sampling

STAMP = {"base_fingerprint": "b", "weights": {"law": 0.7}, "tilt": {"law": 1.0}, "adapters": {"law": "d"}}
ANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)


def grow(tokenizer: Any, text: str, stop: tuple[str, ...] = ()) -> list[Progress]:
    """The progress of an answer after each token of a text, as serving reports it."""
    state = SequenceState(0, Mix(), Sampling(stop=stop, max_new_tokens=4096))
    ids, grown = tokenizer.encode(text, add_special_tokens=False), []
    for number, token in enumerate(ids, 1):
        state.ids.append(token)
        if not state.end_at_stop(tokenizer) and number == len(ids):
            state.reason = "length"
        tokens = tuple(ScoredToken(tokenizer.decode([i]), -0.5) for i in state.ids)
        grown.append(Progress((state.column(tokenizer),), (tokens,), 3, 0.1, bool(state.reason)))
        if state.reason:
            break
    return grown


texts = st.text(st.sampled_from("ab lamp.é€🎚️\n<|user|>"), min_size=1, max_size=30)


@ANY
@given(texts)
def test_every_token_is_shown_once_at_its_place(tokenizer: Any, text: str) -> None:
    lists = [list_shown_tokens(p.columns[0], p.tokens[0]) for p in grow(tokenizer, text)]
    for before, after in zip(lists, lists[1:], strict=False):
        assert [t for _, t in before] == [t for _, t in after][: len(before)]
    column, last = grow(tokenizer, text)[-1].columns[0], lists[-1]
    assert len(last) == column.tokens
    offsets = [at for at, _ in last]
    assert offsets == sorted(offsets) and all(0 <= at <= len(column.text) for at in offsets)
    plain = [(at, t.text) for at, t in last if "\ufffd" not in t.text and t.text.strip() and "<|" not in text]
    assert all(column.text[at:].startswith(t.lstrip() if not at else t.rstrip()) for at, t in plain)


@ANY
@given(texts, st.sampled_from(["l", "am", "€", " b", "p.", "never"]))
def test_chunks_add_up_to_the_whole_and_hold_no_stop_string(tokenizer: Any, text: str, stop: str) -> None:
    grown = grow(tokenizer, text, (stop,))
    answer = Answer("base", True, with_tokens=True)
    chunks = [chunk for progress in grown for chunk in answer.list_chunks(0, progress)]
    choices = [chunk["choices"][0] for chunk in chunks]
    whole = Answer("base", True, with_tokens=True).describe(grown[-1:])["choices"][0]
    sent = "".join(c["delta"].get("content", "") for c in choices)
    assert sent == whole["message"]["content"] and stop not in sent
    tokens = [t["token"] for c in choices if c["logprobs"] for t in c["logprobs"]["content"]]
    assert tokens == [t["token"] for t in whole["logprobs"]["content"]]
    assert [c["finish_reason"] for c in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] == whole["finish_reason"]
    assert (whole["finish_reason"] == "stop") == (grown[-1].columns[0].reason == "stop")


def test_a_thought_is_reasoning_content_and_its_tokens_are_counted() -> None:
    tokens = tuple(ScoredToken(text, -1.0) for text in ("<think>", "hm", "</think>", "Yes", "."))
    columns = [
        Column("", 2, stamp=STAMP, thought="hm", thought_tokens=2),
        Column("Yes.", 5, done=True, reason="end", stamp=STAMP, thought="hm", thought_tokens=3),
    ]
    grown = [Progress((c,), (tokens[: c.tokens],), 4, 0.1, c.done) for c in columns]
    answer = Answer("law", True, with_tokens=True)
    deltas = [chunk["choices"][0]["delta"] for p in grown for chunk in answer.list_chunks(0, p)]
    assert "".join(d.get("reasoning_content", "") for d in deltas) == "hm"
    assert "".join(d.get("content", "") for d in deltas) == "Yes."
    whole = answer.describe(grown[-1:])
    assert whole["choices"][0]["message"]["reasoning_content"] == "hm"
    assert [t["token"] for t in whole["choices"][0]["logprobs"]["content"]] == ["Yes", "."]
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert whole["choices"][0]["finish_reason"] == "stop"


def test_the_fingerprint_follows_weights_tilts_and_files() -> None:
    assert name_active(STAMP) == "mix:law=0.7@1" and name_active({}) == "base"
    marks = {
        make_fingerprint([{**STAMP, **change}])
        for change in ({}, {"weights": {"law": 0.71}}, {"tilt": {}}, {"adapters": {"law": "e"}})
    }
    assert len(marks) == 4
    assert make_fingerprint([STAMP, STAMP]) == make_fingerprint([{**STAMP, "sampling": {"seed": 1}}])
    assert make_fingerprint([STAMP, {}]) == make_fingerprint([{}, STAMP]) != make_fingerprint([STAMP])


def test_minus_infinity_becomes_a_number() -> None:
    column = Column("a", 1, done=True, reason="length", stamp=STAMP)
    token = ScoredToken("a", float("-inf"), (("b", -0.5), ("c", float("-inf"))))
    progress = [Progress((column,), ((token,),), 1, 0.1, True)]
    chat = Answer("law", True, with_tokens=True).describe(progress)["choices"][0]["logprobs"]["content"][0]
    assert chat["logprob"] == -9999.0 and [t["logprob"] for t in chat["top_logprobs"]] == [-0.5, -9999.0]
    text = Answer("law", False, with_tokens=True).describe(progress)["choices"][0]["logprobs"]
    assert text["token_logprobs"] == [-9999.0] and text["top_logprobs"] == [
        {"b": -0.5, "c": -9999.0, "a": -9999.0}
    ]
