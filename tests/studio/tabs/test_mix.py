"""The tilt of a mix over a real engine, without a browser: saved, loaded and shared by a link."""

from __future__ import annotations

import random
import time

import gradio as gr
import pytest

from core.errors import SpecError
from studio.components import mixer
from studio.session import Session
from studio.tabs import mix
from tests.studio.tabs.conftest import ids, nodes, rows_of, sampling, texts

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("tilt", [1.0, -1.0, 0.5])
def test_the_tilt_survives_saving_and_loading(engine, tilt):
    domain, task = ids(engine)
    rows = rows_of(engine, {domain: 0.5, task: 1.0}, {domain: tilt})
    assert mixer.read_mix(rows).tilt == {domain: tilt}
    _, saved = mix.save_mix(engine, f"Leaning {tilt}", rows)
    kept = engine.library.mix(saved["value"])
    assert (kept.weights, kept.tilt) == ({domain: 0.5, task: 1.0}, {domain: tilt})
    back = mix.load_mix(engine, saved["value"], rows_of(engine, {task: 2.0}, {task: 1.0}))
    assert {r["id"]: (r["on"], r["weight"], r["tilt"]) for r in back} == {
        domain: (True, 0.5, tilt),
        task: (True, 1.0, 0.0),
    }
    assert str(mixer.read_mix(back)) == str(kept.mix) == f"{domain}=0.5@{tilt:g} + {task}"
    engine.library.rename("mixes", kept.id, "Renamed")
    assert engine.library.mix(kept.id).tilt == {domain: tilt}
    mix.delete_mix(engine, kept.id)


@pytest.mark.parametrize("tilt, said", [(1.0, " (deep)"), (-1.0, " (shallow)"), (0.5, " (@0.5)")])
def test_a_link_carries_the_tilt_and_the_stamp_shows_it(engine, tilt, said):
    domain, task = ids(engine)
    rows, prompt, _, word = mix.open_link(
        engine, f"?mix={domain}=0.5@{tilt:g}&prompt=Where%3F", rows_of(engine, {task: 1.0})
    )
    assert {r["id"]: (r["on"], r["tilt"]) for r in rows} == {domain: (True, tilt), task: (False, 0.0)}
    *_, last = mix.answer_link(engine, word, prompt, rows, Session(), False, *sampling(max_new_tokens=3))
    stamped = next(texts(n) for n in nodes(last) if n.get("cls") == "stamp")
    digest = engine.library.adapter(domain).sha256[:8]
    assert stamped == f"base · Sample domain +0.50 @{tilt:g}"
    assert f"{stamped} ({digest})" in texts(last), "the checksum stands in the details"
    assert f"0.50 · Sample domain{said}" in texts(last), "the formula says it in words"


@pytest.mark.parametrize("tilt", ["1", 1.5, float("nan"), True, [1]])
def test_a_tilt_outside_its_limits_is_refused(tilt):
    with pytest.raises(SpecError, match="tilt of 'a'"):
        mixer.read_mix([{"id": "a", "on": True, "weight": 1.0, "tilt": tilt}])


# --- the conversation


def recorded(engine, monkeypatch):
    """What is asked of the engine, as (prompt, chat, thinking)."""
    asked, stream = [], engine.chat.stream

    def record(prompt, mixes, sampling=None, chat=True, same_noise=True, thinking=False, **more):
        asked.append((prompt, chat, thinking))
        return stream(prompt, mixes, sampling, chat, same_noise, thinking, **more)

    monkeypatch.setattr(engine.chat, "stream", record)
    return asked


def ask(engine, prompt, session, rows=None, continue_text=False, system="", thinking=False, **changes):
    """The last state of the conversation."""
    how = [*sampling(**{"max_new_tokens": 4, **changes}), system, thinking]
    rows = rows_of(engine, {}) if rows is None else rows
    *_, last = mix.stream_answer(engine, prompt, rows, session, continue_text, *how)
    return last


def exchanges(tree):
    return [n for n in nodes(tree) if n.get("cls") == "exchange"]


