"""Runs of characters on a page to lines in reading order: columns, tables, lines.

run run        run run          columns are read one after the other: left, then right
run run        run run          (a line that crosses the gutter ends the columns above it)
──────── crossing ────────
run | run | run                 rows of short cells at common places are a table
run | run | run
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from core.data.documents.pdf_extract import MARK_CLOSE, MARK_OPEN

COLUMN_LINES = 3  # lines on each side of a gutter
COLUMN_FILL = 0.55  # of the longest line of a column, in the median line of running text
FULL = 0.8  # of the width up to the gutter, in the median line; table cells fill less
FLOW = 0.3  # of the lines of running text begin with a small letter, at least
COLUMN_CHARACTERS = 14  # in the median line of a column
RHYTHM_LINES = 5  # on each side of a gutter between columns of short lines that stand at heights of their own
SHARED_ROWS = 0.5  # of the heights of a side; rows of a table have most of theirs in common
BAND_GAP = 0.95  # heights of a line: a wider gap over both sides ends their columns
TABLE_ROWS = 2  # of a table, at least; one more where the page has columns of text
WORD_GAP = 1.25  # heights of a line; wider gaps separate the cells of a table


@dataclass(frozen=True)
class Run:
    """Characters of one line; coordinates in points from the lower left corner of the page."""

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    bold: bool = False
    size: float = 0.0  # of the font in points; 0 if it is not known
    mono: bool = False  # in the font of a typewriter

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    @property
    def middle(self) -> float:
        return (self.y0 + self.y1) / 2


_LEADER = re.compile(r"(?:[.…·]\s?){5}")
_MARK = re.compile(r"\d{1,3}|[*†‡§¶]{1,3}")
_Band = tuple[list[Run], list[Run]]  # left and right of a gutter; or crossing it, and nothing


@dataclass(frozen=True)
class Line:
    """A line of text, or a row of a table.

    Attributes:
        text: its text; the cells of a table row are joined by " | ".
        x0, y0, x1, y1: its box in points.
        height: size of the font of most of its characters, in points.
        bold: all of it is bold.
        column: (left, right) edge of its column in points.
        block: number of the column or table it belongs to, counted over the page in reading order.
        table: number of the table that it is a row of, counted over the region from 1; 0 for text.
        mono: all of it is in the font of a typewriter.
    """

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    height: float
    bold: bool
    column: tuple[float, float]
    block: int
    table: int = 0
    mono: bool = False


def order_lines(runs: Sequence[Run]) -> list[Line]:
    """Orders the runs of a page into lines, as they are read."""
    lines: list[Line] = []
    regions = _cut_regions([r for r in runs if r.text])
    for block, region in enumerate(regions):
        lines += _read_region(region, block, TABLE_ROWS if len(regions) == 1 else TABLE_ROWS + 1)
    return lines


# ---------------------------------------------------------------- columns


def _cut_regions(runs: Sequence[Run]) -> list[list[Run]]:
    """Cuts a page at its gutters into regions of one column each, in reading order."""
    best: tuple[int, list[_Band]] = (0, [])
    for gutter in _list_gutters(runs):
        bands = _merge_bands(_list_bands(runs, gutter), gutter)
        lines = sum(
            len(left) + len(right) for left, right in bands if right and _are_columns(left, right, gutter)
        )
        if lines > best[0]:
            best = (lines, [(a, b) if b and _are_columns(a, b, gutter) else ([*a, *b], []) for a, b in bands])
    if not best[0]:
        return [list(runs)] if runs else []
    regions: list[list[Run]] = []
    is_open = False  # the last region is not a column, and may go on
    for left, right in best[1]:
        if right:
            regions += [*_cut_regions(left), *_cut_regions(right)]
        elif is_open:
            regions[-1] = [*regions[-1], *left]
        else:
            regions.append(left)
        is_open = not right
    return regions


def _list_gutters(runs: Sequence[Run]) -> list[float]:
    """Left edges that at least COLUMN_LINES runs share, except the leftmost."""
    edges = sorted(r.x0 for r in runs)
    groups: list[list[float]] = []
    for edge in edges:
        if groups and edge - groups[-1][-1] <= 2:
            groups[-1].append(edge)
        else:
            groups.append([edge])
    return [g[0] - 0.5 for g in groups[1:] if len(g) >= COLUMN_LINES]


def _list_bands(runs: Sequence[Run], gutter: float) -> list[_Band]:
    """Cuts runs, from the top, into bands: (left, right) of the gutter, or (crossing, [])."""
    bands: list[_Band] = []
    crossing: list[Run] = []
    lowest = math.inf  # of the runs so far
    sides: tuple[list[Run], list[Run]] = ([], [])

    def close() -> None:
        nonlocal sides
        if sides[0] or sides[1]:
            bands.append(sides)
        sides = ([], [])

    height = statistics.median(r.height for r in runs)
    for run in sorted(_join_words_over(runs, gutter), key=lambda r: -r.middle):
        if lowest - run.y1 > BAND_GAP * height:
            close()
        lowest = min(lowest, run.y0)
        if run.x0 < gutter < run.x1:
            close()
            crossing.append(run)
            continue
        if crossing and crossing[-1].y0 > run.middle:
            bands.append((crossing, []))
            crossing = []
        if crossing:  # beside a crossing run, such as the end of a heading
            crossing.append(run)
            continue
        sides[0 if run.x1 <= gutter + 1 else 1].append(run)
    close()
    if crossing:
        bands.append((crossing, []))
    return bands


def _join_words_over(runs: Sequence[Run], gutter: float) -> list[Run]:
    """Joins the words of a line that stand on both sides of a gutter, where none begins at its edge."""
    joined: list[Run] = []
    for row in group_rows(runs):
        for index, run in enumerate(row):
            last = joined[-1] if index else None
            if last and last.x1 <= gutter + 1 and run.x0 > gutter + 2:
                merged = _merge_words([last, run])
                if len(merged) == 1:
                    joined[-1] = merged[0]
                    continue
            joined.append(run)
    return joined


def _merge_bands(bands: Sequence[_Band], gutter: float) -> list[_Band]:
    """Gives short bands, and the rest of a column that is longer than the other, to their columns."""
    merged: list[_Band] = []
    height = statistics.median(r.height for left, right in bands for r in [*left, *right])
    for left, right in _join_left_bands(bands, gutter):
        if merged and not any(r.x0 < gutter < r.x1 for r in [*left, *right]):
            above = merged[-1]
            is_above = bool(above[1]) and _are_columns(*above, gutter)
            is_column = bool(right) and _are_columns(left, right, gutter)
            if is_above and left and right:
                widths = (gutter - min(r.x0 for r in above[0]), max(r.x1 for r in above[1]) - gutter)
                sides = zip((left, right), widths, strict=True)
                is_column = is_column or any(_is_running_text(group_rows(s), w) for s, w in sides)
            edge = max((r.x1 for r in above[0]), default=0.0) - height
            fills = any(r.x1 > edge and r.height < 1.2 * height for r in left)
            is_rest = is_above and (not left or (not right and fills))
            is_short = is_column and _begins_columns(above, (left, right))
            if is_rest or is_short or (is_above and is_column):
                merged[-1] = ([*above[0], *left], [*above[1], *right])
                continue
        merged.append((left, right))
    return _merge_upwards(merged, gutter)


def _begins_columns(above: _Band, below: _Band) -> bool:
    """Whether one or two lines above columns belong to them: on both sides, or at the right one's edge."""
    if not above[1] or len(group_rows([*above[0], *above[1]])) > 2:
        return False
    return bool(above[0]) or abs(min(r.x0 for r in above[1]) - min(r.x0 for r in below[1])) < 2


