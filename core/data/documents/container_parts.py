"""The parts of a document that is a zip file of XML (.docx, .epub): read in memory, as untrusted input.

Nothing is extracted. A part is read within limits of size and compression ratio; its XML is parsed without
entities, DTDs, network or files.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from typing import IO, Any, NoReturn

from lxml import etree

from core.errors import DataError

MEMBER_COUNT_LIMIT = 20_000
PART_LIMIT_BYTES = 64 << 20  # one part, uncompressed
READ_LIMIT_BYTES = 256 << 20  # all parts that are read, uncompressed
TOTAL_LIMIT_BYTES = 2 << 30  # all members, pictures included, as the archive declares them
RATIO_LIMIT = 250  # of a part that is read; XML of real documents stays below 100
_SMALL_BYTES = 1 << 20  # below, the ratio does not matter
_DIRECTORY_LIMIT_BYTES = 8 << 20
_END_OF_DIRECTORY = b"PK\x05\x06"
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"

DAMAGED = "The file is damaged: download or export it again."
_PROLOG = re.compile(
    rb"\s*(?:<\?xml(?P<declaration>[^>]*?)\?>)?(?:\s+|<!--.*?-->|<\?.*?\?>)*"
    rb"(?P<doctype><!DOCTYPE(?:[^\[>\"']|\"[^\"]*\"|'[^']*')*(?P<subset>\[)?)?",
    re.DOTALL | re.IGNORECASE,
)
_DECLARED = re.compile(rb"encoding\s*=\s*[\"']\s*([A-Za-z0-9._-]+)")
_PLAIN_ENCODING = re.compile(
    r"utf-?8|us-ascii|ascii|iso-8859-\d+|windows-125\d|cp125\d|koi8-[ru]|shift_jis|euc-jp|gbk|gb2312|gb18030|"
    r"big5|euc-kr",
    re.IGNORECASE,
)


class Archive:
    """A document that is a zip file.

    Args:
        file: open for reading, seekable.
        name: the name that errors show.
        suffix: of the format, such as ".docx".

    Raises:
        DataError: not a zip file, or beyond the limits.
    """

    def __init__(self, file: IO[bytes], name: str, suffix: str) -> None:
        self.name = name
        self._read_bytes = 0
        _check_magic(file, name, suffix)
        _check_directory(file, name)
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as e:
            raise DataError(f"the file cannot be read as {suffix} ({e}).", DAMAGED, file=name) from e
        members = self._zip.infolist()
        if len(members) > MEMBER_COUNT_LIMIT:
            self.refuse(
                f"a {suffix} file may have at most {MEMBER_COUNT_LIMIT:,} parts, got {len(members):,}.",
                "Split the document.",
            )
        if (total := sum(m.file_size for m in members)) > TOTAL_LIMIT_BYTES:
            self.refuse(
                f"the parts of a {suffix} file may have at most {TOTAL_LIMIT_BYTES:,} bytes, got {total:,}.",
                "Split the document, or take out its pictures.",
            )
        self._members = {m.filename: m for m in members}
        self._folded = {m.filename.casefold(): m for m in members}

    def refuse(self, what: str, fix: str) -> NoReturn:
        """Raises a DataError about this file."""
        raise DataError(what, fix, file=self.name)

    @property
    def names(self) -> list[str]:
        """The names of all members."""
        return list(self._members)

    def __contains__(self, part: str) -> bool:
        return self._find(part) is not None

    def _find(self, part: str) -> zipfile.ZipInfo | None:
        return self._members.get(part) or self._folded.get(part.casefold())

    def read(self, part: str) -> bytes:
        """Reads a part.

        Raises:
            DataError: it is missing, encrypted, damaged or beyond the limits.
        """
        member = self._find(part)
        if member is None:
            self.refuse(f"the part {part[:80]!r} is missing.", DAMAGED)
        if member.flag_bits & 1:
            self.refuse("the file is encrypted.", "Save it without a password.")
        size, packed = member.file_size, max(1, member.compress_size)
        if size > PART_LIMIT_BYTES or self._read_bytes + size > READ_LIMIT_BYTES:
            self.refuse(
                f"one part may have at most {PART_LIMIT_BYTES:,} bytes and all that are read "
                f"{READ_LIMIT_BYTES:,}, {part[:80]!r} has {size:,}.",
                "Split the document.",
            )
        if size > _SMALL_BYTES and size > RATIO_LIMIT * packed:
            self.refuse(
                f"the compression ratio of a part must be at most {RATIO_LIMIT}, "
                f"{part[:80]!r} has {size // packed:,}.",
                "Save the document again with the program that made it.",
            )
        try:
            with self._zip.open(member) as source:
                data = source.read(size + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
            OSError,
            ValueError,
        ) as e:
            raise DataError(f"the part {part[:80]!r} cannot be read ({e}).", DAMAGED, file=self.name) from e
        if len(data) != size:
            self.refuse(f"the part {part[:80]!r} has another size than declared.", DAMAGED)
        self._read_bytes += size
        return data

    def parse(self, part: str) -> Any:
        """Reads a part and parses its XML; refuses any DTD."""
        return parse_xml(self.read(part), self.name, part)


def _check_magic(file: IO[bytes], name: str, suffix: str) -> None:
    """Refuses files that are something else than a zip file, with a remedy for each kind."""
    file.seek(0)
    head = file.read(1 << 16)
    if head.startswith(_OLE):
        is_protected = "EncryptedPackage".encode("utf-16-le") in head
        if not is_protected:
            is_protected = "EncryptedPackage".encode("utf-16-le") in file.read(4 << 20)
        if is_protected:
            raise DataError("the file is protected by a password.", "Save it without a password.", file=name)
        raise DataError(
            f"this is a file of the older format .doc, not {suffix}.",
            f"Open it in Word or LibreOffice and save it as {suffix}.",
            file=name,
        )
    if head.startswith(b"PK"):
        return
    if not head:
        raise DataError("the file is empty.", "Leave it out, or export it again.", file=name)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:200].lower()
    kinds = (
        (b"%pdf", "a PDF file", ".pdf"),
        (b"{\\rtf", "an RTF file", ".rtf"),
        (b"<!doctype html", "an HTML file", ".html"),
        (b"<html", "an HTML file", ".html"),
        (b"<?xml", "an XML file", ""),
    )
    what, other = next(((w, o) for mark, w, o in kinds if start.startswith(mark)), ("another format", ""))
    fix = f"Open it in the program that made it and save it as {suffix}."
    if other and other != ".rtf":
        fix = f"Give it the suffix {other}."
    raise DataError(f"this is not a {suffix} file: its content is {what}.", fix, file=name)


def _check_directory(file: IO[bytes], name: str) -> None:
    """Checks the size that the archive declares for its list of members, before all of it is read."""
    end = file.seek(0, 2)
    file.seek(max(0, end - (1 << 16) - 22))
    tail = file.read()
    file.seek(0)
    place = tail.rfind(_END_OF_DIRECTORY)
    if place < 0 or len(tail) < place + 22:
        raise DataError("the file ends too early.", DAMAGED, file=name)
    (size,) = struct.unpack_from("<I", tail, place + 12)
    if size > _DIRECTORY_LIMIT_BYTES:
        raise DataError(
            f"the list of its parts may have at most {_DIRECTORY_LIMIT_BYTES:,} bytes, got {size:,}.",
            "Split the document.",
            file=name,
        )


def check_xml(data: bytes, name: str, part: str, allow_doctype: bool = False) -> bytes:
    """Checks what stands before the first element; returns the XML as bytes that the parser may see.

    Raises:
        DataError: a DTD (with `allow_doctype`: one with declarations of its own), or an encoding in which a
            declaration could be written unseen.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            data = data.decode("utf-16").encode("utf-8", "strict")
        except UnicodeError as e:
            raise DataError(f"{part}: not valid UTF-16.", DAMAGED, file=name) from e
        data = re.sub(rb"\A\s*<\?xml[^>]*\?>", b"", data)
    data = data.removeprefix(b"\xef\xbb\xbf")
    prolog = _PROLOG.match(data)
    if prolog is None:
        return data
    declared = _DECLARED.search(prolog["declaration"] or b"")
    encoding = declared[1].decode("ascii") if declared else "utf-8"
    if b"\0" in data[:4096] or not _PLAIN_ENCODING.fullmatch(encoding):
        raise DataError(
            f"{part}: its XML has the encoding {encoding[:40]!r}, allowed are UTF-8 and UTF-16.",
            DAMAGED,
            file=name,
        )
    if prolog["subset"] or (prolog["doctype"] and not allow_doctype):
        raise DataError(
            f"{part}: its XML declares a document type (DTD), which is not allowed.",
            "Save the document again with the program that made it.",
            file=name,
        )
    return data


def make_parser() -> etree.XMLParser:
    """A parser that expands no entities and opens no files or addresses."""
    return etree.XMLParser(
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        dtd_validation=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )


def parse_xml(data: bytes, name: str, part: str) -> Any:
    """Parses XML without a DTD; returns the root element.

    Raises:
        DataError: not well-formed, nested deeper than 256 elements, or with a DTD.
    """
    try:
        return etree.fromstring(check_xml(data, name, part), make_parser())
    except (etree.XMLSyntaxError, ValueError) as e:
        raise DataError(f"{part}: its XML cannot be read ({e}).", DAMAGED, file=name) from e


def find_local_name(element: Any) -> str:
    """The name of an element without its namespace; "" for a comment or an entity."""
    tag = element.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""
