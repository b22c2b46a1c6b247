"""Parquet files to rows, with a limit on the size after dictionary decoding. Files are opened in `readers`.

Columns of other types, such as images and vectors, are not read: their cells are `UnreadCell`.

A small file can decode to gigabytes: a dictionary of one long text and a million references to it takes a few
kilobytes. Batches are so small that the longest text of a dictionary fits into them for every row
(`parquet_pages`). Columns of lists, whose rows have any number of texts, stay dictionary-encoded until their
decoded size is known, unless it is small: pyarrow then keeps a dictionary of all texts of a row group.
pyarrow is imported when a file is read, because the import is slow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from core.data.formats.json_rows import FIELD_LIMIT, check_depth
from core.data.formats.parquet_pages import survey_pages
from core.errors import DataError

ROW_LIMIT = 1_000_000
TEXT_LIMIT_BYTES = 1 << 30  # of all cells of a file, decoded
RATIO_LIMIT = 1000  # decoded bytes per byte of the file, from RATIO_FLOOR_BYTES on
RATIO_FLOOR_BYTES = 64 << 20
BATCH_ROWS = 512
BATCH_BYTES = 8 << 20  # that the texts of a batch's column may decode to, if a row has one
NESTED_BYTES = 64 << 20  # that the references of a chunk may decode to, for a column of lists
READ_BYTES = 1 << 20  # of a column that are read at once; otherwise a row group is read whole
TYPE_DEPTH_LIMIT = 8  # a list of messages with tool calls has 7


@dataclass(frozen=True)
class UnreadCell:
    """A cell of a column whose type is not supported.

    Attributes:
        type_name: the type, as Arrow writes it.
    """

    type_name: str

    def __str__(self) -> str:
        return f"({self.type_name}, not read)"


def read_parquet(file: IO[bytes], name: str, is_limited: bool = True) -> Iterator[dict[str, Any]]:
    """Reads rows of texts, numbers, dates (as text), and lists or structs of these.

    Args:
        file: open for reading, seekable.
        name: the file name that errors show.
        is_limited: whether ROW_LIMIT and TEXT_LIMIT_BYTES apply; RATIO_LIMIT always does.

    Raises:
        DataError: the file is damaged, too large once decoded, or has a column of another type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    limits = {"thrift_string_size_limit": 16 << 20, "thrift_container_size_limit": 1 << 20}
    limit = max(RATIO_FLOOR_BYTES, RATIO_LIMIT * file.seek(0, 2))
    if is_limited:
        limit = min(TEXT_LIMIT_BYTES, limit)
    done = decoded = 0
    try:
        dictionary_columns, unread, rows = _check(pq.ParquetFile(file, **limits), file, name, is_limited)
        parquet = pq.ParquetFile(
            file, read_dictionary=dictionary_columns, buffer_size=READ_BYTES, pre_buffer=False, **limits
        )
        columns = parquet.schema_arrow.names
        labels = _find_labels(parquet.schema_arrow.metadata)
        wanted = [c for c in columns if c not in unread]
        for batch in parquet.iter_batches(batch_size=rows, columns=wanted, use_threads=False):
            done += batch.num_rows
            decoded += sum(_count_decoded_bytes(column) for column in batch.columns)
            if is_limited and done > ROW_LIMIT:
                raise DataError(
                    f"the file has more than {ROW_LIMIT:,} rows.",
                    "Split it into several datasets.", file=name, line=done,
                )  # fmt: skip
            if decoded > limit:
                raise DataError(
                    f"the file decodes to more than {limit:,} bytes.",
                    "Split it into several files, or save it as .jsonl.", file=name, line=done,
                )  # fmt: skip
            names = batch.schema.names
            for cells in zip(*(column.to_pylist() for column in batch.columns)):
                row = {n: _to_json_value(c) for n, c in zip(names, cells)}
                for column, class_names in labels.items():
                    row[column] = _name_label(row.get(column), class_names)
                yield {c: unread.get(c, row.get(c)) for c in columns} if unread else row
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, NotImplementedError) as e:
        reason = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
        raise DataError(
            f"the parquet file cannot be read: {reason}",
            "Copy or write the file again, or save it as .jsonl.",
            file=name,
            line=done + 1,
        ) from e


