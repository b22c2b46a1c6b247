"""PDF files to documents: `pdf_extract` reads them in a child process, `pdf_layout` orders lines of pages.

Here lines become paragraphs: running headers and page numbers are removed, hyphens at line ends are joined,
paragraphs continue over columns and pages, and footnotes follow the paragraph that refers to them.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import statistics
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from core.data.child_process import build_child_command
from core.data.documents.document import Block, Document
from core.data.documents.pdf_extract import MARK_CLOSE, MARK_OPEN, PAGE_LIMIT
from core.data.documents.pdf_layout import Line, Run, order_lines
from core.data.documents.pdf_running import Sheet, remove_running_lines
from core.errors import DataError

HEADING_LEVELS = 6
FILE_LIMIT_BYTES = 512 << 20
SECONDS = 300  # of one file
OUTPUT_LIMIT_BYTES = 1 << 30
_BULLET = re.compile(r"[•▪◦‣●○■□–—*·]\s+|[-o]\s+(?=\S)|\(?(\d{1,2}|[a-zA-Z])[.)]\s+(?=\S)")
_CONTENTS_LINE = re.compile(r"(?:[.…·]\s?){5,}[\s|]*(?:\d{1,4}|[ivxlc]{1,7})?$")
_BEFORE_REFERENCE = re.compile(r"(?:[^\W\d_]{3,}|[.,;:!?…\"'”’»)\]])\s?$")
_NO_SPACES = re.compile(
    "[\u3001-\u303f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff\u0e00-\u0eff]"
)
_END = re.compile(r"[.!?:;…。！？][\"'”’»)\]]*$")
_MARK = re.compile(f"{MARK_OPEN}([^{MARK_CLOSE}]*){MARK_CLOSE}")
_SPACED_MARK = re.compile(rf"\s?{_MARK.pattern}")
_NOTE = re.compile(rf"(?:{MARK_OPEN}\s*(\d{{1,3}}|[*†‡§¶]){MARK_CLOSE}|(\d{{1,3}}|[*†‡§¶])[.)]?)\s*(?=\S)")
_PROBLEMS = {
    "password": (
        "the PDF file is encrypted with a password.",
        "Save a copy without a password, and import that.",
    ),
    "damaged": ("the PDF file is damaged.", "Open it in a PDF viewer, and save it again."),
    "stopped": (
        "the PDF file is damaged, or needs too much memory.",
        "Open it in a PDF viewer, and print it to a new PDF file.",
    ),
    "pages": (f"a PDF file may have at most {PAGE_LIMIT:,} pages.", "Split it into several files."),
    "characters": ("the PDF file has too much text.", "Split it into several files."),
}


@dataclass
class _Page:
    number: int
    height: float
    lines: list[Line]


@dataclass
class _Removals:
    """What was left out or changed, counted."""

    headers: int = 0
    numbers: int = 0
    contents: int = 0
    hyphens: int = 0
    rotated: int = 0
    no_code: int = 0
    empty_pages: int = 0
    damaged_pages: int = 0
    notes: list[str] = field(default_factory=list)

    def list_sentences(self) -> list[str]:
        counts = (
            (self.headers, "running header or footer was", "running headers and footers were", "removed"),
            (self.numbers, "page number was", "page numbers were", "removed"),
            (self.contents, "line of a contents list was", "lines of contents lists were", "left out"),
            (self.hyphens, "word was", "words were", "joined across a line end"),
            (self.rotated, "rotated character was", "rotated characters were", "left out"),
            (self.no_code, "character has", "characters have", "no letter in their font, and were left out"),
            (self.empty_pages, "page has", "pages have", "no text: pictures of text need OCR first"),
            (self.damaged_pages, "page is", "pages are", "damaged and left out"),
        )
        return [f"{n:,} {one if n == 1 else many} {what}." for n, one, many, what in counts if n]


def read_pdf(file: IO[bytes], name: str) -> Document:
    """Reads a PDF file as text in reading order.

    Args:
        file: the open file.
        name: the file name that errors show.

    Raises:
        DataError: it is encrypted, damaged, too large, or has no text.
    """
    result = _run_child(file, name, "text")
    removals = _Removals(damaged_pages=int(result["damaged"]))
    sheets = [Sheet(page["height"], [Run(*run) for run in page["runs"]]) for page in result["pages"]]
    removals.empty_pages = sum(not sheet.runs for sheet in sheets)
    removals.rotated = sum(page["rotated"] for page in result["pages"])
    removals.headers, removals.numbers = remove_running_lines(sheets)
    pages = [_Page(i, sheet.height, order_lines(sheet.runs)) for i, sheet in enumerate(sheets, start=1)]
    characters = sum(len(run[0]) for page in result["pages"] for run in page["runs"])
    no_code = removals.no_code = sum(page["no_code"] for page in result["pages"])
    if not characters and not no_code:
        raise DataError(
            "the PDF file has no text: its pages are pictures.",
            "Run text recognition (OCR) on it first, for example with ocrmypdf.",
            file=name,
        )
    if no_code > 0.2 * (characters + no_code):
        raise DataError(
            f"the fonts of the PDF file do not say which letters {no_code:,} of its characters are.",
            "Export it again with embedded Unicode fonts, or run text recognition (OCR) on it.",
            file=name,
        )
    blocks = _build_blocks(pages, removals)
    title = str(result["title"]).strip()
    return Document(
        tuple(blocks), "" if title.lower() in ("untitled", "") else title, tuple(removals.list_sentences())
    )


def draw_first_page(file: IO[bytes], name: str) -> bytes:
    """Draws the first page of a PDF file as a PNG.

    Raises:
        DataError: it cannot be drawn.
    """
    return base64.b64decode(_run_child(file, name, "picture")["png"])


def _run_child(file: IO[bytes], name: str, task: str) -> dict[str, Any]:
    """Runs `pdf_extract` on a file in a process of its own."""
    data = file.read(FILE_LIMIT_BYTES + 1)
    if len(data) > FILE_LIMIT_BYTES:
        raise DataError(
            f"a PDF file may have at most {FILE_LIMIT_BYTES:,} bytes.",
            "Split it into several files.",
            file=name,
        )
    if b"%PDF-" not in data[:1024]:
        raise DataError(
            "this is not a PDF file, though its name says so.", "Give it the suffix of its format.", file=name
        )
    try:
        done = subprocess.run(
            build_child_command("core.data.documents.pdf_extract", "main", task),
            input=data,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise DataError(
            f"the PDF file was not read within {SECONDS} seconds.",
            "Print it to a new PDF file, or split it.",
            file=name,
        ) from e
    try:
        result: dict[str, Any] = json.loads(done.stdout[:OUTPUT_LIMIT_BYTES])
    except ValueError as e:
        what, remedy = _PROBLEMS["stopped"]
        raise DataError(what, remedy, file=name) from e
    if problem := result.get("problem"):
        what, remedy = _PROBLEMS[problem]
        raise DataError(what, remedy, file=name)
    return result


# ---------------------------------------------------------------- paragraphs


def _build_blocks(pages: Sequence[_Page], removals: _Removals) -> list[Block]:
    """Joins the lines of all pages into blocks."""
    lines = [line for page in pages for line in page.lines]
    if not lines:
        return []
    weights: Counter[float] = Counter()
    for line in lines:
        weights[round(line.height * 2) / 2] += len(line.text)
    body = weights.most_common(1)[0][0]
    sizes = _list_heading_sizes(lines, body)
    builder = _Builder(body, _measure_line_distance(pages, body), sizes, _list_words(lines), removals)
    characters = sum(len(line.text) for line in lines)
    builder.bold_is_rare = sum(len(x.text) for x in lines if x.bold) < 0.4 * characters
    builder.mono_is_rare = sum(len(x.text) for x in lines if x.mono) < 0.6 * characters
    for page in pages:
        kept = [line for line in page.lines if not _CONTENTS_LINE.search(line.text)]
        removals.contents += len(page.lines) - len(kept)
        page.lines = kept
        text, notes = _separate_footnotes(page, body)
        builder.footnotes = dict(notes)
        builder.clear_marks = {
            m[1].strip() for line in text for m in _MARK.finditer(line.text) if _is_reference(line.text, m)
        }
        for line in text:
            builder.add(line, page.number)
        builder.finish_page(page.number)
    builder.close()
    return builder.blocks


def _list_heading_sizes(lines: Sequence[Line], body: float) -> list[float]:
    """The heights of lines that are larger than the body's, the largest first; similar ones count as one."""
    sizes: list[float] = []
    for height in sorted((x.height for x in lines if x.height > 1.12 * body), reverse=True):
        if not sizes or height < 0.92 * sizes[-1]:
            sizes.append(height)
    return sizes[: HEADING_LEVELS - 1]


