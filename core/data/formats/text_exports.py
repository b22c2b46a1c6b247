"""Text files that other programs export: notes of Anki are a table; chats and quizzes are said to be texts.

#separator:tab
#html:true
front of a card<tab>its back
"""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Iterator, Sequence

from core.data.formats.json_rows import FIELD_LIMIT, LINE_LIMIT
from core.data.formats.read_log import ReadLog
from core.errors import DataError

_DIRECTIVE = re.compile(r"#([a-z ]+):(.*)")
_SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "space": " ", "colon": ":"}
_BREAK = re.compile(r"<br\s*/?>|</(?:div|p|li)>", re.I)
_TAG = re.compile(r"<[^<>]{0,500}>")
_CHAT_LINE = re.compile(r"\W?\d{1,4}[./-]\d{1,2}[./-]\d{2,4},? \d{1,2}[:.]\d{2}.{0,12}?[\]-] ?[^:]{1,60}: ")
_QUIZ_LINE = re.compile(r"(::.+::.*)?.*\{\s*[=~].*")
_CHAT_LINES = 4


def is_anki(lines: Sequence[str]) -> bool:
    """Whether the lines are notes that Anki exported as plain text."""
    return bool(lines) and lines[0].lower().startswith("#separator:")


def read_anki(lines: Sequence[str], name: str, log: ReadLog) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads the notes of Anki as a table; fields without a name are called "field 1", "field 2", ...

    Raises:
        DataError: broken quotes, too many fields, or an unknown separator.
    """
    directives: dict[str, str] = {}
    start = 0
    while start < len(lines) and (found := _DIRECTIVE.match(lines[start])):
        directives[found[1].strip()] = found[2].strip()
        start += 1
    separator = _SEPARATORS.get(directives["separator"].lower(), directives["separator"])
    if len(separator) != 1:
        raise DataError(
            f"the separator {separator!r} is not supported.", "Export the notes with tabs.", file=name, line=1
        )
    named = directives.get("columns", "").split(separator) if "columns" in directives else []
    places = {int(v): k.removesuffix(" column") for k, v in directives.items()
              if k.endswith(" column") and v.isdecimal()}  # fmt: skip
    has_html = directives.get("html") == "true"
    if has_html:
        log.say(f"{name}: the fields of these Anki notes are HTML; their tags are left out.")
    csv.field_size_limit(LINE_LIMIT)
    cells = csv.reader((line + "\n" for line in lines[start:]), delimiter=separator, strict=True)
    while True:
        before = start + cells.line_num + 1
        try:
            row = next(cells)
        except StopIteration:
            return
        except csv.Error as e:
            raise DataError(
                f"not a note of Anki: {e}.",
                "Check its quotes, or export the notes again.",
                file=name,
                line=before,
            ) from e
        if len(row) > FIELD_LIMIT:
            raise DataError(
                f"a note may have at most {FIELD_LIMIT} fields, got {len(row)}.",
                "Export fewer fields.",
                file=name,
                line=before,
            )
        if any(cell.strip() for cell in row):
            texts = [_strip_tags(cell) if has_html else cell for cell in row]
            yield before, {_name_field(i, named, places): text for i, text in enumerate(texts)}


def _name_field(index: int, named: Sequence[str], places: dict[int, str]) -> str:
    if index < len(named) and named[index].strip():
        return named[index].strip()
    return places.get(index + 1, f"field {index + 1}")


def _strip_tags(text: str) -> str:
    return html.unescape(_TAG.sub("", _BREAK.sub("\n", text))).strip()


def describe_export(lines: Sequence[str]) -> str:
    """What the lines are if a program exported them; "" if they are a text."""
    filled = [line for line in lines[:2000] if line.strip()]
    if sum(bool(_CHAT_LINE.match(line)) for line in filled) > max(_CHAT_LINES, len(filled) // 2):
        return (
            "this is an exported chat, read as text with its names and times. To learn answers, write a "
            "table with the columns question and answer."
        )
    if sum(bool(_QUIZ_LINE.match(line)) for line in filled) >= 3 and any("=" in line for line in filled):
        return (
            "this looks like a quiz in Moodle's GIFT format, read as text. To learn its answers, write a "
            "table with the columns question and answer."
        )
    return ""
