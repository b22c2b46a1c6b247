"""The prompt suite over a real engine, without a browser."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re

import pytest

from core.errors import DataError, NotFound, SpecError
from studio.session import Session
from studio.tabs import suggestions
from studio.views import suite
from tests.studio.views.conftest import picks, sampling, texts

pytestmark = pytest.mark.slow
BOTH = "Sample domain + Sample task"


def run(engine, prompts, file=None, session=None, **changes):
    drawn = sampling(**{"max_new_tokens": 4, **changes})
    return list(
        suite.run_suite(
            engine, prompts, file, {"picks": picks(engine)}, None, session or Session(), True, *drawn
        )
    )


def test_a_suite_ends_in_a_table_and_a_file_without_formulas(engine, tmp_path):
    file = tmp_path / "more.csv"
    file.write_text("id,prompt\n1,=1+1\n2,Who?\n")
    session = Session()
    *under_way, last = run(engine, "Where is the lamp?\n\nAnd the bell?\n", str(file), session)
    rows = last[0]["kids"][-1]["kids"][0]["kids"][-1]["kids"]
    assert [texts(r["kids"][0]) for r in rows] == ["Where is the lamp?", "And the bell?", "=1+1", "Who?"]
    assert (
        all("progressbar" in json.dumps(shown) and save["interactive"] is False for shown, save in under_way)
        and last[1]["interactive"] is True
    )
    written = list(csv.reader(io.StringIO(suite.export_csv(engine, session))))
    assert written[0] == ["prompt", "Base", "Sample domain", "Sample task", BOTH] and [
        r[0] for r in written[1:]
    ] == ["Where is the lamp?", "And the bell?", "'=1+1", "Who?"]
    assert all(len(r) == 5 for r in written)


def test_a_suite_shows_on_how_many_prompts_the_mixes_differ(engine):
    chosen = {"picks": ["base", "base"]}
    *_, (shown, _) = suite.run_suite(
        engine, "One?\nTwo?", None, chosen, None, Session(), True, *sampling(max_new_tokens=3)
    )
    assert "differ on 0 of 2 prompts" in texts(shown)


def test_a_stopped_suite_keeps_whole_batches(engine):
    session, prompts = Session(), "\n".join(f"Where is lamp {i}?" for i in range(20))
    for shown, save in suite.run_suite(
        engine, prompts, None, {"picks": picks(engine)}, None, session, True, *sampling(max_new_tokens=60)
    ):
        if session.frame.rows:
            suite.stop(engine, session)
    kept = len(session.frame.rows)
    assert (
        kept in (6, 12, 18)
        and f"Stopped: {kept} of 20 prompts" in texts(shown)
        and save["interactive"] is True
    )
    assert len(list(csv.reader(io.StringIO(suite.export_csv(engine, session))))) == kept + 1


def test_a_prompt_longer_than_the_context_is_left_out_and_named(engine):
    *_, last = run(engine, "Short\n" + "long " * 400 + "\nAnd this one?")
    rule = r"Prompt 2 was left out: .* together may have at most 256 tokens, got \d+ and 1\."
    assert re.search(rule, texts(last[0])) and last[1]["interactive"] is True
    assert "Stopped" not in texts(last[0]) and "And this one?" in texts(last[0])


def test_a_suite_without_prompts_that_can_be_answered_is_refused(engine, tmp_path):
    with pytest.raises(SpecError, match="no prompts"):
        run(engine, " \n")
    rule = (
        r"Prompt 1: With this base, prompt and answer together may have at most 256 tokens, got \d+ and \d+\."
    )
    with pytest.raises(SpecError, match=rule):
        run(engine, "long " * 400)
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"n": 1}\n')
    with pytest.raises(DataError, match="empty.jsonl"):
        run(engine, "", str(empty))
    with pytest.raises(NotFound):
        suite.export_csv(engine, Session())


def test_a_suite_is_answered_while_a_run_trains(engine):
    spec = dataclasses.replace(
        suggestions.suggest_run(engine, "domain"),
        name="Beside the suite",
        max_steps=400,
        epochs=500,
        batch_size=2,
        accumulation=1,
        max_length=64,
        rank=4,
    )
    run_id = engine.runs.start(spec)
    try:
        *_, last = run(engine, "Where is the lamp?\nAnd the bell?")
        assert engine.runs.get(run_id).status.is_alive and last[1]["interactive"] is True
    finally:
        engine.runs.stop(run_id)
        engine.library.delete("adapters", engine.runs.wait(run_id, 300).adapter)
