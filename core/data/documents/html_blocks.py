"""HTML elements as blocks: what a reader of the page sees, without what belongs to the page around the text.

    in      headings, paragraphs, lists with their markers, tables row by row, code with its line ends
    out     scripts, styles, forms, pictures, hidden elements; of pages navigation, asides, headers and
            footers; of books only navigation

The tree is walked without recursion, so that deep nesting costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from core.data.documents.block_builders import BlockBuilder, TableGrid, Tally, flatten_blocks
from core.data.documents.container_parts import find_local_name
from core.data.documents.document import Block
from core.data.documents.docx_styles import format_number
from core.data.documents.equations import write_mathml
from core.data.documents.html_notes import (
    NOTE_TYPES,
    NoteIndex,
    find_classes,
    find_types,
    is_notes_section,
    is_page_break,
    join_text,
)
from core.data.documents.html_survey import HEADINGS, Survey, list_rows

_BLOCKS = frozenset((
    "address", "article", "aside", "blockquote", "body", "center", "dd", "details", "dialog", "dir", "div",
    "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "frameset", "h1", "h2", "h3", "h4",
    "h5", "h6", "header", "hgroup", "hr", "html", "legend", "li", "main", "menu", "nav", "ol", "optgroup",
    "p", "pre", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
    "caption", "listing", "xmp", "plaintext", "search",
))  # fmt: skip
_SILENT = frozenset((
    "head", "script", "style", "noscript", "template", "link", "meta", "base", "title", "datalist",
    "noframes", "noembed", "param", "col", "colgroup", "rt", "rp", "area", "map",
))  # fmt: skip
_CONTROLS = frozenset((
    "input", "select", "button", "textarea", "output", "progress", "meter",
))  # fmt: skip
_PICTURES = frozenset((
    "img", "svg", "canvas", "picture", "image",
))  # fmt: skip
_MEDIA = frozenset((
    "audio", "video", "object", "embed", "iframe", "applet",
))  # fmt: skip
_CODE = frozenset(("pre", "listing", "xmp", "plaintext"))
_LISTS = frozenset(("ul", "ol", "menu", "dir", "dl"))
_SECTIONING = frozenset(
    ("article", "aside", "nav", "section", "main", "blockquote", "details", "td", "figure")
)
_PAGE_ROLES = {
    "navigation": "navigation menu", "search": "search form", "banner": "page header",
    "contentinfo": "page footer",
    "complementary": "aside", "dialog": "dialog", "alertdialog": "dialog",
}  # fmt: skip
_DECORATION = frozenset(
    ("headerlink", "mw-editsection", "linenos", "lineno", "line-number", "line-numbers", "gutter")
)
_MAY_BE_LEFT_OUT = frozenset(("del", "nav", "aside", "header", "footer", "dialog"))
_NUMBERING = {"a": "lowerLetter", "A": "upperLetter", "i": "lowerRoman", "I": "upperRoman"}
_HIDDEN_STYLE = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
_BLANKS = re.compile(r"[ \t\n\r\f]+")
_PARAGRAPH_BREAK = re.compile(r"\n(?: *\n)+")
_MARK = "\x00"  # where the mark of a note stood
_REMOVED_MARK = re.compile(r"[ ]*\x00(?=[\s.,;:!?)\]}»”’\"']|$)")


@dataclass
class _List:
    """A list that is open: what its items are marked with, and the next number."""

    numbering: str  # "" for bullets and definitions
    number: int = 1
    step: int = 1
    is_definition: bool = False


@dataclass
class _State:
    """Where the walk is."""

    lists: list[_List] = field(default_factory=list)
    markers: list[str] = field(
        default_factory=list
    )  # of the item that is open in each list, until it is written
    indents: list[int] = field(default_factory=list)
    heading: int = 0
    code: int = 0
    sections: int = 0  # open elements to which a header or footer would belong


class HtmlBlocks:
    """Writes the blocks of elements.

    Args:
        builder: receives the blocks.
        tally: counts what is left out.
        notes: footnotes of all pages; None for a page without links between its elements.
        is_book: whether asides, headers and footers belong to the text.
    """

    def __init__(
        self, builder: BlockBuilder, tally: Tally, notes: NoteIndex | None = None, is_book: bool = False
    ) -> None:
        self._builder = builder
        self._tally = tally
        self._notes = notes
        self._is_book = is_book
        self._pieces: list[str] = []
        self._pending: list[Any] = []
        self._written_notes: set[Any] = set()
        self._state = _State()
        self._survey = Survey()
        self._emptied: list[Block] = []  # headings whose text was notes that are written at their marks
        self._mains: dict[Any, list[int]] = {}  # main part of the page -> numbers of its first and next block
        self.spare_headings: list[str] = []  # of the page's header, for a page without another main heading

    def walk(self, root: Any, inside: bool = False) -> None:
        """Writes an element and all that it holds.

        Args:
            inside: write only what it holds, as for a note or a cell that is read by itself.
        """
        stack: list[tuple[Any, Iterator[Any]]] = []
        if not inside:
            self._survey.add(root)
        if inside:
            self._add_text(root.text)
            stack.append((root, iter(root)))
        elif self._start(root):
            stack.append((root, iter(root)))
        while stack:
            element, children = stack[-1]
            child = next(children, None)
            if child is None:
                stack.pop()
                if stack or not inside:
                    self._end(element)
                if stack:
                    self._add_text(element.tail)
            elif find_local_name(child) and self._start(child):
                stack.append((child, iter(child)))
            else:
                self._add_text(child.tail)
        self._flush()
        self._builder.close()

    def list_blocks(self) -> tuple[Block, ...]:
        """The blocks, without headings under which nothing is left."""
        blocks = self._take_main(self._builder.blocks)
        emptied = {id(block) for block in self._emptied}
        following = [*blocks[1:], None][: len(blocks)]
        return tuple(
            block
            for block, after in zip(blocks, following, strict=True)
            if id(block) not in emptied or (after and (after.kind != "heading" or after.level > block.level))
        )

    def _take_main(self, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
        """The blocks of the main part of a page, if it has one that holds most of the text."""
        if len(self._mains) != 1 or self._is_book:
            return blocks
        first, end = next(iter(self._mains.values()))
        length, inside = (sum(len(b.text) for b in part) for part in (blocks, blocks[first:end]))
        if 2 * inside < length or inside == length:
            return blocks
        self._tally.say(f"{length - inside:,} characters outside the main part of the page were left out.")
        return blocks[first:end]

    # ------------------------------------------------------------ elements

    def _start(self, element: Any) -> bool:
        """Begins an element; returns whether its children are to be read."""
        name = find_local_name(element)
        if name in _SILENT or self._leave_out(element, name):
            return False
        if name == "br":
            self._pieces.append("\n" if self._state.heading == 0 else " ")
        elif name == "math":
            self._pieces.append(write_mathml(element))
            return False
        elif name == "table" and not self._state.code:
            return self._start_table(element)
        elif name == "q":
            self._pieces.append("“")
        elif name == "a" and self._notes is not None and element in self._notes.notes:
            self._add_mark(element)
            return False
        elif self._notes is not None and element.keys() and find_types(element) & NOTE_TYPES:
            self._flush()
            self._builder.add("footnote", "\n".join(block.text for block in self._read_separately(element)))
            return False
        if name in _BLOCKS:
            self._start_block(element, name)
        self._add_text(element.text)
        return True

    def _start_block(self, element: Any, name: str) -> None:
        if self._state.heading:  # a block inside a heading only separates words
            self._pieces.append(" ")
            return
        if self._state.code and name not in _CODE:
            self._pieces.append("\n")
            return
        self._flush()
        if name in _SECTIONING:
            self._state.sections += 1
        if name == "main" or (element.keys() and "main" in find_types(element)):
            number = len(self._builder.blocks)
            self._mains[element] = [number, number]
        if name in HEADINGS:
            self._state.heading = HEADINGS[name]
        elif name in _CODE:
            self._state.code += 1
        elif name in _LISTS:
            self._start_list(element, name)
        elif name in ("li", "dt", "dd"):
            self._start_item(element, name)

    def _end(self, element: Any) -> None:
        name = find_local_name(element)
        if name == "q":
            self._pieces.append("”")
        if name not in _BLOCKS:
            return
        state = self._state
        if state.heading and name not in HEADINGS:
            self._pieces.append(" ")
            return
        if state.code and name not in _CODE:
            return
        self._flush()
        if element in self._mains:
            self._mains[element][1] = len(self._builder.blocks)
        if name in _SECTIONING:
            state.sections -= 1
        if name in HEADINGS:
            state.heading = 0
        elif name in _CODE:
            state.code -= 1
        elif name in _LISTS and state.lists:
            state.lists.pop()
            state.markers.pop()
            state.indents.pop()
            if not state.lists:
                self._builder.close()

    def _start_list(self, element: Any, name: str) -> None:
        numbering = ""
        number, step = 1, 1
        if name == "ol":
            numbering = _NUMBERING.get((element.get("type") or "").strip(), "decimal")
            items = sum(find_local_name(child) == "li" for child in element)
            if element.get("reversed") is not None:
                number, step = items, -1
            number = _parse(element.get("start"), number)
        self._state.lists.append(_List(numbering, number, step, name == "dl"))
        self._state.markers.append("")
        self._state.indents.append(0)

    def _start_item(self, element: Any, name: str) -> None:
        state = self._state
        if not state.lists:
            self._start_list(element, "dl" if name != "li" else "ul")  # an item outside a list: to the end
        current = state.lists[-1]
        state.indents[-1] = 1 if name == "dd" else 0
        state.markers[-1] = ""
        if name == "li" and not current.numbering:
            state.markers[-1] = "-"
        elif name == "li":
            current.number = _parse(element.get("value"), current.number)
            state.markers[-1] = f"{format_number(current.number, current.numbering)}."
            current.number += current.step

    def _start_table(self, element: Any) -> bool:
        """Writes a table of data by rows; returns whether its cells are to be read as blocks."""
        self._flush()
        if self._survey.is_frame(element):
            self._add_text(element.text)
            return True
        rows, captions = list_rows(element)
        for caption in captions:
            self._builder.extend(self._read_separately(caption))
        notes: list[Block] = []
        self._builder.add_table(self._read_rows(rows, notes))
        self._builder.extend(notes)
        return False

    def _read_rows(self, rows: list[Any], notes: list[Block]) -> list[list[str]]:
        """The texts of the cells; a cell over several rows leaves an empty one in each further row."""
        table = TableGrid()
        for row in rows:
            cells = []
            for cell in row:
                if find_local_name(cell) not in ("td", "th") or self._leave_out(cell, "td"):
                    continue
                blocks = self._read_separately(cell)
                notes += [block for block in blocks if block.kind == "footnote"]
                text = flatten_blocks([block for block in blocks if block.kind != "footnote"])
                width = min(max(_parse(cell.get("colspan"), 1), 1), 1000)
                height = min(max(_parse(cell.get("rowspan"), 1), 1), 65_534)
                cells.append((text, width, height))
            table.add_row(cells)
        return table.rows

    def _read_separately(self, element: Any) -> tuple[Block, ...]:
        """The blocks of what an element holds, as a text by itself."""
        builder = BlockBuilder()
        other = HtmlBlocks(builder, self._tally, self._notes, True)
        other._written_notes = self._written_notes
        other._survey = self._survey
        other.walk(element, inside=True)
        return builder.blocks

    # ------------------------------------------------------------ what is left out

    def _leave_out(self, element: Any, name: str) -> bool:
        """Whether an element is not part of the text; counts what a reader would miss."""
        if name in _PICTURES:
            self._tally.count("picture")
            return True
        if name in _MEDIA:
            self._tally.count("embedded object")
            return True
        if name in _CONTROLS or (name == "form" and not self._survey.holds_content(element)):
            self._tally.count("form or form field", "forms and form fields")
            return True
        if name in ("label", "legend"):
            return element in self._survey.labels
        if not element.keys() and name not in _MAY_BE_LEFT_OUT:  # most elements
            return self._leave_out_note(element)
        if _is_hidden(element, name):
            if join_text(element).strip():
                self._tally.count("hidden element")
            return True
        if name == "del":
            self._tally.count("deletion")
            return True
        if is_page_break(element):
            if join_text(element).strip():
                self._tally.count("page number")
            return True
        if find_classes(element) & _DECORATION:
            return True
        return self._leave_out_note(element) or self._leave_out_region(element, name)

    def _leave_out_note(self, element: Any) -> bool:
        """Whether an element is a note that is written at its mark, or a link back to one."""
        if self._notes is None or not self._notes.bodies:
            return False
        if element in self._notes.back_links:
            return True
        if element in self._notes.bodies:
            self._flush()
            if (last := self._builder.last) is not None and last.kind == "heading":
                self._emptied.append(last)
            return True
        if not element.keys() or not is_notes_section(element):
            return False
        return all(note in self._notes.bodies for note in _list_notes(element))

    def _leave_out_region(self, element: Any, name: str) -> bool:
        """Whether an element is navigation, or belongs to the page around the text."""
        role = next((_PAGE_ROLES[r] for r in find_types(element) if r in _PAGE_ROLES), "")
        if name == "nav":
            role = "navigation menu"
        elif name == "aside":
            role = role or "aside"
        elif name in ("header", "footer") and not self._state.sections:
            role = role or f"page {name}"
        elif name in ("header", "footer"):
            role = ""
        if not role or (self._is_book and role != "navigation menu"):
            return False
        if role == "page header":
            self.spare_headings += [
                " ".join(join_text(e).split()) for e in element.iter() if find_local_name(e) == "h1"
            ]
        self._tally.count(role)
        return True

    # ------------------------------------------------------------ text

    def _add_text(self, text: str | None) -> None:
        if text:
            self._pieces.append(text if self._state.code else _BLANKS.sub(" ", text))

    def _add_mark(self, link: Any) -> None:
        assert self._notes is not None
        note = self._notes.notes[link]
        self._pieces.append(_MARK)
        if note not in self._written_notes:
            self._written_notes.add(note)
            self._pending.append(note)

    def _flush(self) -> None:
        """Ends the present run of text and writes it as a block."""
        text, self._pieces = "".join(self._pieces), []
        state = self._state
        if _MARK in text:
            text = _REMOVED_MARK.sub("", text).replace(_MARK, "")
        if state.code:
            self._builder.add("code", text)
        elif state.heading:
            self._builder.add_heading(text, state.heading)
        else:
            text = re.sub(r" {2,}", " ", text)
            for part in _PARAGRAPH_BREAK.split(re.sub(r" *\n *", "\n", text)):
                self._write_paragraph(part.strip(" \n"))
        self._write_notes()

    def _write_paragraph(self, text: str) -> None:
        state = self._state
        if not text:
            return
        if not state.lists:
            self._builder.add("paragraph", text)
            return
        depth = len(state.lists) - 1 + state.indents[-1]
        marker, state.markers[-1] = state.markers[-1], ""
        self._builder.add_item(text, marker, depth)

    def _write_notes(self) -> None:
        pending, self._pending = self._pending, []
        for note in pending:
            assert self._notes is not None
            text = "\n".join(block.text for block in self._read_separately(note))
            mark = re.escape(self._notes.bodies[note].strip("[]() .:"))
            # "1. Text", or what the removed link back leaves: "[] Text", ". Text", "^ Text"
            text = re.sub(
                rf"\A(?:[\[(]?{mark}[\])]?[.:)\]](?!\d)|[\[(]\s*[\])]|[.:^]+)\s*(?=\S)", "", text, count=1
            )
            self._builder.add("footnote", text)


def _parse(text: str | None, default: int) -> int:
    try:
        return int((text or "").strip())
    except ValueError:
        return default


def _is_hidden(element: Any, name: str) -> bool:
    hidden = element.get("hidden")
    return (
        (hidden is not None and hidden.lower() != "until-found")
        or (element.get("aria-hidden") or "").strip().lower() == "true"
        or bool(_HIDDEN_STYLE.search(element.get("style") or ""))
        or (name == "dialog" and element.get("open") is None)
    )


def _list_notes(section: Any) -> list[Any]:
    """The elements of a section of notes that can be notes."""
    items = [e for e in section.iter() if find_local_name(e) in ("li", "aside")]
    return items or [e for e in section if find_local_name(e) in ("p", "div", "dd", "section")]
