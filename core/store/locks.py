"""Locks on files, between processes and between threads. The system releases them when their process ends."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import IO

from core.errors import Busy

RETRY_SECONDS = 0.005


class FileLock:
    """An exclusive lock on a file. The operating system releases it when the process dies.

    Two objects exclude each other within one process, too. The lock is not reentrant.

    Args:
        path: the file; it is created.
        seconds: how long to wait for the lock.
        temporary: remove the file when the lock is released.

    Raises:
        Busy: another process or object holds it.
    """

    def __init__(self, path: Path, seconds: float = 0.0, temporary: bool = False) -> None:
        self._path, self._is_temporary = path, temporary
        self._file: IO[bytes] | None = None
        deadline = time.monotonic() + seconds
        path.parent.mkdir(parents=True, exist_ok=True)
        while not self._acquire():
            if time.monotonic() >= deadline:
                raise Busy(
                    f"{path.parent.name!r} is already in use.",
                    "Wait until the process that uses it has finished, or stop that process.",
                )
            time.sleep(RETRY_SECONDS)

    def _acquire(self) -> bool:
        file = open(self._path, "ab")  # noqa: SIM115 (open while the lock is held)
        if lock_file(file) and is_same_file(file, self._path):
            self._file = file
            return True
        file.close()  # locked by another owner, or removed by the owner that has just released it
        return False

    def release(self) -> None:
        """Releases the lock; a second call does nothing."""
        if self._file is None:
            return
        if self._is_temporary:
            with contextlib.suppress(OSError):  # while it is locked: a later owner checks `is_same_file`
                self._path.unlink()
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
    except FileNotFoundError:
        return False


def is_same_file(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def lock_file(file: IO[bytes]) -> bool:
    """Locks an open file until it is closed; returns False if it is locked already."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            return True
        except OSError:
            return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
