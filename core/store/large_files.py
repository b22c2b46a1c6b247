"""Files of many megabytes, written from the first byte to the last without filling the page cache.

Every FLUSH_BYTES the file is flushed to the disk and its pages are released. An import of gigabytes then
leaves the memory of the machine to the model, and the flush at the end of a draft has little left to write.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from types import TracebackType

FLUSH_BYTES = 32 << 20


class LargeFile:
    """A new file, and the sha256 of what is written into it.

    Args:
        path: the file, which must not exist.

    Attributes:
        sha: the digest so far.
        size: bytes written so far.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.sha, self.size = path, hashlib.sha256(), 0
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115
        self._flushed = 0

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Appends a block."""
        self.sha.update(block)
        rest = memoryview(block)
        while len(rest):  # the system may write a part of it
            rest = rest[self._file.write(rest) :]
        self.size += len(block)
        if self.size - self._flushed >= FLUSH_BYTES:
            release_pages(self._file.fileno(), self.size, flush=True)
            self._flushed = self.size

    def close(self) -> None:
        """Closes the file; it may be called again."""
        self._file.close()

    def __enter__(self) -> LargeFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
