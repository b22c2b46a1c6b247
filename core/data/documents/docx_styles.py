"""Styles and lists of a .docx file: which paragraphs are headings, hidden, or list items with markers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
BASE_LIMIT = 50  # styles that one style is based on, one after the other
LEVELS = 9
BODY_LEVEL = 9  # outline level of body text

# Word stores "heading 1" in every language; other programs store the name that they show.
_HEADING = re.compile(
    r"(?:heading|überschrift|titre|título|titulo|título de nível|titolo|kop|rubrik|overskrift|otsikko|"
    r"nagłówek|nadpis|címsor|başlık|заголовок|επικεφαλίδα|titlu|naslov|标题|標題|見出し|제목|כותרת|عنوان)\s*([1-9])",
    re.IGNORECASE,
)
_TITLE = re.compile(r"title|titel|titre|título|titolo|标题|표제", re.IGNORECASE)
_CODE = re.compile(r"source code|html preformatted|preformatted text|code|code block|listing", re.IGNORECASE)
_CONTENTS = re.compile(r"(?:toc|contents) ?[1-9]|table of figures|toc heading", re.IGNORECASE)
_OFF = ("0", "false", "off")
_PLACEHOLDER = re.compile(r"%([1-9])")


@dataclass(frozen=True)
class Style:
    """What a style, with the styles that it is based on, says about text.

    Attributes:
        level: of a heading, from 1; 0 for body text.
        number, depth: the list it belongs to (w:numId) and the level in it; "" for none.
        is_hidden: whether its text is hidden.
        is_code: whether it is for code.
        is_contents: whether it is for lines of a table of contents.
    """

    level: int = 0
    number: str = ""
    depth: int = 0
    is_hidden: bool = False
    is_code: bool = False
    is_contents: bool = False


def find_child(element: Any, *names: str) -> Any:
    """The element at a path of WordprocessingML names below an element, or None."""
    for name in names:
        if element is None:
            return None
        element = element.find(W + name)
    return element


def read_value(element: Any, *names: str) -> str | None:
    """The w:val of the element at a path; None if the element is missing, "" if it has no value."""
    child = find_child(element, *names)
    return None if child is None else child.get(W + "val", "")


def is_on(properties: Any, name: str) -> bool | None:
    """Whether a switch such as w:vanish is on; None if it is not set."""
    value = read_value(properties, name)
    return None if value is None else value not in _OFF


def parse_number(text: str | None, default: int = 0) -> int:
    """A whole number of an attribute; `default` for anything else."""
    try:
        return int(text or "")
    except ValueError:
        return default


class Styles:
    """The styles of a document.

    Args:
        root: of styles.xml; None if the document has none.
    """

    def __init__(self, root: Any = None) -> None:
        self._elements = (
            {} if root is None else {e.get(W + "styleId", ""): e for e in root.iterfind(W + "style")}
        )
        self._resolved: dict[str, Style] = {"": Style()}

    def resolve(self, style_id: str | None) -> Style:
        """The style of an id, with what it inherits."""
        style_id = style_id or ""
        if style_id not in self._resolved:
            self._resolved[style_id] = self._build(style_id)
        return self._resolved[style_id]

    def _build(self, style_id: str) -> Style:
        if style_id not in self._elements:  # python-docx and others refer to styles that the file lacks
            return Style(level=_find_level_of_id(style_id))
        chain = list(self._list_chain(style_id))
        names = [read_value(e, "name") or "" for e in chain]
        name_levels = [_find_level(name) for name in names]
        outline = next((v for e in chain if (v := read_value(e, "pPr", "outlineLvl")) is not None), None)
        level = next((n for n in name_levels if n), 0)
        if outline is not None and not name_levels[0]:
            level = parse_number(outline, BODY_LEVEL) + 1
        numbered = [n for e in chain if (n := find_child(e, "pPr", "numPr")) is not None]
        number = next((v for n in numbered if (v := read_value(n, "numId")) is not None), "")
        depth = next((v for n in numbered if (v := read_value(n, "ilvl")) is not None), "0")
        hidden = next((on for e in chain if (on := is_on(find_child(e, "rPr"), "vanish")) is not None), False)
        return Style(
            level=level if 1 <= level <= LEVELS else 0,
            number="" if number == "0" else number,
            depth=parse_number(depth),
            is_hidden=hidden,
            is_code=any(_CODE.fullmatch(name.strip()) for name in names),
            is_contents=any(_CONTENTS.fullmatch(name.strip()) for name in names),
        )

    def _list_chain(self, style_id: str) -> Iterator[Any]:
        """Yields a style and those it is based on; a circle ends at the limit."""
        for _ in range(BASE_LIMIT):
            element = self._elements.get(style_id)
            if element is None:
                return
            yield element
            style_id = read_value(element, "basedOn") or ""


def _find_level(name: str) -> int:
    """The heading level that a style's name says, 0 for none."""
    name = name.strip()
    if match := _HEADING.fullmatch(name):
        return int(match[1])
    return 1 if _TITLE.fullmatch(name) else 0


