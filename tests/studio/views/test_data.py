"""The Data tab shows how files are read: kind, layout, unread columns, notes, rows as they are learned."""

import json

import gradio as gr
import pytest

from core.data.inspection.split_tokens import SplitTokens
from core.engine import Engine
from studio.components import imports
from studio.reading_choices import Choices
from studio.tabs import data, data_import
from tests.studio.dropped import drop_files
from tests.studio.views.conftest import texts


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    with Engine(tmp_path / "ws", load=False) as made:
        yield made


def write(rows):
    return "".join(json.dumps(r) + "\n" for r in rows).encode()


def facts(tree):
    """The names and values of all facts in a tree."""
    found = {}
    for kid in tree.get("kids", []) if isinstance(tree, dict) else []:
        tags = [k["tag"] for k in kid["kids"] if isinstance(k, dict)] if isinstance(kid, dict) else []
        if tags == ["dt", "dd"]:
            found[texts(kid["kids"][0])] = texts(kid["kids"][1])
        found.update(facts(kid))
    return found


def find(tree, tag):
    """All nodes of a tag."""
    if not isinstance(tree, dict):
        return []
    own = [tree] if tree["tag"] == tag else []
    return own + [n for kid in tree["kids"] for n in find(kid, tag)]


def read(engine, files, held_out=False):
    """The choices, kind, preview and button after a drop."""
    value = drop_files(files)
    return value, data_import.read_files(engine, value, Choices(), held_out)[:4]


def roles_of(preview):
    """The column of each picker, with the role that it shows."""
    return {
        s["act"]["column"]: next(o["attrs"]["value"] for o in s["kids"] if "selected" in o["attrs"])
        for s in find(preview, "select")
    }


def pressed(**said):
    return gr.EventData(None, said)


def import_and_wait(engine, value, choices, name, held_out=False):
    forms = imports.Forms()
    job = data_import.start_import(engine, forms, value, choices, name, held_out)[0]["job"]
    status = engine.imports.wait(job, 60)
    assert status.state == "done", status.problem
    return status.dataset_id


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
PAIRS = [{"left": f"Which crane lifts {i} tonnes?", "right": f"Crane {i} does.", "no": i} for i in range(9)]


def test_a_preview_shows_layout_unread_columns_notes_and_what_is_learned(empty):
    _, (choices, kind, shown, add) = read(empty, {"marked.jsonl": write(MARKED)})
    assert (kind, add["interactive"], choices.shown_roles) == ("task", True, {"messages": "conversations"})
    found = facts(shown)
    assert found["Layout"] == "Answers marked good or bad (KTO)"
    assert (found["Rows left out"], found["Columns that are not read"]) == ("1", "tools")
    text = texts(shown)
    assert (
        "1 row left out: the column 'kto_tag' marks the answer as bad (first: marked.jsonl, line 3)." in text
    )
    assert "User: q 0\nAssistant (context): hm\nUser: look" in text and "q 2" in text
    assert roles_of(shown)["conversations"] == "messages"


def test_an_imported_dataset_shows_the_same(empty):
    value, (choices, *_) = read(empty, {"marked.jsonl": write(MARKED)})
    picked = import_and_wait(empty, value, choices, "Marked")
    shown, _, split, rows, *_ = data.show_dataset(empty, picked)
    found = facts(shown)
    assert (found["Rows"], found["Rows left out"], found["Columns that are not read"]) == ("5", "1", "tools")
    assert found["Layout"] == "Answers marked good or bad (KTO)" and split["value"] == "train"
    assert "marks the answer as bad" in texts(shown) and "Assistant (context): hm" in texts(rows)


