"""The child process that reads PDF files: pdfium to runs of characters, and a picture of a page.

    python -m core.data.documents.pdf_extract text|picture < file.pdf

It prints one JSON object. pdfium is native code and reads untrusted files, so it runs in a process of its
own, with limits on memory and time; `document_pdf` starts it.
"""

from __future__ import annotations

import base64
import bisect
import ctypes
import importlib
import io
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from core.data.child_process import limit_process
from core.data.documents.pdf_bidi import SPACE, Glyph, is_right_to_left, read_glyphs, read_left_to_right

PAGE_LIMIT = 5_000
CHARACTER_LIMIT = 20_000_000
MEMORY_BYTES = 2 << 30
SECONDS = 240  # of processor time
PICTURE_WIDTH = 900  # pixels
MARK_OPEN, MARK_CLOSE = "\ue000", "\ue001"  # around superscript digits and signs
UNKNOWN = 0xE002  # stands for a character that the file gives no letter for
_GAP = 0.7  # of the height of a character: a wider gap ends a run
_SIGNS = "*†‡§¶"
_BOLD = re.compile(r"bold|black|heavy|demi|cmb|bx\d|-bd|,b\b", re.IGNORECASE)
_TYPEWRITER = re.compile(
    r"mono|courier|consol|typewriter|cmtt|cmsltt|sftt|ectt|\btt\d|menlo|inconsolata", re.IGNORECASE
)
# Of the drawn fonts of TeX in its two encodings, which name no characters.
_TEX_LIGATURES = {
    11: "ff", 12: "fi", 14: "ffi", 15: "ffl",
    21: "–", 22: "—", 27: "ff", 28: "fi", 29: "fl", 30: "ffi", 31: "ffl"
}  # fmt: skip
_LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}


class Run:
    """Characters of one line without a wide gap between them; coordinates in points from the lower left.

    Coordinates are those of a page that is turned so that the run's text stands upright.
    """

    def __init__(self, box: tuple[float, float, float, float], turns: int, first: int) -> None:
        self.x0, self.y0, self.x1, self.y1 = box
        self.bottom, self.height, self.turns = self.y0, self.y1 - self.y0, turns
        self.first = self.last = first  # numbers of characters in the file
        self.parts: list[str] = []
        self.glyphs: list[Glyph] = []
        self.blanks: list[Glyph] = []  # spaces that the file has
        self.is_raised = False
        self.is_right_to_left = False

    def add(self, text: str, box: tuple[float, float, float, float], number: int) -> None:
        """Adds a character, and marks superscript digits and signs."""
        x0, y0, x1, y1 = box
        is_blank = text.isspace()
        is_mark = text.isdigit() or text in _SIGNS
        raised = is_mark and y1 - y0 < 0.8 * self.height and y0 > self.bottom + 0.2 * self.height
        has_gap = bool(self.glyphs) and x0 - self.glyphs[-1].x1 > SPACE * self.height
        if has_gap and not is_blank and not self.parts[-1].isspace():
            self.add_space()
        if raised != self.is_raised and not is_blank:
            self.parts.append(MARK_OPEN if raised else MARK_CLOSE)
            self.is_raised = raised
        self.parts.append(text)
        if is_blank:
            self.blanks.append(Glyph(" ", *box, number))
        else:
            self.glyphs.append(Glyph(text, *box, number))
            self.last = number
            self.is_right_to_left = self.is_right_to_left or is_right_to_left(text)
        self.x0, self.x1 = min(self.x0, x0), max(self.x1, x1)

    def add_space(self) -> None:
        """Adds a space that the file does not have."""
        if self.is_raised:
            self.parts.append(MARK_CLOSE)
            self.is_raised = False
        self.parts.append(" ")

    def read(self) -> str:
        """Its text; a sign without a letter that stands alone is a bullet of a list."""
        text = "".join(self.parts) + (MARK_CLOSE if self.is_raised else "")
        text = "•" if text.strip() == chr(UNKNOWN) else text.replace(chr(UNKNOWN), "")
        return " ".join(text.split(" ")).strip()


