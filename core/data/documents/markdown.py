"""Markdown to blocks (markdown-it-py): the text stays as it was typed, only its structure is found.

A heading, a paragraph, an item of a loose list, a table and a fence of code are each one block. Blocks that
no blank line separates, other than headings, are one block: "Steps:" stays with the list below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import IO

from markdown_it import MarkdownIt

from core.data.documents.document import Block, Document
from core.data.formats.read_log import ReadLog
from core.data.formats.text_lines import read_lines

_KINDS = {"fence": "code", "code_block": "code", "table_open": "table"}
_MERGED = (
    "code",
    "table",
    "list",
    "footnote",
    "paragraph",
)  # the kind of blocks that touch: the first of these
_FRONT_MATTER = re.compile(r"\s*$|\s*[#-]|\s+\S|[^\s:][^:]*:(\s|$)")
_NOTE = re.compile(r"\s{0,3}\[\^[^\]\s]+\]:")
NESTING_LIMIT = 20  # lists and quotes inside each other


def read_markdown(file: IO[bytes], name: str, encoding: str = "utf-8") -> Document:
    """Reads a Markdown file; closes it.

    Args:
        file: open for reading, seekable.
        name: the file name that errors show.
        encoding: of a file that does not identify itself.

    Raises:
        DataError: as `text_lines.read_lines`.
    """
    return parse_markdown("".join(line for _, line in read_lines(file, name, encoding, ReadLog())))


def parse_markdown(text: str) -> Document:
    """The blocks of a Markdown text, and its first heading of the highest level as its title."""
    blocks = read_markdown_blocks(text)
    headings = [block for block in blocks if block.kind == "heading"]
    title = plain_heading(min(headings, key=lambda block: block.level).text) if headings else ""
    return Document(tuple(blocks), title)


def plain_heading(text: str) -> str:
    """The words of a heading without its marks: "## Prices ##" and underlined "Prices" are "Prices"."""
    first = text.strip().split("\n")[0].strip()
    return re.sub(r"\s+#+\s*$", "", re.sub(r"^#{1,6}(\s+|$)", "", first)).strip()


def read_markdown_blocks(text: str) -> list[Block]:
    """Cuts a Markdown text into blocks; joined by blank lines they are the text again.

    Front matter is a block of code, as it is never cut.
    """
    lines = re.sub("\r\n?", "\n", text).split("\n")
    start = _find_end_of_front_matter(lines)
    found: list[tuple[int, int, str, int]] = []  # first line, line after the last, kind, level of a heading
    if start:
        found.append((0, start, "code", 0))
    covered = start
    for first, end, kind, level in _list_blocks("\n".join(lines[start:])):
        first, end = max(first + start, covered), end + start
        found += _list_gaps(lines, covered, first)
        if first < end:
            found.append((first, end, kind, level))
        covered = max(covered, end)
    found += _list_gaps(lines, covered, len(lines))
    return _merge(lines, found)


def _find_end_of_front_matter(lines: Sequence[str]) -> int:
    """The line after the front matter of a document, 0 if it has none; the rule of `readers`."""
    if len(lines) < 3 or lines[0].rstrip() != "---" or not lines[1].strip():
        return 0
    for number, line in enumerate(lines[1:], 1):
        if line.rstrip() in ("---", "..."):
            return number + 1
        if not _FRONT_MATTER.match(line):
            return 0
    return 0


def _list_blocks(text: str) -> Iterator[tuple[int, int, str, int]]:
    """Yields the blocks of the document itself: first line, line after the last, kind, level of a heading."""
    parser = (
        MarkdownIt("commonmark", {"maxNesting": NESTING_LIMIT})
        .enable("table")
        .disable(["inline", "text_join"])
    )
    first, end, is_list = 0, 0, False
    for token in parser.parse(text):
        if token.map is None or token.nesting < 0:
            continue
        if is_list and token.level == 1 and token.type == "list_item_open" and token.map[0] > first:
            yield first, token.map[0], "list", 0
            first = token.map[0]
        if token.level:
            continue
        if is_list:
            yield first, end, "list", 0
        first, end = token.map
        is_list = token.type.endswith("list_open")
        if not is_list:
            level = int(token.tag[1]) if token.type == "heading_open" else 0
            yield first, end, "heading" if level else _KINDS.get(token.type, "paragraph"), level
    if is_list:
        yield first, end, "list", 0


def _list_gaps(lines: Sequence[str], first: int, end: int) -> Iterator[tuple[int, int, str, int]]:
    """Yields the lines that belong to no block, such as definitions of links, as paragraphs."""
    start = None
    for number in range(first, end + 1):
        is_text = number < end and bool(lines[number].strip())
        if is_text and start is None:
            start = number
        elif not is_text and start is not None:
            yield start, number, "paragraph", 0
            start = None


def _merge(lines: Sequence[str], found: Sequence[tuple[int, int, str, int]]) -> list[Block]:
    """Makes blocks of ranges of lines; ranges that touch become one, unless one of them is a heading."""
    groups: list[tuple[int, int, str, int]] = []
    for first, end, kind, level in found:
        while end > first and not lines[end - 1].strip():
            end -= 1
        while first < end and not lines[first].strip():
            first += 1
        if first >= end:
            continue
        if kind == "paragraph" and _NOTE.match(lines[first]):
            kind = "footnote"
        if groups and first == groups[-1][1] and "heading" not in (kind, groups[-1][2]):
            kind = min(kind, groups[-1][2], key=_MERGED.index)
            first, level = groups.pop()[0], 0
        groups.append((first, end, kind, level))
    return [Block(kind, "\n".join(lines[first:end]), level) for first, end, kind, level in groups]
