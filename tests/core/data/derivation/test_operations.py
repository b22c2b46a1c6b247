"""Derived datasets: no repeats, no personal data, no question in two splits, and nothing moves into train."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.datasets import import_dataset, read_split, verify_dataset
from core.data.derivation.operations import (
    derive_dataset,
    leave_out,
    leave_out_empty,
    merge,
    redact,
    remove_repeats,
)
from core.data.inspection.personal_data import find_personal_data
from core.data.splits import SPLITS, content_key, question_key
from core.errors import DataError, SpecError
from core.store.workspace import Workspace


def pair(question, answer="x"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = st.lists(
    st.tuples(st.sampled_from("abcdefg"), st.sampled_from("xy")).map(lambda t: pair(*t)), max_size=12
)
SPLIT_ROWS = st.fixed_dictionaries(dict.fromkeys(SPLITS, ROWS))


def list_all(splits):
    return [(split, row) for split in SPLITS for row in splits[split]]


@settings(max_examples=40, deadline=None)
@given(SPLIT_ROWS, st.booleans())
def test_no_two_rows_ask_the_same_after_dedup_and_none_is_lost(splits, near):
    derived, _ = remove_repeats(splits, near)
    before = {question_key(row) for _, row in list_all(splits)}
    after = [question_key(row) for _, row in list_all(derived)]
    assert len(after) == len(set(after))
    if not near:
        assert set(after) == before


@settings(max_examples=40, deadline=None)
@given(SPLIT_ROWS)
def test_dedup_keeps_the_row_that_is_held_out_most(splits):
    derived, notes = remove_repeats(splits)
    for split, row in list_all(derived):
        places = [SPLITS.index(s) for s, r in list_all(splits) if question_key(r) == question_key(row)]
        assert SPLITS.index(split) == max(places)
        assert row in splits[split]
    removed = len(list_all(splits)) - len(list_all(derived))
    if removed == 0:
        assert notes == ["No repeats were found."]
    elif removed == 1:
        assert notes[0] == "1 row was removed, because another row has the same question."
    else:
        assert notes[0] == f"{removed} rows were removed, because another row has the same question."


def test_dedup_says_how_many_answers_were_lost():
    splits = {
        "train": [pair("a", "1"), pair("A?", "2"), pair("b", "1"), pair("b.", "1")],
        "val": [],
        "test": [],
    }
    derived, notes = remove_repeats(splits)
    assert derived["train"] == [pair("a", "1"), pair("b", "1")]
    assert notes == [
        "2 rows were removed, because another row has the same question.",
        "Of these, 1 had another answer than the row that stays.",
    ]


def test_near_dedup_of_questions_needs_the_same_answer():
    words = [f"word{i}" for i in range(40)]
    near = [*words[:20], "other", *words[21:]]
    rows = [pair(" ".join(words), "yes"), pair(" ".join(near), "yes"), pair(" ".join([*words, "end"]), "no")]
    splits = {"train": rows, "val": [], "test": []}
    assert remove_repeats(splits)[0]["train"] == rows
    derived, notes = remove_repeats(splits, near=True)
    assert derived["train"] == [rows[0], rows[2]]
    assert notes == ["1 row was removed as nearly equal to another row."]


@settings(max_examples=40, deadline=None)
@given(st.lists(SPLIT_ROWS, min_size=2, max_size=3))
def test_merge_puts_no_question_in_two_splits_and_loses_no_row(parents):
    derived, _ = merge([(f"P{i}", splits) for i, splits in enumerate(parents)])
    places = {}
    for split, row in list_all(derived):
        places.setdefault(question_key(row), set()).add(split)
    assert all(len(splits) == 1 for splits in places.values())
    before = {content_key(row) for splits in parents for _, row in list_all(splits)}
    assert {content_key(row) for _, row in list_all(derived)} == before
    for split, row in list_all(derived):  # never into a split that is held out less
        held_out = [
            SPLITS.index(s)
            for splits in parents
            for s, r in list_all(splits)
            if question_key(r) == question_key(row)
        ]
        assert SPLITS.index(split) == max(held_out)


def test_merge_takes_a_row_of_several_parents_once_and_says_what_moved():
    first = {"train": [pair("a"), pair("b"), pair("b")], "val": [pair("c")], "test": [pair("d")]}
    second = {"train": [pair("d", "y"), pair("a")], "val": [pair("e")], "test": [pair("B", "z")]}
    derived, notes = merge([("One", first), ("Two", second)])
    assert [len(derived[s]) for s in SPLITS] == [1, 2, 5]
    assert Counter(question_key(r) for r in derived["test"]) == Counter(
        {question_key(pair("b")): 3, question_key(pair("d")): 2}
    )
    assert notes == [
        "'One' and 'Two' were merged.",
        "1 row was taken once, because several of the datasets have the same.",
        "3 rows were moved to the test split, because another dataset has the question or text there.",
    ]


def test_merge_keeps_documents_of_one_name_apart():
    def section(part, text):
        return {"text": text, "document": "notes.md", "part": part}

    first = {"train": [section(0, "one")], "val": [section(1, "two")], "test": [section(2, "three")]}
    second = {"train": [section(1, "four")], "val": [section(2, "five")], "test": [section(3, "six")]}
    derived, _ = merge([("A", first), ("B", second)])
    assert [(r["document"], r["part"]) for r in derived["train"]] == [("notes.md", 0), ("notes.md (B)", 1)]


def test_merge_moves_nearly_equal_texts_to_the_test_split():
    words = " ".join(f"word{i}" for i in range(40))
    first = {"train": [{"text": words}, {"text": "a"}], "val": [{"text": "b"}], "test": [{"text": "c"}]}
    second = {"train": [{"text": "d"}], "val": [{"text": "e"}], "test": [{"text": words + " more"}]}
    derived, notes = merge([("A", first), ("B", second)])
    assert [r["text"] for r in derived["test"]] == [words, "c", words + " more"]
    assert notes[1].startswith("1 row was moved to the test split")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(["jane@example.org", "+44 20 7946 0123", "plain", "4.5", " and "]), max_size=5)
)
def test_redacting_a_dataset_twice_changes_nothing(pieces):
    splits = {"train": [pair(" ".join(pieces), "".join(pieces))], "val": [], "test": [{"text": "x"}]}
    derived, notes = redact(splits)
    again, notes_again = redact(derived)
    assert again == derived
    assert notes_again == ["No personal data was found."]
    assert all(not find_personal_data(m["content"]) for m in derived["train"][0]["messages"])


def test_redact_counts_what_it_replaces():
    splits = {
        "train": [pair("Write to a@b.org or c@d.org", "+44 20 7946 0123")],
        "val": [pair("a")],
        "test": [],
    }
    derived, notes = redact(splits)
    assert derived["train"] == [pair("Write to [EMAIL] or [EMAIL]", "[PHONE]")]
    assert derived["val"] == [pair("a")]
    assert notes == [
        "E-mail addresses: 2 replaced by [EMAIL].",
        "Phone numbers: 1 replaced by [PHONE].",
        "1 row was changed.",
    ]
    with pytest.raises(SpecError, match="got 'NAME'"):
        redact(splits, ["NAME"])


def test_empty_rows_are_left_out_as_an_inspection_counts_them():
    def pair(answer, **more):
        return {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer, **more}]
        }

    splits = {"train": [pair("a"), pair(" \n"), pair("b")], "test": [pair("said", weight=0), pair("c")]}
    derived, notes = leave_out_empty(splits)
    assert derived == {"train": [pair("a"), pair("b")], "val": [], "test": [pair("c")]}
    assert notes == ["2 rows were left out, because there was nothing to learn."]
    derived, notes = leave_out_empty({"train": [{"text": "a"}, {"text": "\t"}]})
    assert derived["train"] == [{"text": "a"}] and notes[0].startswith("1 row was left out")
    assert leave_out_empty({"train": [{"text": "a"}]})[1] == ["No empty rows were found."]


def test_leave_out_takes_chosen_rows_and_refuses_others():
    splits = {"train": [pair("a"), pair("b"), pair("c")], "val": [pair("d")], "test": [pair("e")]}
    derived, notes = leave_out(splits, {"train": [0, 2]})
    assert derived == {"train": [pair("b")], "val": [pair("d")], "test": [pair("e")]}
    assert notes == ["2 rows were left out by hand."]
    for wrong in ({"train": [3]}, {"dev": [0]}, {}):
        with pytest.raises(SpecError):
            leave_out(splits, wrong)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "workspace")


def add(workspace, tmp_path, name, rows):
    file = tmp_path / f"{name}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return import_dataset(workspace, [file], name)


def test_a_derived_dataset_has_its_lineage_and_its_parent_stays(workspace, tmp_path):
    rows = [{"question": f"q{i}", "answer": f"to a{i}@b.org"} for i in range(20)]
    parent = add(workspace, tmp_path, "Parent", rows)
    before = [read_split(workspace, parent.id, s) for s in SPLITS]
    child = derive_dataset(workspace, [parent.id], "redact", "Clean")
    assert (child.parents, child.operation, child.kind) == ([parent.id], "redact", "task")
    assert child.splits == parent.splits
    assert child.notes[0] == "E-mail addresses: 20 replaced by [EMAIL]."
    verify_dataset(workspace, child.id)
    assert [read_split(workspace, parent.id, s) for s in SPLITS] == before
    for split, old in zip(SPLITS, before, strict=True):
        questions = [row["messages"][0] for row in read_split(workspace, child.id, split)]
        assert questions == [row["messages"][0] for row in old]


def test_wrong_parents_and_operations_are_refused(workspace, tmp_path):
    task = add(workspace, tmp_path, "Task", [{"question": f"q{i}", "answer": "a"} for i in range(9)])
    texts = add(workspace, tmp_path, "Texts", [{"text": f"text {i}"} for i in range(9)])
    for ids, operation, problem in [
        ([task.id, texts.id], "merge", "cannot be merged"),
        ([task.id], "merge", "needs two or more"),
        ([task.id, task.id], "merge", "needs two or more"),
        ([task.id, texts.id], "dedup", "needs one dataset"),
        ([], "dedup", "needs one dataset"),
        ([task.id], "shuffle", "must be one of dedup, redact, leave_out, merge"),
    ]:
        with pytest.raises(SpecError, match=problem):
            derive_dataset(workspace, ids, operation, "New")
    with pytest.raises(DataError, match="val split of the new dataset would be empty"):
        count = task.splits["val"]
        derive_dataset(workspace, [task.id], "leave_out", "New", rows={"val": list(range(count))})
