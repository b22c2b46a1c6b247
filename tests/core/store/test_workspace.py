"""The workspace: ids are valid, paths stay inside, files appear completely or not at all."""

import errno
import hashlib
import os
import re
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import Busy, InvalidName, NotFound, StorageError
from core.store import files
from core.store import workspace as workspace_module
from core.store.files import (
    atomic_write,
    check_regular_file,
    ensure_space,
    read_json,
    sha256_of,
    storage_error,
    write_json,
)
from core.store.locks import FileLock, is_locked
from core.store.workspace import Workspace, check_name, make_id


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "w")


def fill(workspace, kind, name, text="x"):
    with workspace.build(kind, name) as draft:
        (draft.path / "file").write_text(text)
    return draft.id


# ------------------------------------------------------------ ids and names


@given(st.text())
@settings(deadline=None)
def test_t6_every_name_gets_a_valid_id(name):
    assert workspace_module.ID.fullmatch(make_id(name)) and len(make_id(name)) <= 45


def test_an_id_is_readable_and_two_of_a_name_differ():
    assert re.fullmatch(r"my-corpus-2-[0-9a-f]{4}", make_id(" My Corpus: 2! "))
    assert re.fullmatch(r"unnamed-[0-9a-f]{4}", make_id("日本語"))
    assert len({make_id("x") for _ in range(20)}) > 15


@pytest.mark.parametrize("name", ["CON", " ok ", "Zoë 日本語 👩‍🔬", "a.b", "x" * 120])
def test_a_display_name_is_stripped_and_kept(name):
    assert check_name(name) == name.strip()


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        None,
        3,
        "x" * 121,
        "a/b",
        "..",
        ".",
        "a\\b",
        "a\0",
        "a\nb",
        "a\x7f",
        "a\x85b",
        "a\u2028b",
        "a\ud800",
        "a\u202eb",
    ],
)
def test_t6_a_display_name_that_could_mislead_or_escape_is_refused(name):
    with pytest.raises(InvalidName) as caught:
        check_name(name)
    assert "1 to 120 characters" in caught.value.fix


@pytest.mark.parametrize(
    "item_id", ["", "..", "../x", "a/b", "A", "-a", "a_b", "a" * 65, "a\n", "a\0", None, 7]
)
def test_t6_an_id_of_another_form_is_refused(workspace, item_id):
    with pytest.raises(InvalidName, match="is not an id of this workspace"):
        workspace.path("datasets", item_id)


@pytest.mark.parametrize("kind", ["", "..", "trash", "dataset"])
def test_t6_an_unknown_kind_is_refused(workspace, kind):
    with pytest.raises(InvalidName):
        workspace.path(kind, "a")


@pytest.mark.parametrize(
    "parts",
    [("..", "b"), ("..",), ("../../../etc/passwd",), ("/etc/passwd",), ("x", "../..", "y"), ("a\0b",)],
)
def test_t6_a_part_that_leaves_the_item_is_refused(workspace, parts):
    with pytest.raises(InvalidName, match="leaves the folder of 'a'"):
        workspace.path("datasets", "a", *parts)


def test_t7_a_link_inside_an_item_does_not_lead_out(workspace, tmp_path):
    item_id = fill(workspace, "datasets", "a")
    (workspace.path("datasets", item_id) / "out").symlink_to(tmp_path)
    with pytest.raises(InvalidName):
        workspace.path("datasets", item_id, "out", "secret")


def test_paths_have_the_documented_layout(workspace):
    assert (
        workspace.path("datasets", "a", "splits", "a_train.jsonl")
        == workspace.root / "datasets" / "a" / "splits" / "a_train.jsonl"
    )
    assert workspace.path("mixes", "m") == workspace.root / "mixes" / "m.json"