def _merge_upwards(bands: Sequence[_Band], gutter: float) -> list[_Band]:
    """Gives what stands above columns beside a table or picture to their columns."""
    merged: list[_Band] = []
    for left, right in reversed(bands):
        if merged and left and right and merged[-1][1] and _are_columns(*merged[-1], gutter):
            below = merged[-1]
            widths = (gutter - min(r.x0 for r in below[0]), max(r.x1 for r in below[1]) - gutter)
            sides = [group_rows(side) for side in (left, right)]
            if any(
                len(rows) >= COLUMN_LINES and _is_running_text(rows, width)
                for rows, width in zip(sides, widths, strict=True)
            ):
                merged[-1] = ([*left, *below[0]], [*right, *below[1]])
                continue
        merged.append((left, right))
    return merged[::-1]


def _join_left_bands(bands: Sequence[_Band], gutter: float) -> list[_Band]:
    """Joins neighbouring bands that have nothing but their left side."""
    joined: list[_Band] = []
    was_left = False
    for left, right in bands:
        is_left = not right and all(r.x1 <= gutter + 1 for r in left)
        if is_left and was_left:
            joined[-1] = ([*joined[-1][0], *left], [])
        else:
            joined.append((left, right))
        was_left = is_left
    return joined


def _are_columns(left: Sequence[Run], right: Sequence[Run], gutter: float) -> bool:
    """Whether both sides look like columns of text, and not like the cells of a table."""
    rows = [group_rows(left), group_rows(right)]
    if min(map(len, rows)) < COLUMN_LINES:
        return False
    height = statistics.median(r.height for r in [*left, *right])
    ends = sorted(r.x1 for r in left)
    edge = ends[-1 - len(ends) // 10]  # a page number may stand in the gutter
    if min(r.x0 for r in right) - edge < 0.5 * height:
        return False
    widths = (gutter - min(r.x0 for r in left), max(r.x1 for r in right) - gutter)
    if all(_is_running_text(side, width) for side, width in zip(rows, widths, strict=True)):
        return True
    return min(map(len, rows)) >= RHYTHM_LINES and not _share_rows(*rows)


def _share_rows(left: Sequence[Sequence[Run]], right: Sequence[Sequence[Run]]) -> bool:
    """Whether the rows of two sides stand at common heights, as those of a table do.

    The lines of a cell count as one row too, at its first, middle and last line.
    """
    places = [_list_places(rows) for rows in (left, right)]
    common = sum(any(abs(a - b) < 2.5 for b in places[1]) for a in places[0])
    back = sum(any(abs(a - b) < 2.5 for b in places[0]) for a in places[1])
    return max(common / len(places[0]), back / len(places[1])) > SHARED_ROWS


def _list_places(rows: Sequence[Sequence[Run]]) -> list[float]:
    """The bottoms of rows, and the middle of each group of rows without a gap between them."""
    bottoms = [min(r.y0 for r in row) for row in rows]
    places = list(bottoms)
    start = 0
    for index in range(1, len(rows) + 1):
        if index < len(rows):
            gap = min(r.y0 for r in rows[index - 1]) - max(r.y1 for r in rows[index])
            if gap < 0.5 * rows[index][0].height:
                continue
        if index - start > 1:
            places.append((bottoms[start] + bottoms[index - 1]) / 2)
        start = index
    return places


def _is_running_text(rows: Sequence[Sequence[Run]], width: float) -> bool:
    """Whether rows are the lines of paragraphs: they fill their column, or many go on with a small letter."""
    lengths = [row[-1].x1 - row[0].x0 for row in rows]
    typical = statistics.median(lengths)
    if statistics.median(sum(len(r.text) for r in row) for row in rows) < COLUMN_CHARACTERS:
        return False
    small = sum(row[0].text[:1].islower() for row in rows[1:])
    is_flowing = small >= FLOW * (len(rows) - 1) and typical >= COLUMN_FILL * max(lengths)
    return is_flowing or typical >= FULL * width


# ---------------------------------------------------------------- lines and tables


def group_rows(runs: Iterable[Run]) -> list[list[Run]]:
    """Groups runs at one height into rows, from the top; each from left to right."""
    rows: list[list[Run]] = []
    for run in sorted(runs, key=lambda r: -r.middle):
        if rows:
            first = max(rows[-1], key=lambda r: r.height)
            overlap = min(first.y1, run.y1) - max(first.y0, run.y0)
            if overlap > 0.5 * min(first.height, run.height):
                rows[-1].append(run)
                continue
        rows.append([run])
    return [sorted(row, key=lambda r: r.x0) for row in rows]


def _read_region(runs: Sequence[Run], block: int, table_rows: int) -> list[Line]:
    rows = [_merge_words(row) for row in group_rows(runs)]
    column = (min(r.x0 for r in runs), max(r.x1 for r in runs))
    lines: list[Line] = []
    start = tables = 0
    while start < len(rows):
        end = _find_table_end(rows, start, table_rows, column)
        if end:
            tables += 1
            lines += [replace(line, table=tables) for line in _read_table(rows[start:end], column, block)]
            start = end
        else:
            lines.append(_to_line(rows[start], " ", column, block))
            start += 1
    return lines


def _merge_words(row: list[Run]) -> list[Run]:
    """Joins the runs of a row that are words of one text."""
    merged: list[Run] = []
    for run in row:
        if merged:
            last = merged[-1]
            if run.x0 - last.x1 < WORD_GAP * max(last.height, run.height):
                glue = " " if run.x0 - last.x1 > 0.12 * last.height else ""
                is_raised = run.height < 0.8 * last.height and run.y0 > last.y0 + 0.2 * last.height
                is_mark = is_raised and _MARK.fullmatch(run.text)
                text = f"{MARK_OPEN}{run.text}{MARK_CLOSE}" if is_mark else run.text
                merged[-1] = Run(
                    last.text + glue + text,
                    last.x0,
                    min(last.y0, run.y0),
                    max(last.x1, run.x1),
                    max(last.y1, run.y1),
                    last.bold and run.bold,
                    max((last, run), key=lambda r: len(r.text)).size,
                    last.mono and run.mono,
                )
                continue
        merged.append(run)
    return merged


def _find_table_end(
    rows: Sequence[list[Run]], start: int, table_rows: int, column: tuple[float, float]
) -> int:
    """Index behind the table of so many rows that begins at `start`, or 0 if none does."""
    if len(rows[start]) < 2 or _has_leader(rows[start]):
        return 0
    columns = [(r.x0, r.x1) for r in rows[start]]
    end, full = start + 1, 1
    while end < len(rows):
        row, above = rows[end], rows[end - 1]
        gap = min(r.y0 for r in above) - max(r.y1 for r in row)
        height = max(r.height for r in row)
        wider = _merge_intervals([*columns, *((r.x0, r.x1) for r in row)])
        if _has_leader(row) or gap > 2.5 * height or len(wider) < 2 or len(wider) < len(columns) - 1:
            break
        is_inside = len(wider) == len(columns) and any(x0 <= row[0].x0 + 1 for x0, _ in columns)
        is_continuation = len(row) == 1 and is_inside and gap < 0.6 * height
        if len(row) < 2 and not is_continuation:
            break
        known = [r for other in rows[start:end] for r in other[1:]]
        if len(row) >= 2 and not any(_are_aligned(a, b) for a in known for b in row[1:]):
            break
        columns = wider
        full += len(row) >= 2
        end += 1
    if full < table_rows or (table_rows > TABLE_ROWS and _are_justified(rows[start:end], column)):
        return 0
    return end


def _has_leader(row: Sequence[Run]) -> bool:
    """Whether dots lead over a row, as in a contents list."""
    return any(_LEADER.search(run.text) for run in row)


def _are_justified(rows: Sequence[list[Run]], column: tuple[float, float]) -> bool:
    """Whether most rows reach both edges of their column, as the lines of a justified paragraph do."""
    reaching = sum(row[0].x0 < column[0] + 2 and row[-1].x1 > column[1] - 2 for row in rows)
    return reaching >= 0.7 * len(rows)


def _are_aligned(first: Run, second: Run) -> bool:
    """Whether two cells of neighbouring rows begin, end or are centred at one place."""
    places = ((first.x0, second.x0), (first.x1, second.x1), (first.x0 + first.x1, second.x0 + second.x1))
    return any(abs(a - b) < 4 for a, b in places)


def _merge_intervals(intervals: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    merged: list[tuple[float, float]] = []
    for x0, x1 in sorted(intervals):
        if merged and x0 <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], x1))
        else:
            merged.append((x0, x1))
    return merged


