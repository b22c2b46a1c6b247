"""Word documents (.docx) as blocks: the text that a reader of the accepted document sees, in its order.

    in      paragraphs, headings, lists with their markers, tables row by row, tracked insertions, moved text
            at its new place, text boxes and notes after their paragraph, content controls, results of fields
    out     tracked deletions, hidden text, comments, headers and footers, contents lists, pictures: counted

WordprocessingML is read directly, because libraries for it leave out tables, text boxes and insertions.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import unquote

from core.data.documents.block_builders import BlockBuilder, Tally, flatten_blocks
from core.data.documents.container_parts import DAMAGED, Archive, find_local_name, parse_xml
from core.data.documents.document import Block, Document
from core.data.documents.docx_styles import Numbering, Styles, W, find_child, is_on, parse_number, read_value
from core.data.documents.docx_symbols import read_symbol
from core.data.documents.equations import write_office_math
from core.errors import DataError

_STRICT = (
    (b"http://purl.oclc.org/ooxml/wordprocessingml/main", b"http://schemas.openxmlformats.org/wordprocessingml/2006/main"),
    (b"http://purl.oclc.org/ooxml/officeDocument/math", b"http://schemas.openxmlformats.org/officeDocument/2006/math"),
)  # fmt: skip
_TITLE = "{http://purl.org/dc/elements/1.1/}title"
_WRAPPERS = ("ins", "moveTo", "smartTag", "customXml", "hyperlink", "dir", "bdo", "sdtContent")
_GONE = ("del", "moveFrom")
_CONTENTS_FIELDS = ("TOC", "TOA", "INDEX")
_PICTURES = ("blip", "imagedata")


def read_docx(file: IO[bytes], name: str) -> Document:
    """Reads a Word document.

    Args:
        file: open for reading, seekable.
        name: the file name that errors show.

    Raises:
        DataError: not a .docx file, protected by a password, damaged, or beyond the limits of
            `document_parts`.
    """
    archive = Archive(file, name, ".docx")
    try:
        return _DocxReader(archive, name).read()
    except RecursionError as e:
        raise DataError(
            "its tables or boxes are nested too deeply.", "Simplify the document.", file=name
        ) from e


class _DocxReader:
    def __init__(self, archive: Archive, name: str) -> None:
        self._archive = archive
        self._tally = Tally()
        self._builder = BlockBuilder()
        self._main = self._find_main(name)
        self._parts = _read_relations(archive, self._main)
        self._styles = Styles(self._parse_optional("styles"))
        self._numbering = Numbering(self._parse_optional("numbering"))
        self._notes = {
            **_read_notes(self._parse_optional("footnotes"), "footnote"),
            **_read_notes(self._parse_optional("endnotes"), "endnote"),
        }
        self._fields: list[_Field] = []
        self._fields_are_closed = True
        self._attachments: list[Any] = []  # boxes and notes to write after the present paragraph
        self._list_number = ""  # of the last item of the highest level
        self._unfinished = ""  # text of a paragraph whose end is deleted

    def _find_main(self, name: str) -> str:
        """The name of the part with the text."""
        relations = _read_relations(self._archive, "")
        main = next(iter(relations.get("officeDocument", [])), "word/document.xml")
        if main in self._archive and not main.startswith(("xl/", "ppt/")):
            return main
        kinds = (
            ("xl/", "a spreadsheet"),
            ("ppt/", "a presentation"),
            ("Index/", "a file of Apple's programs"),
        )
        names = self._archive.names
        what = next((kind for prefix, kind in kinds if any(n.startswith(prefix) for n in names)), "")
        if not what and "content.xml" in self._archive:
            what = "an OpenDocument file"
        if what:
            raise DataError(
                f"this is not a .docx file: its content is {what}.",
                "Open it in the program that made it and save it as .docx.",
                file=name,
            )
        raise DataError("this is not a .docx file: it has no part with the document.", DAMAGED, file=name)

    def _parse(self, part: str) -> Any:
        data = self._archive.read(part)
        for strict, usual in _STRICT:
            data = data.replace(strict, usual)
        return parse_xml(data, self._archive.name, part)

    def _parse_optional(self, kind: str) -> Any:
        part = next(iter(self._parts.get(kind, [])), "")
        return self._parse(part) if part and part in self._archive else None

    # ------------------------------------------------------------ document

    def read(self) -> Document:
        root = self._parse(self._main)
        body = find_child(root, "body")
        if body is None:
            self._archive.refuse("it has no document body.", DAMAGED)
        self._fields_are_closed = _are_fields_closed(body)
        self._read_blocks(body)
        self._flush_text()
        self._count_left_out()
        return self._builder.build(self._read_title(), self._tally)

    def _read_title(self) -> str:
        part = next(iter(_read_relations(self._archive, "").get("core-properties", [])), "docProps/core.xml")
        if part not in self._archive:
            return ""
        return self._archive.parse(part).findtext(_TITLE) or ""

    def _count_left_out(self) -> None:
        if (comments := self._parse_optional("comments")) is not None:
            self._tally.count("comment", number=len(comments.findall(W + "comment")))
        parts = [*self._parts.get("header", []), *self._parts.get("footer", [])]
        texts = 0
        for part in parts:
            if part in self._archive:
                texts += any((t.text or "").strip() for t in self._parse(part).iter(W + "t"))
        self._tally.count("header or footer", "headers and footers", texts)

    # ------------------------------------------------------------ blocks

    def _read_blocks(self, container: Any) -> None:
        for element in self._iterate(container):
            name = find_local_name(element)
            if name == "p":
                self._read_paragraph(element)
            elif name == "tbl":
                self._flush_text()
                self._read_table(element)
            elif name == "altChunk":
                self._tally.count("embedded file")

    def _iterate(self, container: Any) -> Iterator[Any]:
        """Yields the elements of a body, cell or row, with what stands inside wrappers."""
        for child in container:
            name = find_local_name(child)
            if name in _GONE:
                self._count_deletion(child)
            elif name in _WRAPPERS:
                yield from self._iterate(child)
            elif name == "sdt":
                if _is_contents_control(child):
                    self._tally.count("contents list")
                elif (
                    not _shows_placeholder(child) and (content := find_child(child, "sdtContent")) is not None
                ):
                    yield from self._iterate(content)
            elif name == "AlternateContent":
                yield from self._iterate(_choose_alternative(child))
            else:
                yield child

    def _read_paragraph(self, paragraph: Any) -> None:
        properties = find_child(paragraph, "pPr")
        style = self._styles.resolve(read_value(properties, "pStyle"))
        pieces: list[str] = []
        if not style.is_hidden:
            self._read_inline(paragraph, pieces)
        elif any(True for _ in paragraph.iter(W + "t")):
            self._tally.count("paragraph of hidden text", "paragraphs of hidden text")
        text = self._unfinished + "".join(pieces)
        self._unfinished = ""
        mark = find_child(properties, "rPr")
        if mark is not None and any(find_child(mark, gone) is not None for gone in _GONE):
            self._unfinished = text
            return
        level = style.level
        if (outline := read_value(properties, "outlineLvl")) is not None:
            level = parse_number(outline, 9) + 1 if parse_number(outline, 9) < 9 else 0
        self._write_paragraph(text, level, style, properties)
        self._write_attachments()

    def _write_paragraph(self, text: str, level: int, style: Any, properties: Any) -> None:
        if style.is_contents and level == 0:
            if text.strip():
                self._tally.count("line of a contents list", "lines of contents lists")
            return
        number, depth = style.number, style.depth
        if (listed := find_child(properties, "numPr")) is not None:
            number = read_value(listed, "numId") if find_child(listed, "numId") is not None else number
            depth = parse_number(read_value(listed, "ilvl"), depth)
        if not text.strip():
            if style.is_code:
                self._builder.add_code_line("")
            return
        marker = self._numbering.write_marker(number, depth) if self._numbering.is_list(number or "") else ""
        if level:
            self._builder.add_heading(f"{marker} {text}" if marker not in ("", "-") else text, level)
        elif style.is_code:
            self._builder.add_code_line(text)
        elif self._numbering.is_list(number or ""):
            if marker and depth == 0 and number != self._list_number:
                self._builder.close()
            if marker and depth == 0:
                self._list_number = number or ""
            self._builder.add_item(text, marker, depth)
        else:
            self._builder.add("paragraph", text)

    def _flush_text(self) -> None:
        text, self._unfinished = self._unfinished, ""
        self._builder.add("paragraph", text)
        self._write_attachments()

    def _write_attachments(self) -> None:
        """Writes the boxes and notes of the paragraph that ended."""
        pending, self._attachments = self._attachments, []
        for element in pending:
            blocks = self._read_separately(element)
            if find_local_name(element) == "txbxContent":
                self._builder.extend(blocks)
            else:
                self._builder.add("footnote", "\n".join(block.text for block in blocks))

    def _read_separately(self, container: Any) -> tuple[Block, ...]:
        """Reads the blocks of a cell, box or note, which are not part of the text around it."""
        outer = self._builder, self._attachments, self._unfinished, self._fields
        self._builder, self._attachments, self._unfinished, self._fields = BlockBuilder(), [], "", []
        try:
            self._read_blocks(container)
            self._flush_text()
            return self._builder.blocks
        finally:
            self._builder, self._attachments, self._unfinished, self._fields = outer

    def _read_table(self, table: Any) -> None:
        rows = []
        for row in self._iterate(table):
            if find_local_name(row) != "tr":
                continue
            if find_child(row, "trPr", "del") is not None:
                self._tally.count("deleted table row")
                continue
            rows.append([cell for cell in self._iterate(row) if find_local_name(cell) == "tc"])
        if all(len(row) <= 1 for row in rows):  # a frame around text
            for row in rows:
                for cell in row:
                    self._builder.extend(self._read_separately(cell))
            return
        notes: list[Block] = []
        self._builder.add_table(
            [[self._read_cell(cell, notes) for cell in row if _is_shown(cell)] for row in rows]
        )
        self._builder.extend(notes)

    def _read_cell(self, cell: Any, notes: list[Block]) -> str:
        """The text of a cell in one line; its notes are added to `notes`."""
        properties = find_child(cell, "tcPr")
        merged = read_value(properties, "vMerge")
        if merged is not None and merged != "restart":
            return ""
        blocks = self._read_separately(cell)
        notes += [block for block in blocks if block.kind == "footnote"]
        return flatten_blocks([block for block in blocks if block.kind != "footnote"])

    # ------------------------------------------------------------ text

    def _read_inline(self, container: Any, pieces: list[str]) -> None:
        """Adds the text of a paragraph, or of an element in it, to `pieces`."""
        for child in container:
            name = find_local_name(child)
            if name == "r":
                self._read_run(child, pieces)
            elif name in _GONE:
                self._count_deletion(child)
            elif name in _WRAPPERS:
                self._read_inline(child, pieces)
            elif name == "sdt":
                content = find_child(child, "sdtContent")
                if content is not None and not _shows_placeholder(child):
                    self._read_inline(content, pieces)
            elif name == "fldSimple":
                if not _is_contents_field(child.get(W + "instr", "")):
                    self._read_inline(child, pieces)
            elif name == "oMath":
                if self._is_visible():
                    pieces.append(write_office_math(child))
            elif name == "oMathPara":
                equations = [write_office_math(e) for e in child if find_local_name(e) == "oMath"]
                pieces.append("\n".join(equations) if self._is_visible() else "")
            elif name == "AlternateContent":
                self._read_inline(_choose_alternative(child), pieces)
            elif name == "txbxContent":
                self._attachments.append(child)

    def _count_deletion(self, element: Any) -> None:
        """Counts a tracked deletion; what was moved stands at its new place."""
        if find_local_name(element) == "del":
            self._tally.count("tracked deletion")

    def _is_visible(self) -> bool:
        """Whether text is outside the codes of fields and outside contents lists."""
        return not self._fields_are_closed or all(
            field.shows_result and not field.is_contents for field in self._fields
        )

    def _read_run(self, run: Any, pieces: list[str]) -> None:
        properties = find_child(run, "rPr")
        hidden = is_on(properties, "vanish")
        if hidden is None:
            hidden = self._styles.resolve(read_value(properties, "rStyle")).is_hidden
        if hidden and any(True for _ in run.iter(W + "t")):
            self._tally.count("passage of hidden text", "passages of hidden text")
        has_own_mark = any(e.get(W + "customMarkFollows", "0") not in ("0", "false") for e in run)
        for child in run:
            name = find_local_name(child)
            if name == "fldChar":
                self._read_field(child.get(W + "fldCharType", ""))
            elif name == "instrText":
                if self._fields and not self._fields[-1].shows_result:
                    self._fields[-1].code += child.text or ""
            elif not hidden and self._is_visible():
                self._read_run_part(child, name, pieces, has_own_mark)

    def _read_run_part(self, child: Any, name: str, pieces: list[str], has_own_mark: bool) -> None:
        if name == "t":
            if not has_own_mark:
                pieces.append(child.text or "")
        elif name in ("tab", "ptab"):
            pieces.append("\t")
        elif name in ("br", "cr"):
            pieces.append("\n")
        elif name == "noBreakHyphen":
            pieces.append("-")
        elif name == "sym":
            if (symbol := read_symbol(child.get(W + "char", ""), child.get(W + "font", ""))) is None:
                self._tally.count("symbol of a picture font", "symbols of picture fonts")
            pieces.append(symbol or "")
        elif name in ("footnoteReference", "endnoteReference"):
            note = self._notes.pop((name.removesuffix("Reference"), child.get(W + "id", "")), None)
            if note is not None:
                self._attachments.append(note)
        elif name == "ruby":
            if (base := find_child(child, "rubyBase")) is not None:
                self._read_inline(base, pieces)
        elif name == "AlternateContent":
            for part in _choose_alternative(child):
                self._read_run_part(part, find_local_name(part), pieces, has_own_mark)
        elif name in ("drawing", "pict", "object"):
            self._read_shapes(child)

    def _read_field(self, kind: str) -> None:
        if kind == "begin":
            self._fields.append(_Field())
        elif kind == "separate" and self._fields:
            self._fields[-1].shows_result = True
            self._fields[-1].is_contents = _is_contents_field(self._fields[-1].code)
            if self._fields[-1].is_contents:
                self._tally.count("contents list")
        elif kind == "end" and self._fields:
            self._fields.pop()

    def _read_shapes(self, element: Any) -> None:
        """Finds the text boxes of a drawing; counts its pictures, charts and diagrams."""
        for child in element:
            name = find_local_name(child)
            if name == "txbxContent":
                self._attachments.append(child)
            elif name == "AlternateContent":
                self._read_shapes(_choose_alternative(child))
            elif name in _PICTURES:
                self._tally.count("picture")
            elif name == "chart":
                self._tally.count("chart")
            elif name == "relIds":
                self._tally.count("diagram")
            else:
                self._read_shapes(child)


class _Field:
    """A field such as PAGEREF or HYPERLINK: its code, and whether its result has begun."""

    def __init__(self) -> None:
        self.code = ""
        self.shows_result = False
        self.is_contents = False


def _is_contents_field(code: str) -> bool:
    return code.split()[:1] != [] and code.split()[0].upper() in _CONTENTS_FIELDS


def _are_fields_closed(body: Any) -> bool:
    """Whether every field that begins also ends; else one lost end would hide the rest of the text."""
    kinds = [e.get(W + "fldCharType", "") for e in body.iter(W + "fldChar")]
    return kinds.count("begin") == kinds.count("end")


def _is_contents_control(sdt: Any) -> bool:
    gallery = read_value(sdt, "sdtPr", "docPartObj", "docPartGallery") or ""
    return gallery.lower().startswith("table of")


def _shows_placeholder(sdt: Any) -> bool:
    """Whether a content control shows "Click here to enter text" instead of an entry."""
    return bool(is_on(find_child(sdt, "sdtPr"), "showingPlcHdr"))


def _choose_alternative(element: Any) -> Any:
    """One of the two forms in which newer content is stored: the newer one, unless it is empty."""
    children = [c for c in element if find_local_name(c) in ("Choice", "Fallback")]
    filled = [c for c in children if len(c)]
    return next(iter(filled), element if not children else children[0])


def _is_shown(cell: Any) -> bool:
    """Whether a cell is neither deleted nor the rest of a cell to its left."""
    properties = find_child(cell, "tcPr")
    if find_child(properties, "cellDel") is not None:
        return False
    merged = read_value(properties, "hMerge")
    return merged is None or merged == "restart"


def _read_notes(root: Any, kind: str) -> dict[tuple[str, str], Any]:
    """The footnotes or endnotes of a document by kind and id; separators are not notes."""
    if root is None:
        return {}
    return {
        (kind, note.get(W + "id", "")): note
        for note in root.iterfind(W + kind)
        if note.get(W + "type", "normal") == "normal"
    }


def _read_relations(archive: Archive, part: str) -> dict[str, list[str]]:
    """The parts that a part refers to, by the last word of the kind of relation; "" is the whole file."""
    folder, _, file = part.rpartition("/")
    relations = f"{folder}/_rels/{file}.rels" if folder else f"_rels/{file}.rels"
    found: dict[str, list[str]] = {}
    if relations not in archive:
        return found
    for relation in archive.parse(relations):
        if find_local_name(relation) != "Relationship" or relation.get("TargetMode") == "External":
            continue
        target = unquote(relation.get("Target", ""))
        path = (
            target.lstrip("/")
            if target.startswith("/")
            else posixpath.normpath(posixpath.join(folder, target))
        )
        found.setdefault(relation.get("Type", "").rpartition("/")[2], []).append(path)
    return found
