"""The Compare tab over a real engine: columns by name, errors at their place, no stale answers."""

from __future__ import annotations

import dataclasses

import pytest

from core.errors import NotFound, SpecError, StudioError
from core.spec.mix import Mix
from studio import actions, mix_choices
from studio.session import Session
from studio.tabs import compare, evaluate
from tests.studio.tabs.conftest import ids, pressed, sampling, texts

pytestmark = pytest.mark.slow
KINDS = ("domain", "task")


def names(engine, current=None):
    return [c["name"] for c in mix_choices.list_choices(engine, current)]


@pytest.fixture
def twin(engine):
    """A second adapter with the name of the domain adapter."""
    domain, _ = ids(engine)
    spec = dataclasses.replace(
        engine.runs.get(engine.library.adapter(domain).run).spec, name="Sample domain", max_steps=2
    )
    run = engine.runs.wait(engine.runs.start(spec), 600)
    yield run.adapter
    engine.library.delete("adapters", run.adapter)


def test_every_adapter_and_saved_mix_is_a_column_by_name(engine, twin):
    domain, task = (
        next(a.id for a in engine.library.adapters() if a.kind == k and a.id != twin) for k in KINDS
    )
    saved = engine.library.save_mix("Blend", {twin: 0.5})
    try:
        choices = mix_choices.list_choices(engine)
        listed = [c["name"] for c in choices]
        assert len(set(listed)) == len(listed) and "Blend" in listed
        single = {c["id"]: c["name"] for c in choices if c["id"] in (domain, task, twin)}
        assert len(single) == 3 and single[task] == "Sample task"
        for adapter in (domain, twin):
            assert single[adapter].startswith("Sample domain (") and "step" in single[adapter]
        shown = [c[k] for c in choices for k in ("name", "about", "group")]
        assert not any(a in text for a in (domain, task, twin, saved.id) for text in shown)
        assert next(c["about"] for c in choices if c["name"] == "Blend") == f"0.50 · {single[twin]}"
        offered = evaluate.refresh(engine, None, [], None, None)[2]["choices"]
        assert {label for label, _ in offered} == set(listed), "Evaluate names them as Compare does"
    finally:
        engine.library.delete("mixes", saved.id)


def test_a_saved_mix_with_the_name_of_an_adapter_is_told_apart(engine):
    domain, task = ids(engine)
    saved = [
        engine.library.save_mix("Sample task", {task: 0.5}),
        engine.library.save_mix("Both", {domain: 1.0, task: 1.0}),
    ]
    try:
        listed = names(engine)
        assert "Sample task (saved mix)" in listed and "Sample domain + Sample task (Both)" in listed
        assert len(set(listed)) == len(listed)
    finally:
        for mix in saved:
            engine.library.delete("mixes", mix.id)


def run(engine, picks, session, prompt="Where?", board=None):
    values = [
        prompt,
        board or {"picks": picks, "touched": True},
        None,
        session,
        True,
        *sampling(max_new_tokens=3),
    ]
    return place_errors(engine, compare.stream_answers, values)


def place_errors(engine, stream, values):
    """The boards of a stream, each with the errors of the prompt and of the columns, as `wire` binds them."""
    shown = []
    try:
        for value in stream(engine, *values):
            shown.append((value, None, None))
    except StudioError as e:
        said = f"{e.what} {e.fix}"
        places = (None, said) if e.field == "columns" else (said, None)
        shown.append((compare.refuse_answers(engine, *values), *places))
    return shown


def test_a_refused_prompt_leaves_no_answers_and_the_error_below_it(engine):
    session, picks = Session(), ["base", next(ids(engine))]
    *_, (value, problem, columns) = run(engine, picks, session)
    assert len(value["columns"]) == 2 and (problem, columns) == (None, None)
    for prompt, said in (("", "The prompt is empty"), ("lamp " * 400, "at most 256 tokens")):
        *_, (value, problem, columns) = run(engine, picks, session, prompt, {**value, "picks": picks})
        assert value["columns"] == [] and value["picks"] == picks and said in texts(problem)
        assert columns is None and value["serial"] >= session.serial - 1
        with pytest.raises(NotFound):
            compare.export_markdown(engine, session)
    first, *_ = run(engine, picks, session)
    assert "skeleton" in str(first[0]["columns"]) and first[1:] == (None, None)


