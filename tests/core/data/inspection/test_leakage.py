"""Leaks: rows of one dataset's train split in another one's test split."""

import json

import pytest

from core.data.datasets import import_dataset
from core.data.inspection.leakage import OtherDataset, describe_shared_rows, find_leaks
from core.data.inspection.records import PairExample, RowExample
from core.data.inspection.row_checks import from_splits
from core.store.workspace import Workspace


def pair(question, answer="x"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


LONG = " ".join(f"word{i}" for i in range(60))


def test_leaks_are_counted_in_both_directions():
    own = from_splits("task", {"train": [pair("a"), pair("b"), pair(LONG)], "val": [], "test": [pair("t")]})
    other = from_splits(
        "task", {"train": [pair("T!")], "val": [pair("b")], "test": [pair("A?"), pair(LONG + " end")]}
    )
    leaks = find_leaks(own, [OtherDataset("other-1", "Other", other)])
    assert [(x.split, x.other_split, x.rows, x.near_rows) for x in leaks] == [
        ("train", "test", 1, 1),
        ("test", "train", 1, 0),
    ]
    assert leaks[0].dataset_name == "Other"
    assert leaks[0].examples[0] == PairExample(
        RowExample("train", 0, "a → x"), RowExample("test", 0, "A? → x"), 1.0
    )
    assert leaks[0].examples[1].similarity == 0.983  # 58 of 59 shingles


def test_rows_that_share_nothing_are_not_a_leak():
    own = from_splits("domain", {"train": [{"text": "one"}], "test": [{"text": "two"}]})
    other = from_splits("domain", {"train": [{"text": "one"}], "test": [{"text": "two"}]})
    assert find_leaks(own, [OtherDataset("o", "Other", other)]) == []


@pytest.fixture
def add(tmp_path):
    workspace = Workspace(tmp_path / "workspace")

    def add(name, questions, purpose="training"):
        file = tmp_path / f"{name}.jsonl"
        rows = [{"question": q, "answer": "x"} for q in questions]
        file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return workspace, import_dataset(workspace, [file], name, purpose=purpose)

    return add


def test_an_evaluation_dataset_says_which_of_its_rows_are_trained_on(add):
    _, train = add("Course", [f"q{i}" for i in range(20)])
    workspace, evaluation = add("Exam", [f"Q{i}?" for i in range(20)], "evaluation")
    count = train.splits["train"]
    assert describe_shared_rows(workspace, evaluation) == [
        f"{count} rows are also in the training split of 'Course': adapters trained on it know the answers."
    ]
    note = (
        f"{count} rows are also in 'Exam', which is for evaluation only: training on them spoils its figures."
    )
    assert describe_shared_rows(workspace, train) == [note]


def test_two_training_datasets_are_not_compared_at_an_import(add):
    add("One", [f"q{i}" for i in range(20)])
    workspace, two = add("Two", [f"q{i}" for i in range(20)])
    assert describe_shared_rows(workspace, two) == []
