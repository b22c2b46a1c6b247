"""Locks on files, on the system that runs the tests and on simulated others."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from core.errors import Busy, StorageError
from core.store import files, locks
from core.store.files import atomic_write, read_json, remove_partial_file, storage_error, write_json
from core.store.locks import FileLock, is_locked
from core.store.workspace import Workspace

needs_byte_locks = pytest.mark.skipif(not hasattr(fcntl, "F_OFD_SETLK"), reason="simulated with Linux locks")


class FakeMsvcrt(ModuleType):
    """msvcrt.locking as Windows documents it: a range from the current position, owned by the open file.

    It is made from the open file description locks of Linux, which behave in the same way: two open files of
    one process exclude each other, and closing the file releases the lock.
    """

    LK_NBLCK = 2

    def __init__(self) -> None:
        super().__init__("msvcrt")
        self.calls: list[tuple[int, int]] = []

    def locking(self, descriptor: int, mode: int, count: int) -> None:
        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        self.calls.append((position, count))
        assert mode == self.LK_NBLCK
        if count < 1:
            raise OSError(errno.EINVAL, "Invalid argument")
        is_writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR)
        kind = fcntl.F_WRLCK if is_writable else fcntl.F_RDLCK
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, position, count, 0)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
        except OSError as e:  # Windows reports a lock violation as EACCES
            raise PermissionError(errno.EACCES, "Permission denied") from e


@pytest.fixture(params=["here", pytest.param("windows", marks=needs_byte_locks)])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The system that runs the tests, or one without fcntl that refuses what Windows refuses."""
    if request.param == "windows":
        monkeypatch.setitem(sys.modules, "fcntl", None)
        monkeypatch.setitem(sys.modules, "msvcrt", FakeMsvcrt())
        monkeypatch.setattr(locks, "CAN_REMOVE_OPEN_FILES", False)
        monkeypatch.setattr(files, "CAN_REPLACE_OPEN_FILES", False)
        monkeypatch.setattr(files, "SYNC_MODE", "rb+")
    return str(request.param)


def test_a_lock_has_one_owner_until_it_is_released(system: str, tmp_path: Path) -> None:
    path = tmp_path / "run" / "lock"
    assert not is_locked(path)
    with FileLock(path) as lock:
        assert is_locked(path)
        start = time.monotonic()
        with pytest.raises(Busy, match="'run' is already in use"):
            FileLock(path)
        assert time.monotonic() - start < 1
        lock.release()
        lock.release()
        assert not is_locked(path) and path.exists()
    with FileLock(path, temporary=True):
        assert is_locked(path)
    assert not path.exists() and not is_locked(path)


def test_a_lock_is_waited_for(system: str, tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    threading.Timer(0.3, lock.release).start()
    start = time.monotonic()
    with FileLock(tmp_path / "lock", seconds=30):
        assert 0.2 < time.monotonic() - start < 10


def test_a_lock_is_not_missed_while_another_process_looks_at_it(system: str, tmp_path: Path) -> None:
    path, is_over = tmp_path / "lock", threading.Event()
    path.touch()

    def look() -> None:
        while not is_over.is_set():
            is_locked(path)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for t in threads:
        t.start()
    try:
        for _ in range(200):
            FileLock(path).release()
    finally:
        is_over.set()
        for t in threads:
            t.join()


def test_many_threads_take_turns(system: str, tmp_path: Path) -> None:
    write_json(tmp_path / "count.json", 0)

    def count() -> None:
        for _ in range(20):
            # Windows does not remove a file that is open elsewhere; the simulation here would.
            with FileLock(tmp_path / "lock", 30, temporary=system == "here"):
                write_json(tmp_path / "count.json", read_json(tmp_path / "count.json") + 1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert read_json(tmp_path / "count.json") == 80
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "lock") == ["count.json"]


def test_files_are_written_and_items_are_built_on_every_system(system: str, tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt", "w") as f:
        f.write("é\n")
        (partial,) = tmp_path.glob(".*.partial")
        assert not remove_partial_file(partial), "a sweep leaves a file that is being written"
    assert (tmp_path / "a.txt").read_bytes() == "é\n".encode(), "locking does not move the position"
    workspace = Workspace(tmp_path / "w")
    for text in ("one", "two"):
        with workspace.build("reports", "r", "r", replace=True) as draft:
            write_json(draft.path / "report.json", text)
            assert Workspace(tmp_path / "w").remove_partials() == 0 and draft.path.exists()
        assert read_json(workspace.find("reports", "r") / "report.json") == text
    with workspace.lock("reports", "r"), pytest.raises(Busy):
        locks.FileLock(workspace.root / "reports" / ".r.lock")
    workspace.restore(workspace.remove("reports", "r").entry)
    assert workspace.ids("reports") == ["r"]


@needs_byte_locks
def test_on_windows_one_byte_behind_the_content_is_locked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = FakeMsvcrt()
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    write_json(tmp_path / "a.json", {"content": "x" * 1000})
    FileLock(tmp_path / "lock").release()
    assert {count for _, count in fake.calls} == {1}
    assert all(2**30 < position < 2**31 for position, _ in fake.calls), "a position has 32 bits there"
    assert read_json(tmp_path / "a.json")["content"] == "x" * 1000
    assert (tmp_path / "a.json").stat().st_size < 2000 and (tmp_path / "lock").stat().st_size == 0


def test_a_lock_is_released_when_its_process_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\nfrom core.store.locks import FileLock\n"
        "lock = FileLock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(locks.__file__).parents[2],
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"held\n"
        assert is_locked(path)
        child.kill()
        child.wait()
    assert not is_locked(path)
    FileLock(path).release()


def test_a_released_lock_is_free_although_a_forked_process_inherited_it(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "owner.lock")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.read(read, 1)  # until the parent closes its end
        os._exit(0)
    os.close(read)
    try:
        assert is_locked(tmp_path / "owner.lock")
        lock.release()
        assert not is_locked(tmp_path / "owner.lock")
        FileLock(tmp_path / "owner.lock").release()
    finally:
        os.close(write)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_named_in_words(
    number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError) as caught:
        FileLock(tmp_path / "lock")
    assert "no file locks" in storage_error(caught.value, tmp_path / "lock").what
    with pytest.raises(StorageError, match="no file locks.*Move the workspace to a local disk"):
        write_json(tmp_path / "a.json", 1)
    with pytest.raises(StorageError, match="no file locks"), Workspace(tmp_path / "w").lock("mixes", "m"):
        pass
    assert not list(tmp_path.rglob("*.partial")) and not (tmp_path / "a.json").exists()


def test_a_system_without_locks_is_named_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("fcntl", "msvcrt"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StorageError, match="this system has no file locks"):
        write_json(tmp_path / "a.json", 1)