def test_a_proposed_pair_is_asked_and_learned_only_after_an_answer(empty):
    value, (choices, _, shown, add) = read(empty, {"quiz.jsonl": write(PAIRS)})
    assert add["interactive"] is False
    assert not [n for n in find(shown, "p") if n.get("attrs", {}).get("role") == "alert"], (
        "it is not an error"
    )
    assert "Is 'left' the question and 'right' its answer?" in texts(shown)
    assert [texts(b) for b in find(shown, "button")] == ["Yes", "Swap them", "Something else"]
    after = data_import.change_choices(empty, value, choices, False, pressed(do="swap"))
    assert roles_of(after[2]) == {"left": "answer", "right": "question", "no": ""}
    assert find(after[2], "button") == [] and after[3]["interactive"] is True
    after = data_import.change_choices(empty, value, choices, False, pressed(do="confirm"))
    picked = import_and_wait(empty, value, after[0], "Quiz")
    row = empty.datasets.rows(picked, "all", 0)[0]["messages"]
    assert row[0]["content"].startswith("Which crane") and row[1]["content"].endswith("does.")


def test_something_else_leaves_the_choice_to_the_table(empty):
    value, (choices, *_) = read(empty, {"quiz.jsonl": write(PAIRS)})
    after = data_import.change_choices(empty, value, choices, False, pressed(do="other"))
    assert "Choose the role of each column" in texts(after[2]) and after[3]["interactive"] is False
    after = data_import.change_choices(
        empty, value, after[0], False, pressed(do="role", column="left", value="answer")
    )
    assert roles_of(after[2]) == {"left": "answer", "right": "question", "no": ""}
    assert after[3]["interactive"] is True


def test_a_column_without_a_role_is_greyed_and_says_so(empty):
    value, (choices, *_) = read(empty, {"quiz.jsonl": write(PAIRS)})
    shown = data_import.change_choices(empty, value, choices, False, pressed(do="confirm"))[2]
    heads = {texts(h["kids"][0]): h.get("cls", "") for h in find(shown, "th") if find(h, "select")}
    assert heads == {"left": "", "right": "", "no": "unused"}
    assert facts(shown)["Columns that are not read"] == "no"


def test_columns_that_a_layout_writes_can_be_picked(empty):
    rows = [{"question": f"q {i}", "choices": ["x", "y"], "answer": 1, "note": "n"} for i in range(4)]
    value, (choices, _, shown, _) = read(empty, {"quiz.jsonl": write(rows)})
    assert {"note", "question", "answer"} <= set(roles_of(shown))
    picked = import_and_wait(empty, value, choices, "Quiz")
    assert empty.datasets.rows(picked, "train", 1)[0]["messages"][1]["content"] == "y"


def test_a_thought_is_shown_with_its_answer(empty):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q {i}"},
                {"role": "assistant", "content": "a", "thinking": "hm"},
            ]
        }
        for i in range(4)
    ]
    _, (_, _, shown, _) = read(empty, {"a.jsonl": write(rows)})
    assert "(Thought: hm)\na" in texts(shown)


def test_a_file_that_cannot_be_read_shows_the_reason_and_no_roles(empty):
    _, (_, _, shown, add) = read(empty, {"a.jsonl": b'{"a": '})
    assert "a.jsonl, line 1: the JSON is incomplete" in texts(shown) and add["interactive"] is False
    assert find(shown, "select") == []


def test_long_documents_show_where_they_are_cut_and_their_shares(empty):
    text = "\n\n".join(f"## Quay {i}\n\n" + f"Crane {i} lifts {i} tonnes. " * 12 for i in range(30))
    value, (choices, kind, shown, _) = read(empty, {"docs/book.md": text.encode(), "docs/bad.pdf": b"no pdf"})
    assert kind == "domain"
    cells = [texts(c) for c in find(shown, "td")]
    assert "docs/book.md" in cells and "at headings" in cells
    parts = [n for n in find(shown, "div") if n.get("cls", "").startswith("part ")]
    shares = [float(n["vars"]["share"].rstrip("%")) for n in parts]
    assert len(shares) == 3 and sum(shares) == pytest.approx(100, abs=0.1) and shares[0] > 60
    assert "1 file cannot be read and is left out:" in texts(shown) and "docs/bad.pdf" in texts(shown)


