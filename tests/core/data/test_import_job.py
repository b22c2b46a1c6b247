"""The process of an import: what it loads, and how a dataset is compared with others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from core.data import import_job
from core.data.datasets import list_datasets
from core.data.import_job import Request, import_files
from core.errors import Cancelled
from core.store.workspace import Workspace

ROOT = Path(__file__).parents[3]


def write(path, count=12):
    rows = [{"question": f"Question {i}?", "answer": f"Answer {i}."} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_process_of_an_import_starts_without_large_libraries():
    heavy = ("torch", "transformers", "datasets", "numpy", "pyarrow", "pandas", "gradio", "jinja2", "sklearn")
    code = f"import sys, core.data.import_job; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_cancel_after_the_commit_deletes_the_dataset(tmp_path):
    path, workspace = write(tmp_path / "a.jsonl"), Workspace(tmp_path / "ws")
    request = Request(workspace.root, [path], "A")

    def cancel(dataset):
        assert [d.id for d in list_datasets(workspace)] == [dataset.id]
        raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        import_files(request, commit=cancel)
    assert list((workspace.root / "datasets").iterdir()) == []


def test_only_datasets_of_different_purposes_are_compared(tmp_path, monkeypatch):
    path, workspace = write(tmp_path / "a.jsonl"), Workspace(tmp_path / "ws")
    first = import_files(Request(workspace.root, [path], "A"))
    assert not import_job._has_counterpart(workspace, first) and first.notes == []
    import_files(Request(workspace.root, [path], "B"))
    assert not import_job._has_counterpart(workspace, first)
    exam = import_files(Request(workspace.root, [path], "Exam", purpose="evaluation"))
    assert import_job._has_counterpart(workspace, exam)
    assert [note.split(" rows ")[0] for note in exam.notes] == [str(first.splits["train"])] * 2


def test_a_child_that_dies_after_the_commit_leaves_the_dataset(tmp_path, caplog):
    """What is left to do then is a comparison with other datasets."""

    class Dying:
        ended_early = True

        def run(self, request, answer):
            dataset = import_files(request)
            answer({"stored": dataset.id})
            raise import_job.StudioError("The process of the import was killed (signal 9).", "Again.")

    workspace = Workspace(tmp_path / "ws")
    request = Request(workspace.root, [write(tmp_path / "a.jsonl")], "A")
    dataset = import_job.import_in_child(Dying(), request, None, lambda progress: None)
    assert [d.id for d in list_datasets(workspace)] == [dataset.id] and "is imported, but not" in caplog.text

    def cancel(progress):
        raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        import_job.import_in_child(Dying(), request, None, cancel)
    assert [d.id for d in list_datasets(workspace)] == [dataset.id]
