"""Imports in the background, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.engine import Engine
from core.engine import imports as module
from core.errors import Cancelled, DataError, InvalidName, NotFound, UnconfirmedRoles, UnknownEncoding

ROOT = Path(__file__).parents[3]


@pytest.fixture
def engine(tmp_path):
    with Engine(tmp_path / "ws", load=False) as engine:
        yield engine


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path / "pairs.jsonl", 30)


@pytest.fixture
def many(tmp_path):
    """A file whose import takes a second or more."""
    return write_pairs(tmp_path / "many.jsonl", 60_000, answer="naïve " * 50)


def write_pairs(path, count, answer="Answer."):
    rows = [{"question": f"Question {i}?", "answer": f"{answer} {i}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def list_leftovers(root):
    return sorted(p.name for p in (root / "datasets").iterdir() if p.name.startswith("."))


def process_of(engine, job):
    return engine.imports._jobs.find(job).process


def test_an_import_ends_with_its_dataset(engine, pairs):
    job = engine.imports.start([pairs], "Pairs")
    status = engine.imports.wait(job, 60)
    assert (status.state, status.problem, status.share) == ("done", "", 1.0)
    assert status.rows == 30 and engine.datasets.get(status.dataset_id).name == "Pairs"
    assert engine.imports.status(job) == status and engine.imports.list() == [status]


def test_a_process_of_its_own_gives_the_dataset_of_this_one(engine, pairs):
    status = engine.imports.wait(engine.imports.start([pairs], "Held out", purpose="evaluation"), 60)
    made = engine.datasets.get(status.dataset_id)
    assert made.splits == {"train": 0, "val": 0, "test": 30}
    own = engine.datasets.import_files([pairs], "Own")
    status = engine.imports.wait(engine.imports.start([pairs], "Other"), 60)
    other = engine.datasets.get(status.dataset_id)
    assert (other.sha256, other.split_sha256) == (own.sha256, own.split_sha256)
    count = other.splits["train"]
    assert f"{count} rows are also in 'Held out', which is for evaluation only" in other.notes[-1]
    assert other.notes == own.notes


def test_a_failed_import_says_why_and_leaves_nothing(engine, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"question": "Q?", "answer": "A."}\n{"question": ', encoding="utf-8")
    status = engine.imports.wait(engine.imports.start([path], "Bad"), 60)
    assert status.state == "failed" and status.problem.startswith("bad.jsonl, line 2: the JSON is incomplete")
    assert list((engine.workspace.root / "datasets").iterdir()) == []
    with pytest.raises(InvalidName):
        engine.imports.start([path], "a/b")
    with pytest.raises(NotFound, match="is not known"):
        engine.imports.status("import-0")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", "frage,antwort\nÄpfel?,Öl\nÖl?,Äpfel\n".encode("latin-1"), UnknownEncoding),
        ("b.csv", b"one,two\nIs it red?,yes it is\nIs it green?,no\nIs it blue?,maybe\n", UnconfirmedRoles),
        ("c.jsonl", b'{"text": 1}\n[2]\n', DataError),
    ],
)
def test_the_error_is_the_one_that_import_files_raises(engine, tmp_path, name, content, kind):
    (tmp_path / name).write_bytes(content)
    status = engine.imports.wait(engine.imports.start([tmp_path / name], "Asked"), 60)
    with pytest.raises(kind) as caught:
        engine.datasets.import_files([tmp_path / name], "Asked")
    assert type(status.error) is type(caught.value) is kind
    assert vars(status.error) == vars(caught.value) and status.problem == str(caught.value)


def test_imports_run_in_turn_and_a_cancel_leaves_nothing(engine, pairs, many):
    first, second = engine.imports.start([many], "First"), engine.imports.start([pairs], "Second")
    wait_until(lambda: engine.imports.status(first).rows > 0)
    assert [s.state for s in engine.imports.list()] == ["running", "waiting"]
    engine.imports.cancel(first)
    status = engine.imports.wait(first, 60)
    assert (status.state, status.problem, status.error) == ("cancelled", "", None)
    assert not process_of(engine, first).ended_early  # it removed its draft itself
    assert engine.imports.wait(second, 60).state == "done"
    assert [d.name for d in engine.datasets.list()] == ["Second"]
    assert list_leftovers(engine.workspace.root) == []


@pytest.mark.skipif(os.name == "nt", reason="stops a process by a signal")
def test_a_process_that_does_not_react_to_a_cancel_is_killed(engine, many, monkeypatch):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.5)
    job = engine.imports.start([many], "Stuck")
    wait_until(lambda: engine.imports.status(job).rows > 0)
    os.kill(process_of(engine, job).process.pid, signal.SIGSTOP)
    assert list_leftovers(engine.workspace.root) != []
    engine.imports.cancel(job)
    assert engine.imports.wait(job, 20).state == "cancelled"
    assert list_leftovers(engine.workspace.root) == [] and engine.datasets.list() == []


def test_a_killed_process_fails_its_import_and_leaves_nothing(engine, many):
    job = engine.imports.start([many], "Killed")
    wait_until(lambda: engine.imports.status(job).rows > 0)
    process_of(engine, job).process.kill()
    status = engine.imports.wait(job, 20)
    assert status.state == "failed" and "The process of the import was killed" in status.problem
    assert "run out of memory" in status.error.fix
    assert list_leftovers(engine.workspace.root) == [] and engine.datasets.list() == []


def test_an_import_ends_when_its_studio_is_killed_and_leaves_nothing(tmp_path, many):
    code = (
        "import sys, time; from core.engine import Engine\n"
        "engine = Engine(sys.argv[1], load=False)\n"
        "job = engine.imports.start([sys.argv[2]], 'x')\n"
        "while not engine.imports.status(job).rows: time.sleep(0.01)\n"
        "print('reads', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "ws"), str(many)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as studio:
        assert studio.stdout.readline() == b"reads\n"
        studio.kill()
    wait_until(lambda: list_leftovers(tmp_path / "ws") == [])
    with Engine(tmp_path / "ws", load=False) as engine:
        assert engine.datasets.list() == []


def test_closing_the_engine_cancels_its_imports(tmp_path, many):
    with Engine(tmp_path / "ws", load=False) as engine:
        first, second = engine.imports.start([many], "One"), engine.imports.start([many], "Two")
        wait_until(lambda: engine.imports.status(first).rows > 0)
    assert {engine.imports.status(job).state for job in (first, second)} == {"cancelled"}
    assert list((tmp_path / "ws" / "datasets").iterdir()) == []


def test_rows_of_all_splits_are_read_by_page(engine, pairs):
    dataset = engine.datasets.import_files([pairs], "Pairs")
    every = engine.datasets.rows(dataset.id, "all")
    assert len(every) == 30
    for offset in range(0, 30, 7):
        assert engine.datasets.rows(dataset.id, "all", 5, offset) == every[offset : offset + 5]


def test_a_folder_of_documents_reports_each_file_and_can_be_cancelled(engine, tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(5):
        (folder / f"{i}.md").write_text(f"# Note {i}\n\nThe lamp of note {i} is red.\n", encoding="utf-8")
    seen = []
    engine.datasets.import_files([folder], "Notes", report=seen.append)
    texts = [progress.text for progress in seen]
    assert [f"Reading {i}.md" for i in range(5)] == [t for t in texts if t.endswith(".md") and t[0] == "R"]
    shares = [progress.done / progress.total for progress in seen]
    assert shares == sorted(shares)

    def cancel(progress):
        if progress.text == "Reading 3.md":
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        engine.datasets.import_files([folder], "Notes", report=cancel)
    assert len(engine.datasets.list()) == 1 and list_leftovers(engine.workspace.root) == []


def test_the_base_checks_an_import_of_another_process(tiny_base, tmp_path):
    """The chat template and the control tokens belong to the studio's process, the rows to the other one."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    for file in folder.glob("chat_template*"):
        file.unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turn') }}{% endif %}"
        "{% if messages | length > 3 %}{{ raise_exception('At most one question') }}{% endif %}"
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))

    def turns(*contents):
        roles = ("system", "user", "assistant", "user", "assistant")[3 - min(3, len(contents)) :]
        return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]}

    rows = [turns("Be brief.", f"q {i} <|end|>", "a") for i in range(4)] + [turns("q", "a"), turns("p", "b")]
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    rows.append(turns("s", "q", "a", "q", "a"))
    bad.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with Engine(tmp_path / "ws", str(folder), "none") as engine:
        engine.resident_base.wait()
        expected = engine.datasets.import_files([good], "Here").notes
        assert len(expected) == 2 and "before the first question. (4 rows)" in expected[0]
        assert expected[1].startswith("4 texts have control tokens of the base written out")
        status = engine.imports.wait(engine.imports.start([good], "There"), 60)
        assert engine.datasets.get(status.dataset_id).notes == expected
        status = engine.imports.wait(engine.imports.start([bad], "Bad"), 60)
        with pytest.raises(DataError, match="At most one question") as caught:
            engine.datasets.import_files([bad], "Bad")
        assert vars(status.error) == vars(caught.value) and status.error.line == 7
