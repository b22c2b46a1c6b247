"""Writes the files of a dataset into its draft: the rows, the three splits, and an index of each split.

    lines of canonical rows ─ RowsFile ─> rows.jsonl, and the length of every line
    the split of every row ─ write_splits ─> splits/<id>_{train,val,test}.jsonl and .offsets

Nothing holds all rows: `write_splits` reads rows.jsonl once more, in blocks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.data.dataset_records import INDEX_STEP
from core.data.splits import SPLITS
from core.data.streaming.arrow_arrays import from_mask
from core.store.large_files import LargeFile, LargeReader

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_BYTES = 4 << 20


def to_line(row: Mapping[str, Any]) -> bytes:
    """A canonical row as a line of rows.jsonl."""
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


class RowsFile(LargeFile):
    """rows.jsonl while it is written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lengths: list[NDArray[np.uint32]] = []

    def __enter__(self) -> RowsFile:
        return self

    def write_lines(self, lines: bytes | memoryview, lengths: NDArray[np.uint32]) -> None:
        """Appends lines.

        Args:
            lines: canonical rows, each with its line end.
            lengths: the bytes of each line.
        """
        self.write(lines)
        self._lengths.append(lengths)

    def write_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends canonical rows."""
        block: list[bytes] = []
        size = 0
        for row in rows:
            block.append(to_line(row))
            size += len(block[-1])
            if size > BLOCK_BYTES:
                self._write_block(block)
                block, size = [], 0
        if block:
            self._write_block(block)

    def _write_block(self, lines: Sequence[bytes]) -> None:
        self.write_lines(b"".join(lines), np.fromiter(map(len, lines), np.uint32, len(lines)))

    def lengths(self) -> NDArray[np.uint32]:
        """The bytes of every line, in the order of the rows."""
        self._lengths = [np.concatenate([*self._lengths, np.zeros(0, np.uint32)])]
        return self._lengths[0]

    def fingerprint(self, seed: int, ratios: Sequence[float]) -> str:
        """The sha256 of the rows, the seed and the ratios, which together decide every split."""
        sha = self.sha.copy()
        sha.update(describe_split(seed, ratios))
        return sha.hexdigest()


def describe_split(seed: int, ratios: Sequence[float]) -> bytes:
    """What a dataset's fingerprint says about its split."""
    return json.dumps({"ratios": list(ratios), "seed": seed}, sort_keys=True).encode()


def split_path(folder: Path, dataset_id: str, split: str) -> Path:
    """The file of a split in the folder of a dataset."""
    return folder / "splits" / f"{dataset_id}_{split}.jsonl"


def index_path(folder: Path, dataset_id: str, split: str) -> Path:
    """The index of a split: where every INDEX_STEP-th row begins, as little-endian 64-bit integers."""
    return split_path(folder, dataset_id, split).with_suffix(".offsets")


def write_splits(
    rows_file: Path,
    lengths: NDArray[np.uint32],
    chosen: NDArray[np.uint8],
    folder: Path,
    dataset_id: str,
    report: Callable[[int], None] | None = None,
) -> dict[str, str]:
    """Writes the three splits and their indices.

    Args:
        rows_file: rows.jsonl.
        lengths: the bytes of each of its lines.
        chosen: for each row the index of its split in SPLITS.
        folder: the folder of the draft.
        report: receives the bytes of each block.

    Returns:
        The sha256 of each split's file.
    """
    (folder / "splits").mkdir(exist_ok=True)
    files = [LargeFile(split_path(folder, dataset_id, split)) for split in SPLITS]
    try:
        for lines, begins, splits in _read_blocks(rows_file, lengths, chosen):
            for index, file in enumerate(files):
                file.write(_take_lines(lines, begins, splits == index))
            if report:
                report(len(lines))
    finally:
        for file in files:
            file.close()
    for index, split in enumerate(SPLITS):
        ends = np.cumsum(lengths[chosen == index], dtype="<u8")
        begins = np.concatenate((np.zeros(1, "<u8"), ends[:-1]))[: len(ends)]
        begins[::INDEX_STEP].tofile(index_path(folder, dataset_id, split))
    return {split: file.sha.hexdigest() for split, file in zip(SPLITS, files)}


def _read_blocks(
    rows_file: Path, lengths: NDArray[np.uint32], chosen: NDArray[np.uint8]
) -> Iterator[tuple[memoryview, NDArray[np.int64], NDArray[np.uint8]]]:
    """Yields blocks of whole lines, where each line begins (and the block ends), and the split of each."""
    ends = np.cumsum(lengths, dtype=np.int64)
    row = done = 0
    buffer = bytearray(BLOCK_BYTES)  # reused: fresh memory costs as much as reading
    with LargeReader(rows_file) as f:
        while row < len(ends):
            last = max(row + 1, int(np.searchsorted(ends, done + BLOCK_BYTES, "right")))
            begins = np.concatenate(([0], ends[row:last] - done))
            size = int(begins[-1])
            if size > len(buffer):
                buffer = bytearray(size)
            lines = memoryview(buffer)[:size]
            if f.readinto(lines) != size:
                raise OSError(f"{rows_file.name} changed while it was written")
            yield lines, begins, chosen[row:last]
            done, row = int(ends[last - 1]), last


def _take_lines(lines: memoryview, begins: NDArray[np.int64], wanted: NDArray[np.bool_]) -> memoryview:
    """The wanted lines of a block, one after the other."""
    import pyarrow as pa

    array = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(wanted), [None, pa.py_buffer(begins), pa.py_buffer(lines)]
    )
    part = array.filter(from_mask(wanted))
    return memoryview(part.buffers()[2] or b"")