def _measure_line_distance(pages: Sequence[_Page], body: float) -> float:
    """The usual distance between the bottoms of neighbouring lines of the body."""
    distances = [
        a.y0 - b.y0
        for page in pages
        for a, b in itertools.pairwise(page.lines)
        if a.block == b.block and 0.8 * body < a.y0 - b.y0 < 3 * body
    ]
    return statistics.median_low(distances) if distances else 1.3 * body


def _list_words(lines: Sequence[Line]) -> Counter[str]:
    """The words of the document, those at the ends of lines left out."""
    words: Counter[str] = Counter()
    for line in lines:
        words.update(re.findall(r"[\w'’]+(?:-[\w'’]+)*", _strip_marks(line.text).lower())[:-1])
    return words


def _separate_footnotes(page: _Page, body: float) -> tuple[list[Line], list[tuple[str, str]]]:
    """Separates the notes at the foot of a page: small lines that begin with a number or a sign."""
    marks = {m.strip() for line in page.lines for m in _MARK.findall(line.text)}
    text, notes = [], list[tuple[str, str]]()
    for line in page.lines:
        match = _NOTE.match(line.text)
        is_small = line.height < 0.93 * body and line.y1 < 0.5 * page.height and not line.table
        mark = (match[1] or match[2]) if match else ""
        if is_small and match and mark in marks:
            notes.append((mark, line.text[match.end() :]))
        elif is_small and notes:
            notes[-1] = (notes[-1][0], _join(notes[-1][1], line.text, Counter())[0])
        else:
            text.append(line)
    return text, [(mark, _strip_marks(note)) for mark, note in notes]


