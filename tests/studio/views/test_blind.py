"""The blind test and the suite over a real engine: nothing is told before the vote, and every vote lands on its mix."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import random
import threading

import gradio as gr
import pytest

from core.engine import Engine
from core.errors import DataError, NotFound, SpecError, StorageError
from core.spec.mix import Sampling
from studio import fields, mix_choices, samples
from studio.session import SAMPLING, Session
from studio.tabs import compare, suggestions
from studio.views import blind, suite
from tests.conftest import held

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tiny_base, tmp_path_factory):
    with Engine(
        tmp_path_factory.mktemp("studio"), base=str(tiny_base), quantization="none", device="cpu"
    ) as made:
        samples.import_samples(made)
        for kind in ("domain", "task"):
            spec = dataclasses.replace(
                suggestions.suggest_run(made, kind), max_steps=2, batch_size=2, accumulation=1, max_length=64, rank=4
            )
            made.runs.wait(made.runs.start(spec), 600)
        yield made


@pytest.fixture
def engine(trained):
    trained.reset_votes()
    return trained


def pressed(**said):
    return gr.EventData(None, said)


def texts(node) -> str:
    return node if isinstance(node, str) else "".join(texts(k) for k in (node or {}).get("kids", []))


def sampling(**changes):
    return [fields.to_component(getattr(Sampling(**changes), n)) for n in SAMPLING]


def picks(engine):
    return [c["id"] for c in mix_choices.list_choices(engine)][:4]


def test_it(engine, session, seed=0, same_noise=True, **changes):
    """Every board of one blind test."""
    drawn = sampling(**{"max_new_tokens": 5, **changes})
    return list(
        compare.stream_blind_test(
            engine,
            "Where is the lamp?",
            {"picks": picks(engine)},
            None,
            session,
            same_noise,
            *drawn,
            rng=random.Random(seed),
        )
    )


test_it.__test__ = False


def place_of(session, name):
    return [m.name for m in session.ballot.mixes].index(name)


def vote(engine, session, chosen):
    return compare.vote(engine, session, pressed(vote=chosen, round=str(session.serial)))


def boards_but_picks(boards):
    return json.dumps([{k: v for k, v in b.items() if k != "picks"} for b in boards])


# --- what is told


def test_nothing_that_is_sent_before_the_vote_tells_the_mixes_apart(engine):
    session = Session()
    boards = test_it(engine, session, seed=3, temperature=1.0)
    assert {tuple(b["picks"]) for b in boards} == {tuple(picks(engine))}, (
        "the pickers keep the order that the visitor chose"
    )
    told = boards_but_picks(boards)
    for adapter in engine.library.adapters():
        assert adapter.id not in told and adapter.sha256[:8] not in told and adapter.name not in told
    for word in ("Base", "base", "Domain", "Task", "tokens", "stamp", '"mark"', "weights"):
        assert word not in told, word
    assert [m.name for m in session.ballot.mixes] != ["Base", "Domain", "Task", "Domain + task"], (
        "this seed really shuffles"
    )


def test_two_shuffles_send_the_same_but_for_the_answers(engine):
    """So the order of the letters is in nothing that is sent."""

    def sent(seed):
        session = Session()
        last = test_it(engine, session, seed)[-1]
        orders.append([m.name for m in session.ballot.mixes])
        told = json.dumps(last)
        for column in session.frame.columns:
            told = told.replace(json.dumps(column.text), '"…"')
        return told

    orders: list[list[str]] = []
    assert len({sent(seed) for seed in range(4)}) == 1 and len({tuple(o) for o in orders}) > 1


def test_the_page_s_own_dice_are_the_operating_system_s(engine, monkeypatch):
    used = []
    monkeypatch.setattr(random.SystemRandom, "shuffle", lambda self, items: used.append(len(items)))
    list(
        compare.stream_blind_test(
            engine, "Where?", {"picks": picks(engine)}, None, Session(), True, *sampling(max_new_tokens=2)
        )
    )
    assert used == [4]


def test_vote_buttons_come_only_when_all_is_written(engine):
    *early, last = test_it(engine, Session(), max_new_tokens=12)
    assert early and all(
        "This one" not in json.dumps(b) and "No difference" not in json.dumps(b) for b in early
    )
    assert json.dumps(last).count('"This one"') == 4 and "No difference" in texts(last["blind"]["foot"])


def test_a_comparison_that_waits_for_its_vote_cannot_be_exported(engine):
    session = Session()
    test_it(engine, session)
    with pytest.raises(SpecError, match="covered"):
        compare.export_markdown(engine, session)
    vote(engine, session, 0)
    assert compare.export_markdown(engine, session).count("\n## ") == 4


# --- what is counted


@pytest.mark.parametrize("seed", range(5))
def test_a_vote_lands_on_its_mix_whatever_the_shuffle(engine, seed):
    session = Session()
    test_it(engine, session, seed)
    place = place_of(session, "Domain + task")
    shown, tallied = vote(engine, session, place)
    (best, *others) = engine.votes.tally()
    domain, task = (next(a for a in engine.library.adapters() if a.kind == k) for k in ("domain", "task"))
    assert (best.name, best.wins, best.votes) == ("Domain + task", 1, 1) and {s.wins for s in others} == {0}
    assert best.weights == {domain.id: 1.0, task.id: 1.0} and best.adapters == {
        domain.id: domain.sha256,
        task.id: task.sha256,
    }
    heads = [texts(h) for h in shown["blind"]["heads"]]
    assert (
        heads[place] == f"{'ABCD'[place]}Domain + taskYour vote"
        and [h[1:] for i, h in enumerate(heads) if i != place].count("Base") == 1
    )
    stamps = [texts(c["kids"][-1]) for c in shown["columns"]]
    assert all(
        (domain.id in stamps[i]) == (domain.id in m.weights) for i, m in enumerate(session.ballot.mixes)
    ), "each stamp stands under its own letter"
    assert "Domain + task" in texts(tallied)


def test_no_difference_is_a_tie_for_all(engine):
    session = Session()
    test_it(engine, session)
    shown, _ = vote(engine, session, None)
    assert {(s.votes, s.wins, s.ties) for s in engine.votes.tally()} == {
        (1, 0, 1)
    } and "You found no difference." in texts(shown["blind"]["foot"])


def test_every_column_s_own_seed_is_kept(engine):
    session = Session()
    test_it(engine, session, same_noise=False, seed=0)
    vote(engine, session, 1)
    rows = list(csv.DictReader(io.StringIO(compare.export_votes_csv(engine))))
    assert [r["seed"] for r in rows] == ["0", "1", "2", "3"] and [r["chosen"] for r in rows] == [
        "no",
        "yes",
        "no",
        "no",
    ]


def test_a_vote_counts_once_and_only_for_the_test_on_the_page(engine):
    session = Session()
    test_it(engine, session)
    old = str(session.serial)
    test_it(engine, session)
    with pytest.raises(SpecError, match="over"):
        compare.vote(engine, session, pressed(vote=0, round=old))
    vote(engine, session, 2)
    with pytest.raises(SpecError, match="already"):
        vote(engine, session, 1)
    assert sum(s.wins for s in engine.votes.tally()) == 1


@pytest.mark.parametrize("chosen", [4, -1, "A", True, 1.0, [0], {"vote": 0}])
def test_a_vote_for_no_answer_is_refused_and_the_right_one_still_counts(engine, chosen):
    session = Session()
    test_it(engine, session)
    with pytest.raises(SpecError, match="must be for one of the answers"):
        vote(engine, session, chosen)
    vote(engine, session, 0)
    assert sum(s.wins for s in engine.votes.tally()) == 1


def test_a_vote_before_all_is_written_is_refused(engine, monkeypatch):
    session, go, real = Session(), threading.Event(), engine.worker.stream

    def held(start):
        def steps():
            for part in start():
                yield part
                assert go.wait(60)  # the model writes no further, however slow the reader is

        return real(steps)

    monkeypatch.setattr(engine.worker, "stream", held)
    reading = compare.stream_blind_test(
        engine,
        "Where?",
        {"picks": picks(engine)},
        None,
        session,
        True,
        *sampling(max_new_tokens=150, temperature=4.0),
    )
    next(reading)
    with pytest.raises(SpecError, match="still being written"):
        vote(engine, session, 0)
    reading.close()
    go.set()
    assert engine.votes.tally() == []


def test_a_stopped_test_has_nothing_to_vote_on(engine, monkeypatch):
    session, goes_on = Session(), held(engine, monkeypatch)
    reading = compare.stream_blind_test(
        engine,
        "Where?",
        {"picks": picks(engine)},
        None,
        session,
        True,
        *sampling(max_new_tokens=150, temperature=4.0),
    )
    next(reading)
    compare.stop(engine, session)
    goes_on.set()
    *_, last = reading
    assert "nothing to vote on" in texts(last["blind"]["foot"]) and "This one" not in json.dumps(last)
    with pytest.raises(SpecError, match="over"):
        vote(engine, session, 0)


def test_stopping_what_is_all_written_leaves_the_vote_open(engine):
    session = Session()
    test_it(engine, session)
    compare.stop(engine, session)
    vote(engine, session, 0)
    assert len(engine.votes.tally()) == 4


def test_an_answer_with_names_ends_the_test(engine):
    session = Session()
    test_it(engine, session)
    *_, last = compare.stream_answers(
        engine, "Where?", {"picks": picks(engine)}, None, session, True, *sampling(max_new_tokens=3)
    )
    assert "blind" not in last and "Compare" not in last
    with pytest.raises(SpecError, match="over"):
        vote(engine, session, 0)


def test_a_vote_that_the_disk_refuses_can_be_cast_again(engine, monkeypatch):
    session = Session()
    test_it(engine, session)
    with monkeypatch.context() as full:
        full.setattr(engine, "vote", lambda *_: (_ for _ in ()).throw(StorageError("The disk is full.")))
        with pytest.raises(StorageError):
            vote(engine, session, 0)
    assert blind.is_covered(session)
    vote(engine, session, 0)
    assert sum(s.wins for s in engine.votes.tally()) == 1


def test_a_vote_is_taken_back_and_all_are_deleted(engine):
    session = Session()
    test_it(engine, session)
    with pytest.raises(SpecError):
        compare.vote(engine, session, pressed(undo=True))
    vote(engine, session, 0)
    shown, tallied = compare.vote(engine, session, pressed(undo=True))
    assert (
        engine.votes.tally() == []
        and "taken back" in texts(shown["blind"]["foot"])
        and "No votes yet" in texts(tallied)
    )
    test_it(engine, session)
    vote(engine, session, 0)
    assert "No votes yet" in texts(compare.delete_votes(engine)[0]) and engine.votes.tally() == []
    for verb in (compare.delete_votes, compare.export_votes_csv):
        with pytest.raises(NotFound):
            verb(engine)


def test_the_same_weights_deep_or_even_are_two_mixes(engine):
    session, chosen = Session(), [c["id"] for c in mix_choices.list_choices(engine) if "task" in c["name"]]
    list(
        compare.stream_blind_test(engine, "Where?", {"picks": chosen}, None, session, True, *sampling(max_new_tokens=3))
    )
    _, tallied = vote(engine, session, place_of(session, "Domain deep, task shallow"))
    assert [(s.name, s.wins) for s in engine.votes.tally()] == [
        ("Domain deep, task shallow", 1),
        ("Domain + task", 0),
    ]
    assert "+1.00 deep 1.00" in texts(tallied) and "+1.00 shallow 1.00" in texts(tallied)


def test_the_same_mix_in_two_columns_is_no_test(engine):
    with pytest.raises(SpecError, match="the same mix"):
        list(compare.stream_blind_test(engine, "Where?", {"picks": ["base", "base"]}, None, Session(), True, *sampling()))


# --- the suite


def run(engine, prompts, file=None, session=None, **changes):
    drawn = sampling(**{"max_new_tokens": 4, **changes})
    return list(
        suite.run_suite(engine, prompts, file, {"picks": picks(engine)}, None, session or Session(), True, *drawn)
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
    assert written[0] == ["prompt", "Base", "Domain", "Task", "Domain + task"] and [
        r[0] for r in written[1:]
    ] == ["Where is the lamp?", "And the bell?", "'=1+1", "Who?"]
    assert all(len(r) == 5 for r in written)


def test_a_suite_says_how_many_prompts_tell_the_mixes_apart(engine):
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


def test_a_suite_without_prompts_or_with_a_long_one_is_refused_by_its_number(engine, tmp_path):
    with pytest.raises(SpecError, match="no prompts"):
        run(engine, " \n")
    with pytest.raises(SpecError, match="Prompt 2: The prompt has"):
        run(engine, "Short\n" + "long " * 400)
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
