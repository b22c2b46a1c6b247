"""Books (.epub 2 and 3) as blocks: the pages of the spine in its order, notes at their marks.

out     contents pages, the cover, pages outside the reading order (linear="no"), pictures: counted
refused books whose pages are encrypted (DRM); encrypted fonts do not matter
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from core.data.documents.block_builders import BlockBuilder, Tally
from core.data.documents.container_parts import DAMAGED, Archive, find_local_name
from core.data.documents.document import Block, Document
from core.data.documents.html import parse_xhtml
from core.data.documents.html_blocks import HtmlBlocks
from core.data.documents.html_notes import NoteIndex, find_types, join_text, read_label
from core.errors import DataError

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_FONT_METHODS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_PAGES = ("application/xhtml+xml", "text/html", "application/xml", "text/xml")
_CONTENTS_TYPES = frozenset({"toc", "landmarks", "page-list", "doc-toc", "loi", "lot"})
_LINKS_OF_CONTENTS = 3  # a page with at least so many links to pages of the book, and hardly any other text
_SHARE_OF_LINKS = 0.7


@dataclass(frozen=True)
class _Item:
    """A file that the manifest lists."""

    path: str
    kind: str
    properties: frozenset[str]
    fallback: str


def read_epub(file: IO[bytes], name: str) -> Document:
    """Reads a book.

    Args:
        file: open for reading, seekable.
        name: the file name that errors show.

    Raises:
        DataError: not an .epub file, encrypted, damaged, or beyond the limits of `document_parts`.
    """
    return _EpubReader(Archive(file, name, ".epub"), name).read()


class _EpubReader:
    def __init__(self, archive: Archive, name: str) -> None:
        self._archive = archive
        self._name = name
        self._tally = Tally()
        self._missing: list[str] = []  # pages of the reading order
        self._package_path = self._find_package()
        self._package = archive.parse(self._package_path)
        self._items = self._read_manifest()
        self._ciphers = self._list_ciphers()

    def _find_package(self) -> str:
        """The path of the file that describes the book."""
        if _CONTAINER not in self._archive:
            what = "a Word document" if "word/document.xml" in self._archive else "another zip file"
            self._archive.refuse(
                f"this is not an .epub file: it has no {_CONTAINER}, its content is {what}.",
                "Choose the book itself, or give the file its right suffix.",
            )
        for element in self._archive.parse(_CONTAINER).iter():
            if find_local_name(element) == "rootfile" and (path := element.get("full-path")):
                return _resolve("", path)
        raise DataError(f"{_CONTAINER} names no book.", DAMAGED, file=self._name)

    def _read_manifest(self) -> dict[str, _Item]:
        items = {}
        for element in self._package.iter():
            if find_local_name(element) == "item" and (key := element.get("id")):
                items[key] = _Item(
                    _resolve(self._package_path, element.get("href") or ""),
                    (element.get("media-type") or "").lower().strip(),
                    frozenset((element.get("properties") or "").split()),
                    element.get("fallback") or "",
                )
        return items

    def _list_ciphers(self) -> set[str]:
        """The paths of encrypted files; fonts that are only obscured do not count."""
        if _ENCRYPTION not in self._archive:
            return set()
        paths = set()
        for data in self._archive.parse(_ENCRYPTION).iter():
            if find_local_name(data) != "EncryptedData":
                continue
            method = next(
                (e.get("Algorithm") or "" for e in data if find_local_name(e) == "EncryptionMethod"), ""
            )
            if method not in _FONT_METHODS:
                paths |= {
                    _resolve("", e.get("URI") or "")
                    for e in data.iter()
                    if find_local_name(e) == "CipherReference"
                }
        return paths

    # ------------------------------------------------------------ reading order

    def read(self) -> Document:
        pages = self._parse_pages()
        notes = NoteIndex({path: root for path, (root, _) in pages.items()})
        builder = BlockBuilder()
        targets = {path for path, (_, is_linear) in pages.items() if is_linear}
        roles = self._read_guide()
        for path, (root, is_linear) in pages.items():
            role = roles.get(path, "")
            if not is_linear:
                if not any(note in notes.bodies for note in root.iter()):
                    self._tally.count("page outside the reading order", "pages outside the reading order")
            elif role == "toc" or _is_contents(root, path, targets):
                self._tally.count("contents page")
            elif role == "cover" and not _has_text(root):
                self._tally.count("cover")
            else:
                builder.extend(self._read_page(root, notes))
        document = builder.build(self._read_title(), self._tally)
        if not document.blocks and self._missing:
            self._archive.refuse(f"its page {self._missing[0][:80]!r} is missing.", DAMAGED)
        if not document.blocks:
            self._archive.refuse("the book has no text.", "Its pages may be pictures: use a text edition.")
        return document

    def _read_page(self, root: Any, notes: NoteIndex) -> tuple[Block, ...]:
        """The blocks of a page; a page of notes that were all written at their marks has none."""
        body = next((e for e in root.iter() if find_local_name(e) == "body"), root)
        builder = BlockBuilder()
        writer = HtmlBlocks(builder, self._tally, notes, is_book=True)
        writer.walk(body)
        blocks = writer.list_blocks()
        holds_notes = any(note in notes.bodies for note in body.iter())
        if holds_notes and all(block.kind == "heading" for block in blocks):
            return ()
        return blocks

    def _parse_pages(self) -> dict[str, tuple[Any, bool]]:
        """The pages by path in the order of the spine, with whether each is part of the reading order."""
        spine = next((e for e in self._package.iter() if find_local_name(e) == "spine"), None)
        references = [] if spine is None else [e for e in spine if find_local_name(e) == "itemref"]
        if not references:
            self._archive.refuse("the book has no reading order (spine).", DAMAGED)
        has_linear = any((e.get("linear") or "yes").lower() != "no" for e in references)
        pages: dict[str, tuple[Any, bool]] = {}
        for reference in references:
            item = self._find_page(reference.get("idref") or "")
            if item is None or item.path in pages:
                continue
            if item.path in self._ciphers:
                self._archive.refuse(
                    "the book is encrypted (DRM): its pages cannot be read.",
                    "Use an edition without copy protection, or a text that you may copy.",
                )
            if "nav" in item.properties:
                self._tally.count("contents page")
                continue
            if item.path not in self._archive:
                self._missing.append(item.path)
                self._tally.say(f"The page {item.path[:80]} is missing in the book.")
                continue
            root = parse_xhtml(self._archive.read(item.path), self._name, item.path)
            is_linear = (reference.get("linear") or "yes").lower() != "no" or not has_linear
            pages[item.path] = (root, is_linear)
        return pages

    def _find_page(self, key: str) -> _Item | None:
        """The page of an entry of the spine, or its fallback if it is a picture; None if it has none."""
        for _ in range(10):
            item = self._items.get(key)
            if item is None:
                break
            if item.kind in _PAGES or item.path.lower().endswith((".xhtml", ".html", ".htm", ".xml")):
                return item
            if not item.fallback:
                self._tally.count("page that is a picture", "pages that are pictures")
                return None
            key = item.fallback
        self._tally.say(f"The entry {key[:80]!r} of the reading order is missing in the book.")
        return None

    def _read_guide(self) -> dict[str, str]:
        """The roles of pages, "toc" or "cover", by the guide of EPUB 2."""
        roles = {}
        for element in self._package.iter():
            if find_local_name(element) == "reference" and (kind := (element.get("type") or "").lower()):
                if kind in ("toc", "cover"):
                    roles[_resolve(self._package_path, element.get("href") or "")] = kind
        return roles

    def _read_title(self) -> str:
        for element in self._package.iter("{http://purl.org/dc/elements/1.1/}title"):
            if text := join_text(element).strip():
                return text
        return ""


def _resolve(base: str, href: str) -> str:
    """The path in the archive that a percent-encoded reference means, seen from the file `base`."""
    try:
        path = unquote(urlsplit(href.strip()).path)
    except ValueError:
        path = href
    return posixpath.normpath(posixpath.join(posixpath.dirname(base), path.lstrip("/") if not base else path))


def _has_text(root: Any) -> bool:
    body = next((e for e in root.iter() if find_local_name(e) == "body"), root)
    return len(join_text(body).split()) > 3


def _is_contents(root: Any, path: str, pages: set[str]) -> bool:
    """Whether a page is a list of contents: it says so, or has hardly any text but links to pages."""
    body = next((e for e in root.iter() if find_local_name(e) == "body"), root)
    sections = [body, *[e for e in body if find_local_name(e) in ("section", "div")]]
    if len(sections) <= 2 and any(find_types(e) & _CONTENTS_TYPES for e in sections):
        return True
    texts = []
    for link in body.iter():
        if find_local_name(link) == "a" and (href := link.get("href")):
            target = _resolve(path, href) if urlsplit_path(href) else path
            if target in pages and (target != path or "#" in href):
                texts.append("".join(read_label(link).split()))
    total = len("".join(join_text(body).split()))
    leading = sum(1 for text in texts if text)
    return leading >= _LINKS_OF_CONTENTS and sum(map(len, texts)) >= _SHARE_OF_LINKS * total


def urlsplit_path(href: str) -> str:
    """The path of a reference, without its fragment; "" for one into the same page or an invalid one."""
    try:
        parts = urlsplit(href.strip())
    except ValueError:
        return ""
    return "" if parts.scheme else parts.path