# ------------------------------------------------------------ whole or not at all


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "a.bin"
    with atomic_write(path) as f:
        f.write(b"half")
        assert not path.exists()
        f.write(b"whole")
    assert path.read_bytes() == b"halfwhole" and [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_a_process_with_the_old_file_open_continues_to_read_it(tmp_path):
    write_json(tmp_path / "a.json", "old")
    with open(tmp_path / "a.json") as f:
        write_json(tmp_path / "a.json", "new")
        assert f.read() == '"old"\n'
    assert read_json(tmp_path / "a.json") == "new"


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_error_while_writing_keeps_the_old_file_and_no_partial(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with (
        pytest.raises(StorageError if isinstance(error, OSError) else type(error)),
        atomic_write(path, "w") as f,
    ):
        f.write("new")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    code = (
        "import os, sys, pathlib\nfrom core.store.files import atomic_write\n"
        "with atomic_write(pathlib.Path(sys.argv[1])) as f: f.write(b'new'); f.flush(); os._exit(9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=Path(workspace_module.__file__).parents[2], check=False
    )
    assert done.returncode == 9 and read_json(path) == {"old": 1}


def test_json_round_trips_with_unix_line_ends(tmp_path):
    write_json(tmp_path / "a.json", {"b": "é", "a": [1, None]})
    assert read_json(tmp_path / "a.json") == {"a": [1, None], "b": "é"}
    assert (
        tmp_path / "a.json"
    ).read_bytes() == '{\n  "a": [\n    1,\n    null\n  ],\n  "b": "é"\n}\n'.encode()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 33 + b"]" * 33, None])
def test_a_damaged_json_file_is_a_storage_error(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StorageError, match="a.json cannot be read"):
        read_json(path)


def test_an_oserror_becomes_a_storage_error():
    assert "The disk is full: a.txt" in str(storage_error(OSError(errno.ENOSPC, "x"), Path("/tmp/a.txt")))
    assert "The disk is full" in str(storage_error(OSError(errno.EDQUOT, "x"), Path("a.txt")))
    other = storage_error(OSError(errno.EROFS, "Read-only file system"), Path("a.txt"))
    assert "Read-only file system" in other.what and "permissions" in other.fix


def test_a_write_that_would_fill_the_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda _: namedtuple("u", "total used free")(1, 1, 100_000_000)
    )
    ensure_space(tmp_path, 100_000_000 - files.MARGIN_BYTES)
    expected = r"The disk is full: 101 MB are needed and 100 MB are free \(33 MB to write, and 68 MB"
    with pytest.raises(StorageError, match=expected):
        ensure_space(tmp_path, 100_000_000 - files.MARGIN_BYTES + 1)


