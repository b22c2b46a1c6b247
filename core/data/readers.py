"""Files become raw rows that remember where they came from.

Knows the six formats, their limits and everything that can be wrong with a file. Knows nothing of
what a column means (`columns`) or where rows go (`datasets`).

    .txt .md   one document, or several divided by a line of only `---` between blank lines
    .json      an array of objects, or an object that holds one array of objects
    .jsonl     one object a line
    .csv       a header, then rows; divided by comma, semicolon or tab
    .parquet   flat columns of text and numbers, and lists of structs
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from core.data import jsonrows, parquet
from core.data.jsonrows import FIELD_LIMIT, LINE_LIMIT
from core.errors import DataError, NameRefused, NotFound
from core.store.workspace import regular_file

SUFFIXES = (".txt", ".md", ".json", ".jsonl", ".csv", ".parquet")
ENCODINGS = ("utf-8", "utf-16", "latin-1", "cp1252")

ROW_LIMIT = 1_000_000
FILE_LIMIT_BYTES = 1 << 30
TOTAL_LIMIT_BYTES = 2 << 30  # all files of one import
COUNT_LIMIT = 10_000  # files of one import
JSON_LIMIT_BYTES = 256 << 20  # a .json file is held whole; .jsonl is not

_FRONT_MATTER = re.compile(r"\s*$|\s*[#-]|\s+\S|[^\s:][^:]*:(\s|$)")


@dataclass(frozen=True)
class RawRow:
    """One row as its file has it: column to value, and the place to name in an error (line from 1;
    in a .parquet file the row's number)."""

    values: dict[str, Any]
    file: str
    line: int


@dataclass(frozen=True)
class Source:
    """A file to read, and the name that people know it by."""

    path: Path
    name: str

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower()


def find_files(paths: Sequence[Path | str]) -> list[Source]:
    """The files to read: each path itself, or for a folder all supported files in it, sorted.

    Links are refused, and inside folders passed by; hidden files are passed by.

    Raises:
        DataError: nothing to read, not a regular file, an unknown suffix, or too many files.
    """
    found: list[Source] = []
    for path in map(Path, paths):
        if os.path.isdir(path) and not os.path.islink(path):
            inside = list(itertools.islice(_walk(path), COUNT_LIMIT + 1))
            if not inside:
                raise DataError(
                    "the folder holds no file that can be read.",
                    f"Supported are {', '.join(SUFFIXES)}.",
                    file=path.name,
                )
            found += sorted(inside, key=lambda s: s.name)
        else:
            found.append(Source(path, path.name))
    unique = list({os.path.abspath(s.path): s for s in found}.values())
    if not unique:
        raise DataError(
            "No files were given.", f"Give one or more files ({', '.join(SUFFIXES)}) or a folder."
        )
    if len(unique) > COUNT_LIMIT:
        raise DataError(
            f"More than {COUNT_LIMIT:,} files were given.",
            "Put many small texts into one file, divided by lines of `---`.",
        )
    total = 0
    for source in unique:
        with open_source(source) as f:
            total += os.fstat(f.fileno()).st_size
        _check_suffix(source)
    if total > TOTAL_LIMIT_BYTES:
        raise DataError(
            f"The files hold {total:,} bytes together.",
            f"At most {TOTAL_LIMIT_BYTES:,} bytes are read; leave some out.",
        )
    return unique


def _walk(root: Path) -> Iterator[Source]:
    """All supported files under a folder; hidden files and links are passed by."""
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as e:
            raise DataError(
                f"the folder cannot be read: {e.strerror}.", "Check its permissions.", file=folder.name
            ) from e
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False) and Path(entry.name).suffix.lower() in SUFFIXES:
                yield Source(Path(entry.path), Path(entry.path).relative_to(root).as_posix())


def _check_suffix(source: Source) -> None:
    if source.suffix not in SUFFIXES:
        shown = f"{source.suffix} files are not read" if source.suffix else "the name has no suffix"
        raise DataError(
            f"{shown}.", f"Supported are {', '.join(SUFFIXES)}; unpack archives first.", file=source.name
        )


