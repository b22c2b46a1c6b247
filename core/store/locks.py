"""Locks on files, between processes and between threads. The system releases them when their process ends.

Linux and macOS lock the whole file (`flock`). Windows locks a range of bytes, which other processes then
cannot read or write; so one byte is locked that lies far behind the content of these files.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import time
from pathlib import Path
from typing import IO

from core.errors import Busy
from core.store.permissions import open_private

RETRY_SECONDS = 0.005
TEST_SECONDS = 0.05  # `is_locked` of another process holds the lock for an instant
LOCKED_BYTE = 0x7FFFFFF0  # on Windows
# What a system answers when a lock has another owner; it is EACCES and EDEADLOCK on Windows.
OWNED = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
CAN_REMOVE_OPEN_FILES = os.name != "nt"


class FileLock:
    """An exclusive lock on a file. The operating system releases it when the process dies.

    Two objects exclude each other within one process, too. The lock is not reentrant.

    Args:
        path: the file; it is created.
        seconds: how long to wait for the lock.
        temporary: remove the file when the lock is released.

    Raises:
        Busy: another process or object holds it. OSError: the file cannot be written, or the disk has no
            locks; `core.store.files.storage_error` converts it.
    """

    def __init__(self, path: Path, seconds: float = 0.0, temporary: bool = False) -> None:
        self._path, self._is_temporary = path, temporary
        self._file: IO[bytes] | None = None
        deadline = time.monotonic() + max(seconds, TEST_SECONDS)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():  # in place of the file, it would keep every process out
            os.rename(path, path.with_name(f"{path.name}.{secrets.token_hex(4)}.damaged"))
        while not self._acquire():
            if time.monotonic() >= deadline:
                raise Busy(
                    f"{path.parent.name!r} is already in use.",
                    "Wait until the process that uses it has finished, or stop that process.",
                )
            time.sleep(RETRY_SECONDS)

    def _acquire(self) -> bool:
        try:
            file = open(self._path, "ab", opener=open_private)  # noqa: SIM115 (open while the lock is held)
        except PermissionError:
            if CAN_REMOVE_OPEN_FILES or not self._path.exists():
                raise
            return False  # on Windows: its owner is removing it
        try:
            if lock_file(file) and is_same_file(file, self._path):
                self._file = file
                return True
        finally:
            if self._file is not file:
                file.close()  # locked by another owner, or removed by the owner that has just released it
        return False

    def release(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._file is None:
            return
        if not CAN_REMOVE_OPEN_FILES:
            self._file.close()
        if self._is_temporary:
            # While it is locked: a later owner checks `is_same_file`. Windows does not remove a file that is
            # open elsewhere.
            with contextlib.suppress(OSError):
                self._path.unlink()
        unlock_file(self._file)
        self._file.close()
        self._file = None

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock on `path`."""
    try:
        with open(path, "rb") as f:
            return not lock_file(f)
    except OSError:
        if path.is_file():
            raise
        return False  # missing, or a folder, which no process can lock


def is_same_file(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def lock_file(file: IO[bytes]) -> bool:
    """Locks an open file until it is closed; returns False if it is locked already.

    Raises:
        OSError: the system or the disk has no file locks.
    """
    try:
        import fcntl
    except ImportError:
        return _lock_byte(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as e:
        if e.errno in OWNED:
            return False
        raise


def unlock_file(file: IO[bytes]) -> None:
    """Unlocks an open file, also for the processes that were forked while it was locked.

    They have inherited the open file, and closing it here alone would leave it locked until they end.
    """
    try:
        import fcntl
    except ImportError:
        return  # Windows has no fork, and closing the file unlocks it
    with contextlib.suppress(OSError, ValueError):
        fcntl.flock(file, fcntl.LOCK_UN)


def _lock_byte(file: IO[bytes]) -> bool:
    """Locks one byte of a file that has just been opened, on Windows; its position stays."""
    try:
        import msvcrt
    except ImportError as e:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) from e
    descriptor = file.fileno()
    position = os.lseek(descriptor, 0, os.SEEK_CUR)
    try:
        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return True
    except OSError as e:
        if e.errno in OWNED:
            return False
        raise
    finally:
        os.lseek(descriptor, position, os.SEEK_SET)
