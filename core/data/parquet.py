"""A parquet file becomes rows, without ever unfolding more than it may.

Knows columns, types and how far a small parquet file can unfold: a dictionary of one long text and
a million references to it fits in a few kilobytes. Knows nothing of paths or of what a column means.
pyarrow is imported when a file is read, because importing it takes a while.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from core.data.jsonrows import FIELD_LIMIT
from core.errors import DataError

ROW_LIMIT = 1_000_000
TEXT_LIMIT_BYTES = 1 << 30  # of all cells of a file together, unfolded
RATIO_LIMIT = 1000  # unfolded bytes per byte of the file, from RATIO_FLOOR_BYTES on
RATIO_FLOOR_BYTES = 64 << 20
BATCH_ROWS = 512
TYPE_DEPTH_LIMIT = 4


def read_parquet(file: IO[bytes], name: str) -> Iterator[dict[str, Any]]:
    """Rows of an open parquet file: texts, numbers, dates (as text), and lists or structs of these.

    Args:
        file: open for reading, seekable.
        name: the file to name in an error.

    Raises:
        DataError: damaged, too large when unfolded, or a column of another type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    limits = {"thrift_string_size_limit": 16 << 20, "thrift_container_size_limit": 1 << 20}
    most = min(TEXT_LIMIT_BYTES, max(RATIO_FLOOR_BYTES, RATIO_LIMIT * file.seek(0, 2)))
    done = unfolded = 0
    try:
        folded = _check(pq.ParquetFile(file, **limits), name)
        opened = pq.ParquetFile(file, read_dictionary=folded, **limits)
        for batch in opened.iter_batches(batch_size=BATCH_ROWS):
            done += batch.num_rows
            unfolded += sum(_unfolded_bytes(column) for column in batch.columns)
            if done > ROW_LIMIT or unfolded > most:
                raise DataError(
                    f"here the file passes {ROW_LIMIT:,} rows or unfolds to more than {most:,} bytes.",
                    "Divide it into several files, or save it as .jsonl.", file=name, line=done,
                )  # fmt: skip
            names = batch.schema.names
            for cells in zip(*(column.to_pylist() for column in batch.columns)):
                yield {n: _plain(c) for n, c in zip(names, cells)}
    except (pa.ArrowException, OSError, ValueError, OverflowError, NotImplementedError) as e:
        reason = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
        raise DataError(
            f"not a parquet file that can be read: {reason}",
            "Copy or write the file again, or save it as .jsonl.",
            file=name,
            line=done + 1,
        ) from e


def _check(opened: Any, name: str) -> list[str]:
    """Refuses what may not be read; returns the paths of the text columns that are kept folded."""
    meta, schema = opened.metadata, opened.schema_arrow
    if meta.num_rows > ROW_LIMIT:
        raise DataError(
            f"the file has {meta.num_rows:,} rows.", f"At most {ROW_LIMIT:,} are read; divide it.", file=name
        )
    if len(schema) > FIELD_LIMIT:
        raise DataError(
            f"the file has {len(schema)} columns.",
            f"At most {FIELD_LIMIT} are read; keep the needed ones.",
            file=name,
        )
    names = schema.names
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise DataError(
            f"the file names the column {twice!r} twice.", "Give each column its own name.", file=name
        )
    for field in schema:
        if not _readable(field.type, 0):
            raise DataError(
                f"the column {field.name!r} holds {str(field.type)[:60]}, which is not read.",
                "Keep columns of texts and numbers, and lists of messages; remove the others.",
                file=name,
            )
    size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    if size > TEXT_LIMIT_BYTES:
        raise DataError(
            f"the file unfolds to {size:,} bytes.",
            f"At most {TEXT_LIMIT_BYTES:,} are read; divide it.",
            file=name,
        )
    folded: dict[str, None] = {}
    for i in range(meta.num_row_groups):
        for j in range(meta.num_columns):
            chunk = meta.row_group(i).column(j)
            if chunk.physical_type == "BYTE_ARRAY" and "DELTA_BYTE_ARRAY" in chunk.encodings:
                raise DataError(
                    f"the column {chunk.path_in_schema!r} is written as DELTA_BYTE_ARRAY.",
                    "Write the file with default encodings.",
                    file=name,
                )
            if chunk.physical_type == "BYTE_ARRAY" and any("DICTIONARY" in e for e in chunk.encodings):
                folded[chunk.path_in_schema] = None
    return list(folded)


def _readable(kind: Any, depth: int) -> bool:
    import pyarrow.types as types

    if depth > TYPE_DEPTH_LIMIT:
        return False
    if types.is_dictionary(kind):
        return _readable(kind.value_type, depth + 1)
    if types.is_list(kind) or types.is_large_list(kind):
        return _readable(kind.value_type, depth + 1)
    if types.is_struct(kind):
        return kind.num_fields <= FIELD_LIMIT and all(
            _readable(kind.field(i).type, depth + 1) for i in range(kind.num_fields)
        )
    return (
        types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind) or types.is_floating(kind)
        or types.is_boolean(kind) or types.is_null(kind)
        or (depth == 0 and (types.is_date(kind) or types.is_timestamp(kind) or types.is_decimal(kind)))
    )  # fmt: skip


def _unfolded_bytes(column: Any) -> int:
    """How many bytes the texts of a column have once every reference is a text of its own."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    if types.is_dictionary(column.type):
        if types.is_string(column.type.value_type) or types.is_large_string(column.type.value_type):
            return pc.sum(pc.take(pc.binary_length(column.dictionary), column.indices)).as_py() or 0
        return int(column.nbytes)
    if types.is_list(column.type) or types.is_large_list(column.type):
        return 8 * len(column) + _unfolded_bytes(column.flatten())
    if types.is_struct(column.type):
        return sum(_unfolded_bytes(field) for field in column.flatten())
    return int(column.nbytes)


def _plain(cell: Any) -> Any:
    """Dates and decimals as text; everything else as it is."""
    return cell if cell is None or isinstance(cell, (str, int, float, list, dict)) else str(cell)
