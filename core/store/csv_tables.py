"""Tables as CSV that no spreadsheet executes.

Knows cells and rows. Knows nothing of what they say.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would execute at the start of a cell


def escape_cell(value: Any) -> Any:
    """A value that no spreadsheet executes."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def format_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Rows of cells as CSV, headings first; no cell is one that a spreadsheet executes."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([escape_cell(v) for v in row] for row in rows)
    return out.getvalue()
