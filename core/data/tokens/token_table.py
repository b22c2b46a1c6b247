"""Encoded sequences as flat arrays, in memory or in files that are mapped: five bytes a token.

    sequences   [5 6 7]  [8 9]               ids     5 6 7 8 9     int32
    loss_mask   [0 1 1]  [0 1]               mask    0 1 1 0 1     uint8
                                             starts  0 3 5         int64

A million short rows as Python lists take gigabytes. `TableWriter` appends sequences to arrays, and to files
in blocks where it is given a folder; `TokenTable` reads them back one at a time.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from core.data.tokens.encoded_sequence import EncodedSequence
from core.data.tokens.packing import PackingStats, check_trainable, pack_best_fit
from core.data.tokens.truncation import Cut

TYPES = {"ids": "int32", "mask": "uint8", "starts": "int64", "cuts": "int32"}
_CODES = {"ids": "i", "mask": "B", "starts": "q", "cuts": "i"}
BLOCK_TOKENS = 1 << 20  # tokens that a writer collects before it appends them to its files


class TokenTable(Sequence[EncodedSequence]):
    """Sequences in flat arrays.

    Attributes:
        ids, mask: the tokens of all sequences and their loss masks.
        starts: (n + 1,) where each sequence begins.
        cuts: (n, 3) tokens that each sequence has lost, as `Cut`.
    """

    def __init__(self, ids: Any, mask: Any, starts: Any, cuts: Any) -> None:
        self.ids, self.mask, self.starts, self.cuts = ids, mask, starts, cuts.reshape(-1, len(Cut._fields))

    @classmethod
    def open(cls, folder: Path) -> TokenTable:
        """Maps the files of a `TableWriter`.

        Raises:
            OSError, ValueError: a file is missing or of an impossible size.
        """
        arrays = {}
        for name, kind in TYPES.items():
            path = folder / f"{name}.bin"
            # an empty file cannot be mapped; a plain array of the mapping has cheap slices
            empty = not path.stat().st_size
            arrays[name] = np.zeros(0, kind) if empty else np.asarray(np.memmap(path, kind, "r"))
        table = cls(**arrays)
        if table.starts[-1] != len(table.ids) or len(table.mask) != len(table.ids):
            raise ValueError(f"the arrays in {folder.name} do not belong together")
        return table

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, index: int) -> EncodedSequence: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedSequence]: ...
    def __getitem__(self, index: int | slice) -> EncodedSequence | list[EncodedSequence]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self.starts[index], self.starts[index + 1]
        cut = Cut(*self.cuts[index].tolist())
        return EncodedSequence(self.ids[start:end].tolist(), self.mask[start:end].tolist(), cut)

    def documents(self) -> Iterator[Any]:
        """The ids of every sequence, as views."""
        for start, end in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            yield self.ids[start:end]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(n,) tokens of every sequence."""
        return np.diff(self.starts)  # type: ignore[no-any-return]


class TableWriter:
    """Collects sequences into a table.

    Args:
        folder: where the arrays go in blocks; None keeps them in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._end = 0
        self._arrays = {name: array(code) for name, code in _CODES.items()}
        self._arrays["starts"].append(0)

    def append(self, sequence: EncodedSequence) -> None:
        """Adds a sequence without an encoder's side."""
        self._append(sequence.ids, sequence.loss_mask, sequence.cut)

    def append_document(self, ids: Sequence[int]) -> None:
        """Adds the ids of a document, all of them trained."""
        self._append(ids, b"\1" * len(ids), Cut())

    def _append(self, ids: Sequence[int], mask: Sequence[int] | bytes, cut: Cut) -> None:
        self._end += len(ids)
        self._arrays["ids"].extend(ids)
        self._arrays["mask"].extend(mask)
        self._arrays["starts"].append(self._end)
        self._arrays["cuts"].extend(cut)
        if self._folder and len(self._arrays["ids"]) >= BLOCK_TOKENS:
            self._write()

    def _write(self) -> None:
        assert self._folder
        for name, values in self._arrays.items():
            with open(self._folder / f"{name}.bin", "ab") as f:
                values.tofile(f)
            self._arrays[name] = array(_CODES[name])

    def finish(self) -> TokenTable:
        """The table of all sequences so far; with a folder, its files are complete.

        Raises:
            OSError: the disk refused.
        """
        if self._folder:
            self._write()
            return TokenTable.open(self._folder)
        return TokenTable(
            **{n: np.frombuffer(a, TYPES[n]) if a else np.zeros(0, TYPES[n]) for n, a in self._arrays.items()}
        )


class TableRows:
    """The rows of batches, each made of sequences of a table when it is read.

    Attributes:
        lengths: tokens of every row.
    """

    def __init__(self, table: TokenTable, members: Sequence[Sequence[int]], packed: bool) -> None:
        self._table, self._members, self._packed = table, members, packed
        sizes = table.sizes
        self.lengths = [int(sizes[list(m)].sum()) for m in members]

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        """A row as `core.data.tokens.packing.build_rows` describes it."""
        row: dict[str, list[int]] = {"input_ids": [], "loss_mask": []}
        members = [self._table[i] for i in self._members[index]]
        for sequence in members:
            row["input_ids"] += sequence.ids
            row["loss_mask"] += [0, *sequence.loss_mask[1:]]
        if self._packed:
            row["seq_lengths"] = [len(s.ids) for s in members]
        return row


def build_table_rows(
    table: TokenTable, order: Sequence[int], width: int, packed: bool
) -> tuple[TableRows, PackingStats]:
    """The rows and figures that `build_rows` returns for the sequences in this order, without building them.

    Args:
        order: indices of all sequences, in the order in which they should fill the rows.
        width, packed: as in `build_rows`.

    Raises:
        SpecError: no sequence has a trained token.
    """
    sizes = table.sizes
    sums = np.concatenate([[0], np.cumsum(table.mask, dtype=np.int64)])
    # the first token of a sequence is never predicted
    trained = sums[table.starts[1:]] - sums[np.minimum(table.starts[:-1] + 1, table.starts[1:])]
    every = np.asarray(order, dtype=np.int64)
    trainable = every[trained[every] > 0]
    check_trainable(len(trainable))
    if packed:
        packs = pack_best_fit(sizes[trainable].tolist(), width)
        members = [trainable[pack].tolist() for pack in packs]
    else:
        members = [[i] for i in trainable.tolist()]
    rows = TableRows(table, members, packed)
    tokens = int(sizes[trainable].sum())
    row_width = width if packed else int(sizes[trainable].max())
    lost = table.cuts.sum(1)
    answer, question, system = (int(n) for n in table.cuts.sum(0))
    stats = PackingStats(
        rows=len(rows),
        sequences=len(trainable),
        tokens=tokens,
        trained=int(trained[trainable].sum()),
        fill=round(tokens / (len(rows) * row_width), 4),
        width=row_width,
        packed=packed,
        cut=int((lost > 0).sum()),
        lost=int(lost.sum()),
        lost_answer=answer,
        lost_question=question,
        lost_system=system,
    )
    return rows, stats
