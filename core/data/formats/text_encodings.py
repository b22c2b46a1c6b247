"""Encodings of text files: some identify themselves, UTF-8 is checked, and the user chooses among others.

    byte order mark, pattern of NULs, escape sequences     read, and said in the notes
    no mark                                                UTF-8, strictly
    not UTF-8                                              `list_candidates`: the same lines in each encoding

Nothing is guessed: an order of plausibility decides only which candidate is shown first.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from core.data.formats.text_plausibility import find_script, rate_text
from core.store.files import check_regular_file

LABELS = {
    "utf-8": "UTF-8",
    "utf-16": "UTF-16",
    "utf-16-le": "UTF-16, little-endian",
    "utf-16-be": "UTF-16, big-endian",
    "utf-32": "UTF-32",
    "cp1252": "Western European (Windows-1252)",
    "latin-1": "Western European (Latin-1)",
    "iso-8859-15": "Western European with euro (Latin-9)",
    "cp1250": "Central European (Windows-1250)",
    "iso-8859-2": "Central European (Latin-2)",
    "cp1255": "Hebrew (Windows-1255)",
    "cp1251": "Cyrillic (Windows-1251)",
    "koi8-r": "Cyrillic, Russian (KOI8-R)",
    "koi8-u": "Cyrillic, Ukrainian (KOI8-U)",
    "cp866": "Cyrillic (DOS 866)",
    "iso-8859-5": "Cyrillic (ISO 8859-5)",
    "cp1253": "Greek (Windows-1253)",
    "iso-8859-7": "Greek (ISO 8859-7)",
    "cp1254": "Turkish (Windows-1254)",
    "cp1256": "Arabic (Windows-1256)",
    "cp1257": "Baltic (Windows-1257)",
    "cp1258": "Vietnamese (Windows-1258)",
    "cp874": "Thai (Windows-874)",
    "mac-roman": "Western European (Mac)",
    "cp850": "Western European (DOS 850)",
    "cp437": "English (DOS 437)",
    "cp932": "Japanese (Shift-JIS)",
    "euc-jp": "Japanese (EUC-JP)",
    "iso-2022-jp": "Japanese (ISO-2022-JP)",
    "cp949": "Korean (EUC-KR)",
    "gb18030": "Chinese, simplified (GB 18030)",
    "big5hkscs": "Chinese, traditional (Big5)",
}
ENCODINGS = tuple(LABELS)
ALIASES = {"shift-jis": "cp932", "shift_jis": "cp932", "sjis": "cp932", "gbk": "gb18030", "gb2312": "gb18030",
           "big5": "big5hkscs", "euc-kr": "cp949", "euc_kr": "cp949", "utf8": "utf-8", "utf-8-sig": "utf-8",
           "iso-8859-1": "latin-1", "latin1": "latin-1", "iso-8859-9": "cp1254", "windows-1250": "cp1250",
           "windows-1251": "cp1251", "windows-1252": "cp1252", "windows-1253": "cp1253", "tis-620": "cp874",
           "windows-1254": "cp1254", "windows-1255": "cp1255", "windows-1256": "cp1256", "ansi": "cp1252",
           "windows-1257": "cp1257", "windows-1258": "cp1258", "macroman": "mac-roman",
           "macintosh": "mac-roman",
           "iso-8859-11": "cp874"}  # fmt: skip

_SELF_IDENTIFYING = ("utf-8", "utf-16", "utf-32", "iso-2022-jp")
_MARKS = (  # of two that begin alike, the longer one comes first
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\x84\x31\x95\x33", "gb18030"),
)
_JAPANESE_ESCAPES = (b"\x1b$B", b"\x1b$@", b"\x1b$(D")
_HEAD_BYTES = 65536
_SCAN_LIMIT_BYTES = 64 << 20  # of a file that is not UTF-8, for lines to show
_SAMPLE_BYTES = 32768
_LINE_BYTES = 4096
_UTF8_CERTAIN = (
    4  # characters of several bytes that are valid UTF-8: no other encoding gives so many by chance
)
PREVIEW_LINES, PREVIEW_LENGTH = 3, 90  # lines; characters of a line
CANDIDATE_LIMIT = 6
_PRINTABLE = re.compile(rb"[\t\n\r\x20-\x7e]+")
_NOT_ASCII = re.compile(rb"[\x80-\xff]")


@dataclass(frozen=True)
class Candidate:
    """An encoding that a file may have.

    Attributes:
        encoding: its name, one of ENCODINGS.
        label: how the page calls it.
        preview: lines of the file in this encoding, the same lines for every candidate.
        same: other encodings that give the same text in the lines that were looked at.
        share_of_letters: of the characters outside ASCII, from 0 to 1.
        plausibility: from 0 to 1: how many of the words with such characters look like words, and how many of
            the characters are letters or usual punctuation.
    """

    encoding: str
    label: str
    preview: tuple[str, ...]
    same: tuple[str, ...] = ()
    share_of_letters: float = 0.0
    plausibility: float = 0.0


def normalize_encoding(name: str) -> str:
    """The name of ENCODINGS for the name or alias of an encoding; the name itself if it is unknown."""
    plain = name.strip().lower()
    return ALIASES.get(plain, plain.replace("_", "-") if plain.replace("_", "-") in LABELS else plain)


def identify(head: bytes) -> tuple[str, str]:
    """Finds the encoding that the beginning of a file shows by itself.

    Args:
        head: the first bytes, up to 64 KB; more is not looked at.

    Returns:
        The codec and how it shows, such as ("utf-16", "its byte order mark"); ("", "") if it does not.
    """
    head = head[:_HEAD_BYTES]
    for mark, codec in _MARKS:
        if head.startswith(mark):
            return codec, "its byte order mark"
    if b"\0" in head:
        codecs_found = [c for c in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be") if _fits(head, c)]
        if len(codecs_found) == 1:
            return codecs_found[0], "the pattern of its bytes"
        return "", ""
    if any(escape in head for escape in _JAPANESE_ESCAPES) and not _NOT_ASCII.search(head):
        return "iso-2022-jp", "its escape sequences"
    return "", ""


def _fits(head: bytes, codec: str) -> bool:
    """Whether bytes with NULs are a text in UTF-16 or UTF-32, without controls."""
    width = 4 if "32" in codec else 2
    units = head[: len(head) // width * width]
    try:
        text = codecs.getincrementaldecoder(codec)("strict").decode(units)
    except UnicodeError:
        return False
    if not text or (len(head) < _HEAD_BYTES and len(head) % width):
        return False
    kinds = Counter(unicodedata.category(c) for c in text if c not in "\t\n\r\f")
    if kinds["Cc"] or kinds["Cs"] or kinds["Cn"] + kinds["Co"] > len(text) // 50:
        return False
    # In the other byte order, ASCII becomes characters such as U+6100, and any text one of many scripts.
    swapped = sum(not ord(c) & 0xFF and c != "\u3000" for c in text)
    scripts = Counter(find_script(c) for c in text if c.isalpha())
    main = sum(count for _, count in scripts.most_common(3))
    # Two characters of ASCII read as one ideograph: a text with a few NULs is not a text in UTF-16.
    if head.count(0) < len(head) // 4 and len(_PRINTABLE.sub(b"", head)) - head.count(0) < len(head) // 20:
        return False
    has_ascii = any(c < "\x80" for c in text)  # its NULs are what the pattern consists of
    return has_ascii and swapped <= max(1, len(text) // 10) and main >= 0.9 * scripts.total()


def choose_codec(file: IO[bytes], encoding: str) -> tuple[str, str]:
    """Chooses the codec of a file, and leaves the file at its beginning.

    Args:
        file: open for reading, seekable.
        encoding: what the user chose for files that do not identify themselves.

    Returns:
        The codec, and how the file shows it; the latter is "" where the codec is the chosen one. A byte order
        mark is part of no text.
    """
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    codec, how = identify(head)
    if codec == "utf-8-sig":
        return codec, "" if encoding == "utf-8" else how
    if codec:
        return codec, how if codec.split("-")[:2] != encoding.split("-")[:2] else ""
    if encoding == "utf-8":
        return "utf-8", ""
    if encoding not in _SELF_IDENTIFYING and not encoding.startswith("utf") and _is_utf8(file):
        return "utf-8", "its bytes, which are valid UTF-8 throughout"
    return encoding, ""


def _is_utf8(file: IO[bytes]) -> bool:
    """Whether a whole file is UTF-8, with too many characters of several bytes for chance."""
    decoder = codecs.getincrementaldecoder("utf-8")("strict")
    found = 0
    try:
        while block := file.read(1 << 20):
            text = decoder.decode(block)
            if found < _UTF8_CERTAIN and not text.isascii():
                found += sum(c > "\x7f" for c in text)
        decoder.decode(b"", final=True)
    except UnicodeError:
        return False
    finally:
        file.seek(0)
    return found >= _UTF8_CERTAIN


def describe_codec(codec: str, how: str, name: str) -> str:
    """The sentence for the notes: "notes.txt is read as UTF-16: its byte order mark says so."; "" if none."""
    label = LABELS.get(codec.removesuffix("-sig"), codec.upper())
    return f"{name} is read as {label.split(',')[0]}, because of {how}." if how else ""


# ---------------------------------------------------------------- candidates


def list_candidates(source: Path | str | IO[bytes], limit: int = CANDIDATE_LIMIT) -> list[Candidate]:
    """Lists the encodings that a file may have, the most plausible first, with the lines that differ.

    Reads the file in blocks, at most the first 64 MB.

    Args:
        source: a path, or a file that is open for reading.
        limit: how many candidates at most.
    """
    if isinstance(source, (str, Path)):
        with open(check_regular_file(Path(source)), "rb") as file:
            return list_candidates(file, limit)
    lines, head = _sample_lines(source), source.read(_LINE_BYTES)
    source.seek(0)
    groups: dict[str, list[str]] = {}
    for encoding in ENCODINGS:
        # UTF-16 has other line ends, an even number of bytes, and hardly any bytes that look like ASCII.
        is_wide = len(head) % 2 == 0 and len(_PRINTABLE.sub(b"", head)) > len(head) // 2
        sample = lines if not encoding.startswith("utf-") else [head] * is_wide
        if sample and (text := _decode_lines(sample, encoding)) is not None:
            groups.setdefault(text, []).append(encoding)
    found = []
    for text, names in groups.items():
        letters, plausibility = rate_text(text, names[0])
        preview = tuple(_cut(line) for line in text.split("\n")[:PREVIEW_LINES])
        found.append(Candidate(names[0], LABELS[names[0]], preview, tuple(names[1:]), letters, plausibility))
    order = {name: place for place, name in enumerate(ENCODINGS)}
    found.sort(key=lambda c: (-round(c.plausibility, 1), order[c.encoding]))
    best = max((c.plausibility for c in found), default=0.0)
    return [c for i, c in enumerate(found[:limit]) if i < 2 or c.plausibility >= 0.6 * best]


def write_candidates(candidates: Sequence[Candidate]) -> str:
    """Writes candidates with their first line, for the terminal: one per line."""
    lines = []
    for c in candidates:
        names = " or ".join((c.encoding, *c.same[:2]))
        lines.append(f"  {names} ({c.label}): {c.preview[0] if c.preview else ''}")
    return "\n".join(lines)


def _sample_lines(file: IO[bytes]) -> list[bytes]:
    """Takes the lines with bytes outside ASCII, up to a limit, without line ends."""
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if b"\0" in head:
        return [head]
    lines: list[bytes] = []
    taken = read = 0
    while taken < _SAMPLE_BYTES and read < _SCAN_LIMIT_BYTES:
        line = file.readline(_LINE_BYTES)
        if not line:
            break
        read += len(line)
        if _NOT_ASCII.search(line):
            lines.append(line.rstrip(b"\r\n"))
            taken += len(line)
    file.seek(0)
    return lines or [head]


def _decode_lines(lines: Sequence[bytes], encoding: str) -> str | None:
    """Decodes lines strictly; None if one cannot be, or if it gives controls or unassigned characters.

    A line that was cut may end inside a character.
    """
    texts = []
    for line in lines:
        is_complete = len(line) < _LINE_BYTES - 2
        try:
            text = codecs.getincrementaldecoder(encoding)("strict").decode(line, final=is_complete)
        except UnicodeError:
            return None
        if any(unicodedata.category(c) in ("Cn", "Cc") for c in text if c > "\x7f"):
            return None
        if "\0" in text:
            return None
        texts.append(text)
    return "\n".join(texts)


def _cut(line: str) -> str:
    """Cuts a line around its first character outside ASCII; controls become blanks."""
    clean = "".join(c if c.isprintable() else " " for c in line)
    first = next((i for i, c in enumerate(clean) if c > "\x7f"), 0)
    start = max(0, first - PREVIEW_LENGTH // 2)
    shown = clean[start : start + PREVIEW_LENGTH]
    return ("…" if start else "") + shown.strip() + ("…" if start + PREVIEW_LENGTH < len(clean) else "")
