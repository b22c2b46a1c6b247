"""The Data tab shows how files are read: kind, layout, unread columns, notes, rows as they are learned."""

import json

import pytest

from core.engine import Engine
from studio.tabs import data
from tests.studio.views.conftest import texts


@pytest.fixture
def empty(tmp_path):
    with Engine(tmp_path / "ws", load=False) as made:
        yield made


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def facts(tree):
    """The names and values of all facts in a tree."""
    found = {}
    for kid in tree.get("kids", []) if isinstance(tree, dict) else []:
        if (
            isinstance(kid, dict)
            and kid["tag"] == "div"
            and [k["tag"] for k in kid["kids"] if isinstance(k, dict)]
            == [
                "dt",
                "dd",
            ]
        ):
            found[texts(kid["kids"][0])] = texts(kid["kids"][1])
        found.update(facts(kid))
    return found


MARKED = [
    {
        "conversations": [
            {"from": "human", "value": f"q {i}"},
            {"from": "gpt", "value": "hm", "weight": 0},
            {"from": "human", "value": "look"},
            {"from": "gpt", "value": f"a {i}"},
        ],
        "kto_tag": i != 2,
        "tools": "[]",
    }
    for i in range(6)
]


def test_a_preview_shows_layout_unread_columns_notes_and_what_is_learned(empty, tmp_path):
    file = write(tmp_path / "marked.jsonl", MARKED)
    settings, kind, name, _, _, shown, add, *roles = data.read_files(empty, [file], "utf-8")
    assert (kind, name, add["interactive"], settings["visible"]) == ("task", "marked", True, True)
    assert facts(shown) == {
        "Read as": "Task: labelled pairs",
        "Layout": "Answers marked good or bad (KTO)",
        "Columns read": "conversations (messages)",
        "Rows left out": "1",
        "Columns that are not read": "tools",
    }
    text = texts(shown)
    assert (
        "1 row left out: the column 'kto_tag' marks the answer as bad (first: marked.jsonl, line 3)." in text
    )
    assert "User: q 0\nAssistant (context): hm\nUser: look" in text and "q 2" in text
    picker = roles[data.ROLES.index("messages")]
    assert (picker["value"], picker["visible"]) == ("conversations", True)


def test_an_imported_dataset_shows_the_same(empty, tmp_path):
    file = write(tmp_path / "marked.jsonl", MARKED)
    columns = [c["value"] or "" for c in data.read_files(empty, [file], "utf-8")[7:]]
    _, picked = data.import_files(empty, [file], "task", "utf-8", "Marked", *columns)
    shown = data.show_dataset(empty, picked["value"], "train")
    found = facts(shown)
    assert (found["Rows"], found["Rows left out"], found["Columns that are not read"]) == ("5", "1", "tools")
    assert found["Layout"] == "Answers marked good or bad (KTO)"
    assert "marks the answer as bad" in texts(shown) and "Assistant (context): hm" in texts(shown)


def test_columns_that_a_layout_writes_can_be_picked(empty, tmp_path):
    rows = [{"question": f"q {i}", "choices": ["x", "y"], "answer": 1, "note": "n"} for i in range(4)]
    file = write(tmp_path / "quiz.jsonl", rows)
    roles = data.read_files(empty, [file], "utf-8")[7:]
    choices = [value for _, value in roles[data.ROLES.index("answer")]["choices"]]
    assert choices == ["", "note", "question", "answer"]
    columns = [c["value"] or "" for c in roles]
    _, picked = data.import_files(empty, [file], "task", "utf-8", "Quiz", *columns)
    assert empty.datasets.rows(picked["value"], "train", 1)[0]["messages"][1]["content"] == "y"


def test_a_thought_is_shown_with_its_answer(empty, tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q {i}"},
                {"role": "assistant", "content": "a", "thinking": "hm"},
            ]
        }
        for i in range(4)
    ]
    shown = data.read_files(empty, [write(tmp_path / "a.jsonl", rows)], "utf-8")[5]
    assert "(Thought: hm)\na" in texts(shown)


def test_a_file_that_cannot_be_read_shows_the_reason_and_no_roles(empty, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": ')
    shown, add, *roles = data.read_files(empty, [str(file)], "utf-8")[5:]
    assert "a.jsonl, line 1: the JSON is incomplete" in texts(shown) and add["interactive"] is False
    assert not any(r["visible"] for r in roles)
