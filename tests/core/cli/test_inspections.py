"""The terminal's verbs over one dataset: values for programs, and what they leave on the disk."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    rows = [{"question": f"Who has box {i % 11}?", "answer": f"a{i}@example.org"} for i in range(12)]
    file = tmp_path / "boxes.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")

    def run(*args: str) -> tuple[int, Any]:
        code = main(["data", *args, "--workspace", str(tmp_path / "ws"), "--json"])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    assert run("add", str(file), "--name", "Boxes")[0] == 0
    return run


def test_datasets_are_derived_annotated_and_downloaded(terminal: Any, tmp_path: Path) -> None:
    code, clean = terminal("derive", "redact", "Boxes", "--kinds", "EMAIL")
    assert (code, clean["name"], clean["operation"], clean["rows"]) == (0, "Boxes (redact)", "redact", 12)
    code, fewer = terminal("derive", "dedup", clean["id"], "--name", "Fewer")
    assert (code, fewer["rows"], fewer["parents"]) == (0, 11, [clean["id"]])
    code, less = terminal("derive", "leave-out", "Fewer", "--row", "train:0", "--row", "train:2")
    assert (code, less["rows"]) == (0, 9)
    code, full = terminal("derive", "leave-out", "Fewer", "--name", "Full", "--empty")
    assert (code, full["rows"], full["notes"]) == (0, 11, ["No empty rows were found."])
    code, noted = terminal("note", "Fewer", "Without repeats.")
    assert (code, noted["note"]) == (0, "Without repeats.")
    code, card = terminal("card", "Fewer")
    assert code == 0 and "Without repeats." in card["card"]
    code, download = terminal("download", "Fewer", str(tmp_path / "fewer.zip"))
    assert (code, download["path"]) == (0, str(tmp_path / "fewer.zip"))
    with zipfile.ZipFile(tmp_path / "fewer.zip") as archive:
        assert b"[EMAIL]" in archive.read("data/test.jsonl")


def test_wrong_names_rows_and_operations_are_refused(terminal: Any) -> None:
    code, error = terminal("card", "Nothing")
    assert (code, error["error"]) == (1, "No dataset is called 'Nothing'.")
    code, error = terminal("derive", "merge", "Boxes")
    assert code == 1 and "needs two or more" in error["error"]
    code, error = terminal("derive", "leave-out", "Boxes", "--row", "train")
    assert (code, error["error"]) == (1, "A row must look like train:12, got 'train'.")


def test_an_inspection_prints_its_record(terminal: Any) -> None:
    code, found = terminal("inspect", "Boxes", "--max-length", "16")
    assert code == 0
    assert (found["rows"], found["repeats"]["rows"], found["conflicts"]["rows"]) == (12, 1, 1)
    assert found["personal"][0]["hits"] == 12
    assert found["tokens"]["lengths"]["max_length"] == 16
    assert (
        found["tokens"]["lengths"]["rows"] == sum(b["rows"] for b in found["tokens"]["lengths"]["bins"]) == 12
    )
