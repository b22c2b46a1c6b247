"""The header of a table: names of columns, and whether the first line is one at all."""

from __future__ import annotations

import re
from collections.abc import Sequence

from core.data.formats.json_rows import FIELD_LIMIT
from core.errors import DataError

SAMPLE_ROWS = 50
INDEX_NAME = "Unnamed: 0"  # what pandas calls a first column of numbers without a name
_NAME_LENGTH = 80  # characters; a longer first cell is a text, not a name
_NUMBER = re.compile(r"[-+]?[\d.,]*\d[\d.,]*%?\Z")
_SENTENCE_ENDS = ("?", ".", "!", "？", "。", "！")


def check_header(header: Sequence[str], rows: Sequence[Sequence[str]], file: str, line: int) -> list[str]:
    """Checks the names of the columns, and that they are names and not the first row.

    Args:
        header: cells of the first line.
        rows: cells of the first rows after it.
        file: the file name that errors show.
        line: line of the header.

    Raises:
        DataError: too many columns, a column without a name, two of one name, or no header.
    """
    names = [name.strip() for name in header]
    if len(names) > 1 and not names[0] and rows and all(r and r[0].strip().isdecimal() for r in rows):
        names[0] = INDEX_NAME
    if len(names) > FIELD_LIMIT:
        raise DataError(
            f"a file may have at most {FIELD_LIMIT} columns, got {len(names)}.",
            "Remove the columns that you do not need.",
            file=file,
            line=line,
        )
    if reason := find_missing_header(names, rows):
        shown = ", ".join(repr(name[:40]) for name in names[:4])
        raise DataError(
            f"the first line looks like a row, not like the names of the columns ({shown}): {reason}.",
            "Put a line with one name per column above it, such as question,answer or text.",
            file=file,
            line=line,
        )
    if "" in names:
        raise DataError(
            f"column {names.index('') + 1} has no name.",
            "Name every column in the header.",
            file=file,
            line=line,
        )
    if duplicate := next((c for c in names if names.count(c) > 1), None):
        raise DataError(
            f"two columns are named {duplicate!r}.",
            "Give each column its own name.",
            file=file,
            line=line,
        )
    return names


def find_missing_header(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Finds out why a first line is not a header but a row; "" if it is a header.

    A form's export has questions as names, so a question counts only if the column below holds questions too.
    """
    if not rows:
        return ""
    for index, name in enumerate(names):
        cells = [row[index].strip() for row in rows if index < len(row) and row[index].strip()]
        if not name or not cells:
            continue
        if len(name) > _NAME_LENGTH:
            return f"cell {index + 1} has {len(name)} characters"
        if _NUMBER.match(name) and any(_NUMBER.match(c) for c in cells):
            return f"cell {index + 1} is a number, as below it"
        if name.endswith(_SENTENCE_ENDS) and " " in name:
            alike = sum(c.endswith(name[-1]) for c in cells)
            if alike > len(cells) // 2:
                return f"cell {index + 1} is a sentence, as below it"
    return ""
