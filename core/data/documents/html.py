"""HTML pages as blocks (`html_blocks`): decoded as they declare, parsed without network, scripts or files."""

from __future__ import annotations

import html.entities
import io
import re
from typing import IO, Any

from lxml import etree

from core.data.documents.block_builders import BlockBuilder, Tally, clean_text
from core.data.documents.container_parts import check_xml, find_local_name, make_parser
from core.data.documents.document import Block, Document
from core.data.documents.html_blocks import HtmlBlocks
from core.data.documents.html_notes import NoteIndex, join_text
from core.data.formats.read_log import ReadLog
from core.data.formats.text_encodings import LABELS, identify, normalize_encoding
from core.data.formats.text_lines import read_lines
from core.errors import DataError

SIZE_LIMIT_BYTES = 64 << 20
DEPTH_LIMIT = 2000  # elements inside each other; libxml2 (2.14) ends a page at 2,048
_HEAD_BYTES = 4096  # where a page must declare its encoding; browsers look at 1,024
_META = re.compile(rb"<meta[^>]{0,1000}?charset\s*=\s*[\"']?\s*([A-Za-z0-9._:-]+)", re.IGNORECASE)
_XML = re.compile(rb"\A\s*<\?xml[^>]{0,1000}?encoding\s*=\s*[\"']\s*([A-Za-z0-9._:-]+)")
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_XML_DECLARATION = re.compile(r"\A\s*<\?xml[^>]*\?>")
# Pages that declare one of these are written in the larger one, as browsers read them.
_LARGER = {"latin-1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252", "ansi-x3.4-1968": "cp1252",
           "iso-8859-9": "cp1254", "x-sjis": "cp932", "windows-31j": "cp932", "x-gbk": "gb18030",
           "utf-16": "utf-8", "utf-16-le": "utf-8", "utf-16-be": "utf-8"}  # fmt: skip
_ENTITY = re.compile(rb"&([A-Za-z][A-Za-z0-9]*);")
_XML_ENTITIES = (b"amp", b"lt", b"gt", b"quot", b"apos")


def read_html(file: IO[bytes], name: str, encoding: str = "utf-8") -> Document:
    """Reads an HTML page.

    Args:
        file: open for reading.
        name: the file name that errors show.
        encoding: of a page that declares none.

    Raises:
        DataError: not valid in its encoding, too large, or not HTML.
    """
    data = read_whole_file(file, name, SIZE_LIMIT_BYTES)
    tally = Tally()
    text = decode_page(data, name, encoding, tally)
    root = parse_html(text, name)
    builder = BlockBuilder()
    blocks = HtmlBlocks(builder, tally, NoteIndex({"": root}))
    blocks.walk(root)
    found = blocks.list_blocks()
    if blocks.spare_headings and not any(b.kind == "heading" and b.level == 1 for b in found):
        found = (*(Block("heading", h, 1) for h in map(clean_text, blocks.spare_headings) if h), *found)
    final = BlockBuilder()
    final.extend(found)
    return final.build(find_title(root), tally)


def read_whole_file(file: IO[bytes], name: str, limit: int) -> bytes:
    """Reads a whole file within a limit of bytes."""
    file.seek(0)
    data = file.read(limit + 1)
    if len(data) > limit:
        raise DataError(f"a file of this format may have at most {limit:,} bytes.", "Split it.", file=name)
    return data


