"""Workbooks (.xlsx) to rows: the sheet with the columns, cached values of formulas, dates as text.

openpyxl is imported when a file is read. Before it opens a workbook, every part is inflated once: sizes are
counted, document type declarations are refused, and merged cells are found, which its reader does not give.
"""

from __future__ import annotations

import datetime
import itertools
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from core.data.formats.compressed import check_zip_parts
from core.data.formats.headers import SAMPLE_ROWS, check_header
from core.data.formats.json_rows import LINE_LIMIT
from core.data.formats.read_log import ReadLog
from core.data.roles.columns import guess_roles, match_role_set
from core.errors import DataError

PARTS_LIMIT_BYTES = 512 << 20  # all parts together, inflated
PART_LIMIT_BYTES = 256 << 20
ROW_LIMIT = 1_048_576  # what a sheet can have
CELL_LIMIT = 64 * ROW_LIMIT  # cells of a sheet, empty ones included
MERGE_LIMIT = 10_000
_HEADER_SEARCH = 10  # rows in which the header is looked for
_BLOCK_BYTES = 1 << 20
_OVERLAP = 64  # bytes, more than a declaration or a merged range is long

_DECLARATION = re.compile(rb"<\0?!\0?(D\0?O\0?C\0?T|E\0?N\0?T)", re.I)
_ENCODING = re.compile(rb"<\?xml[^>]{0,60}encoding\s*=\s*[\"']([^\"']{1,40})[\"']")
_ENCODINGS = (b"utf-8", b"utf-16", b"us-ascii", b"iso-8859-1", b"windows-1252")
_MERGE = re.compile(rb"mergeCell [^>]{0,20}ref=\"([A-Z]{1,3})(\d{1,7}):([A-Z]{1,3})(\d{1,7})\"")
_CARRIAGE = re.compile("_x000[dD]_\n?")
_OLE = b"\xd0\xcf\x11\xe0"


@dataclass
class _Sheet:
    """One sheet: its rows as (number of the row, cells), without empty rows.

    Attributes:
        uncached: references of formula cells without a stored value.
        errors: cells that hold an error such as #N/A.
        merged: cells that got the value of their merged range.
    """

    title: str
    rows: list[tuple[int, list[Any]]] = field(default_factory=list)
    uncached: list[str] = field(default_factory=list)
    errors: int = 0
    merged: int = 0


def read_xlsx(file: IO[bytes], name: str, log: ReadLog) -> Iterator[tuple[int, dict[str, Any]]]:
    """Reads the sheet whose header names the most usual columns, and all sheets with the same header.

    Args:
        file: open for reading, seekable.
        name: the file name that errors show.
        log: gets which sheet is read, and which cells could not be.

    Yields:
        The number of the row in its sheet, and column to value; empty cells are None.

    Raises:
        DataError: not a workbook, encrypted, damaged, above a limit, or no sheet has a header and rows.
    """
    if file.read(4) == _OLE:
        raise DataError(
            "the workbook has a password, or is an old .xls file.",
            "Save it as .xlsx without a password, or as .csv.",
            file=name,
        )
    file.seek(0)
    merges = _check_parts(file, name)
    file.seek(0)
    sheets = _load_sheets(file, name, merges, log)
    tables = [table for sheet in sheets if (table := _find_table(sheet, name))]
    if not tables:
        raise DataError(
            "no sheet has rows.", "Add rows below a line with the names of the columns.", file=name
        )
    best = max(tables, key=lambda t: (_rate_header(t.header), len(t.rows)))
    chosen = [t for t in tables if t.header == best.header]
    _report(best, chosen, sheets, name, log)
    for table in chosen:
        for number, row in table.rows:
            yield number, {c: row[i] if i < len(row) else None for i, c in zip(table.places, table.header)}


# ---------------------------------------------------------------- checks before the file is opened


