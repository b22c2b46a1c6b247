"""Canonical rows in a file on disk, as a sequence that reads one row or a slice at a time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class StoredRows(Sequence[dict[str, Any]]):
    """The rows of a file with one JSON object per line.

    Args:
        path: the file.
        lengths: the bytes of each line.
    """

    def __init__(self, path: Path, lengths: NDArray[np.uint32]) -> None:
        self._path = path
        self._ends = np.cumsum(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from self._read(0, len(self))

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            begin, end, step = index.indices(len(self))
            return list(self._read(begin, max(begin, end)))[::step]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return next(self._read(index, index + 1))

    def _read(self, begin: int, end: int) -> Iterator[dict[str, Any]]:
        if begin == end:
            return
        with open(self._path, "rb") as f:
            f.seek(int(self._ends[begin - 1]) if begin else 0)
            for line in itertools.islice(f, end - begin):
                yield json.loads(line)
