"""Files to raw rows that carry their file and line: the formats, their limits, and their errors.

    .txt .md   one document, or several separated by a line of only `---` between blank lines
    .json      an array of objects, read in blocks; or an object with exactly one array of objects, and others
    .jsonl     one object per line
    .csv .tsv  a header, then rows; separated by comma, semicolon, tab or vertical bar
    .xlsx      a sheet with a header, then rows
    .parquet   columns of texts and numbers, and lists of structs
    .gz .zip   one or several of these, see `compressed`

Documents (.docx, .html, ...) are read in `documents`, lines of text in `text_lines`. Columns get their roles
in `columns`; datasets are written in `datasets`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from core.data.documents.document import Document
from core.data.documents.document_formats import READERS as DOCUMENT_READERS
from core.data.documents.document_formats import read_document
from core.data.formats import compressed, csv_rows, json_rows, parquet, text_exports
from core.data.formats.json_rows import FIELD_LIMIT, LINE_LIMIT
from core.data.formats.read_log import ReadLog
from core.data.formats.text_encodings import ENCODINGS, normalize_encoding
from core.data.formats.text_lines import read_blocks, read_lines
from core.errors import DataError, InvalidName, NotFound, UnknownEncoding
from core.store.files import check_regular_file

TEXT_SUFFIXES = (".txt", ".md")
TABLE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".xlsx", ".parquet")
STREAMED_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")  # are not held in memory whole
INFLATED_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")  # in an archive, are inflated while they are read
FORMATS = (*TEXT_SUFFIXES, *TABLE_SUFFIXES, *DOCUMENT_READERS)  # these can also be inside an archive
SUFFIXES = (*FORMATS, *compressed.SUFFIXES)

Rows = Iterator[tuple[int, dict[str, Any]]]  # the line that a row begins on, and column to value

ROW_LIMIT = 1_000_000
FILE_LIMIT_BYTES = 1 << 30
TOTAL_LIMIT_BYTES = 2 << 30  # all files of one import
FILE_COUNT_LIMIT = 10_000  # files of one import
JSON_LIMIT_BYTES = 256 << 20  # of a .json file that is not an array, which is read into memory whole

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
class Limits:
    """How much one import may read; None leaves it to the disk.

    Attributes:
        rows: of all files.
        file_bytes: of one file that is read in blocks; a file of another format has FILE_LIMIT_BYTES.
        total_bytes: of all files.
    """

    rows: int | None
    file_bytes: int | None
    total_bytes: int | None


OWNER = Limits(None, None, None)  # who runs the studio on this machine


@dataclass(frozen=True)
class Source:
    """A file to read, and the name that the user knows it by.

    Attributes:
        path: where it lies.
        name: what errors call it; it ends with the suffix of its format.
        inflated: of a member of an archive: its content, which has no path of its own; or the file at the
            path, where it is open already.
        byte_limit: bytes that it may have; None for no limit.
    """

    path: Path
    name: str
    inflated: IO[bytes] | None = None
    byte_limit: int | None = FILE_LIMIT_BYTES

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix.lower()


def find_files(
    paths: Sequence[Path | str], log: ReadLog | None = None, limits: Limits | None = None
) -> list[Source]:
    """Lists the files to read: each given file, and for a folder all supported files in it, sorted by name.

    A link that is given as a path is refused. Inside folders, links and hidden files are skipped. Beside
    supported files, those of other formats are skipped.

    Args:
        log: gets the files that were skipped.
        limits: of the user; None is ROW_LIMIT, FILE_LIMIT_BYTES and TOTAL_LIMIT_BYTES.

    Raises:
        DataError: no file, not a regular file, only unsupported suffixes, or too many files or bytes.
    """
    limits = limits or Limits(ROW_LIMIT, FILE_LIMIT_BYTES, TOTAL_LIMIT_BYTES)
    sources: list[Source] = []
    for path in map(Path, paths):
        if os.path.isdir(path) and not os.path.islink(path):
            others: Counter[str] = Counter()
            inside = list(itertools.islice(_walk(path, others), FILE_COUNT_LIMIT + 1))
            if not inside:
                raise DataError(
                    "the folder has no supported file.",
                    f"Supported formats: {', '.join(SUFFIXES)}.",
                    file=path.name,
                )
            if others and log is not None:
                count, kinds = others.total(), ", ".join(list(others)[:8])
                log.say(f"{path.name}: files of other formats are left out ({kinds}; {count:,} in all).")
            sources += sorted(inside, key=lambda s: s.name)
        else:
            sources.append(Source(path, path.name))
    unique = list({os.path.abspath(s.path): s for s in sources}.values())
    if limits.file_bytes is None:
        unique = [replace(s, byte_limit=None) if s.suffix in STREAMED_SUFFIXES else s for s in unique]
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
    unique = _leave_out_others(unique, ReadLog() if log is None else log)
    if limits.total_bytes is not None and total > limits.total_bytes:
        raise DataError(
            f"One import may have at most {limits.total_bytes:,} bytes, got {total:,}.",
            "Leave some files out, or import them as several datasets.",
        )
    return unique


def _leave_out_others(sources: Sequence[Source], log: ReadLog) -> list[Source]:
    """Leaves out the files of other formats and counts them in the log; an error if no other file is left."""
    supported = []
    for source in sources:
        try:
            _check_suffix(source)
            supported.append(source)
        except DataError as e:
            log.skip(source.name, e)
    if not supported and log.first_problem:
        raise log.first_problem
    return supported


def _walk(root: Path, others: Counter[str]) -> Iterator[Source]:
    """Yields all supported files under a folder; skips hidden files and links, and counts other formats."""
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
            elif entry.is_file(follow_symlinks=False):
                suffix = Path(entry.name).suffix.lower()
                if suffix in SUFFIXES:
                    yield Source(Path(entry.path), Path(entry.path).relative_to(root).as_posix())
                else:
                    others[suffix or "without a suffix"] += 1


def _check_suffix(source: Source) -> None:
    if source.suffix not in SUFFIXES:
        problem = f"{source.suffix} files are not supported"
        if not source.suffix:
            problem = "the file name has no suffix"
        raise DataError(
            f"{problem}.",
            f"Supported formats: {', '.join(SUFFIXES)}. Save or unpack it as one of them.",
            file=source.name,
        )
    compressed.check_archive_name(source.name, FORMATS)


def open_source(source: Source) -> IO[bytes]:
    """Opens a regular file for reading; refuses links, pipes, devices and files above the size limit.

    The open file is checked again, because a path may become a link between the check and the open.

    Raises:
        DataError: the path is not a regular file, is missing, cannot be read, or is too large.
    """
    if isinstance(source.inflated, compressed.InflatedStream):
        return source.inflated.reopen()
    if source.inflated is not None:
        source.inflated.seek(0)
        return os.fdopen(os.dup(source.inflated.fileno()), "rb")
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
        if source.byte_limit is not None and info.st_size > source.byte_limit:
            raise DataError(
                f"a file may have at most {source.byte_limit:,} bytes, got {info.st_size:,}.",
                "Split it into several files.",
                file=source.name,
            )
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_files(
    paths: Sequence[Path | str], encoding: str = "utf-8", log: ReadLog | None = None
) -> list[RawRow]:
    """Reads files and folders into raw rows, in the order given.

    Args:
        paths: files of the supported formats, or folders of such files.
        encoding: one of ENCODINGS, for text files that do not identify themselves; never guessed.
        log: gets notes about files, and the files that were skipped.

    Raises:
        DataError: names file and line, the cause and the remedy.
    """
    log = ReadLog() if log is None else log
    return read_sources(find_files(paths, log), encoding, log)


def read_sources(
    sources: Sequence[Source],
    encoding: str = "utf-8",
    log: ReadLog | None = None,
    begin_file: Callable[[str, int], None] = lambda name, rows: None,
) -> list[RawRow]:
    """Reads the sources that `find_files` returned; see `read_files`.

    Of several files, a text or a document that cannot be read is skipped; a table is an error.

    Args:
        begin_file: receives the name of each file before it is read, and the rows so far.
    """
    encoding = _check_encoding(encoding)
    log = ReadLog() if log is None else log
    rows: list[RawRow] = []
    with contextlib.closing(open_archives(sources, log)) as files:
        for source in files:
            before = len(rows)
            begin_file(source.name, before)
            try:
                for row in _read_source(source, encoding, log):
                    rows.append(row)
                    _check_row(row, len(rows))
                if len(rows) == before:
                    raise DataError(
                        "the file is empty: it has no rows.", "Add rows, or leave it out.", file=source.name
                    )
            except UnknownEncoding:
                raise
            except DataError as e:
                if source.suffix in TABLE_SUFFIXES or len(rows) > ROW_LIMIT:
                    raise
                del rows[before:]
                log.skip(source.name, e)
    if not rows and log.first_problem:
        raise log.first_problem
    return rows


def read_source_rows(sources: Sequence[Source], encoding: str, log: ReadLog) -> Iterator[RawRow]:
    """Yields the rows of tables, one after the other; see `read_files`.

    Raises:
        DataError: a file or a row cannot be read.
    """
    encoding = _check_encoding(encoding)
    with contextlib.closing(open_archives(sources, log)) as files:
        for source in files:
            for row in _read_source(source, encoding, log):
                _check_row(row, 0)
                yield row


def _check_encoding(encoding: str) -> str:
    encoding = normalize_encoding(encoding)
    if encoding not in ENCODINGS:
        raise DataError(
            f"Encoding must be one of {', '.join(ENCODINGS)}, got {encoding!r}.",
            "Choose the encoding that the file was saved in.",
        )
    return encoding


def open_archives(sources: Sequence[Source], log: ReadLog) -> Generator[Source, None, None]:
    """Yields the sources, and for an archive each of its members, which is open until the next one."""
    for source in sources:
        _check_suffix(source)
        if not compressed.is_archive(source.name):
            yield source
            continue
        with open_source(source) as f:
            members = compressed.inflate_members(f, source.name, FORMATS, log, INFLATED_SUFFIXES)
            for inflated, name in members:
                yield Source(source.path, name, inflated)


def _read_source(source: Source, encoding: str, log: ReadLog) -> Iterator[RawRow]:
    """Yields the rows of one file."""
    if source.suffix in DOCUMENT_READERS:
        with open_source(source) as f:
            document = read_document(f, source.name, source.suffix, encoding)
        if document.text.strip():
            yield RawRow({"text": document.text}, source.name, 1, document)
        return
    for line, values in _READERS[source.suffix](source, encoding, log):
        yield RawRow(values, source.name, line)


def _check_row(row: RawRow, number: int) -> None:
    if number > ROW_LIMIT:
        raise DataError(
            f"the data has more than {ROW_LIMIT:,} rows.",
            "Split it into several datasets.",
            file=row.file,
            line=row.line,
        )
    if len(row.values) > FIELD_LIMIT:
        raise DataError(
            f"a row may have at most {FIELD_LIMIT} fields, got {len(row.values)}.",
            "Remove the fields that you do not need.",
            file=row.file,
            line=row.line,
        )


# ---------------------------------------------------------------- text


def _read_lines(
    source: Source, encoding: str, log: ReadLog, newline: str | None, limit: int = LINE_LIMIT
) -> Iterator[tuple[int, str]]:
    """Yields numbered lines with their line ends; see `text_lines`."""
    return read_lines(open_source(source), source.name, encoding, log, newline, limit)


def _read_text(source: Source, encoding: str, log: ReadLog) -> Rows:
    lines = [line.rstrip("\n") for _, line in _read_lines(source, encoding, log, None)]
    if source.suffix == ".txt" and text_exports.is_anki(lines):
        yield from text_exports.read_anki(lines, source.name, log)
        return
    if source.suffix == ".txt" and (export := text_exports.describe_export(lines)):
        log.say(f"{source.name}: {export}")
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


def _read_jsonl(source: Source, encoding: str, log: ReadLog) -> Rows:
    return json_rows.read_jsonl(_read_lines(source, encoding, log, "\n"), source.name)


def is_json_array(file: IO[bytes]) -> bool:
    """Whether a .json file seems to be an array, in any encoding; leaves the file at its beginning."""
    head = file.read(1024).lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n")
    file.seek(0)
    return head.startswith(b"[")


def _read_json(source: Source, encoding: str, log: ReadLog) -> Rows:
    with open_source(source) as f:
        size = 0 if isinstance(f, compressed.InflatedStream) else os.fstat(f.fileno()).st_size
        if size > JSON_LIMIT_BYTES and not is_json_array(f):
            raise _describe_json_size(source, size)
    blocks = read_blocks(open_source(source), source.name, encoding, log)
    head = list[str]()
    for block in blocks:
        head.append(block)
        if not block.isspace():
            break
    if head and head[-1].lstrip(json_rows.SPACES).startswith("["):
        yield from json_rows.read_json_array(itertools.chain(head, blocks), source.name)
        return
    size = 0
    for block in blocks:
        head.append(block)
        size += len(block)
        if size > JSON_LIMIT_BYTES:
            raise _describe_json_size(source, size)
    yield from json_rows.read_json("".join(head), source.name)


def _describe_json_size(source: Source, size: int) -> DataError:
    return DataError(
        f"a .json file that is not an array may have at most {JSON_LIMIT_BYTES:,} bytes, got {size:,}.",
        "Save it as .jsonl, one object per line.",
        file=source.name,
    )


# ---------------------------------------------------------------- tables


def _read_csv(source: Source, encoding: str, log: ReadLog) -> Rows:
    lines = (line for _, line in _read_lines(source, encoding, log, ""))
    return csv_rows.read_csv(lines, source.name, log)


def _read_xlsx(source: Source, encoding: str, log: ReadLog) -> Rows:
    from core.data.formats import spreadsheet

    with open_source(source) as f:
        yield from spreadsheet.read_xlsx(f, source.name, log)


def _read_parquet(source: Source, encoding: str, log: ReadLog) -> Rows:
    with open_source(source) as f:
        if os.fstat(f.fileno()).st_size:
            is_limited = source.byte_limit is not None
            yield from enumerate(parquet.read_parquet(f, source.name, is_limited), start=1)


_READERS: dict[str, Callable[[Source, str, ReadLog], Rows]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".xlsx": _read_xlsx,
    ".parquet": _read_parquet,
}
