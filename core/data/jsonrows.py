"""JSON text to rows, each with the line it begins on; checks depth and length. `readers` opens the files.

The nesting depth is checked before any parser sees the text, because deep nesting can end the process in
parsers that recurse, and an `except` does not catch that. `load_dataset("json")` and the JSON reader of
pyarrow are not used for the same reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from core.data import json_shapes
from core.errors import DataError
from core.store.json_text import DEPTH_LIMIT, find_depth_excess

LINE_LIMIT = 1_000_000  # characters of a line, a CSV cell, or an object in a .json file
FIELD_LIMIT = 64  # columns

_SPACE = re.compile(r"[ \t\n\r]*")
_OBJECTS_WANTED = (
    "A .json file must be an array of objects, or an object with exactly one array of objects. "
    "Save a single row as .jsonl."
)


def parse_json(text: str, file: str, line: int) -> Any:
    """Parses one JSON value.

    Args:
        text: the value, possibly with white space around it.
        file: the file name that errors show.
        line: the line that the text begins on, from 1.

    Raises:
        DataError: the text is not JSON, is nested too deeply, or contains NaN or Infinity.
    """
    check_depth(text, file, line)
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as e:
        raise _to_data_error(e, text, file, line) from e


def check_depth(text: str, file: str, line: int) -> None:
    """Checks in one pass, without recursion, that brackets are nested at most DEPTH_LIMIT deep.

    Raises:
        DataError: they are nested deeper.
    """
    position = find_depth_excess(text, DEPTH_LIMIT)
    if position is not None:
        raise DataError(
            f"the JSON is nested deeper than {DEPTH_LIMIT} levels.",
            "Flatten it: a row is an object of texts, or an object with a list of messages.",
            file=file,
            line=line + text.count("\n", 0, position),
        )


def read_jsonl(lines: Iterator[tuple[int, str]], file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Parses numbered lines, one object per line; skips blank lines.

    Raises:
        DataError: a line is not one complete object.
    """
    for number, line in lines:
        if line.isspace():
            continue
        if number == 1 and line.strip() in ("[", "{"):
            fix = "A .jsonl file needs one complete object per line. If the file is one array, name it .json."
            raise DataError("the line is not a complete object.", fix, file=file, line=1)
        yield number, _check_object(parse_json(line, file, number), file, number)


