"""`workspace pack`, `workspace unpack` and `trash` in the terminal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.cli.main import main
from core.store.workspace import Workspace

OLD = Path(__file__).resolve().parents[2] / "data" / "old_workspace"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copytree(OLD, tmp_path / "w")
    return tmp_path / "w"


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_workspace_moves_through_the_terminal(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "workspace", "pack", tmp_path / "b.zip", "--workspace", root, "--json")
    packed = json.loads(out.splitlines()[-1])
    assert code == 0 and out.startswith("[....") and "packing: WORKSPACE.json" in out
    assert (packed["files"], packed["damaged"], packed["left_out"]) == (74, {}, {})
    assert packed["file"] == str(tmp_path / "b.zip") and len(packed["items"]["runs"]) == 5
    code, out, _ = run(capsys, "workspace", "unpack", tmp_path / "b.zip", tmp_path / "copy", "--json")
    unpacked = json.loads(out.splitlines()[-1])
    assert (
        code == 0 and unpacked["items"] == packed["items"] and unpacked["workspace"] == str(tmp_path / "copy")
    )
    assert "unpacked and verified" in out and "3 adapters, 2 datasets" in out
    code, out, err = run(capsys, "workspace", "unpack", tmp_path / "b.zip", tmp_path / "copy")
    assert code == 1 and "is not empty; nothing was changed" in err
    code, out, _ = run(
        capsys, "workspace", "pack", tmp_path / "c.zip", "--workspace", tmp_path / "x", "--json"
    )
    assert code == 1 and "is not a workspace" in json.loads(out.splitlines()[-1])["error"]
    assert not (tmp_path / "x").exists() and not (tmp_path / "c.zip").exists()


def test_what_is_damaged_or_not_packed_is_printed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "reports" / "water-works-reports-test-0d5b" / "report.json").write_bytes(b"{")
    (root / "notes.txt").write_text("x")
    code, out, _ = run(capsys, "workspace", "pack", tmp_path / "b.zip", "--workspace", root)
    assert code == 0 and "damaged, packed as it is: reports/water-works-reports-test-0d5b: " in out
    assert "not packed: notes.txt: It does not belong to the workspace." in out


def test_deleted_items_are_listed_restored_and_emptied(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace(root)
    before = sorted(p.name for p in root.rglob("*") if p.is_file() and p.suffix != ".lock")
    ids = workspace.ids("adapters")
    workspace.remove("adapters", "answers-dd31")
    workspace.remove("mixes", "both-058c")
    code, out, _ = run(capsys, "trash", "list", "--workspace", root, "--json")
    listed = json.loads(out.splitlines()[-1])
    assert code == 0 and [(i["kind"], i["id"], i["name"]) for i in listed] == [
        ("mixes", "both-058c", "Both"),
        ("adapters", "answers-dd31", "Answers"),
    ]
    assert all(i["bytes"] > 300 for i in listed) and "Answers" in out.splitlines()[1]
    for name in ("Answers", listed[0]["entry"]):
        code, out, _ = run(capsys, "trash", "restore", name, "--workspace", root)
        assert code == 0 and out.startswith("restored ")
    assert workspace.ids("adapters") == ids, "also the order of the list is as it was"
    assert sorted(p.name for p in root.rglob("*") if p.is_file() and p.suffix != ".lock") == before
    code, _, err = run(capsys, "trash", "restore", "Answers", "--workspace", root)
    assert code == 1 and "The trash has no item 'Answers'" in err
    workspace.remove("mixes", "both-058c")
    code, out, _ = run(capsys, "trash", "empty", "--workspace", root, "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["emptied"] == 1
    assert run(capsys, "trash", "list", "--workspace", root)[1] == ""
