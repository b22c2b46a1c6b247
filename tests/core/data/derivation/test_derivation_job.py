"""Derivation in a process of its own gives the same rows and the same errors."""

import json
import sys

import pytest

from core.data import child_process
from core.data.datasets import import_dataset, read_split
from core.data.derivation import derivation_job
from core.data.derivation.operations import derive_dataset
from core.data.splits import SPLITS
from core.errors import NotFound, SpecError
from core.store.workspace import Workspace


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setattr(derivation_job, "PROCESS_ROWS", 1)
    return Workspace(tmp_path / "workspace")


def test_a_child_makes_the_dataset_that_the_function_makes(workspace, tmp_path):
    file = tmp_path / "a.jsonl"
    rows = [{"question": f"q{i % 9}?", "answer": f"é a{i}@example.org"} for i in range(12)]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    parent = import_dataset(workspace, [file], "Parent")
    made = derivation_job.derive(workspace, [parent.id], "dedup", "Fewer ü")
    same = derive_dataset(workspace, [parent.id], "dedup", "Same")
    assert (made.name, made.notes, made.splits, made.rows) == ("Fewer ü", same.notes, same.splits, 9)
    for split in SPLITS:
        assert read_split(workspace, made.id, split) == read_split(workspace, same.id, split)
    with pytest.raises(SpecError, match="got 'shuffle'") as caught:
        derivation_job.derive(workspace, [parent.id], "shuffle", "New")
    assert caught.value.fix == "Choose one of them."
    with pytest.raises(NotFound):
        derivation_job.derive(workspace, ["nothing"], "dedup", "New")


def test_a_child_that_dies_is_an_error_in_words(workspace, tmp_path, monkeypatch):
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(json.dumps({"question": f"q{i}", "answer": "a"}) for i in range(9)))
    parent = import_dataset(workspace, [file], "Parent")
    command = [sys.executable, "-c", "import sys; sys.exit(3)"]
    monkeypatch.setattr(child_process, "build_child_command", lambda *a: command)
    with pytest.raises(Exception, match="ended with code 3"):
        derivation_job.derive(workspace, [parent.id], "dedup", "New")