def _check_parts(file: IO[bytes], name: str) -> dict[str, list[tuple[str, int, str, int]]]:
    """Inflates every part once; returns the merged ranges of each part, as columns and rows."""
    merges: dict[str, list[tuple[str, int, str, int]]] = {}
    total = 0
    with check_zip_parts(file, name, PARTS_LIMIT_BYTES) as archive:
        for part in archive.infolist():
            if part.flag_bits & 1:
                raise DataError("the workbook is encrypted.", "Save it without a password.", file=name)
            tail, size = b"", 0
            with archive.open(part) as f:
                while block := f.read(_BLOCK_BYTES):
                    size += len(block)
                    total += len(block)
                    if size > PART_LIMIT_BYTES or total > PARTS_LIMIT_BYTES:
                        raise DataError(
                            f"a workbook may inflate to at most {PARTS_LIMIT_BYTES:,} bytes, and one part "
                            f"of it to {PART_LIMIT_BYTES:,}.",
                            "Save the sheet as .csv.",
                            file=name,
                        )
                    text = tail + block
                    encoding = _ENCODING.search(text[:200]) if size == len(block) else None
                    if _DECLARATION.search(text) or (encoding and encoding[1].lower() not in _ENCODINGS):
                        raise DataError(
                            "a part of the workbook has a document type declaration or an unusual encoding.",
                            "Save it again in a spreadsheet program, or as .csv.",
                            file=name,
                        )
                    if "worksheets/" in part.filename:
                        found = merges.setdefault("/" + part.filename, [])
                        found += [
                            (a.decode(), int(b), c.decode(), int(d)) for a, b, c, d in _MERGE.findall(text)
                        ]
                        del found[MERGE_LIMIT:]
                    tail = text[-_OVERLAP:]
    return merges


# ---------------------------------------------------------------- sheets


def _load_sheets(
    file: IO[bytes], name: str, merges: dict[str, list[tuple[str, int, str, int]]], log: ReadLog
) -> list[_Sheet]:
    """Loads all visible sheets: stored values from one reading, and where formulas are from another."""
    import zipfile
    from xml.etree.ElementTree import ParseError

    from openpyxl import load_workbook
    from openpyxl.utils.exceptions import InvalidFileException

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions that are not read
            values = load_workbook(file, read_only=True, data_only=True, keep_links=False)
            formulas = load_workbook(file, read_only=True, data_only=False, keep_links=False)
            sheets = []
            for sheet, twin in zip(values.worksheets, formulas.worksheets):
                if sheet.sheet_state != "visible":
                    log.say(f"{name}: the hidden sheet {sheet.title!r} is left out.")
                    continue
                path = getattr(sheet, "_worksheet_path", "")
                sheets.append(_load_sheet(sheet, twin, name, merges.get("/" + path.lstrip("/"), [])))
            return sheets
    except (
        InvalidFileException, zipfile.BadZipFile, ParseError, KeyError, ValueError, TypeError, IndexError,
        AttributeError, OverflowError, EOFError, SyntaxError,
    ) as e:  # fmt: skip
        raise DataError(
            f"the workbook cannot be read: {str(e).splitlines()[0][:120] if str(e) else type(e).__name__}.",
            "Open it in a spreadsheet program and save it again, or save the sheet as .csv.",
            file=name,
        ) from e


def _load_sheet(sheet: Any, twin: Any, name: str, ranges: Sequence[tuple[str, int, str, int]]) -> _Sheet:
    from openpyxl.utils import get_column_letter

    loaded = _Sheet(str(sheet.title))
    sheet.reset_dimensions()  # what the file says about its size may be wrong
    twin.reset_dimensions()
    cells = 0
    for number, (row, formula_row) in enumerate(zip(sheet.iter_rows(), twin.iter_rows()), start=1):
        cells += 1 + len(row)
        if number > ROW_LIMIT or cells > CELL_LIMIT:
            raise DataError(
                f"the sheet {loaded.title!r} has more rows or cells than are read.",
                "Delete what is not needed, or save the sheet as .csv.",
                file=name,
                line=number,
            )
        values = [_to_value(cell, loaded) for cell in row]
        for index, (value, cell) in enumerate(zip(values, formula_row)):
            if value is None and cell.data_type == "f":
                loaded.uncached.append(f"{get_column_letter(index + 1)}{number}")
        if any(v not in (None, "") for v in values):
            loaded.rows.append((number, values))
    _repeat_merged_values(loaded, ranges)
    return loaded


def _to_value(cell: Any, sheet: _Sheet) -> Any:
    """Converts a cell: dates and times as text, whole numbers without a fraction, errors as empty."""
    value = cell.value
    if cell.data_type == "e":
        sheet.errors += 1
        return None
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, str):
        text = _CARRIAGE.sub("\n", value)
        return text[: LINE_LIMIT + 1]
    if isinstance(value, float):
        if not math.isfinite(value):
            sheet.errors += 1
            return None
        return int(value) if value.is_integer() and abs(value) < 1e15 else value
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time(0)
        return str(value.date()) if midnight else str(value.replace(microsecond=0))
    if isinstance(value, datetime.time):
        return value.strftime("%H:%M:%S" if value.second else "%H:%M")
    return value if value is None or isinstance(value, int) else str(value)


