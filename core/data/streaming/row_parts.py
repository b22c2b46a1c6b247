"""Rows of a block that were read in different ways, put together again; and their types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from core.data.roles.columns import TYPE_LENGTH, TYPE_LIMIT
from core.data.streaming.arrow_arrays import from_integers

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray


@dataclass
class Part:
    """Rows of a block that were read in one way.

    Attributes:
        places: (N,) for each row the index of its line or raw row in the block, ascending.
        lines: (N,) lines of rows.jsonl.
        questions: (N,) hashes.
        labels: (N,) types, null where a row has none; None if no row has one.
    """

    places: NDArray[np.int64]
    lines: pa.StringArray
    questions: NDArray[np.uint64]
    labels: pa.StringArray | None


def merge_parts(parts: Sequence[Part]) -> Part | None:
    """Puts the rows of a block into the order of the files; None if there are none."""
    import pyarrow as pa

    parts = [part for part in parts if len(part.places)]
    if len(parts) < 2:
        return parts[0] if parts else None
    places = np.concatenate([p.places for p in parts])
    order = np.argsort(places, kind="stable")
    every = from_integers(order)
    labels = None
    if any(p.labels is not None for p in parts):
        found = [p.labels if p.labels is not None else pa.nulls(len(p.places), pa.string()) for p in parts]
        labels = pa.concat_arrays(found).take(every)
    return Part(
        places[order],
        pa.concat_arrays([p.lines for p in parts]).take(every),
        np.concatenate([p.questions for p in parts])[order],
        labels,
    )


class Types:
    """The types of many rows.

    Attributes:
        counts: rows of each type.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._codes: list[NDArray[np.int64]] = []
        self._code_of: dict[str, int] = {}
        self._rows = 0

    def add(self, labels: pa.StringArray | None, rows: int) -> bool:
        """Adds the types of the next rows.

        Args:
            labels: the type of each row, null where it has none; None if no row has one.
            rows: how many rows these are.

        Returns:
            Whether these are types: not too many, and not too long.
        """
        if labels is None or labels.null_count == rows:
            if self._code_of:
                self._codes.append(np.full(rows, -1))
            self._rows += rows
            return True
        if not self._code_of and self._rows:
            self._codes.append(np.full(self._rows, -1))
        found = labels.dictionary_encode()
        names = found.dictionary.to_pylist()
        for name in names:
            self._code_of.setdefault(name, len(self._code_of))
        if len(self._code_of) > TYPE_LIMIT or max(map(len, names)) > TYPE_LENGTH:
            return False
        codes = np.array([*(self._code_of[name] for name in names), -1])
        indices = np.nan_to_num(found.indices.to_numpy(zero_copy_only=False), nan=len(names)).astype(np.int64)
        self._codes.append(codes[indices])
        counts = np.bincount(indices, minlength=len(names))
        for name, count in zip(names, counts.tolist()):
            self.counts[name] += count
        self._rows += rows
        return True

    def rank(self) -> NDArray[np.int64] | None:
        """For each row the place of its type in alphabetical order, none first; None without types."""
        if not self._code_of:
            return None
        order = {label: rank for rank, label in enumerate(sorted({"", *self._code_of}))}
        ranks = np.array([order[""], *(order[label] for label in self._code_of)])
        return np.asarray(ranks[np.concatenate(self._codes) + 1])
