"""Markdown to blocks (markdown-it-py): the text stays as it was typed, only its structure is found.

A heading, a paragraph, an item of a loose list, a table and a fence of code are each one block. Blocks that no blank
line separates, other than headings, are one block: "Steps:" stays with the list below it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import IO

from markdown_it import MarkdownIt
from markdown_it.token import Token

from core.data.documents import Block, Document
from core.data.read_log import ReadLog
from core.data.text_lines import read_lines

_KINDS = {"bullet_list_open": "list", "ordered_list_open": "list", "fence": "code", "code_block": "code",
          "table_open": "table"}  # fmt: skip
_MERGED = ("code", "table", "list", "footnote", "paragraph")  # the kind of blocks that touch: the first of these
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
    parser = MarkdownIt("commonmark", {"maxNesting": NESTING_LIMIT}).enable("table").disable(["inline", "text_join"])
    tokens = parser.parse(text)
    for index, token in enumerate(tokens):
        if token.level or token.map is None or token.nesting < 0:
            continue
        first, end = token.map
        if token.type.endswith("list_open"):
            cuts = [t.map[0] for t in _list_items(tokens, index) if t.map and t.map[0] > first]
            for cut in cuts:
                yield first, cut, "list", 0
                first = cut
        level = int(token.tag[1]) if token.type == "heading_open" else 0
        yield first, end, "heading" if level else _KINDS.get(token.type, "paragraph"), level


def _list_items(tokens: Sequence[Token], index: int) -> Iterator[Token]:
    """Yields the items of the list that begins at a token."""
    for token in tokens[index + 1 :]:
        if token.level == 0:
            return
        if token.level == 1 and token.type == "list_item_open":
            yield token


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
    blocks: list[Block] = []
    previous_end = -1
    for first, end, kind, level in found:
        while end > first and not lines[end - 1].strip():
            end -= 1
        while first < end and not lines[first].strip():
            first += 1
        if first >= end:
            continue
        text = "\n".join(lines[first:end])
        if kind == "paragraph" and _NOTE.match(text):
            kind = "footnote"
        if blocks and first == previous_end and "heading" not in (kind, blocks[-1].kind):
            merged = min(kind, blocks[-1].kind, key=_MERGED.index)
            blocks[-1] = Block(merged, f"{blocks[-1].text}\n{text}")
        else:
            blocks.append(Block(kind, text, level))
        previous_end = end
    return blocks