def _repeat_merged_values(sheet: _Sheet, ranges: Sequence[tuple[str, int, str, int]]) -> None:
    """Repeats the value of cells that are merged downwards, because it holds for each of these rows."""
    from openpyxl.utils import column_index_from_string

    by_number = dict(sheet.rows)
    for left, top, right, bottom in ranges:
        index = column_index_from_string(left) - 1
        first = by_number.get(top, [])
        if left != right or index >= len(first) or first[index] is None:
            continue
        for number in range(top + 1, min(bottom, top + len(sheet.rows)) + 1):
            cells = by_number.get(number)
            if cells is not None and index < len(cells) and cells[index] is None:
                cells[index] = first[index]
                sheet.merged += 1


# ---------------------------------------------------------------- the table of a sheet


@dataclass(frozen=True)
class _Table:
    """The table of a sheet: the columns that have a name, their places in a row, and the rows below."""

    sheet: _Sheet
    header: list[str]
    places: list[int]
    line: int
    rows: list[tuple[int, list[Any]]]
    above: int
    empty: int


def _find_table(sheet: _Sheet, name: str) -> _Table | None:
    """Finds the header: the first of the first rows in which as many cells are filled as in any of them.

    The first cell may be empty, above an index.
    """
    if len(sheet.rows) < 2:
        return None
    head = sheet.rows[:_HEADER_SEARCH]
    counts = [sum(v not in (None, "") for v in cells) for _, cells in head]
    wanted = max(counts)
    at = next(i for i, (_, c) in enumerate(head) if counts[i] + (c[0] in (None, "") and wanted > 2) >= wanted)
    line, cells = sheet.rows[at]
    rows = sheet.rows[at + 1 :]
    width = max(len(c) for _, c in sheet.rows[at:])
    filled = {i for _, c in rows for i, v in enumerate(c) if v not in (None, "")}
    names = [str(cells[i] if i < len(cells) and cells[i] is not None else "").strip() for i in range(width)]
    places = [i for i in range(width) if names[i] or i in filled]
    if not rows or not places:
        return None
    texts = [[str(c[i]) if i < len(c) and c[i] is not None else "" for i in places] for _, c in
             itertools.islice(rows, SAMPLE_ROWS)]  # fmt: skip
    header = check_header([names[i] for i in places], texts, name, line)
    return _Table(sheet, header, places, line, rows, at, width - len(places))


def _rate_header(header: Sequence[str]) -> int:
    """2 if the columns form labelled pairs or conversations by their names, 1 if one is a text, else 0."""
    if match_role_set(guess_roles(header, "task"), "task"):
        return 2
    return int(bool(guess_roles(header, "domain")))


def _report(
    best: _Table, chosen: Sequence[_Table], sheets: Sequence[_Sheet], name: str, log: ReadLog
) -> None:
    """Says which sheets and rows are read, and which cells are not."""
    titles = ", ".join(repr(t.sheet.title) for t in chosen)
    others = [repr(s.title) for s in sheets if s.rows and s not in [t.sheet for t in chosen]]
    if others:
        log.say(
            f"{name}: read is the sheet {titles}, whose columns fit best. "
            f"Not read: {', '.join(others[:10])}. Save a sheet as a file of its own to read it."
        )
    elif len(chosen) > 1:
        log.say(f"{name}: the sheets {titles} have the same columns; all of them are read.")
    for table in chosen:
        sheet, where = table.sheet, f"{name}, sheet {table.sheet.title!r}"
        if table.above:
            log.say(f"{where}: the header is in row {table.line}; what is above it is left out.")
        if sheet.uncached:
            cells = ", ".join(sheet.uncached[:5]) + (" ..." if len(sheet.uncached) > 5 else "")
            log.say(
                f"{where}: formulas without a stored value are read as empty cells ({cells}; "
                f"{len(sheet.uncached):,} in all). "
                "Open the file in a spreadsheet program and save it to store them."
            )
        if sheet.errors:
            log.say(f"{where}: cells with an error such as #N/A are read as empty ({sheet.errors:,}).")
        if sheet.merged:
            log.say(f"{where}: the value of merged cells is repeated in their other rows ({sheet.merged:,}).")