def extract_text(data: bytes) -> dict[str, Any]:
    """Reads all pages.

    Args:
        data: the bytes of a PDF file.

    Returns:
        "pages", each with width and height in points, "runs" (see `Run.to_list`), the count of characters
        that are "rotated", and of those without a Unicode code, "no_code"; or "problem", a key of
        `document_pdf._PROBLEMS`.
    """
    pdfium = importlib.import_module("pypdfium2")
    try:
        pdf = pdfium.PdfDocument(data)
    except pdfium.PdfiumError as e:
        return {"problem": "password" if "password" in str(e).lower() else "damaged"}
    if len(pdf) > PAGE_LIMIT:
        return {"problem": "pages"}
    pages: list[dict[str, Any]] = []
    characters = damaged = 0
    for index in range(len(pdf)):
        try:
            page = pdf[index]
        except pdfium.PdfiumError:
            damaged += 1
            continue
        pages.append(read_page(page))
        characters += sum(len(run[0]) for run in pages[-1]["runs"])
        page.close()
        if characters > CHARACTER_LIMIT:
            return {"problem": "characters"}
    title = str(pdf.get_metadata_dict().get("Title") or "")
    return {"pages": pages, "title": title[:300], "damaged": damaged}


def read_page(page: Any) -> dict[str, Any]:
    """Reads the runs of one page; see `extract_text`. Text that is turned otherwise than most is left out."""
    raw = importlib.import_module("pypdfium2.raw")
    text_page = page.get_textpage()
    left, bottom, right, top = page.get_bbox()
    runs, no_code = _collect_runs(raw, text_page, (left, bottom, right, top))
    letters = Counter[int]()
    for run in runs:
        letters[run.turns] += len(run.glyphs)
    turns = letters.most_common(1)[0][0] if letters else 0
    rotated = sum(letters.values()) - letters[turns]
    size = (right - left, top - bottom)
    width, height = size if turns in (0, 2) else size[::-1]
    runs = [run for run in runs if run.turns == turns]
    listed = []
    for run in runs:
        if not run.is_right_to_left and (text := run.read()):
            bold, mono, points = _read_font(raw, text_page, run)
            box = [round(v, 2) for v in (run.x0, run.y0, run.x1, run.y1)]
            listed.append([text, *box, bold, points, mono])
    if any(run.is_right_to_left for run in runs):
        listed = _read_mirrored_runs(raw, text_page, runs, (left, bottom, right, top), width)
    text_page.close()
    return {"width": width, "height": height, "runs": listed, "rotated": rotated, "no_code": no_code}


def _collect_runs(
    raw: Any, text_page: Any, edges: tuple[float, float, float, float]
) -> tuple[list[Run], int]:
    """The runs of a page in the order of the file, and the count of characters without a letter."""
    box = raw.FS_RECTF()
    pointer = ctypes.byref(box)
    read_code, is_generated = raw.FPDFText_GetUnicode, raw.FPDFText_IsGenerated
    read_box, read_angle = raw.FPDFText_GetLooseCharBox, raw.FPDFText_GetCharAngle
    runs: list[Run] = []
    run: Run | None = None
    no_code = high = 0
    for i in range(raw.FPDFText_CountChars(text_page)):
        code = read_code(text_page, i)
        if 0xD800 <= code < 0xDC00:
            high = code
            continue
        if 0xDC00 <= code < 0xE000 and high:
            code = 0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00)
        high = 0
        if code in (10, 13):
            run = None
            continue
        if is_generated(text_page, i) == 1 and code not in (2, 0xFFFE):
            if run is not None:
                run.add_space()
            continue
        if not read_box(text_page, i, pointer):
            continue
        text = _decode(code)
        if code in _TEX_LIGATURES and not _read_font_name(raw, text_page, i):
            text = _TEX_LIGATURES[code]
        no_code += text == chr(UNKNOWN)
        corners = (box.left, box.bottom, box.right, box.top)
        place = _turn(corners, edges, run.turns if run else 0)
        if run is None or breaks(run, place):
            if text.isspace():
                if run is not None:  # right-to-left text continues at the left
                    run.blanks.append(Glyph(" ", *place, i))
                continue
            quarters = read_angle(text_page, i) / (math.pi / 2)
            turns = round(quarters) % 4
            if abs(quarters - round(quarters)) > 0.06:
                turns = -1  # slanting: in a group of its own
            place = _turn(corners, edges, turns)
            run = Run(place, turns, i)
            runs.append(run)
        run.add(text, place, i)
    return runs, no_code