def test_a_column_of_a_deleted_adapter_says_so_above_the_columns(engine, twin):
    picks = ["base", twin]
    engine.library.delete("adapters", twin)
    try:
        *_, (value, problem, columns) = run(engine, picks, Session())
        assert problem is None and value["columns"] == []
        assert "Mix 2" in texts(columns) and "Sample domain (deleted)" in texts(columns)
        assert twin not in texts(columns)
        with pytest.raises(NotFound, match="'Sample domain' was deleted, so it cannot be compared"):
            actions.run_action(engine, pressed(do="compare", adapter=twin))
        with pytest.raises(NotFound, match="not in the library"):
            actions.run_action(engine, pressed(do="compare", adapter="nothing-0000"))
    finally:
        entry = next(t.entry for t in engine.library.trash() if t.id == twin)
        engine.library.restore(entry)


def test_too_few_columns_are_an_error_of_the_columns(engine):
    *_, (_, problem, columns) = run(engine, ["base"], Session())
    assert problem is None and "2 to 6 columns" in texts(columns)
    values = ["Where?", {"picks": ["base"] * 2}, None, Session(), True, *sampling()]
    same = place_errors(engine, compare.stream_blind_test, values)
    assert "the same mix" in texts(same[-1][2])


def test_a_renamed_adapter_is_renamed_in_columns_and_votes(engine):
    engine.votes.reset()
    domain, task = ids(engine)
    session, picks = Session(), ["base", task]
    list(
        compare.stream_blind_test(
            engine, "Where?", {"picks": picks}, None, session, True, *sampling(max_new_tokens=2)
        )
    )
    place = [m.name for m in session.ballot.mixes].index("Sample task")
    compare.vote(engine, session, pressed(vote=place, round=str(session.serial)))
    engine.library.rename("adapters", task, "Answers of mine")
    try:
        assert "Answers of mine" in names(engine) and "Sample domain + Answers of mine" in names(engine)
        tally = texts(compare.show_tally(engine))
        assert "Answers of mine" in tally and "Sample task" not in tally and task not in tally
    finally:
        engine.library.rename("adapters", task, "Sample task")
        engine.votes.reset()


def test_chat_settings_reach_every_column(engine, monkeypatch):
    asked, stream = [], engine.chat.stream
    monkeypatch.setattr(
        engine.chat,
        "stream",
        lambda prompt, *rest, **exact: asked.append((prompt, rest[2])) or stream(prompt, *rest, **exact),
    )
    values = ["The lamp", {"picks": ["base", next(ids(engine))]}, None]
    how = sampling(max_new_tokens=2)
    list(compare.stream_answers(engine, *values, Session(), True, *how, True, "Be brief.", False))
    list(compare.stream_answers(engine, *values, Session(), True, *how, False, "Be brief.", False))
    system = {"role": "system", "content": "Be brief."}
    assert asked == [("The lamp", False), ([system, {"role": "user", "content": "The lamp"}], True)]


def test_the_columns_decide_the_prompts_and_the_mode(engine):
    domain, task = ids(engine)

    def described(picks):
        return compare.describe_columns(engine, {"picks": picks, "touched": True}, False, False)

    chips, mode, prompt = described(["base", domain])
    assert mode is True and "Continue a held-out text" in texts(chips) and prompt
    chips, mode, prompt = described(["base", domain, task])
    assert "Try a held-out question" in texts(chips) and mode is not True and prompt.endswith("?")


@pytest.mark.parametrize("text", ["=", "a=x", "a,a"])
def test_an_id_that_is_not_a_mix_is_refused(engine, text):
    with pytest.raises(SpecError, match="different adapter id"):
        mix_choices.parse_mixes(engine, ["base", text])
    assert mix_choices.parse_mixes(engine, ["base"]) == [Mix(name="Base")]