def decode_page(data: bytes, name: str, encoding: str, tally: Tally) -> str:
    """Decodes a page by its byte order mark, else its declaration, else as UTF-8, else as `encoding` says.

    Raises:
        UnknownEncoding: the page declares none and is not UTF-8, and the user has to choose it.
        DataError: not valid in that encoding, or an unknown encoding.
    """
    codec, how = identify(data)
    if codec.startswith(("utf-16", "utf-32")) and b"<\0" not in data and b"\0<" not in data:
        codec = ""  # single bytes with NULs between them
    if codec:
        tally.say(f"Read as {LABELS.get(codec.removesuffix('-sig'), codec).split(',')[0]}, because of {how}.")
    else:
        codec = find_charset(data)
        if codec and codec != "utf-8":
            tally.say(f"Read as {LABELS.get(codec, codec)}, as the page declares.")
    if not codec:
        return read_text(data, name, encoding)
    try:
        return data.decode(codec)
    except LookupError as e:
        raise DataError(
            f"the page declares the unknown encoding {codec[:40]!r}.", "Save the page as UTF-8.", file=name
        ) from e
    except UnicodeError as e:
        raise DataError(
            f"the page declares {codec}, but it is not valid {codec}.",
            "Save the page as UTF-8, or correct its declaration.",
            file=name,
            line=data.count(b"\n", 0, getattr(e, "start", 0)) + 1,
        ) from e


def read_text(data: bytes, name: str, encoding: str) -> str:
    """Decodes a text in an encoding, unless it identifies itself; see `text_lines.read_lines`."""
    lines = read_lines(io.BytesIO(data), name, encoding, ReadLog(), limit=max(1, len(data)))
    return "".join(line for _, line in lines)


def find_charset(data: bytes) -> str:
    """The codec that a page declares in its head, "" if it declares none."""
    head = _COMMENT.sub(b"", data[:_HEAD_BYTES])
    match = _XML.match(head) or _META.search(head)
    if match is None:
        return ""
    codec = normalize_encoding(match[1].decode("ascii"))
    return _LARGER.get(codec, codec)


def parse_html(text: str, name: str) -> Any:
    """Parses HTML; returns the root element.

    Raises:
        DataError: empty, or nested too deeply.
    """
    text = _XML_DECLARATION.sub("", text.replace("\0", ""))
    if not text.strip():
        raise DataError("the page is empty.", "Leave it out.", file=name)
    parser = etree.HTMLParser(
        no_network=True, remove_comments=True, remove_pis=True, huge_tree=True, encoding="utf-8"
    )
    try:
        root = etree.fromstring(text.encode("utf-8", "replace"), parser)
    except (etree.XMLSyntaxError, ValueError) as e:
        raise DataError(f"the page cannot be parsed ({e}).", "Save it again in a browser.", file=name) from e
    if root is None:
        raise DataError("the page has no elements.", "Leave it out.", file=name)
    if _measure_depth(root) > DEPTH_LIMIT or any(
        "depth" in str(entry.message).lower() for entry in parser.error_log
    ):
        raise DataError("its elements are nested too deeply.", "Simplify the page.", file=name)
    return root


def _measure_depth(root: Any) -> int:
    """How many elements stand inside each other at most, with the root."""
    depth = deepest = 0
    for event, _ in etree.iterwalk(root, events=("start", "end")):
        depth += 1 if event == "start" else -1
        deepest = max(deepest, depth)
    return deepest


def parse_xhtml(data: bytes, name: str, part: str) -> Any:
    """Parses a page of a book: as XML, or as HTML if it is not well-formed.

    Raises:
        DataError: a DTD with declarations, or not readable either way.
    """
    data = check_xml(data, name, part, allow_doctype=True)
    try:
        return etree.fromstring(_ENTITY.sub(_resolve_entity, data), make_parser())
    except (etree.XMLSyntaxError, ValueError):
        return parse_html(decode_page(data, f"{name}: {part}", "utf-8", Tally()), name)


def _resolve_entity(match: re.Match[bytes]) -> bytes:
    """Writes a named character of HTML as a numbered one; XML's own names stay."""
    if match[1] in _XML_ENTITIES:
        return match[0]
    characters = html.entities.html5.get(match[1].decode("ascii") + ";")
    return match[0] if characters is None else "".join(f"&#{ord(c)};" for c in characters).encode()


def find_title(root: Any) -> str:
    """The text of a page's title element."""
    title = next((e for e in root.iter() if find_local_name(e) == "title"), None)
    return "" if title is None else clean_text(" ".join(join_text(title).split()))