def test_a_conversation_goes_on_with_its_history_and_a_mix_a_turn(engine, monkeypatch):
    session, asked = Session(), recorded(engine, monkeypatch)
    domain, task = ids(engine)
    noise = {"temperature": 1.5, "seed": 3, "max_new_tokens": 12}
    ask(engine, "Where is the lamp?", session, rows_of(engine, {domain: 1.0}), system=" Be brief. ", **noise)
    first = session.exchanges[0].column.text
    assert first
    last = ask(engine, "And the bell?", session, rows_of(engine, {task: 0.5}), system="Be brief.")
    assert asked[1] == (
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Where is the lamp?"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "And the bell?"},
        ],
        True,
        False,
    )
    one, two = (texts(e) for e in exchanges(last))
    assert "Where is the lamp?" in one and "base + 1.00 · Sample domain" in one
    assert "And the bell?" in two and "base + 0.50 · Sample task" in two
    assert domain not in str(last) and task not in str(last), "adapters are named, not identified"
    copied = [n["act"] for n in nodes(last) if n.get("act", {}).get("do") == "copy"]
    assert [c["text"] for c in copied] == [e.column.text for e in session.exchanges if e.column.text]


def test_a_continued_text_stands_alone_in_a_conversation(engine, monkeypatch):
    session, asked = Session(), recorded(engine, monkeypatch)
    ask(engine, "The lamp", session, continue_text=True, system="Be brief.")
    ask(engine, "Where?", session, thinking=True)
    assert asked == [("The lamp", False, False), ([{"role": "user", "content": "Where?"}], True, True)]
    assert [e.continue_text for e in session.exchanges] == [True, False]


def test_a_moved_slider_answers_the_last_question_again(engine, monkeypatch):
    session, asked = Session(), recorded(engine, monkeypatch)
    for prompt in ("Where?", "Who?"):
        ask(engine, prompt, session)
    before = session.exchanges[0].column
    domain, _ = ids(engine)
    rows = rows_of(engine, {domain: 1.0})
    *_, last = mix.follow_mixer(engine, "typed since", rows, session, True, *sampling(max_new_tokens=4))
    assert [e.prompt for e in session.exchanges] == ["Where?", "Who?"] and len(asked) == 3
    assert asked[2][0] == asked[1][0] and session.exchanges[0].column is before
    assert "Sample domain" in texts(exchanges(last)[1]) and "Sample domain" not in texts(exchanges(last)[0])


@pytest.mark.parametrize("seed", range(12))
def test_the_answer_is_of_the_last_mix_whenever_a_slider_moves(engine, seed):
    draw, session = random.Random(seed), Session()
    domain, _ = ids(engine)
    settings = sampling(max_new_tokens=draw.choice((2, 12, 40)))
    readers = [mix.stream_answer(engine, "Where?", rows_of(engine, {domain: 1.0}), session, False, *settings)]
    for weight in (0.95, 0.9, 0.85):
        for _ in range(draw.randrange(1, 4)):
            next(readers[-1], None)
        if draw.random() < 0.7:  # the answer ends, and the page has not read its end
            end, stream = time.monotonic() + 30, session.stream
            while stream and not stream._ended and time.monotonic() < end:
                time.sleep(0.01)
        else:
            time.sleep(draw.random() / 20)
        readers.append(
            mix.follow_mixer(engine, "", rows_of(engine, {domain: weight}), session, False, *settings)
        )
        next(readers[-1])  # skips, or begins another answer
    shown = [node for reader in readers for node in reader]
    column = session.exchanges[-1].column
    newest = column.mix_changes[-1].stamp if column.mix_changes else column.stamp
    assert column.done and newest["weights"] == {domain: 0.85}
    assert not shown or f"+{newest['weights'][domain]:.2f}" in texts(shown[-1])


def test_prompts_to_try_do_not_change_while_a_page_opens(engine):
    def describe(rows):
        return mix.describe_next_mix(engine, rows, False, False)[1:]

    domain, task = ids(engine)
    rows = mixer.adapter_rows(engine)
    for known in (None, [], rows[:1]):  # what the page has drawn so far
        assert describe(known) == mix.describe_mix(engine, rows, False, False)[1:]
    off = [{**r, "on": r["id"] == domain} for r in rows]
    assert describe(off) == mix.describe_mix(engine, off, False, False)[1:] != describe(None), "the user's"
    assert mixer.join_rows(off, rows) == off


