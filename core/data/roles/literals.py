"""Lists and objects that a CSV file holds as text: as JSON, or as Python and numpy write them."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from core.data.formats.json_rows import check_depth
from core.errors import DataError

LENGTH_LIMIT = 100_000  # characters of such a text
_ARRAY = re.compile(r"array\((\[[^\[\]]*\])(?:,\s*dtype=[\w.<>'\"]+)?\)")
_TOUCHING = re.compile(r"""['"]\s+['"]""")  # items of a numpy array, which Python would join into one


def parse_literal(text: str) -> Any:
    """Parses the text of a list or object; None if it is not one.

    Nothing is executed: only constants, lists, tuples and objects are read, at most LENGTH_LIMIT characters.
    """
    stripped = text.strip()
    if len(stripped) > LENGTH_LIMIT or stripped[:1] not in ("[", "{", "("):
        return None
    try:
        check_depth(stripped, "", 1)
        return json.loads(stripped)
    except DataError:
        return None
    except ValueError:
        pass
    plain = _ARRAY.sub(r"\1", stripped)
    if _TOUCHING.search(plain):
        if "," in plain:
            return None  # it is not clear where an item ends
        plain = _TOUCHING.sub(lambda found: f"{found[0][0]}, {found[0][-1]}", plain)
    try:
        return ast.literal_eval(plain)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
