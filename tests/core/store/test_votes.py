"""Votes: stored completely or not at all, counted by what a mix is made of, with an honest interval."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import threading
from types import SimpleNamespace

import pytest

from core.engine.votes import Votes
from core.errors import NotFound, SpecError
from core.spec.mix import Mix
from core.store import files, votes
from core.store.csv_tables import format_csv
from core.store.votes import wilson
from core.store.workspace import Workspace

DOMAIN, TASK = "d" * 64, "7" * 64


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def stamp(name, seed=0, base="f" * 16, **weights):
    """A stamp as `Resident.stamp` returns it, with the files of two adapters."""
    files = {"domain": DOMAIN, "task": TASK}
    return {
        "base": "tiny", "base_fingerprint": base, "quantization": "none", "mix": name, "weights": weights,
        "adapters": {a: files.get(a, "in training") for a in weights},
        "sampling": {"temperature": 0.7, "seed": seed},
    }  # fmt: skip


BASE, BOTH = stamp("Base"), stamp("Both", domain=1.0, task=0.5)


def by_name(workspace):
    return {s.name: s for s in votes.tally(votes.load_all(workspace))}


def test_a_vote_comes_back_with_everything_that_was_shown(workspace):
    cast = votes.cast(workspace, "Where?\nNow?", [BOTH, BASE], 0)
    (read,) = votes.load_all(workspace)
    assert (
        read == cast
        and read.prompt == "Where?\nNow?"
        and read.shown[0].adapters == {"domain": DOMAIN, "task": TASK}
    )
    assert (read.base, read.base_fingerprint, read.sampling, read.chosen) == (
        "tiny",
        "f" * 16,
        {"temperature": 0.7, "seed": 0},
        0,
    )
    assert workspace.ids("mixes") == [], "votes are not taken for a mix"


def test_every_column_keeps_its_own_seed(workspace):
    votes.cast(workspace, "Where?", [stamp("Base", seed=4), stamp("Both", seed=5, domain=1.0)], None)
    assert [s.seed for s in votes.load_all(workspace)[0].shown] == [4, 5]


def test_a_torn_line_is_skipped_and_the_next_vote_has_its_own_line(workspace):
    votes.cast(workspace, "One", [BOTH, BASE], 0)
    with open(workspace.votes_path, "ab") as f:
        f.write(b'{"kind": "vote", "id": "torn", "prom')
    assert [v.prompt for v in votes.load_all(workspace)] == ["One"]
    votes.cast(workspace, "Two", [BOTH, BASE], 1)
    assert [v.prompt for v in votes.load_all(workspace)] == ["One", "Two"]


@pytest.mark.parametrize(
    "change",
    [
        {"chosen": 7},
        {"chosen": "0"},
        {"shown": []},
        {"shown": [{"evil": 1}] * 2},
        {"shown": [{"name": "x", "weights": 3, "adapters": {}}] * 2},
    ],
)
def test_a_line_that_was_edited_by_hand_does_not_count(workspace, change):
    votes.cast(workspace, "One", [BOTH, BASE], 0)
    line = json.loads(workspace.votes_path.read_text())
    with open(workspace.votes_path, "a") as f:
        f.write(json.dumps({**line, "id": "other", **change}) + "\n")
    assert [v.prompt for v in votes.load_all(workspace)] == ["One"]


def test_the_tally_counts_votes_wins_ties_and_expected_wins(workspace):
    domain = stamp("Domain", domain=1.0)
    votes.cast(workspace, "1", [BOTH, BASE], 0)
    votes.cast(workspace, "2", [BASE, BOTH], 1)
    votes.cast(workspace, "3", [BASE, BOTH, domain], 0)
    votes.cast(workspace, "4", [BASE, BOTH], None)
    found = by_name(workspace)
    assert {n: (s.votes, s.wins, s.ties) for n, s in found.items()} == {
        "Both": (4, 2, 1),
        "Base": (4, 1, 1),
        "Domain": (1, 0, 0),
    }
    assert found["Both"].win_rate == pytest.approx(2 / 3) and found["Both"].chance_rate == pytest.approx(
        (1 / 2 + 1 / 2 + 1 / 3) / 3
    )
    assert [s.name for s in votes.tally(votes.load_all(workspace))] == ["Both", "Base", "Domain"]


def test_a_mix_is_its_files_and_weights_and_not_its_name(workspace):
    votes.cast(workspace, "1", [stamp("Old name", domain=1.0, task=0.5), BASE], 0)
    votes.cast(workspace, "2", [stamp("New name", task=0.5, domain=1.0), BASE], 0)
    votes.cast(workspace, "3", [stamp("New name", domain=1.0, task=0.25), BASE], 1)
    votes.cast(
        workspace, "4", [{**stamp("New name", domain=1.0, task=0.5), "tilt": {"domain": 1.0}}, BASE], 1
    )
    votes.cast(
        workspace,
        "5",
        [{**stamp("New name", domain=1.0, task=0.5), "adapters": {"domain": "e" * 64, "task": TASK}}, BASE],
        1,
    )
    found = [(s.name, s.votes, s.wins) for s in votes.tally(votes.load_all(workspace)) if s.weights]
    assert found == [("New name", 2, 2)] + [("New name", 1, 0)] * 3


def test_the_same_weights_on_another_base_are_another_mix(workspace):
    votes.cast(workspace, "1", [BASE, BOTH], 0)
    votes.cast(workspace, "2", [stamp("Base", base="0" * 16), BOTH | {"base_fingerprint": "0" * 16}], 0)
    assert sorted(s.votes for s in votes.tally(votes.load_all(workspace))) == [1, 1, 1, 1]


def test_two_adapters_in_training_are_different_mixes(workspace):
    votes.cast(workspace, "1", [stamp("One", one=1.0), stamp("Two", two=1.0)], 0)
    assert {n: s.wins for n, s in by_name(workspace).items()} == {"One": 1, "Two": 0}


def test_a_mix_that_is_shown_twice_counts_once(workspace):
    votes.cast(workspace, "1", [BASE, stamp("Base again"), BOTH], 1)
    (won, lost) = votes.tally(votes.load_all(workspace))
    assert (won.votes, won.wins, won.chance_rate) == (1, 1, 0.5) and (lost.votes, lost.wins) == (1, 0)


def test_the_interval_is_wilsons():
    """For 7 of 10: z² = 3.8415, center (0.7 + 0.19207) / 1.38415, half 1.416 √(0.021 + 0.0096036)."""
    assert wilson(7, 10) == pytest.approx((0.39678, 0.89221), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 3.841459 / 13.841459), abs=1e-6)
    assert wilson(10, 10) == pytest.approx((1 - 3.841459 / 13.841459, 1.0), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(500_000, 1_000_000)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 1e6), rel=1e-3), (
        "with many votes it is the usual one"
    )


def test_a_withdrawn_vote_does_not_count_and_is_withdrawn_only_once(workspace):
    cast = votes.cast(workspace, "1", [BASE, BOTH], 0)
    votes.cast(workspace, "2", [BASE, BOTH], 1)
    before = workspace.votes_path.read_bytes()
    votes.withdraw(workspace, cast.id)
    assert [v.prompt for v in votes.load_all(workspace)] == ["2"]
    assert workspace.votes_path.read_bytes().startswith(before), "the log is only appended to"
    with pytest.raises(NotFound):
        votes.withdraw(workspace, cast.id)


def test_a_reset_leaves_no_prompt_on_the_disk(workspace):
    votes.cast(workspace, "1", [BASE, BOTH], 0)
    votes.reset(workspace)
    votes.reset(workspace)
    assert votes.load_all(workspace) == [] and not workspace.votes_path.exists()


@pytest.mark.parametrize(
    ("stamps", "chosen"), [([BASE], 0), ([BASE, {}], 0), ([BASE, BOTH], 2), ([BASE, BOTH], -1)]
)
def test_a_vote_for_an_answer_that_was_not_shown_is_refused(workspace, stamps, chosen):
    with pytest.raises(SpecError):
        votes.cast(workspace, "1", stamps, chosen)
    assert votes.load_all(workspace) == []


def test_the_csv_has_a_row_for_each_answer_and_no_formula(workspace):
    votes.cast(workspace, "=HYPERLINK(1)", [stamp("+evil", domain=-0.5), BASE], 1)
    votes.cast(workspace, "Fine", [BASE, BOTH], None)
    rows = list(csv.DictReader(io.StringIO(format_csv(votes.make_rows(votes.load_all(workspace))))))
    assert [(r["prompt"], r["place"], r["mix"], r["chosen"]) for r in rows] == [
        ("'=HYPERLINK(1)", "A", "'+evil", "no"), ("'=HYPERLINK(1)", "B", "Base", "yes"),
        ("Fine", "A", "Base", "no difference"), ("Fine", "B", "Both", "no difference"),
    ]  # fmt: skip
    assert (
        rows[0]["weights"] == "domain=-0.5" and DOMAIN in rows[0]["adapters"] and rows[1]["weights"] == "base"
    )


def test_a_log_longer_than_one_read_is_counted_whole(workspace, monkeypatch):
    for i in range(6):
        votes.cast(workspace, str(i), [BASE, BOTH], 0)
    monkeypatch.setattr("core.store.event_log.READ_LIMIT_BYTES", workspace.votes_path.stat().st_size // 3)
    assert [v.prompt for v in votes.load_all(workspace)] == [str(i) for i in range(6)]


def test_a_vote_counts_that_is_cast_while_damaged_lines_are_removed(workspace, monkeypatch):
    votes.cast(workspace, "One", [BOTH, BASE], 0)
    with open(workspace.votes_path, "ab") as f:
        f.write(b"not a vote\n")
    second = threading.Thread(target=lambda: votes.cast(workspace, "Two", [BOTH, BASE], 1))

    def write_slowly(path):
        second.start()
        second.join(0.5)
        return files.atomic_write(path)

    monkeypatch.setattr(votes, "atomic_write", write_slowly)
    votes.remove_damaged_lines(workspace)
    second.join()
    assert [v.prompt for v in votes.load_all(workspace)] == ["One", "Two"]
    assert votes.count_damaged_lines(workspace) == 0


def test_a_mix_on_auto_is_another_mix_whatever_its_gate_chose(workspace):
    gated = {**BOTH, "mix": "Follows", "gates": {"domain": "soft"}}
    votes.cast(workspace, "1", [BOTH, gated, BASE], 1)
    votes.cast(workspace, "2", [gated, BASE], 0)
    found = by_name(workspace)
    assert (found["Follows"].wins, found["Both"].wins) == (2, 0)
    assert found["Follows"].auto == {"domain": "soft"} and found["Both"].auto == {}
    (read, _) = votes.load_all(workspace)
    assert read.shown[1].auto == {"domain": "soft"}
    rows = list(csv.reader(io.StringIO(format_csv(votes.make_rows(votes.load_all(workspace))))))
    assert rows[2][5] == "domain=auto-soft:1 + task=0.5"


def test_the_engine_records_what_was_requested_not_what_a_gate_chose(workspace, monkeypatch):
    monkeypatch.setattr("core.store.adapters.load", lambda _, adapter: SimpleNamespace(sha256=DOMAIN))
    mix = Mix(weights={"domain": 1.0, "task": 0.5}, auto={"domain": "hard"})
    closed = {**stamp("Follows", task=0.5), "auto": {"domain": {"weight": 0.0}}}
    Votes(workspace).cast("1", [closed, BASE], 0, [mix, Mix()])
    opened = {**BOTH, "mix": "Follows", "auto": {"domain": {"weight": 1.0}}}
    Votes(workspace).cast("2", [BASE, opened], 1, [Mix(), mix])
    trainee = Mix(weights={"new": 1.0}, auto={"new": "hard"})
    monkeypatch.undo()
    cast = Votes(workspace).cast("3", [stamp("New"), BASE], 0, [trainee])
    assert cast.shown[0].adapters == {"new": "in training"} and cast.shown[0].auto == {"new": "hard"}
    found = by_name(workspace)
    assert found["Follows"].wins == found["Follows"].votes == 2
    assert found["Follows"].adapters == {"domain": DOMAIN, "task": TASK}


def test_votes_without_auto_keep_the_identity_of_older_versions(workspace):
    cast = votes.cast(workspace, "1", [BOTH, BASE], 0)
    parts = sorted([[DOMAIN, 1.0, 0.0], [TASK, 0.5, 0.0]])
    whole = hashlib.sha256(json.dumps(["f" * 16, parts]).encode()).hexdigest()[:16]
    assert cast.identities[0] == whole
