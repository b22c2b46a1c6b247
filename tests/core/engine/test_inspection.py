"""Inspections in the background: followed, kept, cancelled, and equal to what training does."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.data.inspection.inspection_job import Request, inspect
from core.data.inspection.records import Inspection
from core.engine import Engine
from core.engine.inspection import MAX_LENGTH
from core.engine.inspection_cache import FILE
from core.errors import NotFound, StudioError
from core.spec.training import TrainSpec
from core.train.sequences import build_sequences


@pytest.fixture(scope="module")
def engine(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with Engine(tmp_path_factory.mktemp("inspected"), base=str(tiny_base), quantization="none") as engine:
        yield engine


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def count_processes(engine: Engine) -> list[Any]:
    """Makes the engine's inspections append to the result whenever one starts a process."""
    started: list[Any] = []
    run = engine.inspection._run_process
    engine.inspection._run_process = lambda job: (started.append(job), run(job))[1]  # type: ignore[method-assign]
    return started


def test_an_inspection_is_kept_until_something_changes(engine: Engine, tmp_path: Path) -> None:
    rows = [{"question": f"Where is lamp {i}?", "answer": f"Ask jane{i}@example.org."} for i in range(40)]
    dataset = engine.datasets.import_files([write(tmp_path / "a.jsonl", rows)], "Lamps")
    started = count_processes(engine)
    key = engine.inspection.start(dataset.id)
    assert engine.inspection.get(key) is None or engine.inspection.status(key).has_ended
    assert engine.inspection.wait(key, 120).state == "done"
    found = engine.inspection.get(key)
    assert found is not None and found.tokens is not None and found.tokens.packed is not None
    assert (found.rows, found.compared, len(found.leaks)) == (40, 0, 0)
    assert [(x.kind, x.hits) for x in found.personal] == [("EMAIL", 40)]

    spec = TrainSpec(kind="task", name="x", dataset=dataset.id, max_length=256)
    built = engine.worker.call(
        lambda: build_sequences(engine.workspace, engine.resident_base.get(), spec, dataset, list)
    )
    assert found.tokens.lengths.max_length == min(MAX_LENGTH, 256)
    if built.stats.packed:
        assert found.tokens.packed.ids == built.rows[0]["input_ids"]
        assert found.tokens.packed.rows == built.stats.rows
    assert found.tokens.lengths.trained_tokens == built.stats.trained

    path = engine.workspace.path("datasets", dataset.id, FILE)
    assert path.is_file()
    engine.inspection._jobs._jobs.clear()  # as after a restart
    assert engine.inspection.wait(engine.inspection.start(dataset.id), 1).state == "done"
    assert engine.inspection.get(dataset.id) == found
    assert len(started) == 1

    for damage in (b"", b"{", b'{"content": 1}', path.read_bytes().replace(b'"rows": 40', b'"rows": "x"')):
        path.write_bytes(damage)
        job = dataclasses.replace(engine.inspection._jobs.find(dataset.id), result=None)
        engine.inspection._take_result(job)
        assert job.result is None
    held_out = [
        {"question": "where is lamp 3", "answer": "x"},
        *({"question": f"q{i}", "answer": "x"} for i in range(3)),
    ]
    engine.datasets.import_files([write(tmp_path / "b.jsonl", held_out)], "Exam", purpose="evaluation")
    engine.inspection.start(dataset.id)
    assert engine.inspection.wait(dataset.id, 120).state == "done"
    found = engine.inspection.get(dataset.id)
    assert found is not None and len(started) == 2 and found.compared == 1
    in_train = any("lamp 3?" in str(row) for row in engine.datasets.rows(dataset.id, "train"))
    assert [(x.dataset_name, x.rows) for x in found.leaks] == ([("Exam", 1)] if in_train else [])


def test_a_cancelled_inspection_ends_its_process_and_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    rows = [{"text": f"A text about lamp {i} and bell {i * 7}."} for i in range(3000)]
    dataset = engine.datasets.import_files([write(tmp_path / "c.jsonl", rows)], "Many")
    key = engine.inspection.start(dataset.id)
    deadline = time.monotonic() + 60
    while (
        process := engine.inspection._jobs.find(key).process.process
    ) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process is not None
    engine.inspection.cancel(key)
    assert engine.inspection.wait(key, 20).state == "cancelled"
    assert process.wait(5) != 0
    assert engine.inspection.get(key) is None
    folder = engine.workspace.path("datasets", dataset.id)
    assert not [path.name for path in folder.iterdir() if "inspection" in path.name]


def test_files_are_inspected_before_their_import(engine: Engine, tmp_path: Path) -> None:
    rows = [{"question": f"q {i % 9}", "answer": f"a {i}"} for i in range(10)]
    key = engine.inspection.start_files([write(tmp_path / "d.jsonl", rows)], kind="task")
    assert engine.inspection.wait(key, 120).state == "done"
    found = engine.inspection.get(key)
    assert found is not None
    assert (found.rows, found.repeats.rows, found.conflicts.rows) == (10, 1, 1)
    assert sum(size.rows for size in found.splits) == 10
    with pytest.raises(StudioError, match="missing.jsonl"):  # the child reports it as `problem`
        inspect(Request(engine.workspace.root, paths=[tmp_path / "missing.jsonl"]))


def test_unknown_keys_and_datasets_are_refused(engine: Engine) -> None:
    for call in (engine.inspection.status, engine.inspection.get, engine.inspection.cancel):
        with pytest.raises(NotFound):
            call("nothing")
    with pytest.raises(NotFound):
        engine.inspection.start("nothing")


def test_an_imported_evaluation_dataset_names_what_is_trained_on(engine: Engine, tmp_path: Path) -> None:
    rows = [{"question": f"Which bell is {i}?", "answer": "The old one."} for i in range(20)]
    train = engine.datasets.import_files([write(tmp_path / "e.jsonl", rows)], "Bells")
    exam = engine.datasets.import_files(
        [write(tmp_path / "f.jsonl", rows)], "Bell exam", purpose="evaluation"
    )
    count = train.splits["train"]
    assert f"{count} rows are also in the training split of 'Bells'" in exam.notes[-1]
    assert engine.datasets.get(exam.id).notes == exam.notes


def test_a_large_dataset_is_inspected_from_the_first_rows_of_each_split(
    engine: Engine, tmp_path: Path
) -> None:
    rows = [{"text": f"Text number {i}."} for i in range(100)]
    dataset = engine.datasets.import_files([write(tmp_path / "g.jsonl", rows)], "Hundred")
    found = inspect(Request(engine.workspace.root, dataset.id, row_limit=50, tokens_problem="No base."))
    assert (found.rows, found.tokens, found.tokens_problem) == (100, None, "No base.")
    assert 50 <= found.inspected <= 52
    assert [size.rows for size in found.splits] == [35, 8, 8]
    assert found.scope == f"of the first {found.inspected} rows"
    assert isinstance(found, Inspection)
