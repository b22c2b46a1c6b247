"""Files of many megabytes, written and read from the first byte to the last past the page cache.

    blocks ─ copy ─> stage: STAGE_BYTES of aligned memory ─ O_DIRECT ─> disk
                     the last, shorter stage ─ ordinary write ─> disk

An import of gigabytes then leaves the memory of the machine to the model, and the flush at the end of a draft
has little left to write. It also costs less: in a virtual machine, every fresh page of the cache has a price.
Where a system or a disk has no O_DIRECT, the file is flushed every FLUSH_BYTES, and its pages are released.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
from pathlib import Path
from types import TracebackType

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FLUSH_BYTES = 32 << 20
STAGE_BYTES = 1 << 20


class LargeFile:
    """A new file, and the sha256 of what is written into it. The file is complete once it is closed.

    Args:
        path: the file, which must not exist.

    Attributes:
        sha: the digest so far.
        size: bytes so far.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.sha, self.size = path, hashlib.sha256(), 0
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._is_direct = set_direct(self._file.fileno(), True)
        self._stage = memoryview(mmap.mmap(-1, STAGE_BYTES))
        self._filled = self._flushed = 0

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Appends a block."""
        self.sha.update(block)
        rest = memoryview(block).cast("B")
        self.size += len(rest)
        while len(rest):
            count = min(len(rest), STAGE_BYTES - self._filled)
            self._stage[self._filled : self._filled + count] = rest[:count]
            self._filled, rest = self._filled + count, rest[count:]
            if self._filled == STAGE_BYTES:
                self._write_stage()

    def _write_stage(self) -> None:
        rest, self._filled = self._stage[: self._filled], 0
        while len(rest):  # the system may write a part of it
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as e:
                if not self._is_direct or e.errno != errno.EINVAL:
                    raise
                self._is_direct = set_direct(self._file.fileno(), False)  # this disk has another alignment
        if not self._is_direct and self.size - self._flushed >= FLUSH_BYTES:
            release_pages(self._file.fileno(), self.size, flush=True)
            self._flushed = self.size

    def close(self) -> None:
        """Writes what is left, and closes the file; it may be called again."""
        if self._file.closed:
            return
        try:
            self._is_direct = set_direct(self._file.fileno(), False)  # the size of the rest is not aligned
            self._write_stage()
        finally:
            self._file.close()

    def __enter__(self) -> LargeFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LargeReader:
    """A file that `LargeFile` wrote.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        size = os.fstat(self._file.fileno()).st_size
        self._is_direct = size >= STAGE_BYTES and set_direct(self._file.fileno(), True)
        self._stage = memoryview(mmap.mmap(-1, STAGE_BYTES))
        self._begin = self._end = 0  # of what the stage has

    def readinto(self, space: bytearray | memoryview) -> int:
        """Fills the space as far as the file goes; returns how many bytes it got, 0 at the end."""
        rest = memoryview(space)
        while len(rest) and (self._begin < self._end or self._fill_stage()):
            count = min(len(rest), self._end - self._begin)
            rest[:count] = self._stage[self._begin : self._begin + count]
            self._begin, rest = self._begin + count, rest[count:]
        return len(space) - len(rest)

    def _fill_stage(self) -> bool:
        self._begin = 0
        try:
            self._end = self._file.readinto(self._stage) or 0
        except OSError as e:
            if not self._is_direct or e.errno != errno.EINVAL:
                raise
            self._is_direct = set_direct(self._file.fileno(), False)
            self._end = self._file.readinto(self._stage) or 0
        return self._end > 0

    def __enter__(self) -> LargeReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_direct:
            release_pages(self._file.fileno(), self._file.tell())
        self._file.close()


def set_direct(descriptor: int, is_direct: bool) -> bool:
    """Switches O_DIRECT on or off for an open file; returns whether it is on.

    Every transfer is then from or into memory at a whole page, at such a place of the file, and of such a
    size; a transfer that is not fails with EINVAL.
    """
    if fcntl is None or not hasattr(os, "O_DIRECT"):
        return False
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if is_direct else flags & ~os.O_DIRECT)
    except OSError:  # this disk has none
        return False
    return is_direct


def release_pages(descriptor: int, size: int, flush: bool = False) -> None:
    """Releases the pages of the first `size` bytes of a file from the page cache, where the system can.

    Args:
        flush: write them to the disk first; pages that were not written stay.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError):  # a disk that cannot flush writes at its own time
        if flush:
            os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_DONTNEED)