class _Builder:
    """Collects lines into blocks.

    Args:
        body: size of the body's font in points.
        leading: from the bottom of a line to the next one's, in points.
        sizes: heights of larger lines, the largest first.
        words: words of the document, for hyphens.
        removals: gets the count of joined words.
    """

    def __init__(
        self, body: float, leading: float, sizes: list[float], words: Counter[str], removals: _Removals
    ) -> None:
        self.body, self.leading, self.sizes, self.words, self.removals = body, leading, sizes, words, removals
        self.blocks: list[Block] = []
        self.footnotes: dict[str, str] = {}
        self.clear_marks: set[str] = set()  # of notes that a word refers to
        self.bold_is_rare = self.mono_is_rare = True
        self.pending: list[tuple[str, str]] = []
        self.kind, self.text, self.level, self.page = "", "", 0, 0
        self.left = 0.0  # edge of the present code
        self.last: Line | None = None

    def add(self, line: Line, page: int) -> None:
        """Adds the next line of the reading order."""
        kind, level = self._classify(line)
        is_new = self._begins_block(line, kind, level)
        text = self._replace_marks(line.text)
        if is_new:
            self.close()
            self.kind, self.text, self.level, self.page = kind, text, level, page
            self.left = line.x0
        elif kind == "code":
            self._add_code_line(line, text)
        elif kind == "table" or self._begins_item(line):
            self.text += "\n" + text
        else:
            self.text, joined = _join(self.text, text, self.words)
            self.removals.hyphens += joined
        self.last = line

    def _add_code_line(self, line: Line, text: str) -> None:
        """Adds a line of code with the indentation that it has on the page."""
        width = (line.x1 - line.x0) / max(len(line.text), 1)
        indent = round((line.x0 - self.left) / width) if width > 0 else 0
        if indent < 0:
            self.text = "\n".join(" " * min(-indent, 80) + x for x in self.text.split("\n"))
            self.left = line.x0
        self.text += "\n" + " " * min(max(indent, 0), 80) + text

    def close(self) -> None:
        """Ends the block, and puts the footnotes that it refers to behind it."""
        if self.text.strip():
            text = self.text.strip("\n") if self.kind == "code" else self.text.strip()
            self.blocks.append(Block(self.kind, text, self.level, self.page))
            self.blocks += [
                Block("footnote", f"[{mark}] {note}".strip(), 0, self.page) for mark, note in self.pending
            ]
            self.pending = []
        self.kind, self.text, self.last = "", "", None

    def finish_page(self, page: int) -> None:
        """Keeps the page's footnotes that no line refers to."""
        self.pending += list(self.footnotes.items())
        self.footnotes = {}

    def _replace_marks(self, text: str) -> str:
        """Superscripts: references to footnotes become [1], all others plain characters."""

        def replace(match: re.Match[str]) -> str:
            mark = match[1].strip()
            is_clear = mark not in self.clear_marks or _is_reference(match.string, match)
            if mark in self.footnotes and is_clear:
                self.pending.append((mark, self.footnotes.pop(mark)))
                return f"[{mark}]"
            return match[0]

        return _strip_marks(_SPACED_MARK.sub(replace, text))

    def _classify(self, line: Line) -> tuple[str, int]:
        if line.table:
            return "table", 0
        text = _strip_marks(line.text)
        is_short = len(text) < 120 and any(c.isalpha() for c in text)
        if line.height > 1.12 * self.body and is_short and not (line.mono and self.mono_is_rare):
            return "heading", 1 + min(range(len(self.sizes)), key=lambda i: abs(self.sizes[i] - line.height))
        if line.mono and self.mono_is_rare:
            return "code", 0
        if (
            line.bold
            and self.bold_is_rare
            and is_short
            and len(text) < 90
            and not text.rstrip().endswith((".", ",", ";"))
        ):
            return "heading", len(self.sizes) + 1
        return ("list" if _BULLET.match(text) else "paragraph"), 0

    def _begins_item(self, line: Line) -> bool:
        return self.kind == "list" and _BULLET.match(line.text) is not None

    def _begins_block(self, line: Line, kind: str, level: int) -> bool:
        """Whether a line begins a block of its own."""
        last = self.last
        if last is None:
            return True
        if kind == "table" and self.kind == "table":
            return (line.block, line.table) != (last.block, last.table)
        if "code" in (kind, self.kind):
            return kind != self.kind or last.y0 - line.y0 > 3 * self.leading
        if kind in ("heading", "table") or self.kind in ("heading", "table"):
            is_same = kind == self.kind and level == self.level
            return not is_same or line.block != last.block or last.y0 - line.y1 > 1.2 * line.height
        if kind == "list":
            is_item = self.kind == "list"
            return not is_item
        if line.block != last.block or line.y0 > last.y0:
            return self._ends_paragraph(last) or (
                self.kind != "list" and not _continues(self.text, line.text)
            )
        if self.text.endswith("-") and line.text[:1].islower():
            return False
        if last.y0 - line.y0 > 1.35 * self.leading or abs(line.height - last.height) > 0.15 * self.body:
            return True
        if self.kind == "list":
            return line.x0 < last.x0 - line.height and self._ends_paragraph(last)
        is_indented = line.x0 > line.column[0] + 0.8 * line.height and line.x0 > last.x0 + 0.8 * line.height
        return self._ends_paragraph(last) or (is_indented and bool(_END.search(last.text)))

    @staticmethod
    def _ends_paragraph(last: Line) -> bool:
        """Whether a line is the last of its paragraph: it ends a sentence well before the column ends."""
        width = last.column[1] - last.column[0]
        return bool(_END.search(_strip_marks(last.text))) and last.x1 < last.column[0] + 0.8 * width


