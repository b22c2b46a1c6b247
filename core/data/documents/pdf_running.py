"""Running headers, footers and page numbers of PDF pages: they are not part of the text, and are removed.

A row in the upper or lower margin is one if its text stands at the same place of several pages, or if it is
the outermost row and has a number that counts the pages.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from core.data.documents.pdf_extract import MARK_CLOSE, MARK_OPEN
from core.data.documents.pdf_layout import Run, group_rows

_MARGIN = 0.14  # of the height of a page: running headers and page numbers stand there
_OUTER = 0.3  # of the height; a row that counts the pages may stand here, if it is the outermost
_WIDE = 1.0  # heights of a row: a gap between the page number and the text beside it
_PAGE_NUMBER = re.compile(
    r"\W*((page|seite|pagina|página|стр\.?|p\.|s\.)\s*)?(\d{1,4}|[ivxlc]{1,7})(\s*(of|/|von|de|di|из)\s*\d{1,4})?\W*",
    re.IGNORECASE,
)
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}


@dataclass
class Sheet:
    """The runs of a page, and its height in points."""

    height: float
    runs: list[Run]


@dataclass(frozen=True)
class _Row:
    runs: tuple[Run, ...]
    text: str
    y0: float
    y1: float
    rank: int  # 0 for the outermost row of its margin, 1 for the next
    gap: float  # to the next row inwards, in points
    is_in_margin: bool

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    @property
    def key(self) -> tuple[str, int]:
        """Its text, with all numbers alike, and its place."""
        return re.sub(r"\d+|\b[ivxlc]+\b", "#", self.text.lower()), round(self.y0 / 3)

    @property
    def is_number(self) -> bool:
        return _PAGE_NUMBER.fullmatch(self.text) is not None

    def list_numbers(self) -> list[int]:
        """The numbers at its ends that may count pages: alone, or far from the text beside them."""
        if self.is_number:
            ends = [self.runs[0].text] if len(self.runs) == 1 else [self.text]
        else:
            ends = []
            pairs = ((self.runs[0], self.runs[1:2]), (self.runs[-1], self.runs[-2:-1]))
            for run, beside in pairs:
                distance = max((max(o.x0 - run.x1, run.x0 - o.x1) for o in beside), default=0.0)
                if distance > _WIDE * self.height:
                    ends.append(run.text)
        return [n for end in ends if (n := _read_number(end)) is not None]


def remove_running_lines(sheets: Sequence[Sheet]) -> tuple[int, int]:
    """Removes running headers, footers and page numbers from pages.

    Returns:
        The counts of removed headers and footers, and of removed page numbers.
    """
    rows = [_list_rows(sheet) for sheet in sheets]
    places: Counter[tuple[str, int]] = Counter()
    offsets: Counter[int] = Counter()
    for index, listed in enumerate(rows):
        places.update({row.key for row in listed})
        offsets.update({n - index for row in listed if row.rank == 0 for n in row.list_numbers()})
    wanted = 2 if len(sheets) <= 4 else 3
    counting = {offset for offset, count in offsets.items() if count >= wanted}
    shared = _count_shared_texts(rows)
    headers = numbers = 0
    for index, (sheet, listed) in enumerate(zip(sheets, rows, strict=True)):
        removed: set[int] = set()
        for row in listed:
            text, y = row.key
            is_repeated = row.is_in_margin and sum(places[(text, y + d)] for d in (-1, 0, 1)) >= wanted
            counts_pages = row.rank == 0 and any(n - index in counting for n in row.list_numbers())
            is_alone = row.is_in_margin and row.rank == 0 and row.gap > 0.8 * row.height
            if row.is_number and (is_repeated or counts_pages or is_alone):
                numbers += 1
            elif is_repeated or counts_pages or (is_alone and shared[row.key] > 1 and wanted == 3):
                headers += 1
                numbers += counts_pages
            else:
                continue
            removed.update(map(id, row.runs))
        sheet.runs = [run for run in sheet.runs if id(run) not in removed]
    return headers, numbers


def _count_shared_texts(rows: Sequence[Sequence[_Row]]) -> Counter[tuple[str, int]]:
    """On how many pages the outermost row has a text at a place, where most pages have a row."""
    texts = Counter(row.key for listed in rows for row in listed if row.rank == 0)
    heights = Counter(key[1] for key in texts.elements())
    return Counter(
        {key: n for key, n in texts.items() if sum(heights[key[1] + d] for d in (-1, 0, 1)) >= len(rows) / 3}
    )


def _list_rows(sheet: Sheet) -> list[_Row]:
    """The rows in the margins of a page."""
    rows = group_rows(sheet.runs)
    listed: list[_Row] = []
    for ordered in (rows, rows[::-1]):
        for rank, runs in enumerate(ordered):
            y0, y1 = min(r.y0 for r in runs), max(r.y1 for r in runs)
            is_in_margin = y0 > (1 - _MARGIN) * sheet.height or y1 < _MARGIN * sheet.height
            is_upper = y0 > 0.5 * sheet.height
            is_outer = rank == 0 and (y0 > (1 - _OUTER) * sheet.height or y1 < _OUTER * sheet.height)
            if not (is_in_margin or is_outer) or is_upper != (ordered is rows):
                break
            inner = ordered[rank + 1] if rank + 1 < len(ordered) else []
            gap = min((max(y0 - r.y1, r.y0 - y1) for r in inner), default=sheet.height)
            text = " ".join(r.text for r in runs)
            text = re.sub(f"[{MARK_OPEN}{MARK_CLOSE}]", "", text).strip()
            listed.append(_Row(tuple(runs), text, y0, y1, rank, gap, is_in_margin))
    return listed


def _read_number(text: str) -> int | None:
    """The number of a page number in digits or Roman digits; None for other text."""
    match = _PAGE_NUMBER.fullmatch(text)
    if match is None:
        return None
    if match[3].isdigit():
        return int(match[3])
    total = 0
    values = [_ROMAN[c] for c in match[3].lower()]
    for value, following in zip(values, [*values[1:], 0], strict=True):
        total += -value if value < following else value
    return total