def _decode(code: int) -> str:
    """The text of a character code; UNKNOWN if the file gives no letter for it."""
    is_private = 0xE000 <= code < 0xF900 or code >= 0xF0000
    is_control = (code < 32 and code not in (2, 9)) or 0x7F <= code < 0xA0
    if code in (2, 0xFFFE):  # pdfium's sign for a hyphen at the end of a line
        return "-"
    if code in (0, 0xFFFD) or is_private or is_control:
        return chr(UNKNOWN)
    return _LIGATURES.get(chr(code), chr(code))


def _turn(
    box: tuple[float, float, float, float], edges: tuple[float, float, float, float], turns: int
) -> tuple[float, float, float, float]:
    """A box on the page, turned so that text at an angle of `turns` quarters clockwise stands upright."""
    x0, y0, x1, y1 = box
    left, bottom, right, top = edges
    if turns == 1:
        return top - y1, x0 - left, top - y0, x1 - left
    if turns == 2:
        return right - x1, top - y1, right - x0, top - y0
    if turns == 3:
        return y0 - bottom, right - x1, y1 - bottom, right - x0
    return x0 - left, y0 - bottom, x1 - left, y1 - bottom


def _read_mirrored_runs(
    raw: Any, text_page: Any, runs: list[Run], edges: tuple[float, float, float, float], width: float
) -> list[list[Any]]:
    """Lists the runs of a page with right-to-left letters.

    If most letters are such, the page is mirrored, so that its columns and paragraphs begin at the left.
    """
    size = max(_read_font(raw, text_page, run)[2] for run in runs if run.is_right_to_left)
    bases = {g: _read_baseline(raw, text_page, g.number, edges, r.turns) for r in runs for g in r.glyphs}
    rows = sorted({bases[g] for r in runs if r.is_right_to_left for g in r.glyphs})
    pool: list[tuple[Glyph, Run]] = []
    others: list[Run] = []
    for run in runs:
        near = bisect.bisect_left(rows, bases[run.glyphs[0]] - 0.4 * size)
        if near < len(rows) and rows[near] < bases[run.glyphs[0]] + 0.4 * size:
            pool += [(g, run) for g in [*run.glyphs, *run.blanks]]
        else:
            others.append(run)
    bases |= {g: bases[r.glyphs[0]] for _, r in pool for g in r.blanks}
    lines: list[list[tuple[Glyph, Run]]] = []
    for pair in sorted(pool, key=lambda pair: -bases[pair[0]]):
        if lines and bases[lines[-1][-1][0]] - bases[pair[0]] < 0.3 * size:
            lines[-1].append(pair)
        else:
            lines.append([pair])
    listed: list[list[Any]] = []
    for group in (group for line in lines for group in _cut_line(line, size)):
        glyphs = [glyph for glyph, _ in group]
        bold, mono, points = _read_font(raw, text_page, group[0][1])
        text = read_glyphs(glyphs, points)
        if not is_right_to_left(text):
            text = read_left_to_right(glyphs, points)
        corner = (min(g.x0 for g in glyphs), min(g.y0 for g in glyphs))
        box = (*corner, max(g.x1 for g in glyphs), max(g.y1 for g in glyphs))
        listed.append([text.replace(chr(UNKNOWN), ""), *(round(v, 2) for v in box), bold, points, mono])
    for run in others:
        bold, mono, points = _read_font(raw, text_page, run)
        listed.append(
            [run.read(), *(round(v, 2) for v in (run.x0, run.y0, run.x1, run.y1)), bold, points, mono]
        )
    letters = [c for item in listed for c in item[0] if c.isalpha()]
    if sum(map(is_right_to_left, letters)) > 0.5 * len(letters):
        for item in listed:
            item[1], item[3] = width - item[3], width - item[1]
    return [item for item in listed if item[0]]