def _continues(text: str, following: str) -> bool:
    """Whether a text at the end of a column or page continues in the next one."""
    if text.endswith("-") or following[:1].islower():
        return True
    return not _END.search(text)


def _join(text: str, following: str, words: Counter[str]) -> tuple[str, bool]:
    """Joins two lines; returns the text, and whether a word was joined across the line end.

    A hyphen stays where the document writes the word with a hyphen elsewhere, behind a digit, and before a
    capital letter.
    """
    text, following = text.rstrip(), following.lstrip()
    if _NO_SPACES.match(text[-1:]) and _NO_SPACES.match(following[:1]):
        return text + following, False
    head = re.search(r"([\w'’]+)[-\u00ad\u2010]$", text)
    tail = re.match(r"[\w'’]+", following)
    if not head or not tail:
        return f"{text} {following}", False
    is_soft = text.endswith("\u00ad")
    first, second = head[1].lower(), tail[0].lower()
    is_compound = words[f"{first}-{second}"] > 0 and not words[first + second]
    if not is_soft and (is_compound or first[-1].isdigit() or not following[:1].islower()):
        return text + following, False
    return text[:-1] + following, True


def _is_reference(text: str, match: re.Match[str]) -> bool:
    """Whether a superscript stands behind a word or a sentence, as the mark of a footnote does."""
    return _BEFORE_REFERENCE.search(text[: match.start()].rstrip(MARK_OPEN)) is not None


def _strip_marks(text: str) -> str:
    return _MARK.sub(r"\1", text)
