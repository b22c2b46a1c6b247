"""Cells of a row: the text of a cell, and the errors of cells that are not text."""

from __future__ import annotations

import math
import re
from typing import Any

from core.data.formats.json_rows import parse_json
from core.data.formats.readers import RawRow
from core.errors import DataError

_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
_TYPE_NAMES: dict[type, str] = {bool: "true or false", list: "a list", dict: "an object", float: "infinite"}


def is_missing(cell: Any) -> bool:
    """Whether a cell has no value: null or NaN."""
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def is_blank(cell: Any) -> bool:
    """Whether a cell has no value, or a text of blanks only, or an empty list or object."""
    if isinstance(cell, str):
        return not cell.strip()
    return is_missing(cell) or (isinstance(cell, (list, dict)) and not cell)


def read_cell(row: RawRow, column: str, required: bool = True) -> str:
    """Reads the cell of a column as text; see `to_text`."""
    absent = column not in row.values
    return to_text(row.values.get(column), f"the column {column!r}", row, required, absent)


def to_text(cell: Any, what: str, row: RawRow, required: bool = True, absent: bool = False) -> str:
    """Converts a cell to text: numbers are written out, and an optional cell without a value is "".

    Args:
        cell: the value.
        what: names the cell in errors, for example "the column 'text'".
        row: the row that errors name.
        required: whether a cell without text is an error.
        absent: whether the row does not have the column at all.

    Raises:
        DataError: the cell is missing, empty, NaN, infinite, or not text.
    """
    fix = "Fill it in or delete the row."
    if isinstance(cell, str):
        if required and not cell.strip():
            raise DataError(f"{what} is empty.", fix, file=row.file, line=row.line)
        if not cell.isascii() or "\0" in cell:
            if match := _UNWRITABLE.search(cell):
                raise DataError(
                    f"{what} contains U+{ord(match.group()):04X}, which is not a valid text character.",
                    "Remove it.",
                    file=row.file,
                    line=row.line,
                )
        return cell
    if is_missing(cell):
        if not required:
            return ""
        value = "NaN" if cell is not None else "null"
        raise DataError(f"{what} is {'missing' if absent else value}.", fix, file=row.file, line=row.line)
    if isinstance(cell, (int, float)) and not isinstance(cell, bool) and math.isfinite(cell):
        return str(cell)
    value = _TYPE_NAMES.get(type(cell), str(getattr(cell, "type_name", type(cell).__name__)))
    raise DataError(f"{what} is {value}, not text.", "Write it as text.", file=row.file, line=row.line)


def parse_cell(cell: Any, row: RawRow) -> Any:
    """Parses a cell that holds JSON text, as CSV files do; any other cell is returned as it is.

    Raises:
        DataError: the text looks like JSON, but is not.
    """
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        return parse_json(cell, row.file, row.line)
    return cell
