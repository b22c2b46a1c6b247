"""Guesses: a guessed column that cannot be read gives way, with a sentence; a chosen one is an error."""

import pytest

from core.data.formats.parquet import UnreadCell
from core.data.formats.readers import RawRow
from core.data.reading import read_rows


def raw(*values):
    return [RawRow(v, "f.jsonl", number) for number, v in enumerate(values, start=1)]


def contents(reading):
    return [[m["content"] for m in row["messages"]] for row in reading.rows]


GOOD = {"question": "q", "answer": "a"}


@pytest.mark.parametrize(
    ("role", "cells", "reason"),
    [
        ("type", [f"t {i}" for i in range(1001)], "does not look like a type"),
        ("type", ["x" * 121], "does not look like a type"),
        ("type", [["a list"]], "the column 'type' is a list, not text"),
        ("type", [None, ""], "the column 'type' is empty"),
        ("type", [True], "is true or false, not text"),
        ("context", [{"title": []}], "the column 'context' is an object, not text"),
        ("context", [" ", None], "the column 'context' is empty"),
        ("context", [UnreadCell("binary")], "the column 'context' is binary, not text"),
        ("system", ["fine", ["a list"]], "f.jsonl, line 2: the column 'system' is a list, not text"),
        ("system", [float("inf")], "is infinite, not text"),
    ],
)
def test_a_guessed_optional_role_is_dropped_with_a_sentence(role, cells, reason):
    rows = raw(*({"question": f"q {i}", "answer": "a", role: cell} for i, cell in enumerate(cells)))
    reading = read_rows(rows)
    assert reading.problem is None and reading.roles == {"question": "question", "answer": "answer"}
    assert len(reading.rows) == len(cells) and reading.unread == [role]
    assert any(n.startswith(f"Not used as {role}: ") and reason in n for n in reading.notes)


def test_the_same_role_blocks_when_the_user_chose_it():
    rows = raw({**GOOD, "type": ["a list"]})
    reading = read_rows(rows, "task", {"question": "question", "answer": "answer", "type": "type"})
    assert "f.jsonl, line 1: the column 'type' is a list, not text" in str(reading.problem)


@pytest.mark.parametrize(
    "cell", [None, "", " ", float("nan"), ["x", ["y"]], {"k": 1}, True, UnreadCell("binary")]
)
def test_a_guessed_required_role_takes_the_next_candidate(cell):
    rows = raw({"question": "q", "answer": cell, "response": "a"})
    reading = read_rows(rows)
    assert reading.problem is None and contents(reading) == [["q", "a"]]
    assert reading.roles == {"question": "question", "answer": "response"} and reading.unread == ["answer"]


def test_the_next_candidate_is_taken_when_one_cell_cannot_be_read():
    rows = raw(
        {"question": "q", "answer": "x", "reply": "a"}, {"question": "q2", "answer": None, "reply": "a2"}
    )
    reading = read_rows(rows)
    assert contents(reading) == [["q", "a"], ["q2", "a2"]] and reading.unread == ["answer"]
    assert "Not read with question = question, answer = answer" in str(reading.notes)
    assert "f.jsonl, line 2: the column 'answer' is null" in str(reading.notes)


def test_messages_that_cannot_be_read_give_way_to_a_pair():
    rows = raw({"messages": "plain text", "prompt": "q", "completion": "a"})
    reading = read_rows(rows)
    assert reading.problem is None and contents(reading) == [["q", "a"]] and reading.unread == ["messages"]


def test_the_next_candidate_for_an_optional_role_is_taken():
    reading = read_rows(raw({**GOOD, "context": None, "passage": "p"}))
    assert reading.roles["context"] == "passage" and contents(reading) == [["p\n\nq", "a"]]
    assert "Not used as context: the column 'context' is empty." in reading.notes


def test_text_takes_the_next_candidate_too():
    reading = read_rows(raw({"text": None, "content": "one"}))
    assert (reading.rows, reading.roles, reading.unread) == ([{"text": "one"}], {"text": "content"}, ["text"])


def test_a_task_without_one_readable_cell_falls_back_to_text():
    reading = read_rows(
        raw({"conversation": "A long story.", "id": 1}, {"conversation": "Another.", "id": 2})
    )
    assert reading.kind == "task" and "not a list of messages" in str(reading.problem)
    reading = read_rows(raw({"question": None, "answer": None, "text": "A story."}))
    assert (reading.kind, reading.rows) == ("domain", [{"text": "A story."}])
    assert any(n.startswith("Read as text, because these are not labelled pairs") for n in reading.notes)
    assert reading.unread == ["question", "answer"]


def test_labelled_pairs_with_one_bad_row_never_become_text():
    rows = raw({"question": "q", "answer": "a", "text": "t"}, {"question": "q2", "answer": None, "text": "t"})
    reading = read_rows(rows)
    assert reading.kind == "task" and (reading.problem.file, reading.problem.line) == ("f.jsonl", 2)


def test_a_bad_cell_without_another_candidate_is_an_error_with_its_line():
    reading = read_rows(raw({"text": "a"}, {"text": ""}))
    assert str(reading.problem) == (
        "f.jsonl, line 2: the column 'text' is empty. Fill it in or delete the row."
    )
