"""Formats tables as CSV text without cells that a spreadsheet would execute as formulas."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet executes text that starts like this


def escape_cell(value: Any) -> Any:
    """A cell value; text that a spreadsheet would execute gets a leading apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def format_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV text, headings first; every cell is escaped."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([escape_cell(v) for v in row] for row in rows)
    return out.getvalue()
