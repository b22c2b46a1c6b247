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

from core.data.formats import json_shapes
from core.errors import DataError
from core.store.json_text import DEPTH_LIMIT, find_depth_excess

LINE_LIMIT = 1_000_000  # characters of a line, a CSV cell, or an object in a .json file
FIELD_LIMIT = 64  # columns

_MARK = re.compile(r'\\.|["\[\]{}]', re.DOTALL)
SPACES = " \t\n\r"
_SPACE = re.compile(f"[{SPACES}]*")
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
        raise _describe_depth(file, line + text.count("\n", 0, position))


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


def read_json_array(blocks: Iterator[str], file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Parses the elements of a text that is one array, holding about one of them at a time.

    What it yields and raises is what `read_json` gives for the whole text, except that rows come before an
    error that is further down.

    Args:
        blocks: the text, which begins with "[" after white space.

    Raises:
        DataError: the text is not JSON, or an element is not an object, too long, or nested too deeply.
    """
    window = _Window(blocks)
    try:
        window.find_next()
        window.advance(window.at + 1)
        while (first := window.find_next()) != "]":
            end = _find_element_end(window, file) if first in ("{", "[") else None
            if end is None:
                window.fill(LINE_LIMIT + 1)
            line = window.line
            try:
                value, parsed = _DECODER.raw_decode(window.text, window.at)
            except json.JSONDecodeError as e:
                is_cut = e.pos >= len(window.text.rstrip()) or e.msg.startswith("Unterminated")
                if end is None and is_cut and not window.is_complete:
                    raise _describe_length(file, line) from e
                raise
            except ValueError as e:  # NaN or Infinity; this error has no position
                raise _to_data_error(e, "", file, line) from e
            if parsed - window.at > LINE_LIMIT:
                raise _describe_length(file, line)
            yield line, _check_object(value, file, line)
            window.advance(parsed)
            following = window.find_next()
            if following == ",":
                window.advance(window.at + 1)
                if window.find_next() == "]":
                    message = "Illegal trailing comma before end of array"
                    raise json.JSONDecodeError(message, window.text, window.at)
            elif following != "]":
                raise json.JSONDecodeError("Expecting ',' delimiter", window.text, window.at)
        window.advance(window.at + 1)
        if window.find_next():
            raise json.JSONDecodeError("Extra data", window.text, window.at)
    except (ValueError, RecursionError) as e:
        raise _to_data_error(e, window.text, file, window.first_line, window.before) from e


class _Window:
    """The part of a text that is not parsed yet.

    Attributes:
        text: this part, and a little that is parsed.
        at: where the rest begins.
        line: the number of the line there, from 1.
        first_line: the number of the line that the first character stands on.
        before: characters before the first one in its line.
        is_complete: whether the text ends with this part.
    """

    def __init__(self, blocks: Iterator[str]) -> None:
        self._blocks = blocks
        self.text, self.at, self.line = "", 0, 1
        self.first_line, self.before, self.is_complete = 1, 0, False

    def advance(self, at: int) -> None:
        """Moves to another place of the text."""
        self.line += self.text.count("\n", self.at, at)
        self.at = at

    def extend(self) -> bool:
        """Adds the next block, and drops what is parsed; returns whether there was one."""
        block = next(self._blocks, "")
        self.is_complete = not block
        if block:
            parsed = self.text[: self.at]
            self.before = len(parsed) - parsed.rfind("\n") - 1 + (0 if "\n" in parsed else self.before)
            self.first_line = self.line
            self.text, self.at = self.text[self.at :] + block, 0
        return not self.is_complete

    def fill(self, length: int) -> None:
        """Adds blocks until so many characters are there, or all."""
        while len(self.text) - self.at < length and self.extend():
            pass

    def find_next(self) -> str:
        """Moves to the next character that is not white space, and returns it; "" at the end."""
        while True:
            self.advance(_skip_space(self.text, self.at))
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.extend():
                return ""


def _find_element_end(window: _Window, file: str) -> int | None:
    """Adds blocks until the element at the window's place is there as a whole; checks its depth and length.

    Returns:
        The position behind it; None if it is too long, or the text ends inside of it.
    """
    depth, scanned, is_quoted = 1, window.at, False  # 1: the array
    while True:
        for mark in _MARK.finditer(window.text, scanned):
            scanned, c = mark.end(), mark.group()
            if c == '"':
                is_quoted = not is_quoted
            elif is_quoted or len(c) > 1:
                continue
            elif c in "[{":
                depth += 1
                if depth > DEPTH_LIMIT:
                    raise _describe_depth(file, window.line + window.text.count("\n", window.at, scanned))
            else:
                depth -= 1
                if depth == 1:
                    return scanned
        dropped = window.at
        if len(window.text) - window.at > LINE_LIMIT or not window.extend():
            return None
        scanned -= dropped


def _describe_length(file: str, line: int) -> DataError:
    return DataError(
        f"the row is longer than {LINE_LIMIT:,} characters.",
        "Split it into several rows.",
        file=file,
        line=line,
    )


def _describe_depth(file: str, line: int) -> DataError:
    return DataError(
        f"the JSON is nested deeper than {DEPTH_LIMIT} levels.",
        "Flatten it: a row is an object of texts, or an object with a list of messages.",
        file=file,
        line=line,
    )


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
            raise _describe_length(file, line)
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


def _to_data_error(error: Exception, text: str, file: str, line: int, before: int = 0) -> DataError:
    """Converts a parser's error into one with file, line and remedy.

    Args:
        line: of the first character of the text.
        before: characters before it in its line.
    """
    if isinstance(error, json.JSONDecodeError):
        end = len(text.rstrip())
        position = min(error.pos, end)  # a value that ends early is named where it ends, not on a blank line
        line += text.count("\n", 0, position)
        column = position - text.rfind("\n", 0, position)
        if "\n" not in text[:position]:
            column += before
        if error.pos >= end or error.msg.startswith("Unterminated"):
            what = f"the JSON is incomplete: {error.msg} at column {column}."
            return DataError(
                what,
                "Complete or delete the row. The file may have been truncated when it was copied.",
                file=file,
                line=line,
            )
        what = f"not valid JSON: {error.msg} at column {column}."
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
