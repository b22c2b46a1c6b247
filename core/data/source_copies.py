"""The copy of an imported file, read in blocks of whole lines while it is copied: the file is read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.data.formats.json_rows import LINE_LIMIT
from core.data.formats.readers import Source, open_source
from core.errors import DataError
from core.store.large_files import LargeFile, LargeReader

BLOCK_BYTES = 3 << 20
CHARACTER_BYTES = 4  # of the longest character in UTF-8
_BOM = b"\xef\xbb\xbf"


class SourceCopy:
    """One file and its copy.

    Args:
        source: the file.
        target: the copy, which must not exist.
        report: receives the bytes of each block that is read.
    """

    def __init__(self, source: Source, target: Path, report: Callable[[int], None]) -> None:
        self.copy = replace(source, path=target)
        self.source, self._report = source, report
        self._original = open_source(source)
        self._file: LargeFile | None = LargeFile(target)
        self._record: dict[str, Any] = {}

    def close(self) -> None:
        """Closes the files; it may be called again."""
        self._original.close()
        if self._file is not None:
            self._file.close()

    @property
    def size(self) -> int:
        """The bytes that are copied."""
        return self._file.size if self._file is not None else int(self._record["bytes"])

    def finish(self) -> dict[str, Any]:
        """Copies what is not copied yet, and returns the record of the file: name, bytes, sha256, stored."""
        buffer = bytearray(BLOCK_BYTES)
        while self._fill(memoryview(buffer)):
            pass
        return self._record

    def restart(self) -> None:
        """Makes `blocks` begin at the first line again."""
        if self._file is not None and self._file.size:
            self.finish()

    def _fill(self, space: memoryview) -> int:
        """Reads and copies the next bytes; returns their number, 0 at the end."""
        if self._file is None:
            return 0
        count = self._original.readinto(space)  # type: ignore[attr-defined]
        self._file.write(space[:count])
        if self.source.byte_limit is not None and self._file.size > self.source.byte_limit:
            raise DataError(
                "the file grows while it is read.", "Wait until it is complete.", file=self.source.name
            )
        self._report(count)
        if not count:
            self._record = {
                "name": self.source.name,
                "bytes": self._file.size,
                "sha256": self._file.sha.hexdigest(),
                "stored": self._file.path.name,
            }
            self.close()
            self._file = None
        return int(count)

    def blocks(self) -> Iterator[tuple[memoryview, bool]]:
        """Yields the file in blocks of whole lines, without a byte order mark.

        The first time they come from the file and are copied, later from the copy. A block is valid until the
        next one.

        Returns:
            The block, and whether its last line had no end and got one. A block without a line end has a line
            that is too long.
        """
        if self._file is not None:
            yield from cut_lines(self._fill)
            return
        with LargeReader(self.copy.path) as file:

            def fill(space: memoryview) -> int:
                count = file.readinto(space)
                self._report(count)
                return count

            yield from cut_lines(fill)


def cut_lines(fill: Callable[[memoryview], int]) -> Iterator[tuple[memoryview, bool]]:
    """Yields blocks of whole lines, see `SourceCopy.blocks`.

    Args:
        fill: fills a part of the space; returns how many bytes it got, 0 at the end.
    """
    longest = CHARACTER_BYTES * LINE_LIMIT
    buffer = bytearray(BLOCK_BYTES + longest + 1)
    space = memoryview(buffer)
    kept, begin, is_first = 0, 0, True
    while count := fill(space[kept : kept + BLOCK_BYTES]):
        if is_first and buffer.startswith(_BOM):
            begin = len(_BOM)
        is_first = False
        end = kept + count
        cut = buffer.rfind(b"\n", 0, end) + 1
        if cut <= begin:
            if end - begin > longest:
                yield space[begin:end], False
                return
            kept = end
            continue
        yield space[begin:cut], False
        kept, begin = end - cut, 0
        buffer[:kept] = buffer[cut:end]
    if kept > begin:
        buffer[kept : kept + 1] = b"\n"
        yield space[begin : kept + 1], True