def test_sha256_is_that_of_the_bytes_on_every_python(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    expected = hashlib.sha256(b"x" * 3_000_000).hexdigest()
    assert sha256_of(tmp_path / "a") == expected
    with open(tmp_path / "a", "rb") as f:
        assert files._digest(f) == expected


def test_t7_only_regular_files_are_regular(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    assert check_regular_file(tmp_path / "a") == tmp_path / "a"
    for name in ("link", "pipe", "."):
        with pytest.raises(InvalidName, match="not a regular file"):
            check_regular_file(tmp_path / name)
    for name in ("gone", "nul\0"):
        with pytest.raises(NotFound):
            check_regular_file(tmp_path / name)


# ------------------------------------------------------------ items


def test_an_item_appears_at_once_and_is_listed_oldest_first(workspace):
    with workspace.build("datasets", "a") as draft:
        item_id = draft.id
        (draft.path / "file").write_text("x")
        assert workspace.ids("datasets") == []
        with pytest.raises(NotFound, match=f"no dataset '{item_id}' in this workspace"):
            workspace.find("datasets", item_id)
    assert (workspace.find("datasets", item_id) / "file").read_text() == "x"
    other = fill(workspace, "datasets", "b")
    os.utime(workspace.path("datasets", other), ns=(1, 1))
    assert workspace.ids("datasets") == [other, item_id]


def test_foreign_files_in_the_folder_are_not_items(workspace):
    for name in ("a.bak", ".hidden", "UPPER"):
        (workspace.root / "datasets" / name).mkdir()
    (workspace.root / "mixes" / "m.json").write_text("{}")
    (workspace.root / "mixes" / "n.txt").write_text("")
    assert (workspace.ids("datasets"), workspace.ids("mixes")) == ([], ["m"])
    with pytest.raises(NotFound, match="no mix 'x' in this workspace"):
        workspace.find("mixes", "x")


def test_an_existing_id_is_not_used_again(workspace, monkeypatch):
    drawn = iter(["0000", "0000", "0000", "0001", "0001", "0002"])
    monkeypatch.setattr(workspace_module.secrets, "token_hex", lambda n: next(drawn))
    assert fill(workspace, "datasets", "a") == "a-0000"
    with workspace.build("datasets", "a") as first, workspace.build("datasets", "a") as second:
        assert (first.id, second.id) == ("a-0001", "a-0002")


def test_a_reserved_id_is_used_and_refused_while_its_draft_is_filled(workspace):
    with workspace.build("adapters", "a", "mine") as draft:
        assert draft.id == "mine"
        with pytest.raises(Busy), workspace.build("adapters", "a", "mine"):
            pass
        (draft.path / "file").write_text("x")
    assert (workspace.find("adapters", "mine") / "file").read_text() == "x"


def test_a_commit_onto_an_existing_item_changes_nothing(workspace):
    item_id = fill(workspace, "datasets", "a", "first")
    with (
        pytest.raises(StorageError, match="exists already"),
        workspace.build("datasets", "b", item_id) as draft,
    ):
        (draft.path / "file").write_text("second")
    assert (workspace.find("datasets", item_id) / "file").read_text() == "first"
    assert [p.name for p in (workspace.root / "datasets").iterdir()] == [item_id]


def test_a_draft_replaces_the_item_of_its_id(workspace):
    item_id = fill(workspace, "adapters", "a", "first")
    with workspace.build("adapters", "a", item_id, replace=True) as draft:
        (draft.path / "file").write_text("second")
    assert (workspace.find("adapters", item_id) / "file").read_text() == "second"
    assert [p.name for p in (workspace.root / "adapters").iterdir()] == [item_id]


@pytest.mark.parametrize("read", ["find", "ids", "remove_partials", "lock", "build"])
@pytest.mark.parametrize("moment", ["both", "ready"])
def test_a_replacement_that_was_cut_short_is_ended(workspace, moment, read):
    item_id = fill(workspace, "adapters", "a", "first")
    folder = workspace.root / "adapters"
    (folder / f".{item_id}.ready").mkdir()
    (folder / f".{item_id}.ready" / "file").write_text("second")
    if moment == "ready":  # killed between the two renames
        os.rename(folder / item_id, folder / f".{item_id}.0000.partial")
    if read == "lock":
        with workspace.lock("adapters", item_id):
            pass
    elif read == "build":
        with pytest.raises(StorageError), workspace.build("adapters", "a", item_id):
            pass
    elif read == "remove_partials":
        workspace.remove_partials()
    elif read == "ids" or moment == "ready":
        assert (
            workspace.ids("adapters") == [item_id] if read == "ids" else workspace.find("adapters", item_id)
        )
    if moment == "ready" or read != "find":
        assert (workspace.find("adapters", item_id) / "file").read_text() == "second"
    workspace.remove_partials()
    assert [p.name for p in folder.iterdir()] == [item_id]
    assert (folder / item_id / "file").read_text() == "second"


def test_a_replacement_that_cannot_end_on_a_read_only_disk_hides_no_item(workspace, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    ids = {fill(workspace, "adapters", name) for name in ("a", "b")}
    (workspace.root / "adapters" / f".{min(ids)}.ready").mkdir()
    monkeypatch.setattr(workspace_module, "FileLock", refuse)
    assert set(workspace.ids("adapters")) == ids
    with pytest.raises(StorageError, match=f"^{min(ids)} could not be written: Read-only file system"):
        workspace.lock("adapters", min(ids)).__enter__()
    with pytest.raises(StorageError, match="^mixes could not be written"):
        workspace.lock("mixes").__enter__()


def test_a_draft_without_an_expected_name_is_refused(workspace):
    with (
        pytest.raises(StorageError, match=r"source/1\.txt of .* vanished"),
        workspace.build("datasets", "a") as draft,
    ):
        draft.expect("source/1.txt")
    assert list((workspace.root / "datasets").iterdir()) == []


def test_an_error_while_a_draft_is_written_leaves_nothing(workspace):
    with pytest.raises(ZeroDivisionError), workspace.build("datasets", "a") as draft:
        (draft.path / "file").write_text("x")
        raise ZeroDivisionError
    assert list((workspace.root / "datasets").iterdir()) == []


def test_a_sweep_leaves_what_is_being_written(workspace):
    item_id = fill(workspace, "adapters", "a", "first")
    target = workspace.path("mixes", "m")
    with workspace.build("datasets", "b") as draft, atomic_write(target, "w") as f:
        f.write("{}")
        with workspace.temporary_folder() as folder:
            assert Workspace(workspace.root).remove_partials() == 0
            assert draft.path.is_dir() and folder.is_dir()
    with workspace.build("adapters", "a", item_id, replace=True) as draft:
        (draft.path / "file").write_text("second")
        assert Workspace(workspace.root).remove_partials() == 0
    assert target.read_text() == "{}" and len(workspace.ids("datasets")) == 1
    assert (workspace.find("adapters", item_id) / "file").read_text() == "second"


def test_changes_of_one_item_wait_for_each_other(workspace):
    path = workspace.path("mixes", "m")
    write_json(path, {"n": 0})

    def change():
        for _ in range(5):
            with workspace.lock("mixes", "m"):
                write_json(path, {"n": read_json(path)["n"] + 1})

    threads = [threading.Thread(target=change) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert read_json(path) == {"n": 40}
    assert [p.name for p in path.parent.iterdir()] == ["m.json"]


def test_a_deleted_item_is_restored_from_the_trash(workspace):
    item_id = fill(workspace, "adapters", "a")
    write_json(workspace.path("mixes", "m"), {"n": 1})
    workspace.remove("adapters", item_id, "A")
    workspace.remove("mixes", "m")
    assert [(i.kind, i.id, i.name) for i in workspace.trash()] == [
        ("mixes", "m", "m"),
        ("adapters", item_id, "A"),
    ]
    for item in workspace.trash():
        workspace.restore(item.entry)
    assert workspace.trash() == [] and read_json(workspace.path("mixes", "m")) == {"n": 1}
    assert (workspace.find("adapters", item_id) / "file").read_text() == "x"
    assert list((workspace.root / "trash").iterdir()) == []


def test_an_item_is_not_restored_over_another_one(workspace):
    write_json(workspace.path("mixes", "m"), {"n": 1})
    entry = workspace.remove("mixes", "m").entry
    write_json(workspace.path("mixes", "m"), {"n": 2})
    with pytest.raises(Busy, match="in the workspace already"):
        workspace.restore(entry)
    assert read_json(workspace.path("mixes", "m")) == {"n": 2} and len(workspace.trash()) == 1
    assert workspace.empty_trash() == 1 and workspace.trash() == []
    with pytest.raises(NotFound):
        workspace.restore(entry)


def test_a_removed_item_is_gone(workspace):
    item_id = fill(workspace, "datasets", "a")
    write_json(workspace.path("mixes", "m"), {})
    workspace.remove("datasets", item_id)
    workspace.remove("mixes", "m")
    assert (workspace.ids("datasets"), workspace.ids("mixes")) == ([], [])
    assert list((workspace.root / "datasets").iterdir()) == []
    with pytest.raises(NotFound):
        workspace.remove("datasets", item_id)


def test_partial_files_of_a_crash_are_removed_and_nothing_else(workspace):
    kept = fill(workspace, "datasets", "a")
    (workspace.root / "datasets" / ".half-0000.partial").mkdir()
    (workspace.root / "mixes" / ".m.json.0000.partial").write_text("half")
    (workspace.root / "datasets" / kept / ".dataset.json.0000.partial").write_text("half")
    assert workspace.remove_partials() == 3 and workspace.remove_partials() == 0
    assert workspace.ids("datasets") == [kept]


def test_a_workspace_that_cannot_be_created_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="could not be written"):
        Workspace(tmp_path / "file")


# ------------------------------------------------------------ file locks


def test_a_file_lock_has_one_owner_until_it_is_released(tmp_path):
    path = tmp_path / "run" / "lock"
    assert not is_locked(path)
    lock = FileLock(path)
    assert is_locked(path)
    with pytest.raises(Busy):
        FileLock(path)
    lock.release()
    lock.release()
    assert not is_locked(path)
    FileLock(path).release()


def test_a_file_lock_is_released_when_its_process_dies(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys, pathlib\nfrom core.store.locks import FileLock\n"
        "lock = FileLock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(workspace_module.__file__).parents[2],
    ) as child:
        assert child.stdout.readline() == b"held\n"
        assert is_locked(path)
        child.kill()
        child.wait()
        assert not is_locked(path)


def test_many_threads_make_many_items(workspace):
    threads = [threading.Thread(target=fill, args=(workspace, "reports", "same")) for _ in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(workspace.ids("reports")) == 16