def read_json(text: str, file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Parses the text of a .json file: an array of objects, or an object with exactly one array of objects.

    Raises:
        DataError: the text is not JSON, or not of that form.
    """
    check_depth(text, file, 1)
    at = _skip_space(text, 0)
    if at == len(text):
        return
    try:
        if text[at] == "{" and _is_json_lines(text, at):
            yield from read_jsonl(enumerate(text.splitlines(keepends=True), start=1), file)
            return
        if text[at] == "{" and (rows := _find_other_rows(text, at, file)):
            for row in rows:
                _check_length(row, file)
                yield 1, row
            return
        begin = at if text[at] == "[" else _find_array(text, at, file)
        yield from _parse_elements(text, begin, file, is_outermost=text[at] == "[")
    except (ValueError, RecursionError) as e:
        raise _to_data_error(e, text, file, 1) from e


def _is_json_lines(text: str, at: int) -> bool:
    """Whether a .json file holds one object per line, as a .jsonl file does."""
    try:
        end = _DECODER.raw_decode(text, at)[1]
    except ValueError:
        return False
    following = _skip_space(text, end)
    return text[following : following + 1] == "{" and "\n" in text[end:following]


def _find_other_rows(text: str, at: int, file: str) -> list[dict[str, Any]]:
    """The rows of an object that does not have exactly one array, see `json_shapes`; empty if it has one."""
    outer = _check_object(_DECODER.decode(text), file, 1 + text.count("\n", 0, at), what="the file")
    if sum(isinstance(v, list) for v in outer.values()) == 1:
        return []
    return json_shapes.find_rows(outer)


def _check_length(row: dict[str, Any], file: str) -> None:
    if sum(len(v) for v in row.values() if isinstance(v, str)) > LINE_LIMIT:
        raise DataError(
            f"a row is longer than {LINE_LIMIT:,} characters.",
            "Split it into several rows.",
            file=file,
            line=1,
        )


def _find_array(text: str, at: int, file: str) -> int:
    """Finds the position of the only array in the outer object."""
    outer = _check_object(_DECODER.decode(text), file, 1 + text.count("\n", 0, at), what="the file")
    arrays = [k for k, v in outer.items() if isinstance(v, list)]
    if len(arrays) != 1:
        count = f"{len(arrays)} arrays ({', '.join(arrays[:5])})" if arrays else "no array"
        raise DataError(
            f"the outer object has {count}.", _OBJECTS_WANTED, file=file, line=1 + text.count("\n", 0, at)
        )
    at = _skip_space(text, at + 1)
    while True:
        key, at = _DECODER.raw_decode(text, at)
        at = _skip_space(text, _skip_space(text, at) + 1)  # past the colon
        if key == arrays[0] and text[at] == "[":
            return at
        value_end = _DECODER.raw_decode(text, at)[1]
        at = _skip_space(text, _skip_space(text, value_end) + 1)  # past the comma


def _parse_elements(
    text: str, at: int, file: str, is_outermost: bool
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the objects of the array that begins at `at`, each with the line it begins on."""
    line, counted, at = 1, 0, _skip_space(text, at + 1)
    while text[at : at + 1] != "]":
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, end = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError:
            raise
        except ValueError as e:  # NaN or Infinity; this error has no position
            raise _to_data_error(e, text, file, line) from e
        if end - at > LINE_LIMIT:
            raise DataError(
                f"the row is longer than {LINE_LIMIT:,} characters.",
                "Split it into several rows.",
                file=file,
                line=line,
            )
        yield line, _check_object(value, file, line)
        at = _skip_space(text, end)
        if text[at : at + 1] == ",":
            at = _skip_space(text, at + 1)
            if text[at : at + 1] == "]":
                raise json.JSONDecodeError("Illegal trailing comma before end of array", text, at)
        elif text[at : at + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    if is_outermost and (rest := _skip_space(text, at + 1)) < len(text):
        raise json.JSONDecodeError("Extra data", text, rest)


def _skip_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _check_object(value: Any, file: str, line: int, what: str = "the row") -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}.get(
            type(value), "a number"
        )
        raise DataError(
            f"{what} is {kind}, not an object.", 'Write each row as {"column": "text"}.', file=file, line=line
        )
    return value


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_reject_constant)


def _to_data_error(error: Exception, text: str, file: str, line: int) -> DataError:
    """Converts a parser's error into one with file, line and remedy."""
    if isinstance(error, json.JSONDecodeError):
        end = len(text.rstrip())
        position = min(error.pos, end)  # a value that ends early is named where it ends, not on a blank line
        line += text.count("\n", 0, position)
        column = position - text.rfind("\n", 0, position)
        if error.pos >= end or error.msg.startswith("Unterminated"):
            what = f"the JSON is incomplete: {error.msg} at column {column}."
            return DataError(
                what,
                "Complete or delete the row. The file may have been truncated when it was copied.",
                file=file,
                line=line,
            )
        what = f"not valid JSON: {error.msg} at column {error.colno}."
        return DataError(
            what,
            "Correct it. Texts and keys need double quotes, and the last item needs no comma after it.",
            file=file,
            line=line,
        )
    if "JSON number" in str(error):
        return DataError(
            f"{error}.",
            "Replace NaN and Infinity with a number, a text or null, or delete the row.",
            file=file,
            line=line,
        )
    return DataError(
        f"not valid JSON: {error}.", "Correct the value or delete the row.", file=file, line=line
    )
