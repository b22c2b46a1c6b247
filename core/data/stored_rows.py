"""Canonical rows in a file on disk, as a sequence that reads what is asked for."""

from __future__ import annotations

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
        with open(self._path, "rb") as f:
            for line in f:
                yield json.loads(line)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        begin = int(self._ends[index - 1]) if index else 0
        with open(self._path, "rb", buffering=0) as f:
            f.seek(begin)
            return dict(json.loads(f.read(int(self._ends[index]) - begin)))
