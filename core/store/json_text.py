"""JSON text of records and logs to values, with a limit on nesting. `core.data.jsonrows` reads user data."""

from __future__ import annotations

import json
import re
from typing import Any

DEPTH_LIMIT = 32  # nested brackets; the records of a workspace and the configs of bases have up to 10

_MARK = re.compile(r'\\.|["\[\]{}]', re.DOTALL)


def parse_json(text: str | bytes) -> Any:
    """Parses one JSON value.

    Args:
        text: JSON; bytes are UTF-8.

    Raises:
        ValueError: the text is not UTF-8 or not JSON, or its brackets are nested deeper than `DEPTH_LIMIT`.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    if find_depth_excess(text, DEPTH_LIMIT) is not None:
        raise ValueError(f"the JSON is nested deeper than {DEPTH_LIMIT} levels")
    return json.loads(text)


def find_depth_excess(text: str, limit: int) -> int | None:
    """The position of the first bracket that is nested deeper than `limit`, or None.

    Runs once over the text, without recursion. Brackets inside of texts do not count.
    """
    if text.count("[") + text.count("{") <= limit:
        return None
    depth, is_quoted = 0, False
    for mark in _MARK.finditer(text):
        c = mark.group()
        if c == '"':
            is_quoted = not is_quoted
        elif is_quoted or len(c) > 1:
            continue
        elif c in "[{":
            depth += 1
            if depth > limit:
                return mark.start()
        else:
            depth -= 1
    return None
