"""The child process that reads PDF files: pdfium to runs of characters, and a picture of a page.

    python -m core.data.pdf_extract text|picture < file.pdf

It prints one JSON object. pdfium is native code and reads untrusted files, so it runs in a process of its
own, with limits on memory and time; `document_pdf` starts it.
"""

from __future__ import annotations

import base64
import ctypes
import importlib
import io
import json
import math
import sys
from typing import Any

PAGE_LIMIT = 5_000
CHARACTER_LIMIT = 20_000_000
MEMORY_BYTES = 2 << 30
SECONDS = 240  # of processor time
PICTURE_WIDTH = 900  # pixels
MARK_OPEN, MARK_CLOSE = "\ue000", "\ue001"  # around superscript digits and signs
UNKNOWN = 0xE002  # stands for a character that the file gives no letter for
_GAP = 0.7  # of the height of a character: a wider gap ends a run
_SIGNS = "*†‡§¶"
_LIGATURES = {"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"}


class Run:
    """Characters of one line without a wide gap between them; coordinates in points from the lower left."""

    def __init__(self, x0: float, y0: float, x1: float, y1: float, bold: bool, size: float) -> None:
        self.x0, self.y0, self.x1, self.y1 = x0, y0, x1, y1
        self.bottom, self.height, self.bold, self.size = y0, y1 - y0, bold, size
        self.parts: list[str] = []
        self.is_raised = False

    def add(self, text: str, x0: float, y0: float, x1: float, y1: float) -> None:
        """Adds a character, and marks superscript digits and signs."""
        is_mark = text.isdigit() or text in _SIGNS
        raised = is_mark and y1 - y0 < 0.8 * self.height and y0 > self.bottom + 0.2 * self.height
        if raised != self.is_raised and not text.isspace():
            self.parts.append(MARK_OPEN if raised else MARK_CLOSE)
            self.is_raised = raised
        self.parts.append(text)
        self.x0, self.x1 = min(self.x0, x0), max(self.x1, x1)

    def add_space(self) -> None:
        """Adds a space that the file does not have."""
        if self.is_raised:
            self.parts.append(MARK_CLOSE)
            self.is_raised = False
        self.parts.append(" ")

    def to_list(self) -> list[Any]:
        """[text, x0, y0, x1, y1, bold, size of the font in points]."""
        text = "".join(self.parts) + (MARK_CLOSE if self.is_raised else "")
        # A sign without a letter that stands alone is a bullet of a list.
        text = "•" if text.strip() == chr(UNKNOWN) else text.replace(chr(UNKNOWN), "")
        box = [round(v, 2) for v in (self.x0, self.y0, self.x1, self.y1)]
        return [" ".join(text.split(" ")).strip(), *box, self.bold, round(self.size, 2)]


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
    """Reads the runs of one page; see `extract_text`."""
    raw = importlib.import_module("pypdfium2.raw")
    width, height = page.get_size()
    text_page = page.get_textpage()
    box = raw.FS_RECTF()
    runs: list[Run] = []
    run: Run | None = None
    rotated = no_code = 0
    high = 0
    left, bottom, _, _ = page.get_bbox()
    for i in range(raw.FPDFText_CountChars(text_page)):
        code = raw.FPDFText_GetUnicode(text_page, i)
        if 0xD800 <= code < 0xDC00:
            high = code
            continue
        if 0xDC00 <= code < 0xE000 and high:
            code = 0x10000 + ((high - 0xD800) << 10) + (code - 0xDC00)
        high = 0
        if code in (10, 13):
            run = None
            continue
        is_private = 0xE000 <= code < 0xF900 or code >= 0xF0000
        is_control = (code < 32 and code not in (2, 9)) or 0x7F <= code < 0xA0
        if code in (0, 0xFFFD) or is_private or is_control:
            no_code += 1
            code = UNKNOWN
        if code in (2, 0xFFFE):  # pdfium's sign for a hyphen at the end of a line
            code = ord("-")
        text = _LIGATURES.get(chr(code), chr(code))
        if raw.FPDFText_IsGenerated(text_page, i) == 1:
            if run is not None:
                run.add_space()
            continue
        if not raw.FPDFText_GetLooseCharBox(text_page, i, ctypes.byref(box)):
            continue
        angle = raw.FPDFText_GetCharAngle(text_page, i) % 6.283185
        if 0.1 < angle < 6.18:
            rotated += not text.isspace()
            continue
        x0, y0, x1, y1 = box.left - left, box.bottom - bottom, box.right - left, box.top - bottom
        if run is None or breaks(run, x0, y0, y1):
            if text.isspace():
                continue
            bold = raw.FPDFText_GetFontWeight(text_page, i) >= 600
            size = measure_font(raw, text_page, i)
            run = Run(x0, y0, x1, y1, bold, size)
            runs.append(run)
        run.add(text, x0, y0, x1, y1)
    text_page.close()
    listed = [item for item in (r.to_list() for r in runs) if item[0]]
    return {"width": width, "height": height, "runs": listed, "rotated": rotated, "no_code": no_code}


def measure_font(raw: Any, text_page: Any, index: int) -> float:
    """The size of a character's font in points, as drawn."""
    matrix = raw.FS_MATRIX()
    scale = 1.0
    if raw.FPDFText_GetMatrix(text_page, index, ctypes.byref(matrix)):
        scale = math.hypot(matrix.c, matrix.d)
    size: float = raw.FPDFText_GetFontSize(text_page, index) * scale
    return size


def breaks(run: Run, x0: float, y0: float, y1: float) -> bool:
    """Whether a character begins another run: another line, or behind a wide gap."""
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


def limit_process() -> None:
    """Limits memory and processor time, where the system can."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Reads a file from the standard input, and writes the result to the standard output."""
    limit_process()
    data = sys.stdin.buffer.read()
    result = draw_page(data) if sys.argv[1:] == ["picture"] else extract_text(data)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
