"""The trash: a deletion can be undone until the trash is emptied, at any moment and on a full disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.errors import Busy, DiskFull, InvalidName, NotFound, StorageError
from core.store import mixes, trash
from core.store.files import read_json, write_json
from core.store.workspace import KINDS, Workspace

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "w")


def fill(workspace: Workspace, kind: str, name: str) -> str:
    """Makes an item of a kind; returns its id."""
    if kind in ("mixes", "grids"):
        write_json(workspace.path(kind, name.lower()), {"name": name})
        return name.lower()
    with workspace.build(kind, name) as draft:
        write_json(draft.path / "record.json", {"name": name})
        (draft.path / "inner").mkdir()
        (draft.path / "inner" / "rows").write_bytes(b"x" * 1000)
    return draft.id


def content(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_items_of_every_kind_come_back_as_they_were(workspace: Workspace, kind: str) -> None:
    ids = [fill(workspace, kind, name) for name in ("One", "Two", "Three")]
    before, order = content(workspace.root), workspace.ids(kind)
    item = workspace.remove(kind, ids[1])
    assert (item.kind, item.id, item.name) == (kind, ids[1], "Two") and ids[1] not in workspace.ids(kind)
    (listed,) = workspace.trash()
    assert (listed.entry, listed.name, listed.deleted) == (item.entry, "Two", item.deleted)
    assert listed.bytes >= (15 if kind in ("mixes", "grids") else 1000)
    assert workspace.restore(item.entry).id == ids[1]
    assert content(workspace.root) == before and workspace.ids(kind) == order and workspace.trash() == []


def test_a_mix_whose_name_is_taken_is_not_restored(workspace: Workspace) -> None:
    first = mixes.save(workspace, "Law", {})
    entry = workspace.remove("mixes", first.id).entry
    second = mixes.save(workspace, "Law", {})
    with pytest.raises(Busy, match="There is already a mix called 'Law'.*Rename or delete that one first"):
        workspace.restore(entry)
    assert workspace.ids("mixes") == [second.id] and len(workspace.trash()) == 1
    mixes.rename(workspace, second.id, "Other")
    workspace.restore(entry)
    assert {mixes.load(workspace, i).name for i in workspace.ids("mixes")} == {"Law", "Other"}


def test_an_id_that_is_taken_is_not_overwritten(workspace: Workspace) -> None:
    fill(workspace, "grids", "A")
    entry = workspace.remove("grids", "a").entry
    write_json(workspace.path("grids", "a"), {"name": "new"})
    with pytest.raises(Busy, match="'A' is in the workspace already"):
        workspace.restore(entry)
    assert read_json(workspace.path("grids", "a")) == {"name": "new"}


def test_an_item_can_be_deleted_on_a_full_disk(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("datasets", "mixes"):
        item_id = fill(workspace, kind, "Big")
        before = content(workspace.root)

        def refuse(*_: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", refuse)
        item = workspace.remove(kind, item_id)
        monkeypatch.undo()
        assert workspace.ids(kind) == [] and not list(workspace.root.rglob("*.partial"))
        (listed,) = workspace.trash()
        assert (listed.entry, listed.kind, listed.id) == (item.entry, kind, item_id) and listed.bytes > 10
        workspace.restore(item.entry)
        assert content(workspace.root) == before
    workspace.remove("mixes", "big")
    assert workspace.empty_trash() == 1 and not list((workspace.root / "trash").iterdir())


def test_a_damaged_record_of_the_trash_costs_only_the_name(workspace: Workspace) -> None:
    entries = [
        workspace.remove("datasets", fill(workspace, "datasets", n)).entry for n in ("A", "B", "C", "D")
    ]
    for entry, damage in zip(entries, (b"", b"[1]", b"\xff", None), strict=True):
        record = workspace.root / "trash" / entry / trash.RECORD
        record.write_bytes(damage) if damage is not None else record.unlink()
    listed = workspace.trash()
    assert {i.entry for i in listed} == set(entries) and all(i.name == i.id for i in listed)
    for entry in entries:
        workspace.restore(entry)
    assert len(workspace.ids("datasets")) == 4


def test_foreign_files_in_the_trash_are_not_items(workspace: Workspace) -> None:
    for name in ("notes.txt", "datasets.UPPER.00000000", "datasets.a", ".datasets.a.00000000.partial"):
        (workspace.root / "trash" / name).mkdir()
    assert workspace.trash() == []
    with pytest.raises(NotFound, match="The trash has no item '../datasets'"):
        workspace.restore("../datasets")


@pytest.mark.parametrize("step", ["os.replace", "core.store.trash.sync_folder", "core.store.trash.delete"])
@pytest.mark.parametrize("what", ["remove", "restore"])
def test_a_kill_leaves_the_item_in_one_place(workspace: Workspace, step: str, what: str) -> None:
    item_id = fill(workspace, "datasets", "A")
    entry = workspace.remove("datasets", item_id).entry if what == "restore" else ""
    code = (
        "import os, sys\nimport core.store.trash\nfrom core.store.workspace import Workspace\n"
        f"{step} = lambda *_: os._exit(9)\n"
        "w = Workspace(sys.argv[1])\n"
        f"w.{what}(*{[entry] if entry else ['datasets', item_id]!r})"
    )
    subprocess.run([sys.executable, "-c", code, str(workspace.root)], cwd=ROOT, check=False)
    workspace.remove_partials()
    places = [*workspace.ids("datasets"), *[i.id for i in workspace.trash()]]
    assert places == [item_id]
    for item in workspace.trash():
        workspace.restore(item.entry)
    assert (workspace.find("datasets", item_id) / "inner" / "rows").read_bytes() == b"x" * 1000


def test_a_kill_while_the_trash_is_emptied_leaves_no_half_of_an_item(workspace: Workspace) -> None:
    workspace.remove("datasets", fill(workspace, "datasets", "A"))
    code = (
        "import os, shutil, sys\nfrom core.store.workspace import Workspace\n"
        "w = Workspace(sys.argv[1])\nunlink = os.unlink\n"
        "def once(*a, **k):\n    unlink(*a, **k)\n    os._exit(9)\n"
        "os.unlink = once\nw.empty_trash()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(workspace.root)], cwd=ROOT, check=False)
    assert done.returncode == 9 and workspace.trash() == []
    workspace.remove_partials()
    assert not list((workspace.root / "trash").iterdir())


def test_an_item_that_cannot_be_moved_stays_and_leaves_nothing_in_the_trash(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    item_id, replace = fill(workspace, "datasets", "A"), os.replace

    def refuse(source: Any, target: Any) -> None:
        if Path(target).name == trash.ITEM:
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        workspace.remove("datasets", item_id)
    assert workspace.ids("datasets") == [item_id] and not list((workspace.root / "trash").iterdir())


def test_a_failing_disk_does_not_delete_what_was_moved(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(*_: Any) -> None:
        raise DiskFull("The disk is full.", "")

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    item_id = fill(workspace, "datasets", "Only copy")
    with monkeypatch.context() as patch:
        patch.setattr(trash, "write_json", fill_disk)
        patch.setattr(trash, "sync_folder", fail)
        with pytest.raises(StorageError, match="Input/output error"):
            workspace.remove("datasets", item_id)
    (item,) = workspace.trash()
    workspace.restore(item.entry)
    assert workspace.ids("datasets") == [item_id] and workspace.trash() == []


def test_a_trash_that_two_processes_empty_is_empty(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delete_after_another_process(path: Path) -> None:
        delete_entry(path)
        delete_entry(path)

    delete_entry = trash.delete_entry
    for name in ("One", "Two"):
        workspace.remove("mixes", fill(workspace, "mixes", name))
    monkeypatch.setattr(trash, "delete_entry", delete_after_another_process)
    assert workspace.empty_trash() == 2 and not list((workspace.root / "trash").iterdir())


def test_an_item_of_an_unknown_kind_stays_in_the_trash(workspace: Workspace) -> None:
    entry = "songs.a-1b2c.0123abcd"
    (workspace.root / "trash" / entry / "item").mkdir(parents=True)
    with pytest.raises(InvalidName):
        workspace.restore(entry)
    assert [item.kind for item in workspace.trash()] == ["songs"] and not (workspace.root / "songs").exists()
