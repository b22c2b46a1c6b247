"""The blind test over a real engine: no name is sent before the vote, and every vote counts for its mix."""

from __future__ import annotations

import csv
import io
import json
import random
import threading

import pytest

from core.errors import NotFound, SpecError, StorageError
from studio import mix_choices
from studio.session import Session
from studio.tabs import compare
from studio.views import blind
from tests.conftest import held
from tests.studio.views.conftest import picks, pressed, sampling, texts

pytestmark = pytest.mark.slow
BOTH = "Sample domain + Sample task"
TILTED = "Sample domain (deep) + Sample task (shallow)"


def run_blind_test(engine, session, seed=0, same_noise=True, **changes):
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


def place_of(session, name):
    return [m.name for m in session.ballot.mixes].index(name)


def vote(engine, session, chosen):
    return compare.vote(engine, session, pressed(vote=chosen, round=str(session.serial)))


def boards_but_picks(boards):
    return json.dumps([{k: v for k, v in b.items() if k != "picks"} for b in boards])


def test_nothing_that_is_sent_before_the_vote_identifies_a_mix(engine):
    session = Session()
    boards = run_blind_test(engine, session, seed=3, temperature=1.0)
    assert {tuple(b["picks"]) for b in boards} == {tuple(picks(engine))}, (
        "the pickers keep the order that the user chose"
    )
    sent_text = boards_but_picks(boards)
    for adapter in engine.library.adapters():
        assert (
            adapter.id not in sent_text
            and adapter.sha256[:8] not in sent_text
            and adapter.name not in sent_text
        )
    for word in ("Base", "base", "Domain", "Task", "tokens", "stamp", '"mark"', "weights"):
        assert word not in sent_text, word
    assert [m.name for m in session.ballot.mixes] != ["Base", "Sample domain", "Sample task", BOTH], (
        "this seed really shuffles"
    )


def test_two_shuffles_send_the_same_but_for_the_answers(engine):
    """So the order of the letters is in nothing that is sent."""

    def sent(seed):
        session = Session()
        last = run_blind_test(engine, session, seed)[-1]
        orders.append([m.name for m in session.ballot.mixes])
        sent_text = json.dumps(last)
        for column in session.frame.columns:
            sent_text = sent_text.replace(json.dumps(column.text), '"…"')
        return sent_text

    orders: list[list[str]] = []
    assert len({sent(seed) for seed in range(4)}) == 1 and len({tuple(o) for o in orders}) > 1


def test_the_page_shuffles_with_the_operating_system_s_generator(engine, monkeypatch):
    used = []
    monkeypatch.setattr(random.SystemRandom, "shuffle", lambda self, items: used.append(len(items)))
    list(
        compare.stream_blind_test(
            engine, "Where?", {"picks": picks(engine)}, None, Session(), True, *sampling(max_new_tokens=2)
        )
    )
    assert used == [4]


def test_vote_buttons_appear_only_when_every_answer_is_complete(engine):
    *early, last = run_blind_test(engine, Session(), max_new_tokens=12)
    assert early and all(
        "This one" not in json.dumps(b) and "No difference" not in json.dumps(b) for b in early
    )
    assert json.dumps(last).count('"This one"') == 4 and "No difference" in texts(last["blind"]["foot"])


def test_a_comparison_that_waits_for_its_vote_cannot_be_exported(engine):
    session = Session()
    run_blind_test(engine, session)
    with pytest.raises(SpecError, match="covered"):
        compare.export_markdown(engine, session)
    vote(engine, session, 0)
    assert compare.export_markdown(engine, session).count("\n## ") == 4


@pytest.mark.parametrize("seed", range(5))
def test_a_vote_lands_on_its_mix_whatever_the_shuffle(engine, seed):
    session = Session()
    run_blind_test(engine, session, seed)
    place = place_of(session, BOTH)
    shown, tallied = vote(engine, session, place)
    (best, *others) = engine.votes.tally()
    domain, task = (next(a for a in engine.library.adapters() if a.kind == k) for k in ("domain", "task"))
    assert (best.name, best.wins, best.votes) == (BOTH, 1, 1) and {s.wins for s in others} == {0}
    assert best.weights == {domain.id: 1.0, task.id: 1.0} and best.adapters == {
        domain.id: domain.sha256,
        task.id: task.sha256,
    }
    heads = [texts(h) for h in shown["blind"]["heads"]]
    assert (
        heads[place] == f"{'ABCD'[place]}{BOTH}Your vote"
        and [h[1:] for i, h in enumerate(heads) if i != place].count("Base") == 1
    )
    stamps = [texts(c["kids"][-1]) for c in shown["columns"]]
    assert all(
        ("Sample domain" in stamps[i]) == (domain.id in m.weights) for i, m in enumerate(session.ballot.mixes)
    ), "each stamp stands under its own letter"
    assert BOTH in texts(tallied)


