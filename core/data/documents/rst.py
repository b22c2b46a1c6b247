"""reStructuredText as blocks, through docutils: nothing is included, executed or fetched.

unknown directives   their text stays, as the text of paragraphs; lists of contents are left out,
                     because their text is in other files
unknown roles        their text stays: ":ref:`Prices <prices>`" is "Prices"
comments, pictures   left out: counted
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import IO, Any

from core.data.documents.block_builders import BlockBuilder, TableGrid, Tally, flatten_blocks
from core.data.documents.document import Block, Document
from core.data.documents.docx_styles import format_number
from core.data.documents.html import read_text, read_whole_file
from core.data.formats.text_encodings import LABELS, identify
from core.errors import DataError

SIZE_LIMIT_BYTES = 4 << 20  # docutils parses some 30 kB a second
LINE_LIMIT = 100_000  # characters; a table row or an unwrapped paragraph
DIRECTIVE_DEPTH = 8  # unknown directives inside unknown directives

_SETTINGS = {
    "_disable_config": True,  # no docutils.conf from the folder or the home of the user
    "file_insertion_enabled": False,
    "raw_enabled": False,
    "halt_level": 6,  # above the highest
    "report_level": 1,  # problems become nodes of the tree; those that hold text are used
    "warning_stream": False,
    "traceback": True,  # else an exception is printed, and ends the process
    "doctitle_xform": False,
    "sectsubtitle_xform": False,
    "docinfo_xform": False,
    "syntax_highlight": "none",
    "smart_quotes": False,
}
# Directives of Sphinx whose text is elsewhere, or which only set something.
_EMPTY = frozenset((
    "toctree", "index", "autosummary", "currentmodule", "module", "py:module", "py:currentmodule",
    "highlight", "default-domain", "tabularcolumns", "sectionauthor", "codeauthor", "literalinclude",
    "include", "graphviz", "plot", "image", "raw", "meta",
))  # fmt: skip
_UNSHOWN_ARGUMENT = frozenset(
    ("figure", "only", "ifconfig", "list-table", "container", "class", "grid", "rst-class")
)
_DIRECTIVE = re.compile(r"\s*\.\. +(?:\|[^|]+\| +)?([\w:.+-]+?) ?::[ \t]*(.*)", re.DOTALL)
_OPTION = re.compile(r":[\w-]+:(?:\s|$)")
_ROLE = re.compile(r"(?::[\w:.+-]+:)?`(?P<text>[^`]+)`(?::[\w:.+-]+:)?_{0,2}")
_REFERENCE = re.compile(r"\w[\w.+:-]*__?")
_TARGET = re.compile(r"\s*<[^<>]+>\s*\Z", re.DOTALL)
_TITLES = {
    "attention": "Attention", "caution": "Caution", "danger": "Danger", "error": "Error", "hint": "Hint",
    "important": "Important", "note": "Note", "tip": "Tip", "warning": "Warning", "seealso": "See also",
    "versionadded": "New in version", "versionchanged": "Changed in version",
    "deprecated": "Deprecated since version",
}  # fmt: skip
_CODE = frozenset(
    ("code-block", "sourcecode", "code", "doctest", "testcode", "prompt", "parsed-literal", "productionlist")
)
_NUMBERING = {
    "arabic": "decimal", "loweralpha": "lowerLetter", "upperalpha": "upperLetter", "lowerroman": "lowerRoman",
    "upperroman": "upperRoman",
}  # fmt: skip
_SKIPPED = frozenset((
    "comment", "substitution_definition", "target", "raw", "decoration", "header", "footer", "meta",
    "pending", "docinfo", "sidebar_title", "system_message",
))  # fmt: skip


def read_rst(file: IO[bytes], name: str, encoding: str = "utf-8") -> Document:
    """Reads a reStructuredText file.

    Args:
        file: open for reading.
        name: the file name that errors show.
        encoding: of a file that does not identify itself.

    Raises:
        UnknownEncoding: the file is not UTF-8, and the user has to choose its encoding.
        DataError: not valid in its encoding, too large, or nested too deeply.
    """
    data = read_whole_file(file, name, SIZE_LIMIT_BYTES)
    codec, how = identify(data)
    tally = Tally()
    if how:
        tally.say(f"Read as {LABELS.get(codec.removesuffix('-sig'), codec).split(',')[0]}, because of {how}.")
    return parse_rst(read_text(data, name, encoding), name, tally)


def parse_rst(text: str, name: str, tally: Tally | None = None) -> Document:
    """Parses reStructuredText into blocks; see `read_rst`."""
    tally = tally or Tally()
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > LINE_LIMIT:
            raise DataError(
                f"a line may have at most {LINE_LIMIT:,} characters, got {len(line):,}.",
                "Break the line.",
                file=name,
                line=number,
            )
    try:
        writer = _RstWriter(tally)
        writer.write(_parse(text))
        return writer.builder.build("", tally)
    except RecursionError as e:
        raise DataError("its text is nested too deeply.", "Simplify the document.", file=name) from e
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        SystemExit,
        TypeError,
        ValueError,
    ) as e:
        raise DataError(
            f"docutils cannot parse it ({type(e).__name__}: {e}).",
            "Correct the markup, or save it as .txt.",
            file=name,
        ) from e


def _parse(text: str) -> Any:
    from docutils.core import publish_doctree  # 0.1 s, and only needed here
    from docutils.parsers.rst import roles

    # The limit also bounds what substitutions inside substitutions grow to.
    limit = max(10_000, max(map(len, text.splitlines()), default=0))
    settings = {**_SETTINGS, "input_encoding": "unicode", "line_length_limit": limit}
    before = dict(roles._roles)
    try:
        return publish_doctree(text, settings_overrides=settings)
    finally:  # a role that one document defines would else exist in all later ones
        roles._roles.clear()
        roles._roles.update(before)


class _RstWriter:
    """Writes the nodes of a docutils tree as blocks."""

    def __init__(self, tally: Tally, depth: int = 0) -> None:
        self.builder = BlockBuilder()
        self._tally = tally
        self._depth = depth  # of unknown directives
        self._level = 0
        self._markers: list[str] = []
        self._notes: dict[str, Any] = {}
        self._pending: list[Any] = []

    def write(self, document: Any) -> None:
        """Writes a whole document; notes that no mark refers to come where they stand."""
        for note in document.findall(lambda node: getattr(node, "tagname", "") == "footnote"):
            if note.get("backrefs"):
                self._notes[note["ids"][0]] = note
        self._write_children(document)
        for note in self._notes.values():  # their marks are in what was left out
            self._write_note(note)

    def _write_children(self, node: Any) -> None:
        for child in node.children:
            self._write_node(child)

    def _write_node(self, node: Any) -> None:
        name = getattr(node, "tagname", "#text")
        method = getattr(self, f"_visit_{name}", None)
        if name == "system_message":
            self._write_problem(node)
        elif name in _SKIPPED:
            if name == "comment" and node.astext().strip():
                self._tally.count("comment")
        elif method is not None:
            method(node)
        elif name in _TITLES and hasattr(node, "children"):
            self._write_admonition(node, _TITLES[name])
        elif name == "#text":
            self._add_text(node.astext())
        elif _is_inline(node):
            self._add_text(self._read_inline(node))
        else:
            self._write_children(node)

    # ------------------------------------------------------------ text

    def _add_text(self, text: str) -> None:
        """Writes a paragraph: of the present list item, or by itself."""
        if not self._markers:
            self.builder.add("paragraph", text)
        else:
            for depth, outer in enumerate(self._markers[:-1]):  # a field or option that begins with a list
                if outer.endswith(":") or (outer.startswith("-") and len(outer) > 1):
                    self.builder.add_item(outer, "", depth)
                self._markers[depth] = ""
            marker, self._markers[-1] = self._markers[-1], ""
            self.builder.add_item(text, marker, len(self._markers) - 1)
        pending, self._pending = self._pending, []
        for note in pending:
            self._write_note(note)

    def _write_note(self, note: Any) -> None:
        self.builder.add("footnote", "\n".join(b.text for b in self._read_separately(note, skip=("label",))))

    def _read_inline(self, node: Any) -> str:
        """The text of a paragraph or an inline element; marks of footnotes are taken out."""
        parts: list[str] = []
        for child in node.children:
            name = getattr(child, "tagname", "#text")
            if name == "#text":
                parts.append(child.astext().replace("\x00", ""))
            elif name == "footnote_reference":
                self._read_mark(child, parts)
            elif name == "citation_reference":
                parts.append(f"[{child.astext()}]")
            elif name == "problematic":
                parts.append(strip_roles(child.astext()))
            elif name == "image":
                self._tally.count("picture")
            elif name in ("raw", "target", "system_message", "substitution_definition", "comment"):
                parts.append(child.astext() if name == "target" else "")
            else:
                parts.append(self._read_inline(child))
        return "".join(parts)

    def _read_mark(self, reference: Any, parts: list[str]) -> None:
        key = reference.get("refid", "")
        if not key:
            if not self._depth:  # inside a directive the notes of the document are not known
                parts.append(f"[{reference.astext()}]")
            return
        if parts:
            parts[-1] = parts[-1].rstrip()
        if key in self._notes:  # else a further mark of a note that is written
            self._pending.append(self._notes.pop(key))

    def _read_separately(self, node: Any, skip: Sequence[str] = ()) -> tuple[Block, ...]:
        """The blocks of what a node holds, as a text by itself."""
        outer = self.builder, self._markers, self._pending
        self.builder, self._markers, self._pending = BlockBuilder(), [], []
        try:
            for child in node.children:
                if getattr(child, "tagname", "") not in skip:
                    self._write_node(child)
            return self.builder.blocks
        finally:
            self.builder, self._markers, self._pending = outer

    def _visit_paragraph(self, node: Any) -> None:
        self._add_text(" ".join(self._read_inline(node).split()))

    # ------------------------------------------------------------ structure

    def _visit_section(self, node: Any) -> None:
        self._level += 1
        self._write_children(node)
        self._level -= 1

    def _visit_title(self, node: Any) -> None:
        text = " ".join(self._read_inline(node).split())
        if self._level and getattr(node.parent, "tagname", "") == "section":
            self.builder.add_heading(text, self._level)
            self._add_notes()
        else:
            self._add_text(text)

    def _add_notes(self) -> None:
        if self._pending:
            self._add_text("")

    def _visit_topic(self, node: Any) -> None:
        if "contents" in node.get("classes", ()):
            self._tally.count("contents list")
        else:
            self._write_children(node)

    def _visit_bullet_list(self, node: Any) -> None:
        self._write_list(node, ["-"] * len(node.children))

    def _visit_enumerated_list(self, node: Any) -> None:
        kind = _NUMBERING.get(node.get("enumtype", "arabic"), "decimal")
        start, prefix, suffix = node.get("start", 1), node.get("prefix", ""), node.get("suffix", ".")
        self._write_list(
            node, [prefix + format_number(start + i, kind) + suffix for i in range(len(node.children))]
        )

    def _write_list(self, node: Any, markers: Sequence[str]) -> None:
        for item, marker in zip(node.children, markers, strict=True):
            self._markers.append(marker)
            self._write_children(item)
            self._markers.pop()
        if not self._markers:
            self.builder.close()

    def _visit_definition_list(self, node: Any) -> None:
        self._write_pairs(node, ("term", "classifier"), ("definition",), " : ")

    def _visit_field_list(self, node: Any) -> None:
        self._write_pairs(node, ("field_name",), ("field_body",), "")

    def _visit_option_list(self, node: Any) -> None:
        self._write_pairs(node, ("option_group",), ("description",), "")

    def _write_pairs(self, node: Any, terms: Sequence[str], bodies: Sequence[str], separator: str) -> None:
        """Writes terms with their definitions one level below, or in one line where both are short."""
        self._markers.append("")
        for item in node.children:
            names = [c for c in item.children if getattr(c, "tagname", "") in terms]
            self._markers[-1] = ""
            head = separator.join(_join_options(name) or self._read_inline(name) for name in names)
            contents = [c for c in item.children if getattr(c, "tagname", "") in bodies]
            if separator:
                self._add_text(" ".join(head.split()))
            else:
                self._markers[-1] = f"{head}:" if terms == ("field_name",) else head
            if not separator and not any(c.children for c in contents):
                self._markers[-1] = ""
                self._add_text(f"{head}:" if terms == ("field_name",) else head)
            for content in contents:
                if separator:
                    self._markers.append("")
                    self._write_children(content)
                    self._markers.pop()
                else:
                    self._write_children(content)
        self._markers.pop()
        if not self._markers:
            self.builder.close()

    def _visit_literal_block(self, node: Any) -> None:
        self.builder.add("code", "".join(c.astext() for c in node.children if "ln" not in _find_classes(c)))

    _visit_doctest_block = _visit_literal_block

    def _visit_math_block(self, node: Any) -> None:
        self._add_text(node.astext())

    def _visit_line_block(self, node: Any) -> None:
        self._add_text("\n".join(self._list_lines(node)))

    def _list_lines(self, node: Any) -> list[str]:
        lines = []
        for child in node.children:
            if child.tagname == "line_block":
                lines += self._list_lines(child)
            else:
                lines.append(" ".join(self._read_inline(child).split()))
        return lines

    def _visit_attribution(self, node: Any) -> None:
        self._add_text("— " + " ".join(self._read_inline(node).split()))

    def _write_admonition(self, node: Any, title: str = "") -> None:
        """Writes a note or warning; its title stands before its first paragraph."""
        blocks = self._read_separately(node)
        if title and blocks and blocks[0].kind == "paragraph":
            blocks = (Block("paragraph", f"{title}: {blocks[0].text}"), *blocks[1:])
        elif title:
            blocks = (Block("paragraph", title), *blocks)
        for block in blocks:
            if self._markers and block.kind == "paragraph":
                self._add_text(block.text)
            else:
                self.builder.extend([block])

    def _visit_image(self, node: Any) -> None:
        self._tally.count("picture")

    def _visit_footnote(self, node: Any) -> None:
        if not node.get("backrefs"):
            self._write_note(node)

    def _visit_citation(self, node: Any) -> None:
        label = next((c.astext() for c in node.children if getattr(c, "tagname", "") == "label"), "")
        text = "\n".join(b.text for b in self._read_separately(node, skip=("label",)))
        self.builder.add("footnote", f"[{label}] {text}" if label else text)

    def _visit_table(self, node: Any) -> None:
        for title in node.children:
            if getattr(title, "tagname", "") == "title":
                self._add_text(" ".join(self._read_inline(title).split()))
        groups = [child for child in node.children if getattr(child, "tagname", "") == "tgroup"]
        rows = [row for group in groups for row in _list_rows(group)]
        notes: list[Block] = []
        table = TableGrid()
        for row in rows:
            cells = []
            for entry in row.children:
                blocks = self._read_separately(entry)
                notes += [b for b in blocks if b.kind == "footnote"]
                text = flatten_blocks([b for b in blocks if b.kind != "footnote"])
                cells.append((text, 1 + entry.get("morecols", 0), 1 + entry.get("morerows", 0)))
            table.add_row(cells)
        self.builder.add_table(table.rows)
        self.builder.extend(notes)

    # ------------------------------------------------------------ problems

    def _write_problem(self, message: Any) -> None:
        """Writes the text of a directive that docutils does not know; other messages are about the markup."""
        for child in message.children:
            if getattr(child, "tagname", "") == "literal_block":
                self._write_directive(child.astext())

    def _write_directive(self, source: str) -> None:
        match = _DIRECTIVE.match(source)
        if match is None:
            self._add_text(" ".join(strip_roles(source).split()))
            return
        name, rest = match[1].lower(), match[2]
        first, _, body = rest.partition("\n")
        if name in _UNSHOWN_ARGUMENT or name.startswith("auto"):
            first = ""
        if name in _EMPTY or not (first + body).strip():
            self._tally.count("directive without text of its own", "directives without text of their own")
            return
        lines = textwrap.dedent(body).split("\n")
        while lines and (not lines[0].strip() or _OPTION.match(lines[0])):
            is_blank = not lines.pop(0).strip()
            if is_blank and lines and lines[0].strip() and not _OPTION.match(lines[0]):
                break
        content = "\n".join(lines)
        if name in _CODE:
            self.builder.add("code", content)
            return
        argument = " ".join(strip_roles(first).split())
        title = _TITLES.get(name, "")
        if name.startswith("version") or name == "deprecated":
            title, argument = f"{title} {argument.partition(' ')[0]}".strip(), argument.partition(" ")[2]
        text = f"{argument}\n\n{content}" if argument else content
        if self._depth >= DIRECTIVE_DEPTH:
            self._add_text(" ".join(text.split()))
            return
        inner = _RstWriter(self._tally, self._depth + 1)
        inner.write(_parse(text))
        blocks = inner.builder.blocks
        if title and blocks and blocks[0].kind == "paragraph":
            blocks = (Block("paragraph", f"{title}: {blocks[0].text}"), *blocks[1:])
        elif title:
            blocks = (Block("paragraph", title), *blocks)
        self.builder.extend(blocks)


def strip_roles(text: str) -> str:
    """Text with interpreted text as a reader sees it: ":ref:`Prices <prices>`" is "Prices"."""

    def show(match: re.Match[str]) -> str:
        inner = match["text"]
        shown = _TARGET.sub("", inner) or inner.strip(" <>")
        return shown.rpartition(".")[2] if shown.startswith("~") else shown.lstrip("!")

    return re.sub(r"(?<=\w)__?(?!\w)", "", text) if _REFERENCE.fullmatch(text) else _ROLE.sub(show, text)


def _find_classes(node: Any) -> Sequence[str]:
    return node.get("classes", ()) if hasattr(node, "get") else ()


def _is_inline(node: Any) -> bool:
    from docutils import nodes

    return isinstance(node, nodes.Inline)


def _join_options(node: Any) -> str:
    """The options of an entry such as "-o FILE, --output=FILE"; "" for other terms."""
    if getattr(node, "tagname", "") != "option_group":
        return ""
    options = []
    for option in node.children:
        text = option.children[0].astext()
        for argument in option.children[1:]:
            text += argument.astext()
        options.append(text)
    return ", ".join(options)


def _list_rows(group: Any) -> list[Any]:
    """The rows of a table, its head first."""
    parts = [c for c in group.children if getattr(c, "tagname", "") in ("thead", "tbody")]
    parts.sort(key=lambda part: part.tagname != "thead")
    return [row for part in parts for row in part.children]