def count_rows(file: IO[bytes]) -> int:
    """The rows that a parquet file says it has; 0 if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.ParquetFile(file).metadata.num_rows)
    except (pa.ArrowException, OSError, ValueError):
        return 0


def _check(
    parquet: Any, file: IO[bytes], name: str, is_limited: bool
) -> tuple[list[str], dict[str, UnreadCell], int]:
    """Checks size, columns and encodings before any cell is read.

    Returns:
        Paths of the text columns that are read as dictionaries, the columns that are not read, and the rows
        of a batch.

    Raises:
        DataError: a limit is exceeded. ValueError: the pages are damaged.
    """
    meta, schema = parquet.metadata, parquet.schema_arrow
    if is_limited and meta.num_rows > ROW_LIMIT:
        raise DataError(
            f"a file may have at most {ROW_LIMIT:,} rows, got {meta.num_rows:,}.",
            "Split it into several datasets.",
            file=name,
        )
    if len(schema) > FIELD_LIMIT:
        raise DataError(
            f"a file may have at most {FIELD_LIMIT} columns, got {len(schema)}.",
            "Remove the columns that you do not need.",
            file=name,
        )
    names = schema.names
    if duplicate := next((n for n in names if names.count(n) > 1), None):
        raise DataError(f"two columns are named {duplicate!r}.", "Give each column its own name.", file=name)
    unread = {
        f.name: UnreadCell(" ".join(str(f.type).split())[:60]) for f in schema if not _is_supported(f.type, 0)
    }
    if len(unread) == len(schema):
        types = ", ".join(f"{column!r} ({cell.type_name})" for column, cell in unread.items())
        raise DataError(
            f"no column has a type that can be read: {types}.",
            "Write texts, numbers or lists of messages.",
            file=name,
        )
    size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    if is_limited and size > TEXT_LIMIT_BYTES:
        raise DataError(
            f"a file may decode to at most {TEXT_LIMIT_BYTES:,} bytes, got {size:,}.",
            "Split it into several files.",
            file=name,
        )
    dictionary_columns: dict[str, None] = {}
    rows = BATCH_ROWS
    for i in range(meta.num_row_groups):
        for j in range(meta.num_columns):
            chunk = meta.row_group(i).column(j)
            if chunk.path_in_schema.split(".")[0] in unread or chunk.path_in_schema in unread:
                continue
            if chunk.physical_type == "BYTE_ARRAY" and "DELTA_BYTE_ARRAY" in chunk.encodings:
                raise DataError(
                    f"the encoding DELTA_BYTE_ARRAY of the column {chunk.path_in_schema!r} is not supported.",
                    "Write the file again with the default encodings.",
                    file=name,
                )
            if chunk.physical_type != "BYTE_ARRAY":
                continue
            pages = survey_pages(file, _find_start(chunk), chunk.total_compressed_size, chunk.compression)
            if chunk.path_in_schema in names:
                rows = min(rows, max(1, BATCH_BYTES // max(1, pages.longest)))
            elif pages.references * pages.longest > NESTED_BYTES:
                dictionary_columns[chunk.path_in_schema] = None
    return list(dictionary_columns), unread, rows


def _find_start(chunk: Any) -> int:
    """Where pyarrow begins to read a column chunk."""
    start, dictionary = int(chunk.data_page_offset), chunk.dictionary_page_offset
    return int(dictionary) if chunk.has_dictionary_page and 0 < dictionary < start else start


def _find_labels(metadata: dict[bytes, bytes] | None) -> dict[str, list[str]]:
    """The names of the classes of columns with class numbers, which `datasets` writes into the schema."""
    text = (metadata or {}).get(b"huggingface", b"")
    try:
        check_depth(text.decode(), "", 1)
        features = json.loads(text)["info"]["features"]
        return {
            str(column): list(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, DataError):
        return {}


def _name_label(cell: Any, names: list[str]) -> Any:
    is_number = isinstance(cell, int) and not isinstance(cell, bool)
    if is_number and cell < 0:
        return None  # what `datasets` writes for a row without a label
    return names[cell] if is_number and cell < len(names) else cell


def _is_supported(kind: Any, depth: int) -> bool:
    import pyarrow.types as types

    if depth > TYPE_DEPTH_LIMIT:
        return False
    if types.is_dictionary(kind):
        return _is_supported(kind.value_type, depth + 1)
    if types.is_list(kind) or types.is_large_list(kind):
        return _is_supported(kind.value_type, depth + 1)
    if types.is_struct(kind):
        return kind.num_fields <= FIELD_LIMIT and all(
            _is_supported(kind.field(i).type, depth + 1) for i in range(kind.num_fields)
        )
    return (
        types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)
        or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind)
        or (depth == 0 and (types.is_date(kind) or types.is_timestamp(kind) or types.is_decimal(kind)))
    )  # fmt: skip


def _count_decoded_bytes(column: Any) -> int:
    """Counts the bytes of a column once each dictionary reference is replaced by its text."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    if types.is_dictionary(column.type):
        if types.is_string(column.type.value_type) or types.is_large_string(column.type.value_type):
            return pc.sum(pc.take(pc.binary_length(column.dictionary), column.indices)).as_py() or 0
        return int(column.nbytes)
    if types.is_list(column.type) or types.is_large_list(column.type):
        return 8 * len(column) + _count_decoded_bytes(column.flatten())
    if types.is_struct(column.type):
        return sum(_count_decoded_bytes(field) for field in column.flatten())
    return int(column.nbytes)


def _to_json_value(cell: Any) -> Any:
    """Writes dates and decimals as text; other values stay as they are."""
    return cell if cell is None or isinstance(cell, (str, int, float, list, dict)) else str(cell)
