"""What a layout is: the columns that it is recognized by, and how it rewrites a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.formats.readers import RawRow
from core.data.notes import Notes, RowLeftOut
from core.data.roles.cells import is_missing
from core.data.roles.columns import normalize_name

Parts = dict[str, str]  # part of a layout to column
Values = dict[str, Any]  # column to value


@dataclass(frozen=True)
class Table:
    """The columns and rows of an import, for recognizing its layout."""

    columns: Sequence[str]
    rows: Sequence[RawRow]

    def find(self, *names: str) -> str:
        """Finds the first column with one of these names (lower case, letters and digits); "" if none."""
        plain = {normalize_name(c): c for c in reversed(self.columns)}
        return next((plain[name] for name in names if name in plain), "")

    def find_parts(self, **names: Sequence[str]) -> Parts:
        """Finds a column for each part; empty if one is missing or two parts share a column."""
        parts = {part: self.find(*candidates) for part, candidates in names.items()}
        is_complete = all(parts.values()) and len(set(parts.values())) == len(parts)
        return parts if is_complete else {}

    def every(self, column: str, test: Callable[[Any], bool]) -> bool:
        """Whether the column has values, and each of them passes the test; empty cells are skipped."""
        cells = [cell for row in self.rows if not is_missing(cell := row.values.get(column))]
        return bool(cells) and all(map(test, cells))


@dataclass(frozen=True)
class Layout:
    """One layout of another tool.

    Attributes:
        name: what a dataset's record calls it.
        title: what the page calls it.
        match: finds the column of each part; empty if the table has another layout.
        rewrite: rewrites all rows; it counts what it leaves out in the notes.
        notes: sentences that an import always shows.
        kind: "domain" or "task".
    """

    name: str
    title: str
    match: Callable[[Table], Parts]
    rewrite: Callable[[Sequence[RawRow], Parts, Notes], list[RawRow]]
    notes: tuple[str, ...] = ()
    kind: str = "task"

    def list_columns_read(self, parts: Mapping[str, str]) -> tuple[str, ...]:
        """The columns that the layout reads."""
        return tuple(dict.fromkeys(parts.values()))


@dataclass(frozen=True)
class EachRow:
    """A rewrite that reads every row by itself, so that rows can be rewritten in blocks.

    Attributes:
        rewrite: gives the new values of a row, or several; it may raise RowLeftOut. The columns that are not
            parts of the layout are kept beside the new ones.
    """

    rewrite: Callable[[RawRow, Parts, Notes], Iterable[Values] | Values]

    def __call__(self, rows: Sequence[RawRow], parts: Parts, notes: Notes) -> list[RawRow]:
        used = set(parts.values())
        rewritten = []
        for row in rows:
            try:
                result = self.rewrite(row, parts, notes)
                several = [result] if isinstance(result, dict) else list(result)
            except RowLeftOut as e:
                notes.leave_out(e.reason, row)
                continue
            kept = {c: v for c, v in row.values.items() if c not in used}
            rewritten += [RawRow({**kept, **values}, row.file, row.line) for values in several]
        return rewritten


def each_row(rewrite: Callable[[RawRow, Parts, Notes], Iterable[Values] | Values]) -> EachRow:
    """Makes a rewrite of all rows from a rewrite of one row; see `EachRow`."""
    return EachRow(rewrite)


def take_first_text(cell: Any, row: RawRow, notes: Notes, what: str) -> str:
    """Takes the first text of a cell that holds one or several; "" if it holds none.

    Args:
        cell: a text or number, a list of them, or an object with such a list under "text" or "choices".
        row: the row that is counted if there are several texts.
        notes: gets the count.
        what: names the texts in the note, for example "answers".
    """
    if isinstance(cell, dict):
        cell = next((cell[k] for k in ("text", "value", "choices") if not is_missing(cell.get(k))), None)
    if not isinstance(cell, list):
        return "" if is_missing(cell) or isinstance(cell, dict) else write_value(cell)
    texts = [text for item in cell if (text := take_first_text(item, row, notes, what)).strip()]
    if len(set(texts)) > 1:
        notes.count(f"have several {what}; the first one is read", row)
    return texts[0] if texts else ""


def take_list(cell: Any) -> list[Any]:
    """The items of a list; none of any other cell."""
    return cell if isinstance(cell, list) else []


def take_object(cell: Any) -> dict[str, Any]:
    """The keys and values of an object; none of any other cell."""
    return cell if isinstance(cell, dict) else {}


def write_value(value: Any) -> str:
    """Writes a text, a number, or true or false as text."""
    return str(value).lower() if isinstance(value, bool) else str(value)
