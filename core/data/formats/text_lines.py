"""Text files to numbered lines: strictly decoded, with a limit on their length and without NULs.

What a file's encoding is, and what it may be, is in `text_encodings`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, NoReturn

from core.data.formats.json_rows import LINE_LIMIT
from core.data.formats.read_log import ReadLog
from core.data.formats.text_encodings import (
    ENCODINGS,
    choose_codec,
    describe_codec,
    list_candidates,
    write_candidates,
)
from core.errors import DataError, UnknownEncoding

BLOCK_LENGTH = 1 << 16  # characters
_DAMAGED_SHARE = 5  # lines that are valid UTF-8 for each that is not: the file is UTF-8, and damaged


def read_lines(
    file: IO[bytes],
    name: str,
    encoding: str,
    log: ReadLog,
    newline: str | None = None,
    limit: int = LINE_LIMIT,
) -> Iterator[tuple[int, str]]:
    """Yields numbered lines with their line ends, at most `limit` characters long. Closes the file.

    Args:
        file: open for reading, seekable.
        name: the file name that errors show.
        encoding: one of ENCODINGS, for a file that does not identify itself.
        log: gets a note if the file is read in another encoding.
        newline: as in `open`: None makes all line ends "\\n".
        limit: characters of a line.

    Raises:
        UnknownEncoding: the file is not UTF-8, and the user has to choose its encoding.
        DataError: a line cannot be decoded, is too long, or has a NUL.
    """
    codec, how = choose_codec(file, encoding)
    log.say(describe_codec(codec, how, name))
    number = 0
    with file, io.TextIOWrapper(file, codec, errors="strict", newline=newline) as text:
        while True:
            try:
                line = text.readline(limit + 1)
            except (UnicodeError, ValueError) as e:
                _raise_decode_error(file, name, codec, number + 1, e)
            if not line:
                return
            number += 1
            if len(line) > limit:
                raise DataError(
                    f"the line is longer than {limit:,} characters.",
                    "Split it into several lines or rows. A common cause is a missing line end or quote.",
                    file=name,
                    line=number,
                )
            if "\0" in line:
                raise _describe_nul(name, number)
            yield number, line


def read_blocks(
    file: IO[bytes], name: str, encoding: str, log: ReadLog, size: int = BLOCK_LENGTH
) -> Iterator[str]:
    """Yields the text of a file in blocks; lines are not limited. Closes the file.

    Args:
        file, name, encoding, log: see `read_lines`.
        size: characters of a block.

    Raises:
        UnknownEncoding, DataError: as `read_lines`.
    """
    codec, how = choose_codec(file, encoding)
    log.say(describe_codec(codec, how, name))
    line = 1
    with file, io.TextIOWrapper(file, codec, errors="strict", newline="\n") as text:
        while True:
            try:
                block = text.read(size)
            except UnicodeError as e:
                _raise_decode_error(file, name, codec, line + _count_line_ends(e, codec), e)
            if not block:
                return
            if (at := block.find("\0")) >= 0:
                raise _describe_nul(name, line + block.count("\n", 0, at))
            line += block.count("\n")
            yield block


def _count_line_ends(error: Exception, codec: str) -> int:
    """The line ends between the last block and the bytes that cannot be decoded."""
    if not isinstance(error, UnicodeDecodeError):
        return 0
    return error.object[: error.start].decode(codec, "ignore").count("\n")


def _describe_nul(name: str, line: int) -> DataError:
    return DataError(
        "the line has a NUL character.",
        "Remove it. The file may be binary or damaged: text files have no NUL characters.",
        file=name,
        line=line,
    )


def _raise_decode_error(file: IO[bytes], name: str, codec: str, line: int, error: Exception) -> NoReturn:
    """Raises the error for bytes that are not valid in an encoding: for UTF-8 with the exact line."""
    if not codec.startswith("utf-8"):
        raise DataError(
            f"the line is not valid {codec}.",
            f"Save the file as UTF-8, or choose another encoding: {', '.join(ENCODINGS)}.",
            file=name,
            line=line,
        ) from error
    file.seek(0)
    first = number = valid = invalid = 0
    while block := file.readline(4 * LINE_LIMIT):
        number += 1
        if block.isascii():
            continue
        try:
            block.decode("utf-8")
            valid += 1
        except UnicodeDecodeError:
            invalid += 1
            first = first or number
    if valid >= _DAMAGED_SHARE * invalid:
        raise DataError(
            "the line is not valid utf-8, although the rest of the file is.",
            "The file may be damaged at this line, or two files were joined: correct or delete the line.",
            file=name,
            line=first or line,
        ) from error
    file.seek(0)
    candidates = list_candidates(file)
    names = ", ".join(dict.fromkeys(n for c in candidates for n in (c.encoding, *c.same[:1])))
    raise UnknownEncoding(
        "the line is not valid utf-8.",
        f"Choose the encoding of the file ({names}; in the terminal with --encoding NAME), or save the file "
        f"as UTF-8. Its first such line in each encoding:\n{write_candidates(candidates)}",
        file=name,
        line=first or line,
        candidates=candidates,
    ) from error