def _read_table(rows: Sequence[list[Run]], column: tuple[float, float], block: int) -> list[Line]:
    """One line per row. Where some rows are closer than others, those are the lines of wrapped cells."""
    columns = _merge_intervals([(r.x0, r.x1) for row in rows for r in row])
    gaps = [min(r.y0 for r in a) - max(r.y1 for r in b) for a, b in itertools.pairwise(rows)]
    height = statistics.median(r.height for row in rows for r in row)
    narrowest, widest = min(gaps), max(gaps)
    limit = (narrowest + widest) / 2 if widest - narrowest > 0.25 * height else -math.inf
    table: list[list[Run]] = []
    for row, gap in zip(rows, (math.inf, *gaps), strict=True):
        if table and gap < limit or (table and len(row) == 1 and row[0].x0 > columns[0][1]):
            table[-1] = [*table[-1], *row]
        else:
            table.append(row)
    lines = []
    for row in table:
        cells = [""] * len(columns)
        for run in row:
            index = max(i for i, (x0, _) in enumerate(columns) if x0 <= run.x0 + 1)
            cells[index] = f"{cells[index]} {run.text}".strip()
        lines.append(_to_line(row, " | ", column, block, " | ".join(cells)))
    return lines


def _to_line(runs: Sequence[Run], glue: str, column: tuple[float, float], block: int, text: str = "") -> Line:
    longest = max(runs, key=lambda r: len(r.text))
    return Line(
        text or glue.join(r.text for r in runs),
        min(r.x0 for r in runs),
        min(r.y0 for r in runs),
        max(r.x1 for r in runs),
        max(r.y1 for r in runs),
        longest.size or longest.height,
        all(r.bold for r in runs),
        column,
        block,
        mono=all(r.mono for r in runs),
    )