def _cut_line(line: Sequence[tuple[Glyph, Run]], size: float) -> list[list[tuple[Glyph, Run]]]:
    """Cuts a line at its wide gaps; the parts from the left."""
    groups: list[list[tuple[Glyph, Run]]] = []
    end = -math.inf
    for pair in sorted(line, key=lambda pair: pair[0].x0):
        if pair[0].x0 - end > _GAP * size:
            groups.append([])
        groups[-1].append(pair)
        end = max(end, pair[0].x1)
    return groups


def _read_baseline(
    raw: Any, text_page: Any, number: int, edges: tuple[float, float, float, float], turns: int
) -> float:
    """The height at which a character stands, on the turned page."""
    x, y = ctypes.c_double(), ctypes.c_double()
    raw.FPDFText_GetCharOrigin(text_page, number, ctypes.byref(x), ctypes.byref(y))
    return _turn((x.value, y.value, x.value, y.value), edges, turns)[1]


def _read_font(raw: Any, text_page: Any, run: Run) -> tuple[bool, bool, float]:
    """Whether the font of a run is bold, whether it is of a typewriter, and its size in points."""
    kinds = []
    for number in {run.first, run.last}:
        name = _read_font_name(raw, text_page, number)
        weight = raw.FPDFText_GetFontWeight(text_page, number)
        bold = bool(_BOLD.search(name)) or 600 <= weight <= 1000
        kinds.append((bold, bool(_TYPEWRITER.search(name))))
    size = round(measure_font(raw, text_page, run.first), 2)
    return all(k[0] for k in kinds), all(k[1] for k in kinds), size


def _read_font_name(raw: Any, text_page: Any, number: int) -> str:
    """The name of a character's font; "" for a font that is drawn, as old TeX files have them."""
    buffer = ctypes.create_string_buffer(128)
    flags = ctypes.c_int()
    raw.FPDFText_GetFontInfo(text_page, number, buffer, 128, ctypes.byref(flags))
    return buffer.value.decode("utf-8", "replace")


def measure_font(raw: Any, text_page: Any, index: int) -> float:
    """The size of a character's font in points, as drawn."""
    matrix = raw.FS_MATRIX()
    scale = 1.0
    if raw.FPDFText_GetMatrix(text_page, index, ctypes.byref(matrix)):
        scale = math.hypot(matrix.c, matrix.d)
    size: float = raw.FPDFText_GetFontSize(text_page, index) * scale
    return size


def breaks(run: Run, box: tuple[float, float, float, float]) -> bool:
    """Whether a character begins another run: another line, or behind a wide gap."""
    x0, y0, _, y1 = box
    overlap = min(run.y1, y1) - max(run.y0, y0)
    is_other_line = overlap < 0.4 * min(run.height, max(y1 - y0, 0.1))
    is_larger = y1 - y0 > 1.35 * run.height
    gap = x0 - run.x1
    return is_other_line or is_larger or gap > _GAP * run.height or gap < -2 * run.height


def draw_page(data: bytes) -> dict[str, Any]:
    """Draws the first page; returns "png" in base64, or "problem" as `extract_text` does."""
    pdfium = importlib.import_module("pypdfium2")
    try:
        pdf = pdfium.PdfDocument(data)
        page = pdf[0]
    except (pdfium.PdfiumError, IndexError) as e:
        return {"problem": "password" if "password" in str(e).lower() else "damaged"}
    width, height = page.get_size()
    scale = min(PICTURE_WIDTH / max(width, 1.0), 2 * PICTURE_WIDTH / max(height, 1.0))
    picture = page.render(scale=scale).to_pil().convert("RGB")
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return {"png": base64.b64encode(file.getvalue()).decode("ascii")}


def main() -> None:
    """Reads a file from the standard input, and writes the result to the standard output."""
    limit_process(MEMORY_BYTES, SECONDS)
    data = sys.stdin.buffer.read()
    result = draw_page(data) if sys.argv[1:] == ["picture"] else extract_text(data)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
