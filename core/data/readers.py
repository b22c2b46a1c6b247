"""Files to raw rows that carry their file and line: six formats, their limits, and their errors.

    .txt .md   one document, or several separated by a line of only `---` between blank lines
    .json      an array of objects, or an object with exactly one array of objects
    .jsonl     one object per line
    .csv       a header, then rows; separated by comma, semicolon or tab
    .parquet   columns of texts and numbers, and lists of structs

Columns get their roles in `columns`; datasets are written in `datasets`.
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
from core.data.documents import READERS as DOCUMENT_READERS
from core.data.documents import Document
from core.data.jsonrows import FIELD_LIMIT, LINE_LIMIT
from core.errors import DataError, InvalidName, NotFound
from core.store.files import check_regular_file

SUFFIXES = (".txt", ".md", ".json", ".jsonl", ".csv", ".parquet", *DOCUMENT_READERS)
ENCODINGS = ("utf-8", "utf-16", "latin-1", "cp1252")

ROW_LIMIT = 1_000_000
FILE_LIMIT_BYTES = 1 << 30
TOTAL_LIMIT_BYTES = 2 << 30  # all files of one import
FILE_COUNT_LIMIT = 10_000  # files of one import
JSON_LIMIT_BYTES = 256 << 20  # a .json file is read into memory whole; a .jsonl file is not

_FRONT_MATTER = re.compile(r"\s*$|\s*[#-]|\s+\S|[^\s:][^:]*:(\s|$)")


@dataclass(frozen=True)
class RawRow:
    """One row of a file, before its columns have roles.

    Attributes:
        values: column to value.
        file: the file name that errors show.
        line: the line that the row begins on, from 1; in a .parquet file the number of the row.
        document: the blocks of the text, where the format has them.
    """

    values: dict[str, Any]
    file: str
    line: int
    document: Document | None = None


@dataclass(frozen=True)
class Source:
    """A file to read, and the name that the user knows it by."""

    path: Path
    name: str

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower()


def find_files(paths: Sequence[Path | str]) -> list[Source]:
    """Lists the files to read: each given file, and for a folder all supported files in it, sorted by name.

    A link that is given as a path is refused. Inside folders, links and hidden files are skipped.

    Raises:
        DataError: no file, not a regular file, an unsupported suffix, or too many files or bytes.
    """
    sources: list[Source] = []
    for path in map(Path, paths):
        if os.path.isdir(path) and not os.path.islink(path):
            inside = list(itertools.islice(_walk(path), FILE_COUNT_LIMIT + 1))
            if not inside:
                raise DataError(
                    "the folder has no supported file.",
                    f"Supported formats: {', '.join(SUFFIXES)}.",
                    file=path.name,
                )
            sources += sorted(inside, key=lambda s: s.name)
        else:
            sources.append(Source(path, path.name))
    unique = list({os.path.abspath(s.path): s for s in sources}.values())
    if not unique:
        raise DataError(
            "No files were given.", f"Choose one or more files ({', '.join(SUFFIXES)}) or a folder."
        )
    if len(unique) > FILE_COUNT_LIMIT:
        raise DataError(
            f"One import may have at most {FILE_COUNT_LIMIT:,} files, got {len(unique):,} or more.",
            "Put many short texts into one file, separated by lines of `---`.",
        )
    total = 0
    for source in unique:
        with open_source(source) as f:
            total += os.fstat(f.fileno()).st_size
        _check_suffix(source)
    if total > TOTAL_LIMIT_BYTES:
        raise DataError(
            f"One import may have at most {TOTAL_LIMIT_BYTES:,} bytes, got {total:,}.",
            "Leave some files out, or import them as several datasets.",
        )
    return unique


def _walk(root: Path) -> Iterator[Source]:
    """Yields all supported files under a folder; skips hidden files and links."""
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
        problem = f"{source.suffix} files are not supported"
        if not source.suffix:
            problem = "the file name has no suffix"
        raise DataError(
            f"{problem}.",
            f"Supported formats: {', '.join(SUFFIXES)}. Unpack archives first.",
            file=source.name,
        )


def open_source(source: Source) -> IO[bytes]:
    """Opens a regular file for reading; refuses links, pipes, devices and files above the size limit.

    The open file is checked again, because a path may become a link between the check and the open.

    Raises:
        DataError: the path is not a regular file, is missing, cannot be read, or is too large.
    """
    flags = (
        os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        fd = os.open(check_regular_file(source.path), flags | getattr(os, "O_CLOEXEC", 0))
    except (NotFound, FileNotFoundError) as e:
        raise DataError("the file does not exist.", "Check the path.", file=source.name) from e
    except InvalidName as e:
        raise DataError(
            "this is not a regular file.",
            "Choose the file itself, not a link, pipe or device.",
            file=source.name,
        ) from e
    except (OSError, ValueError) as e:
        raise DataError(
            f"the file cannot be opened: {getattr(e, 'strerror', None) or e}.",
            "Check the path and its permissions.",
            file=source.name,
        ) from e
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise DataError(
                "this is not a regular file.",
                "Choose the file itself, not a link, pipe or device.",
                file=source.name,
            )
        if info.st_size > FILE_LIMIT_BYTES:
            raise DataError(
                f"a file may have at most {FILE_LIMIT_BYTES:,} bytes, got {info.st_size:,}.",
                "Split it into several files.",
                file=source.name,
            )
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_files(paths: Sequence[Path | str], encoding: str = "utf-8") -> list[RawRow]:
    """Reads files and folders into raw rows, in the order given.

    Args:
        paths: files of the supported formats, or folders of such files.
        encoding: one of ENCODINGS, for the text formats; never guessed.

    Raises:
        DataError: names file and line, the cause and the remedy.
    """
    return read_sources(find_files(paths), encoding)


def read_sources(sources: Sequence[Source], encoding: str = "utf-8") -> list[RawRow]:
    """Reads the sources that `find_files` returned; see `read_files`."""
    if encoding not in ENCODINGS:
        raise DataError(
            f"Encoding must be one of {', '.join(ENCODINGS)}, got {encoding!r}.",
            "Choose the encoding that the file was saved in.",
        )
    rows: list[RawRow] = []
    for source in sources:
        _check_suffix(source)
        before = len(rows)
        if source.suffix in DOCUMENT_READERS:
            with open_source(source) as f:
                document = DOCUMENT_READERS[source.suffix](f, source.name)
            if document.text.strip():
                rows.append(RawRow({"text": document.text}, source.name, 1, document))
            table: Iterator[tuple[int, dict[str, Any]]] = iter(())
        else:
            table = _READERS[source.suffix](source, encoding)
        for line, values in table:
            if len(rows) >= ROW_LIMIT:
                raise DataError(
                    f"the data has more than {ROW_LIMIT:,} rows.",
                    "Split it into several datasets.",
                    file=source.name,
                    line=line,
                )
            if len(values) > FIELD_LIMIT:
                raise DataError(
                    f"a row may have at most {FIELD_LIMIT} fields, got {len(values)}.",
                    "Remove the fields that you do not need.",
                    file=source.name,
                    line=line,
                )
            rows.append(RawRow(values, source.name, line))
        if len(rows) == before:
            raise DataError(
                "the file is empty: it has no rows.", "Add rows, or leave it out.", file=source.name
            )
    return rows


# ---------------------------------------------------------------- lines


def _read_lines(
    source: Source, encoding: str, newline: str | None, limit: int = LINE_LIMIT
) -> Iterator[tuple[int, str]]:
    """Yields numbered lines with their line ends, strictly decoded, at most `limit` characters long."""
    codec = "utf-8-sig" if encoding == "utf-8" else encoding
    number = 0
    with open_source(source) as raw, io.TextIOWrapper(raw, codec, errors="strict", newline=newline) as text:
        while True:
            try:
                line = text.readline(limit + 1)
            except (UnicodeError, ValueError) as e:
                _raise_decode_error(source, encoding, number + 1, e)
            if not line:
                return
            number += 1
            if len(line) > limit:
                raise DataError(
                    f"the line is longer than {limit:,} characters.",
                    "Split it into several lines or rows. A common cause is a missing line end or quote.",
                    file=source.name,
                    line=number,
                )
            if "\0" in line:
                advice = (
                    _suggest_encoding(source, encoding)
                    or "Remove it. The file may be binary or damaged: text files have no NUL characters."
                )
                raise DataError("the line has a NUL character.", advice, file=source.name, line=number)
            yield number, line


def _raise_decode_error(source: Source, encoding: str, line: int, error: Exception) -> NoReturn:
    """Raises an error that names the line whose bytes are not valid in this encoding."""
    if encoding == "utf-8":  # the decoder works in blocks, so the exact line is searched for
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
        _suggest_encoding(source, encoding)
        or f"Save the file as UTF-8, or choose its encoding: {', '.join(ENCODINGS)}."
    )
    raise DataError(f"the line is not valid {encoding}.", advice, file=source.name, line=line) from error


def _suggest_encoding(source: Source, encoding: str) -> str:
    """Suggests the encoding that the first bytes point to; the user chooses it."""
    with open_source(source) as f:
        head = f.read(65536)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head.count(0) > len(head) // 4:
        likely = "utf-16"
    elif 0 in head or encoding != "utf-8":
        return ""
    else:
        likely = "cp1252" if any(0x80 <= b <= 0x9F for b in head) else "latin-1"
    if likely == encoding:
        return ""
    return f"It looks like {likely}: choose encoding {likely}, or save the file as UTF-8."


# ---------------------------------------------------------------- text


def _read_text(source: Source, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = [line.rstrip("\n") for _, line in _read_lines(source, encoding, None)]
    in_front_matter = len(lines) > 1 and lines[0].rstrip() == "---" and bool(lines[1].strip())
    start = 0
    for i, line in enumerate([*lines, "---"]):
        if i < len(lines):
            # The second `---` closes Markdown front matter, even after a blank line.
            if in_front_matter and i:
                closing = line.rstrip() in ("---", "...")
                in_front_matter = not closing and bool(_FRONT_MATTER.match(line))
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
    return jsonrows.read_jsonl(_read_lines(source, encoding, "\n"), source.name)


def _read_json(source: Source, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_source(source) as f:
        if (size := os.fstat(f.fileno()).st_size) > JSON_LIMIT_BYTES:
            raise DataError(
                f"a .json file may have at most {JSON_LIMIT_BYTES:,} bytes, got {size:,}.",
                "Save it as .jsonl, one object per line.",
                file=source.name,
            )
    return jsonrows.read_json(
        "".join(line for _, line in _read_lines(source, encoding, "\n", JSON_LIMIT_BYTES)), source.name
    )


# ---------------------------------------------------------------- CSV


def _read_csv(source: Source, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(LINE_LIMIT)  # the default limit is 131,072
    lines = (line for _, line in _read_lines(source, encoding, ""))
    first = next(lines, None)
    if first is None:
        return
    delimiter = next((d for d in ",;\t" if d in first), ",")
    cells = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
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
                f"not valid CSV: {e}, in the row that begins on this line.",
                "Check its quotes: put a text with commas, quotes or line ends in double quotes, "
                "and write a quote inside it twice.",
                file=source.name,
                line=before + 1,
            ) from e
        if not row or (len(row) == 1 and not row[0].strip() and len(header) != 1):
            continue
        if not header:
            header = _check_header([c.strip() for c in row], source, line)
        elif len(row) != len(header):
            raise DataError(
                f"the row has {len(row)} cells, but the header has {len(header)} ({', '.join(header)}).",
                f"Give it one cell per column, and put a text that contains {delimiter!r} in double quotes.",
                file=source.name,
                line=line,
            )
        else:
            yield line, dict(zip(header, row))


def _check_header(header: list[str], source: Source, line: int) -> list[str]:
    if len(header) > FIELD_LIMIT:
        raise DataError(
            f"a file may have at most {FIELD_LIMIT} columns, got {len(header)}.",
            "Remove the columns that you do not need.",
            file=source.name,
            line=line,
        )
    if "" in header:
        raise DataError(
            f"column {header.index('') + 1} has no name.",
            "Name every column in the header.",
            file=source.name,
            line=line,
        )
    if duplicate := next((c for c in header if header.count(c) > 1), None):
        raise DataError(
            f"two columns are named {duplicate!r}.",
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