def test_a_refused_prompt_returns_to_its_field_and_the_rest_stays(engine):
    session = Session()
    ask(engine, "Where?", session)
    rows, long = rows_of(engine, {}), "lamp " * 400
    values = (long, rows, session, False, *sampling(max_new_tokens=4), "", False)
    asked = mix.ask(engine, *values)
    waiting, _ = next(asked)
    assert "skeleton" in str(waiting) and len(exchanges(waiting)) == 2
    with pytest.raises(SpecError, match="together may have at most 256 tokens"):
        list(asked)
    shown, prompt = mix.refuse_prompt(engine, *values)
    assert prompt == long and len(exchanges(shown)) == 1 and "skeleton" not in str(shown)
    assert [e.prompt for e in session.exchanges] == ["Where?"]
    with pytest.raises(SpecError, match="empty"):
        ask(engine, "  ", session)
    assert "Where?" in texts(ask(engine, "Who?", session)), "the conversation goes on"


def test_clearing_ends_the_conversation_and_an_answer_in_progress(engine):
    session = Session()
    ask(engine, "Where?", session)
    reading = mix.stream_answer(engine, "Who?", rows_of(engine, {}), session, False, *sampling())
    next(reading)
    shown, asked = mix.clear(engine, session)
    assert "No answer yet" in texts(shown) and (asked, session.exchanges) == ("", [])
    assert all("Who?" not in texts(late) for late in reading), "no late frame brings it back"
    rest = list(mix.follow_mixer(engine, "", rows_of(engine, {}), session, False, *sampling()))
    assert [type(r) for r in rest] == [type(gr.skip())]


def test_history_that_does_not_fit_is_left_out_and_said(engine):
    session = Session()
    for i in range(9):
        last = ask(engine, f"Where is the very old lamp number {i} that is kept?", session)
    assert session.exchanges[-1].left_out > 0
    assert "does not fit" in texts(last) or "do not fit" in texts(last)


def test_the_mode_follows_the_mix_until_the_user_chooses(engine):
    domain, task = ids(engine)

    def suggested(weights, now, chosen=False):
        return mix.describe_mix(engine, rows_of(engine, weights), now, chosen)[2]

    assert suggested({domain: 1.0}, False) is True and suggested({domain: 1.0, task: 1.0}, True) is False
    assert suggested({domain: 1.0}, True) == gr.skip() == suggested({domain: 1.0}, False, chosen=True)


def test_a_saved_mix_is_described_by_the_present_names(engine):
    domain, task = ids(engine)
    saved = engine.library.save_mix("Blend", {domain: 0.5, task: 1.0})
    try:
        assert texts(mix.show_saved_mix(engine, saved.id)) == "Blend: 0.50 · Sample domain + Sample task"
        engine.library.rename("adapters", task, "Answers of mine")
        assert texts(mix.show_saved_mix(engine, saved.id)) == "Blend: 0.50 · Sample domain + Answers of mine"
        assert any(r["name"] == "Answers of mine" for r in mixer.adapter_rows(engine))
        assert engine.library.uses("adapters", task) == ["the saved mix 'Blend'"]
    finally:
        engine.library.rename("adapters", task, "Sample task")
        mix.delete_mix(engine, saved.id)
    assert mix.show_saved_mix(engine, saved.id) is None


# --- judgements


def test_a_complete_answer_can_be_judged_and_the_newest_judgement_counts(engine):
    session = Session()
    shown = ask(engine, "Where is the red lamp?", session)
    buttons = [n for n in nodes(shown) if n.get("act", {}).get("do") == "rate"]
    assert [(texts(b), b["attrs"]["aria-pressed"]) for b in buttons] == [("Good", "false"), ("Poor", "false")]
    before = {(f.mix, f.base): (f.good, f.poor) for f in engine.answer_quality.summarize()}[
        "", engine.bases.current().name
    ]
    for button, pressed in ((buttons[0], ["true", "false"]), (buttons[1], ["false", "true"])):
        again = mix.rate_answer(engine, session, event_of(button["act"]))
        found = [n for n in nodes(again) if n.get("act", {}).get("do") == "rate"]
        assert [b["attrs"]["aria-pressed"] for b in found] == pressed
    after = {(f.mix, f.base): (f.good, f.poor) for f in engine.answer_quality.summarize()}[
        "", engine.bases.current().name
    ]
    assert after == (before[0], before[1] + 1)
    mix.rate_answer(engine, session, event_of({"do": "rate", "answer": "of another visitor", "good": True}))
    assert session.exchanges[0].is_good is False


def event_of(action):
    return gr.EventData(target=None, _data=action)
