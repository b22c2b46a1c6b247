"""Imports in the background."""

from __future__ import annotations

import json
import threading

import pytest

from core.data import datasets as data
from core.engine import Engine
from core.errors import InvalidName, NotFound


@pytest.fixture
def engine(tmp_path):
    with Engine(tmp_path / "ws", load=False) as engine:
        yield engine


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"question": f"Question {i}?", "answer": f"Answer {i}."} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_an_import_ends_with_its_dataset(engine, pairs):
    job = engine.imports.start([pairs], "Pairs")
    status = engine.imports.wait(job, 20)
    assert (status.state, status.problem, status.share) == ("done", "", 1.0)
    assert status.rows == 30 and engine.datasets.get(status.dataset_id).name == "Pairs"
    assert engine.imports.status(job) == status and engine.imports.list() == [status]


def test_an_evaluation_import_has_only_test_rows(engine, pairs):
    status = engine.imports.wait(engine.imports.start([pairs], "Held out", purpose="evaluation"), 20)
    assert engine.datasets.get(status.dataset_id).splits == {"train": 0, "val": 0, "test": 30}


def test_a_failed_import_says_why_and_leaves_nothing(engine, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "Q?", "answer": "A."}\n{"question": ', encoding="utf-8")
    status = engine.imports.wait(engine.imports.start([path], "Bad"), 20)
    assert status.state == "failed" and status.problem.startswith("bad.jsonl, line 2: the JSON is incomplete")
    assert list((engine.workspace.root / "datasets").iterdir()) == []
    with pytest.raises(InvalidName):
        engine.imports.start([path], "a/b")
    with pytest.raises(NotFound, match="is not known"):
        engine.imports.status("import-0")


def test_imports_run_in_turn_and_a_cancel_leaves_nothing(engine, pairs, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    honest = data.read_rows

    def read_rows(*args):
        begun.set()
        assert go_on.wait(20)
        return honest(*args)

    monkeypatch.setattr(data, "read_rows", read_rows)
    first, second = (engine.imports.start([pairs], name) for name in ("First", "Second"))
    assert begun.wait(20)
    assert [s.state for s in engine.imports.list()] == ["running", "waiting"]
    engine.imports.cancel(first)
    go_on.set()
    assert engine.imports.wait(first, 20).state == "cancelled"
    assert engine.imports.wait(second, 20).state == "done"
    assert [d.name for d in engine.datasets.list()] == ["Second"]
    assert not list((engine.workspace.root / "datasets").glob(".*.partial"))


def test_closing_the_engine_cancels_its_imports(tmp_path, pairs, monkeypatch):
    begun = threading.Event()
    honest = data.read_rows
    monkeypatch.setattr(data, "read_rows", lambda *args: begun.set() or honest(*args))
    with Engine(tmp_path / "ws", load=False) as engine:
        engine.imports.start([pairs], "One")
        job = engine.imports.start([pairs], "Two")
        assert begun.wait(20)
    assert engine.imports.status(job).has_ended
    assert not list((engine.workspace.root / "datasets").glob(".*.partial"))


def test_rows_of_all_splits_are_read_by_page(engine, pairs):
    dataset = engine.datasets.import_files([pairs], "Pairs")
    every = engine.datasets.rows(dataset.id, "all")
    assert len(every) == 30
    for offset in range(0, 30, 7):
        assert engine.datasets.rows(dataset.id, "all", 5, offset) == every[offset : offset + 5]
