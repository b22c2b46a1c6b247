"""Weight files in the form of safetensors, written a few rows at a time and continued after a crash."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.export.precisions import OF_SPEC, to_bytes
from core.gguf.model_tensors import VALUE_BYTES, ModelTensors, Precision
from core.store.resumable_files import Block, PollStop, Report, write_blocks

CHUNK_VALUES = 4 << 20  # of a tensor in memory at a time, unless one row is larger


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    name: str
    precision: Precision
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * VALUE_BYTES[self.precision]


def list_entries(tensors: ModelTensors, precision: str) -> list[Entry]:
    """The tensors of a model as they are written.

    Args:
        precision: of `ExportSpec`: "base", "bf16", "f16" or "f32".
    """
    return [
        Entry(name, OF_SPEC[precision] if precision != "base" else tensors.dtype_of(name), shape)
        for name, shape in tensors.shapes.items()
    ]


def divide(entries: Iterable[Entry], shard_bytes: int) -> list[list[Entry]]:
    """Divides tensors into files of at most `shard_bytes`, unless one tensor is larger."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.size > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.size
    # Wide values come first, so that all of them are aligned.
    return [sorted(shard, key=lambda e: (-VALUE_BYTES[e.precision], e.name)) for shard in shards]


def write_file(
    path: Path,
    tensors: ModelTensors,
    entries: Sequence[Entry],
    plan: str,
    report: Report = lambda done, total: None,
    poll_stop: PollStop = lambda: False,
) -> None:
    """Writes one file, or continues it; a complete file is left as it is.

    Args:
        entries: of the file, as `divide` orders them.
        plan: a digest of what the values follow from.

    Raises:
        Cancelled: it was stopped; what is written stays for the next call. StorageError, DiskFull.
        SpecError: a value is too large for the precision.
    """
    header = build_header(entries)
    digest = hashlib.sha256(plan.encode() + header).hexdigest()
    blocks = [Block(len(header), lambda: iter((header,))), *_blocks_of(tensors, entries)]
    write_blocks(path, digest, blocks, report, poll_stop)


def build_header(shard: Sequence[Entry]) -> bytes:
    """The header of a safetensors file: its length, and the place of each tensor as JSON."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for e in shard:
        table[e.name] = {
            "dtype": e.precision,
            "shape": list(e.shape),
            "data_offsets": [begin, begin + e.size],
        }
        begin += e.size
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _blocks_of(tensors: ModelTensors, shard: Sequence[Entry]) -> Iterator[Block]:
    for e in shard:
        rows = e.shape[0] if e.shape else 1
        row_values = math.prod(e.shape[1:])
        step = max(1, CHUNK_VALUES // max(1, row_values))
        for begin in range(0, rows, step):
            end = min(rows, begin + step)
            size = (end - begin) * row_values * VALUE_BYTES[e.precision]
            yield Block(size, _make_reader(tensors, e, begin, end))


def _make_reader(tensors: ModelTensors, entry: Entry, begin: int, end: int) -> Any:
    def read() -> Iterator[bytes]:
        yield to_bytes(tensors.read(entry.name, begin, end), entry.precision, entry.name)

    return read