def test_no_difference_is_a_tie_for_all(engine):
    session = Session()
    run_blind_test(engine, session)
    shown, _ = vote(engine, session, None)
    assert {(s.votes, s.wins, s.ties) for s in engine.votes.tally()} == {
        (1, 0, 1)
    } and "You found no difference." in texts(shown["blind"]["foot"])


def test_every_column_s_seed_is_recorded(engine):
    session = Session()
    run_blind_test(engine, session, same_noise=False, seed=0)
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
    run_blind_test(engine, session)
    old = str(session.serial)
    run_blind_test(engine, session)
    with pytest.raises(SpecError, match="over"):
        compare.vote(engine, session, pressed(vote=0, round=old))
    vote(engine, session, 2)
    with pytest.raises(SpecError, match="already"):
        vote(engine, session, 1)
    assert sum(s.wins for s in engine.votes.tally()) == 1


@pytest.mark.parametrize("chosen", [4, -1, "A", True, 1.0, [0], {"vote": 0}])
def test_an_invalid_vote_is_refused_and_a_valid_one_still_counts(engine, chosen):
    session = Session()
    run_blind_test(engine, session)
    with pytest.raises(SpecError, match="must be for one of the answers"):
        vote(engine, session, chosen)
    vote(engine, session, 0)
    assert sum(s.wins for s in engine.votes.tally()) == 1


def test_a_vote_before_every_answer_is_complete_is_refused(engine, monkeypatch):
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


def test_stopping_complete_answers_leaves_the_vote_open(engine):
    session = Session()
    run_blind_test(engine, session)
    compare.stop(engine, session)
    vote(engine, session, 0)
    assert len(engine.votes.tally()) == 4


def test_an_answer_with_names_ends_the_test(engine):
    session = Session()
    run_blind_test(engine, session)
    *_, last = compare.stream_answers(
        engine, "Where?", {"picks": picks(engine)}, None, session, True, *sampling(max_new_tokens=3)
    )
    assert "blind" not in last and "Compare" not in last
    with pytest.raises(SpecError, match="over"):
        vote(engine, session, 0)


def test_a_vote_that_the_disk_refuses_can_be_cast_again(engine, monkeypatch):
    session = Session()
    run_blind_test(engine, session)
    with monkeypatch.context() as full:

        def fail(*_):
            raise StorageError("The disk is full.")

        full.setattr(engine.votes, "cast", fail)
        with pytest.raises(StorageError):
            vote(engine, session, 0)
    assert blind.is_covered(session)
    vote(engine, session, 0)
    assert sum(s.wins for s in engine.votes.tally()) == 1


def test_a_vote_is_taken_back_and_all_are_deleted(engine):
    session = Session()
    run_blind_test(engine, session)
    with pytest.raises(SpecError):
        compare.vote(engine, session, pressed(undo=True))
    vote(engine, session, 0)
    shown, tallied = compare.vote(engine, session, pressed(undo=True))
    assert (
        engine.votes.tally() == []
        and "taken back" in texts(shown["blind"]["foot"])
        and "No votes yet" in texts(tallied)
    )
    run_blind_test(engine, session)
    vote(engine, session, 0)
    assert "No votes yet" in texts(compare.delete_votes(engine)[0]) and engine.votes.tally() == []
    for verb in (compare.delete_votes, compare.export_votes_csv):
        with pytest.raises(NotFound):
            verb(engine)


def test_the_same_weights_with_and_without_tilt_are_two_mixes(engine):
    session = Session()
    chosen = [c["id"] for c in mix_choices.list_choices(engine) if c["name"] in (BOTH, TILTED)]
    list(
        compare.stream_blind_test(
            engine, "Where?", {"picks": chosen}, None, session, True, *sampling(max_new_tokens=3)
        )
    )
    _, tallied = vote(engine, session, place_of(session, TILTED))
    assert [(s.name, s.wins) for s in engine.votes.tally()] == [
        (TILTED, 1),
        (BOTH, 0),
    ]
    assert (
        TILTED in texts(tallied)
        and "+1.00 deep 1.00" in texts(tallied)
        and "+1.00 shallow 1.00" in texts(tallied)
    )


def test_the_same_mix_in_two_columns_is_refused(engine):
    with pytest.raises(SpecError, match="the same mix"):
        list(
            compare.stream_blind_test(
                engine, "Where?", {"picks": ["base", "base"]}, None, Session(), True, *sampling()
            )
        )
