"""JSON text of records and logs to values, with a limit on nesting.

`core.data.formats.json_rows` reads the data of users.
"""

from __future__ import annotations

import json
import re
from typing import Any

DEPTH_LIMIT = 32  # nested brackets; the records of a workspace and the configs of bases have up to 10

INTEGER_LIMIT = 2**63  # larger integers overflow a float or the JSON of the page
_SURROGATE, _LONG_NUMBER = re.compile(r"\\u[dD][89a-fA-F]"), re.compile(r"\d{19}")
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


def parse_object(content: bytes) -> dict[str, Any]:
    """Parses one JSON object.

    Raises:
        ValueError: it is not UTF-8 or not a JSON object, or has a number or text that a page cannot show.
    """
    text = content.decode("utf-8")
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError("it does not hold a JSON object")
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # raises for half of a character
    if _LONG_NUMBER.search(text):
        _check_integers(value)
    return value


def _check_integers(value: Any) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_integers(item)
    elif isinstance(value, int) and abs(value) >= INTEGER_LIMIT:
        raise ValueError(f"a number has {len(str(abs(value)))} digits")


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