def open_source(source: Source) -> IO[bytes]:
    """Opens a regular file for reading: never a link, FIFO or device, not even if it was one a
    moment ago, and never one above the size limit.

    Raises:
        DataError: it is something else, missing, unreadable or too large.
    """
    flags = (
        os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        fd = os.open(regular_file(source.path), flags | getattr(os, "O_CLOEXEC", 0))
    except (NotFound, FileNotFoundError) as e:
        raise DataError("there is no such file.", "Check the path.", file=source.name) from e
    except NameRefused as e:
        raise DataError(
            "it is not a regular file.", "Give the file itself, not a link, pipe or device.", file=source.name
        ) from e
    except (OSError, ValueError) as e:
        raise DataError(
            f"it cannot be opened: {getattr(e, 'strerror', None) or e}.",
            "Check the path and its permissions.",
            file=source.name,
        ) from e
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise DataError(
                "it is not a regular file.",
                "Give the file itself, not a link, pipe or device.",
                file=source.name,
            )
        if info.st_size > FILE_LIMIT_BYTES:
            raise DataError(
                f"it has {info.st_size:,} bytes.",
                f"At most {FILE_LIMIT_BYTES:,} are read from one file; divide it.",
                file=source.name,
            )
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_files(paths: Sequence[Path | str], encoding: str = "utf-8") -> list[RawRow]:
    """Reads files and folders into raw rows, in the order given.

    Args:
        paths: files of the supported kinds, or folders of such files.
        encoding: one of ENCODINGS, for the text formats; never guessed.

    Raises:
        DataError: with file, line, what is wrong and how to fix it.
    """
    return read_sources(find_files(paths), encoding)


def read_sources(sources: Sequence[Source], encoding: str = "utf-8") -> list[RawRow]:
    """Reads files that were found before; see `read_files`."""
    if encoding not in ENCODINGS:
        raise DataError(f"The encoding {encoding!r} is not known.", f"Choose one of: {', '.join(ENCODINGS)}.")
    rows: list[RawRow] = []
    for source in sources:
        _check_suffix(source)
        before = len(rows)
        for line, values in _READERS[source.suffix](source, encoding):
            if len(rows) >= ROW_LIMIT:
                raise DataError(
                    f"here the data passes {ROW_LIMIT:,} rows.",
                    "Divide it into several datasets.",
                    file=source.name,
                    line=line,
                )
            if len(values) > FIELD_LIMIT:
                raise DataError(
                    f"the row has {len(values)} fields.",
                    f"At most {FIELD_LIMIT} are read; keep the needed ones.",
                    file=source.name,
                    line=line,
                )
            rows.append(RawRow(values, source.name, line))
        if len(rows) == before:
            raise DataError(
                "the file is empty: it holds no rows.", "Fill it or leave it out.", file=source.name
            )
    return rows


# ---------------------------------------------------------------- lines


def _lines(
    source: Source, encoding: str, newline: str | None, limit: int = LINE_LIMIT
) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, strictly decoded, never longer than `limit` characters."""
    codec = "utf-8-sig" if encoding == "utf-8" else encoding
    number = 0
    with open_source(source) as raw, io.TextIOWrapper(raw, codec, errors="strict", newline=newline) as text:
        while True:
            try:
                line = text.readline(limit + 1)
            except (UnicodeError, ValueError) as e:
                _refuse_bytes(source, encoding, number + 1, e)
            if not line:
                return
            number += 1
            if len(line) > limit:
                raise DataError(
                    f"the line is longer than {limit:,} characters.",
                    "Break it into several lines or rows; a missing line end or a missing quote is a common cause.",
                    file=source.name,
                    line=number,
                )
            if "\0" in line:
                advice = (
                    _encoding_advice(source, encoding)
                    or "Remove it; text files have none. The file may be binary or damaged."
                )
                raise DataError("the line holds a NUL character.", advice, file=source.name, line=number)
            yield number, line


def _refuse_bytes(source: Source, encoding: str, line: int, error: Exception) -> NoReturn:
    """Names the line that has bytes which are not text in this encoding."""
    if encoding == "utf-8":  # the decoder works in blocks, so look for the exact line
        with open_source(source) as f:
            number = 0
            while block := f.readline(4 * LINE_LIMIT):
                number += 1
                try:
                    block.decode("utf-8")
                except UnicodeDecodeError:
                    line = number
                    break
    advice = (
        _encoding_advice(source, encoding)
        or f"Save the file as UTF-8, or choose its encoding: {', '.join(ENCODINGS)}."
    )
    raise DataError(f"the line is not {encoding} text.", advice, file=source.name, line=line) from error


def _encoding_advice(source: Source, encoding: str) -> str:
    """Offers the encoding that the first bytes point to; it is the user who chooses."""
    with open_source(source) as f:
        head = f.read(65536)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head.count(0) > len(head) // 4:
        likely = "utf-16"
    elif 0 in head or encoding != "utf-8":
        return ""
    else:
        likely = "cp1252" if any(0x80 <= b <= 0x9F for b in head) else "latin-1"
    return (
        f"It looks like {likely}: choose encoding {likely}, or save the file as UTF-8."
        if likely != encoding
        else ""
    )


# ---------------------------------------------------------------- text


def _read_text(source: Source, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = [line.rstrip("\n") for _, line in _lines(source, encoding, None)]
    front = len(lines) > 1 and lines[0].rstrip() == "---" and bool(lines[1].strip())
    start = 0
    for i, line in enumerate([*lines, "---"]):
        if i < len(lines):
            if front and i:  # the second `---` closes Markdown front matter, even after a blank line
                closing = line.rstrip() in ("---", "...")
                front = not closing and bool(_FRONT_MATTER.match(line))
                if closing:
                    continue
            before = i == 0 or not lines[i - 1].strip()
            after = i + 1 == len(lines) or not lines[i + 1].strip()
            if line.rstrip() != "---" or not (before and after):
                continue
        while start < i and not lines[start].strip():
            start += 1
        if start < i:
            yield start + 1, {"text": "\n".join(lines[start:i]).rstrip()}
        start = i + 1


def _read_jsonl(source: Source, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    return jsonrows.read_jsonl(_lines(source, encoding, "\n"), source.name)


def _read_json(source: Source, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_source(source) as f:
        if (size := os.fstat(f.fileno()).st_size) > JSON_LIMIT_BYTES:
            raise DataError(
                f"the .json file has {size:,} bytes.",
                "Save it as .jsonl, one object a line.",
                file=source.name,
            )
    return jsonrows.read_json(
        "".join(line for _, line in _lines(source, encoding, "\n", JSON_LIMIT_BYTES)), source.name
    )


# ---------------------------------------------------------------- CSV


def _read_csv(source: Source, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LINE_LIMIT)  # the standard limit of 131,072 is below ours
    lines = (line for _, line in _lines(source, encoding, ""))
    first = next(lines, None)
    if first is None:
        return
    divider = next((d for d in ",;\t" if d in first), ",")
    cells = csv.reader(itertools.chain([first], lines), delimiter=divider, strict=True)
    header: list[str] = []
    line = 1
    while True:
        line, before = cells.line_num + 1, cells.line_num
        try:
            row = next(cells)
        except StopIteration:
            return
        except csv.Error as e:
            raise DataError(
                f"not valid CSV: {e}, in the row that begins here.",
                'Check its quotes: a text with commas, quotes or line ends stands in "...", and a quote inside is doubled.',
                file=source.name,
                line=before + 1,
            ) from e
        if not row or (len(row) == 1 and not row[0].strip() and len(header) != 1):
            continue
        if not header:
            header = _csv_header([c.strip() for c in row], source, line)
        elif len(row) != len(header):
            raise DataError(
                f"the row has {len(row)} cells and the header has {len(header)} ({', '.join(header)}).",
                f"Give it one cell for each column; put a text that holds {divider!r} in double quotes.",
                file=source.name,
                line=line,
            )
        else:
            yield line, dict(zip(header, row))


def _csv_header(header: list[str], source: Source, line: int) -> list[str]:
    if len(header) > FIELD_LIMIT:
        raise DataError(
            f"the header has {len(header)} columns.",
            f"At most {FIELD_LIMIT} are read.",
            file=source.name,
            line=line,
        )
    if "" in header:
        raise DataError(
            f"column {header.index('') + 1} of the header has no name.",
            "Name every column.",
            file=source.name,
            line=line,
        )
    if twice := next((c for c in header if header.count(c) > 1), None):
        raise DataError(
            f"the header names the column {twice!r} twice.",
            "Give each column its own name.",
            file=source.name,
            line=line,
        )
    return header


# ---------------------------------------------------------------- parquet


def _read_parquet(source: Source, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_source(source) as f:
        if os.fstat(f.fileno()).st_size:
            yield from enumerate(parquet.read_parquet(f, source.name), start=1)


_READERS: dict[str, Callable[[Source, str], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
