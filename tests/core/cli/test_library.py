"""The terminal's data verbs: a preview stores nothing; notes and unread columns are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """Eight rows with a mark; two of them are bad, and two ask the same question."""
    path = tmp_path / "marked.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": f"q {i % 7}", "completion": f"a {i}", "label": i not in (2, 3), "id": i} for i in range(8)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*args: str) -> tuple[int, list[str]]:
        code = main([*args, "--workspace", str(tmp_path / "ws")])
        return code, capsys.readouterr().out.splitlines()

    return run


NOTES = [
    "Note: 2 rows left out: the column 'label' marks the answer as bad (first: marked.jsonl, line 3).",
    "Repeats of an earlier question or text: 1; each stays in the same split.",
    "Columns that are not read: id",
]


def test_a_preview_prints_the_reading_and_stores_nothing(terminal: Any, marked: Path) -> None:
    code, lines = terminal("data", "preview", str(marked))
    assert code == 0
    assert lines[:2] == [
        "8 rows read as task data, Answers marked good or bad (KTO): 6 can be learned",
        "Roles: prompt = prompt, completion = completion",
    ]
    assert lines[2:5] == NOTES
    assert json.loads(lines[5])["messages"][1] == {"role": "assistant", "content": "a 0"}
    assert len(lines) == 8 and terminal("data", "list")[1] == []


def test_a_preview_says_why_an_import_would_be_refused(terminal: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": ""}\n')
    code, lines = terminal("data", "preview", str(path))
    assert code == 0 and lines[-1] == (
        "An import would be refused: a.jsonl, line 2: the column 'text' is empty. "
        "Fill it in or delete the row."
    )


def test_an_import_prints_its_notes(terminal: Any, marked: Path) -> None:
    code, lines = terminal("data", "add", str(marked))
    assert code == 0 and "6 task rows" in lines[0] and lines[1:] == NOTES


def test_previews_are_json_for_programs(terminal: Any, marked: Path) -> None:
    _, lines = terminal("data", "preview", str(marked), "--json")
    value = json.loads(lines[-1])
    assert (value["layout"], value["unread"], value["left_out"]) == (
        "Answers marked good or bad (KTO)",
        ["id"],
        2,
    )
    assert value["columns"] == ["prompt", "completion", "label", "id"] and value["read"] == 6


def test_roles_of_any_names_are_imported_only_when_they_are_confirmed(terminal: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "".join(f"Where is dog {n}?,It is number {n} there\n" for n in range(8)))
    code, lines = terminal("data", "preview", str(path))
    assert code == 0 and lines[1] == "Roles: question = x, answer = y"
    assert "--yes" in lines[-1] and "Is 'x' the question and 'y' its answer?" in lines[-1]
    assert terminal("data", "add", str(path))[0] == 1 and terminal("data", "list")[1] == []
    code, lines = terminal("data", "add", str(path), "--yes")
    assert code == 0 and lines[0].startswith("Confirmed: Is 'x' the question and 'y' its answer?")
    assert "8 task rows" in lines[1]


def test_skipped_files_are_printed_with_their_reason(terminal: Any, tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    for n in range(4):
        (tmp_path / "n" / f"{n}.txt").write_text(f"Note {n} tells about the ferry and the lake.")
    (tmp_path / "n" / "bad.txt").write_bytes(b"x\0y")
    code, lines = terminal("data", "preview", str(tmp_path / "n"))
    assert code == 0 and "Skipped: bad.txt: line 1: the line has a NUL character." in "\n".join(lines)
