"""Which files are tables that can be read in blocks, and how many bytes and rows they have about."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import IO

from core.data.formats import compressed, json_rows
from core.data.formats.parquet import count_rows
from core.data.formats.read_log import ReadLog
from core.data.formats.readers import (
    FORMATS,
    STREAMED_SUFFIXES,
    Source,
    is_json_array,
    open_archives,
    open_source,
)
from core.errors import DataError

HEAD_BYTES = 1 << 20  # of a file, whose rows are counted for an estimate


def measure_tables(sources: Sequence[Source]) -> int | None:
    """The bytes of tables, of archives once they are inflated, as they claim; nothing is inflated.

    Returns:
        None if a file cannot be read in blocks, or not at all.
    """
    total = 0
    for source in sources:
        size = _measure(source)
        if size is None:
            return None
        total += size
    return total


def _measure(source: Source) -> int | None:
    if not compressed.is_archive(source.name) and source.suffix not in STREAMED_SUFFIXES:
        return None
    with open_source(source) as f:
        if not compressed.is_archive(source.name):
            is_read_whole = source.suffix == ".json" and not is_json_array(f)
            return None if is_read_whole else os.fstat(f.fileno()).st_size
        try:
            members = compressed.measure_members(f, source.name, FORMATS)
        except DataError:  # which the import raises
            return None
    is_table = all(PurePosixPath(name.lower()).suffix in STREAMED_SUFFIXES for name in members)
    return sum(members.values()) if is_table and compressed.RECORD not in members else None


def estimate_rows(sources: Sequence[Source], head_bytes: int = HEAD_BYTES) -> int:
    """Estimates the rows of tables from their first bytes; those of parquet files are known.

    Args:
        head_bytes: of a file, and of the first file of an archive.
    """
    total = 0.0
    for source in sources:
        size = _measure(source) or 0
        with contextlib.closing(open_archives([source], ReadLog())) as members:
            member = next(members)
            with open_source(member) as f:
                if member.suffix == ".parquet":
                    rows, seen = count_rows(f), f.seek(0, os.SEEK_END)
                else:
                    rows, seen = _count_head(f, member.suffix, head_bytes)
        total += rows * (size / seen if seen else 0.0)
    return round(total)


def _count_head(file: IO[bytes], suffix: str, head_bytes: int) -> tuple[int, int]:
    """Counts the rows of the first bytes; returns their number, and that of the bytes."""
    head = file.read(head_bytes)
    if suffix != ".json":
        return head.count(b"\n"), len(head)
    rows = 0
    with contextlib.suppress(DataError):  # where the head is cut off
        for _ in json_rows.read_json_array(iter([head.decode("utf-8", "ignore")]), ""):
            rows += 1
    return rows, len(head)
