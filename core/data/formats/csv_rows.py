"""CSV and TSV lines to rows: the delimiter, the quotes, and cells that are too many."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from core.data.formats.headers import SAMPLE_ROWS, check_header
from core.data.formats.json_rows import LINE_LIMIT
from core.data.formats.read_log import ReadLog
from core.errors import DataError

DELIMITERS = (",", ";", "\t", "|")
_SAMPLE_LINES, _SAMPLE_CHARACTERS = 200, 1 << 18
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}


@dataclass(frozen=True)
class Dialect:
    """How a line is divided into cells.

    Attributes:
        delimiter: one of DELIMITERS.
        has_quotes: a cell may stand in double quotes; without them a quote is a character like any other.
    """

    delimiter: str = ","
    has_quotes: bool = True


def read_csv(lines: Iterator[str], name: str, log: ReadLog) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads a header, then rows with as many cells.

    Args:
        lines: lines with their line ends; a text in quotes may hold line ends.
        name: the file name that errors show; a name in .tsv fixes the delimiter.
        log: gets what was found or dropped.

    Yields:
        The line that a row begins on, and column to cell.

    Raises:
        DataError: names file and line of a row with too few or too many cells, or of broken quotes.
    """
    sample = _take_sample(lines)
    skipped = 0
    dialect: Dialect | None = None
    if sample and sample[0].lower().startswith("sep=") and len(sample[0].strip()) == 5:
        dialect, skipped = Dialect(sample.pop(0).strip()[-1]), 1  # written by Excel
    if dialect is None:
        dialect = find_dialect(sample, only="\t" if name.lower().endswith(".tsv") else "")
    if not dialect.has_quotes:
        log.say(f"{name}: quotes are read as characters, because they do not enclose whole cells.")
    rows = _split_cells(itertools.chain(sample, lines), dialect, name, skipped)
    first = list(itertools.islice(rows, SAMPLE_ROWS + 1))
    if not first:
        return
    yield from _name_cells(first, rows, dialect, name, log)


def _take_sample(lines: Iterator[str]) -> list[str]:
    sample: list[str] = []
    size = 0
    while len(sample) < _SAMPLE_LINES and size < _SAMPLE_CHARACTERS:
        line = next(lines, None)
        if line is None:
            break
        sample.append(line)
        size += len(line)
    return sample


def find_dialect(sample: Sequence[str], only: str = "") -> Dialect:
    """Finds the delimiter that gives the header and most rows the same number of cells, at least two.

    Args:
        sample: the first lines.
        only: a delimiter that is known.
    """
    best, best_rate = Dialect(only or ","), (-1.0, 0)
    for delimiter in (only,) if only else DELIMITERS:
        # In a file of tabs a quote may be a character like any other: there the cells have to fit better.
        for dialect in (Dialect(delimiter), Dialect(delimiter, has_quotes=False))[: 1 + (delimiter == "\t")]:
            counts = _count_cells(sample, dialect)
            if not counts or (counts[0] < 2 and not only):
                continue
            rate = (Counter(counts)[counts[0]] / len(counts), counts[0])
            if rate > best_rate and (dialect.has_quotes or rate[0] > best_rate[0] + 0.2):
                best, best_rate = dialect, rate
    return best


def _count_cells(sample: Sequence[str], dialect: Dialect) -> list[int]:
    """Counts the cells of the sample's rows; a last row that may be cut off, and empty lines, do not count.

    Empty if the quotes are broken.
    """
    counts = []
    try:
        for row in _make_reader(iter(sample), dialect):
            if row and any(c.strip() for c in row):
                counts.append(len(row) - (len(row) > 2 and not row[-1].strip()))
    except csv.Error:
        # The last quote may close after the sample.
        return counts if len(sample) == _SAMPLE_LINES else []
    return counts


def _make_reader(lines: Iterator[str], dialect: Dialect) -> Iterator[list[str]]:
    csv.field_size_limit(LINE_LIMIT)  # the default limit is 131,072
    if dialect.has_quotes:
        return csv.reader(lines, delimiter=dialect.delimiter, strict=True)
    return csv.reader(lines, delimiter=dialect.delimiter, quoting=csv.QUOTE_NONE)


def _split_cells(
    lines: Iterator[str], dialect: Dialect, name: str, skipped: int
) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows with the line that each begins on; empty lines are left out."""
    cells = _make_reader(lines, dialect)
    while True:
        before: int = cells.line_num + skipped  # type: ignore[attr-defined]
        try:
            row = next(cells)
        except StopIteration:
            return
        except csv.Error as e:
            raise DataError(
                f"not valid CSV: {e}, in the row that begins on this line.",
                "Check its quotes: put a text with commas, quotes or line ends in double quotes, "
                "and write a quote inside it twice.",
                file=name,
                line=before + 1,
            ) from e
        if row:
            yield before + 1, row


def _name_cells(
    first: list[tuple[int, list[str]]],
    rest: Iterator[tuple[int, list[str]]],
    dialect: Dialect,
    name: str,
    log: ReadLog,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Gives the cells of each row their names; drops empty cells after the last name."""
    while first and not any(c.strip() for c in first[0][1]):
        first.pop(0)
    if not first:
        return
    line, header = first.pop(0)
    width = len(header)
    while width > 1 and not header[width - 1].strip() and all(_is_empty(row, width - 1) for _, row in first):
        width -= 1
    if width < len(header):
        log.say(f"{name}: the empty columns after the last name are left out.")
    header = check_header(header[:width], [row for _, row in first], name, line)
    for line, row in itertools.chain(first, rest):
        if len(row) > width and not any(c.strip() for c in row[width:]):
            row = row[:width]
        if width > 1 and not row[0].strip() and not any(c.strip() for c in row) and len(row) <= width:
            continue  # a line of blanks or of delimiters
        if len(row) != width:
            raise DataError(
                f"the row has {len(row)} cells, but the header has {width} ({', '.join(header)}).",
                "Give it one cell per column, and put a text that contains a "
                f"{_NAMES.get(dialect.delimiter, repr(dialect.delimiter))} in double quotes.",
                file=name,
                line=line,
            )
        yield line, dict(zip(header, row))


def _is_empty(row: Sequence[str], index: int) -> bool:
    return len(row) <= index or not row[index].strip()