def _find_level_of_id(style_id: str) -> int:
    match = re.fullmatch(r"(?:heading|berschrift|titre|titulo|titolo|kop)([1-9])", style_id, re.IGNORECASE)
    if match:
        return int(match[1])
    return 1 if style_id.lower() == "title" else 0


# ---------------------------------------------------------------- numbering


@dataclass(frozen=True)
class _Level:
    """One level of a list: its format ("decimal", "bullet", ...), the text around its number, its start."""

    kind: str
    text: str
    start: int


class Numbering:
    """The lists of a document; counts their items.

    Args:
        root: of numbering.xml; None if the document has none.
    """

    def __init__(self, root: Any = None) -> None:
        self._lists: dict[str, tuple[str, dict[int, _Level]]] = {}
        self._counts: dict[str, list[int | None]] = {}
        self._started: set[tuple[str, int]] = set()
        self._overrides: dict[str, dict[int, int]] = {}
        if root is None:
            return
        abstract = {e.get(W + "abstractNumId", ""): _read_levels(e) for e in root.iterfind(W + "abstractNum")}
        for num in root.iterfind(W + "num"):
            key, number = read_value(num, "abstractNumId") or "", num.get(W + "numId", "")
            levels = dict(abstract.get(key, {}))
            for override in num.iterfind(W + "lvlOverride"):
                depth = parse_number(override.get(W + "ilvl"))
                if (level := find_child(override, "lvl")) is not None:
                    levels[depth] = _read_level(level)
                if (start := read_value(override, "startOverride")) is not None:
                    self._overrides.setdefault(number, {})[depth] = parse_number(start, 1)
            self._lists[number] = (key, levels)

    def is_list(self, number: str) -> bool:
        """Whether a w:numId belongs to a list; documents without numbering.xml use ids all the same."""
        return bool(number) and number != "0"

    def write_marker(self, number: str, depth: int) -> str:
        """Counts an item, and writes what stands before it: "-" for bullets, "2." or "a)" for numbers."""
        key, levels = self._lists.get(number, (f"num {number}", {}))
        depth = min(max(depth, 0), LEVELS - 1)
        counts = self._counts.setdefault(key, [None] * LEVELS)
        level = levels.get(depth, _Level("bullet", "", 1))
        overrides = self._overrides.get(number, {})
        if depth in overrides and (number, depth) not in self._started:
            self._started.add((number, depth))
            counts[depth] = overrides[depth]
        else:
            before = counts[depth]
            counts[depth] = level.start if before is None else before + 1
        for deeper in range(depth + 1, LEVELS):
            counts[deeper] = None
        if level.kind == "bullet":  # pandoc continues an item with an invisible bullet
            return "-" if level.text.strip() or not level.text else ""
        if level.kind == "none":
            return ""

        def write(match: re.Match[str]) -> str:
            place = int(match[1]) - 1
            other = levels.get(place, level)
            value = counts[place]
            return format_number(other.start if value is None else value, other.kind)

        return _PLACEHOLDER.sub(write, level.text).strip()


def _read_levels(abstract: Any) -> dict[int, _Level]:
    return {parse_number(e.get(W + "ilvl")): _read_level(e) for e in abstract.iterfind(W + "lvl")}


def _read_level(element: Any) -> _Level:
    return _Level(
        read_value(element, "numFmt") or "decimal",
        read_value(element, "lvlText") or "",
        parse_number(read_value(element, "start"), 1),
    )


def format_number(value: int, kind: str) -> str:
    """Writes a number as Word does for a format of lists: "decimal", "lowerLetter", "upperRoman", ..."""
    if kind in ("lowerLetter", "upperLetter"):
        text = write_letters(value)
        return text if kind == "lowerLetter" else text.upper()
    if kind in ("lowerRoman", "upperRoman"):
        text = write_roman(value)
        return text if kind == "lowerRoman" else text.upper()
    if kind == "decimalZero":
        return f"{value:02d}"
    return str(value)


def write_letters(value: int) -> str:
    """1 as "a", 26 as "z", 27 as "aa", 28 as "bb", as Word counts; other numbers in digits."""
    if not 1 <= value <= 26 * 20:
        return str(value)
    return chr(ord("a") + (value - 1) % 26) * ((value - 1) // 26 + 1)


def write_roman(value: int) -> str:
    """A number from 1 to 3,999 in lower Roman numerals; other numbers in digits."""
    if not 1 <= value < 4000:
        return str(value)
    parts = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"),
             (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))  # fmt: skip
    text = ""
    for size, letters in parts:
        text += letters * (value // size)
        value %= size
    return text