def test_an_encoding_that_is_not_said_is_asked_with_its_lines(empty):
    text = "\n\n---\n\n".join(f"Die Fähre {i} fährt über den Fluß." for i in range(9))
    value, (choices, _, shown, add) = read(empty, {"latin.txt": text.encode("latin-1")})
    buttons = [b for b in find(shown, "button") if b["act"]["do"] == "encoding"]
    assert len(buttons) >= 2 and add["interactive"] is False
    right = next(b for b in buttons if "Die Fähre 0 fährt über den Fluß." in texts(b))
    assert right is buttons[0]
    after = data_import.change_choices(empty, value, choices, False, pressed(**right["act"]))
    assert after[3]["interactive"] is True and "Die Fähre 0 fährt über den Fluß." in texts(after[2])
    picked = import_and_wait(empty, value, after[0], "Latin")
    assert "Fähre" in empty.datasets.rows(picked, "train", 1)[0]["text"]


def test_data_for_evaluation_has_test_rows_only_and_says_so(empty):
    rows = [{"question": f"q {i}", "answer": f"a {i}"} for i in range(8)]
    value, (choices, _, _, add) = read(empty, {"held.jsonl": write(rows)}, held_out=True)
    assert add["interactive"] is True
    picked = import_and_wait(empty, value, choices, "Held", held_out=True)
    assert empty.datasets.get(picked).splits == {"train": 0, "val": 0, "test": 8}
    shown, _, split, *_ = data.show_dataset(empty, picked)
    assert "for evaluation only" in texts(shown) and split["value"] == "test"


def test_files_that_are_added_keep_the_choices_that_fit(empty):
    value, (choices, *_) = read(empty, {"quiz.jsonl": write(PAIRS)})
    swapped = data_import.change_choices(empty, value, choices, False, pressed(do="swap"))[0]
    value = drop_files({"more.jsonl": write(PAIRS)}, into=value["drop"])
    _, _, shown, *_ = data_import.read_files(empty, value, swapped, False)
    assert roles_of(shown) == {"left": "answer", "right": "question", "no": ""}
    other = drop_files({"b.jsonl": write([{"question": f"q{i}", "answer": "a"} for i in range(5)])})
    _, _, shown, *_ = data_import.read_files(empty, other, swapped, False)
    assert roles_of(shown) == {"question": "question", "answer": "answer"}


def test_a_typed_name_stays_and_an_empty_one_is_that_of_the_files(empty):
    value = drop_files({"faq.jsonl": write(PAIRS)})
    assert data_import.open_form(empty, value, "", False)[:2] == ("faq", False)
    assert data_import.open_form(empty, value, "My own", True)[:2] == ("My own", True)
    assert data_import.open_form(empty, None, "My own", True)[:4] == ("", False, None, None)


@pytest.mark.parametrize(("is_estimate", "shown"), [(False, "700"), (True, "about 700")])
def test_the_splits_are_shown_in_tokens_of_the_base(empty, monkeypatch, is_estimate, shown):
    tokens = SplitTokens({"train": 700, "val": 150, "test": 150}, "embedded", is_estimate)
    monkeypatch.setattr(empty.datasets, "_count_tokens", lambda reading, parts: tokens)
    _, (_, _, preview, _) = read(
        empty, {"q.jsonl": write([{"question": f"q{i}", "answer": "a"} for i in range(20)])}
    )
    bar = next(n for n in find(preview, "div") if n.get("cls") == "parts")
    assert bar["attrs"]["aria-label"] == "Tokens of the base embedded"
    assert [texts(part) for part in bar["kids"]][0] == f"Training{shown}70.0 %"


def test_without_a_base_the_splits_are_shown_as_shares(empty):
    _, (_, _, preview, _) = read(
        empty, {"q.jsonl": write([{"question": f"q{i}", "answer": "a"} for i in range(20)])}
    )
    bar = next(n for n in find(preview, "div") if n.get("cls") == "parts")
    assert bar["attrs"]["aria-label"] == "Shares of the text"
