"""What the answers were like: recorded without texts, judged, summarized per mix, and fallbacks counted."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.cli import answers
from core.engine import Engine
from core.engine.serving import Request
from core.errors import AdapterError, NotFound, SpecError, StorageError
from core.spec.mix import Mix, Sampling
from core.store import answer_log
from core.store.answer_log import find_percentile, name_day
from core.store.event_log import EventLog, read_all
from tests.core.server.random_library import find_id, open_engine

PROMPT = "Where is the blue lantern?"
SHORT = Sampling(max_new_tokens=6)


@pytest.fixture
def engine(tiny_base: Path, tmp_path: Path) -> Iterator[Engine]:
    with open_engine(tiny_base, tmp_path / "w") as made:
        yield made


def test_answers_are_counted_per_mix_and_no_text_is_kept(engine: Engine) -> None:
    chat = Mix(name="Chatty", weights={find_id(engine, "Chat"): 0.7})
    for _ in range(3):
        engine.chat.stream(PROMPT, [Mix(), chat], SHORT).last()
    last = engine.serving.submit(Request(PROMPT, chat, SHORT, choices=2)).last()
    first, second = engine.answer_quality.summarize()
    assert (first.mix, first.name, first.answers) == (str(Mix(weights=chat.weights)), "Chatty", 5)
    assert (second.mix, second.answers, second.base) == ("", 3, engine.bases.current().name)
    assert first.per_day[name_day(time.time())] == 5 and len(first.per_day) == 7
    assert 0 < first.p50_seconds <= first.p95_seconds and first.tokens_per_second is not None
    assert first.too_long == 5 and sum(c.tokens for c in last.columns) == 12
    written = engine.workspace.answers_path(name_day(time.time())).read_text()
    assert "lantern" not in written and all(c.text not in written for c in last.columns if len(c.text) > 3)


def test_the_newest_judgement_of_an_answer_counts(engine: Engine) -> None:
    engine.serving.submit(Request(PROMPT, Mix(), SHORT, choices=2, id="one")).last()
    for answer, is_good in (("one-0", False), ("one-0", True), ("one-1", False)):
        engine.answer_quality.rate(answer, is_good)
    (figures,) = engine.answer_quality.summarize()
    assert (figures.good, figures.poor) == (1, 1)
    with pytest.raises(NotFound, match="'one-2' is not among those of today and yesterday"):
        engine.answer_quality.rate("one-2", True)


def test_the_base_answers_for_a_mix_whose_adapter_is_missing_or_damaged(engine: Engine) -> None:
    law, chat = find_id(engine, "Law"), find_id(engine, "Chat")
    expected = engine.serving.submit(Request(PROMPT, Mix(), SHORT)).last().columns[0].text
    folder = engine.workspace.path("adapters", law)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    engine.library.delete("adapters", chat)
    for adapter, reason in ((law, "has changed since it was saved"), (chat, chat)):
        mix = Mix(name="Mine", weights={adapter: 1.0})
        with pytest.raises((AdapterError, NotFound)):
            engine.serving.submit(Request(PROMPT, mix, SHORT)).last()
        column = engine.serving.submit(Request(PROMPT, mix, SHORT, falls_back=True)).last().columns[0]
        assert column.text == expected and column.stamp["weights"] == {}
        assert reason in column.stamp["fallback"], column.stamp["fallback"]
    assert sorted(f.fallbacks for f in engine.answer_quality.summarize()) == [0, 1, 1]


def test_a_full_disk_loses_the_record_and_no_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StorageError("The disk is full.", "Free some space.")

    monkeypatch.setattr(EventLog, "append", refuse)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert engine.serving.submit(Request(PROMPT, Mix(), SHORT)).last().done
    assert [r.message for r in caplog.records if "not counted" in r.message] == [
        "Answers are not counted: The disk is full. Free some space."
    ]


def test_files_older_than_ninety_days_are_deleted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = engine.workspace.answers_path("").parent
    folder.mkdir()
    day = answer_log.DAY_SECONDS
    old, newer = name_day(time.time() - 91 * day), name_day(time.time() - 89 * day)
    for name in (f"{old}.jsonl", f"{newer}.jsonl", "notes.jsonl"):
        (folder / name).write_text("")
    engine.serving.submit(Request(PROMPT, Mix(), SHORT)).last()
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [f"{newer}.jsonl", f"{name_day(time.time())}.jsonl", "notes.jsonl"]
    )
    with pytest.raises(SpecError, match="between 1 and 90, got 91"):
        engine.answer_quality.summarize(91)


def test_days_before_today_are_counted_and_damaged_lines_are_not(
    engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    yesterday = name_day(time.time() - answer_log.DAY_SECONDS)
    path = engine.workspace.answers_path(yesterday)
    engine.serving.submit(Request(PROMPT, Mix(), SHORT)).last()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b'{"kind": "answer", "time": 1}\n\xff\n')
    assert [e["kind"] for e in read_all(path)] == ["unreadable", "unreadable"]
    (figures,) = engine.answer_quality.summarize(2)
    assert figures.answers == 1 and list(figures.per_day) == [yesterday, name_day(time.time())]
    (printed,) = answers.show_answers(engine, argparse.Namespace(days=2))
    assert printed["answers"] == 1 and "base (" in (text := capsys.readouterr().out) and "1 answers" in text


@pytest.mark.parametrize(("percent", "expected"), [(50, 2.0), (95, 4.0), (25, 1.0), (100, 4.0), (1, 1.0)])
def test_a_percentile_is_a_value_that_was_measured(percent: float, expected: float) -> None:
    assert find_percentile([1.0, 2.0, 3.0, 4.0], percent / 100) == expected
