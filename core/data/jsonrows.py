"""JSON text becomes rows, each with the line it begins on.

Knows JSON, how deep and how long it may be, and how to say what is wrong with it. Knows nothing of
files or encodings. Depth is counted before any parser sees the text: a line of 40,000 opening
brackets brings down parsers that recurse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from core.errors import DataError

LINE_LIMIT = 1_000_000  # characters of one line, one CSV cell, one object of a .json file
DEPTH_LIMIT = 32  # brackets inside brackets
FIELD_LIMIT = 64  # columns

_MARK = re.compile(r'\\.|["\[\]{}]', re.DOTALL)
_SPACE = re.compile(r"[ \t\n\r]*")
_OBJECTS_WANTED = (
    "Give an array of objects, or an object with exactly one array of objects; write a single row as .jsonl."
)


def parse_json(text: str, file: str, line: int) -> Any:
    """Parses one JSON value.

    Args:
        text: the value, possibly between white space.
        file: the file to name in an error.
        line: the line that the text begins on, from 1.

    Raises:
        DataError: not JSON, too deep, or a number that JSON does not have.
    """
    check_depth(text, file, line)
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as e:
        raise _error(e, text, file, line) from e


def check_depth(text: str, file: str, line: int) -> None:
    """Refuses brackets nested deeper than DEPTH_LIMIT, in one pass without recursion.

    Raises:
        DataError: deeper.
    """
    if text.count("[") + text.count("{") <= DEPTH_LIMIT:
        return
    depth, quoted = 0, False
    for mark in _MARK.finditer(text):
        c = mark.group()
        if c == '"':
            quoted = not quoted
        elif quoted or len(c) > 1:
            continue
        elif c in "[{":
            depth += 1
            if depth > DEPTH_LIMIT:
                raise DataError(
                    f"the JSON is nested deeper than {DEPTH_LIMIT} levels.",
                    "Flatten it: a row is an object with texts, or with a list of messages.",
                    file=file,
                    line=line + text.count("\n", 0, mark.start()),
                )
        else:
            depth -= 1


def read_jsonl(lines: Iterator[tuple[int, str]], file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered lines become rows: one object a line, blank lines are passed by.

    Raises:
        DataError: a line that is not one whole object.
    """
    for number, line in lines:
        if line.isspace():
            continue
        if number == 1 and line.strip() in ("[", "{"):
            fix = "A .jsonl file has one whole object on each line; name the file .json if it is one array."
            raise DataError("the line is not a whole object.", fix, file=file, line=1)
        yield number, _object(parse_json(line, file, number), file, number)


def read_json(text: str, file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The text of a whole file becomes rows: an array of objects, or an object that holds one array.

    Raises:
        DataError: not JSON, or not of that form.
    """
    check_depth(text, file, 1)
    at = _skip(text, 0)
    if at == len(text):
        return
    try:
        begin = at if text[at] == "[" else _find_array(text, at, file)
        yield from _elements(text, begin, file, whole=text[at] == "[")
    except (ValueError, RecursionError) as e:
        raise _error(e, text, file, 1) from e


def _find_array(text: str, at: int, file: str) -> int:
    """Where the one array of the outer object begins."""
    outer = _object(_DECODER.decode(text), file, 1 + text.count("\n", 0, at), what="the file")
    arrays = [k for k, v in outer.items() if isinstance(v, list)]
    if len(arrays) != 1:
        found = f"{len(arrays)} arrays ({', '.join(arrays[:5])})" if arrays else "no array"
        raise DataError(
            f"the outer object holds {found}.", _OBJECTS_WANTED, file=file, line=1 + text.count("\n", 0, at)
        )
    at = _skip(text, at + 1)
    while True:
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)  # past the colon
        if key == arrays[0] and text[at] == "[":
            return at
        at = _skip(text, _skip(text, _DECODER.raw_decode(text, at)[1]) + 1)  # past the value and its comma


def _elements(text: str, at: int, file: str, whole: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of the array that begins at `at`, each with the line it begins on."""
    line, counted, at = 1, 0, _skip(text, at + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError:
            raise
        except ValueError as e:  # a number that is none: json does not say where
            raise _error(e, text, file, line) from e
        if end - at > LINE_LIMIT:
            raise DataError(
                f"the row is longer than {LINE_LIMIT:,} characters.",
                "Break it into several rows.",
                file=file,
                line=line,
            )
        yield line, _object(value, file, line)
        at = _skip(text, end)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
            if text[at : at + 1] == "]":
                raise json.JSONDecodeError("a comma stands before the closing bracket", text, at)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    if whole and (rest := _skip(text, at + 1)) < len(text):
        raise json.JSONDecodeError("Extra data", text, rest)


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _object(value: Any, file: str, line: int, what: str = "the row") -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}.get(
            type(value), "a number"
        )
        raise DataError(
            f"{what} is {kind}, not an object.", 'Write each row as {"column": "text"}.', file=file, line=line
        )
    return value


def _not_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_not_json)


def _error(error: Exception, text: str, file: str, line: int) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        line += text.count("\n", 0, error.pos)
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            what = f"the JSON breaks off: {error.msg} at column {error.colno}."
            return DataError(
                what,
                "Complete it or delete it; the file may have been cut off while it was copied.",
                file=file,
                line=line,
            )
        what = f"not valid JSON: {error.msg} at column {error.colno}."
        return DataError(
            what,
            "Correct it; texts and names stand in double quotes, and no comma follows the last item.",
            file=file,
            line=line,
        )
    if "JSON number" in str(error):
        return DataError(
            f"{error}.",
            "Replace NaN and Infinity by a number, a text or null, or delete the row.",
            file=file,
            line=line,
        )
    return DataError(
        f"not valid JSON: {error}.", "Correct the value or delete the row.", file=file, line=line
    )
