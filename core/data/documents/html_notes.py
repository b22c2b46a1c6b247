"""Footnotes of HTML and EPUB pages: which links are marks of notes, and which elements are the notes.

A link is a mark if it says so (`epub:type="noteref"`, `role="doc-noteref"`, the classes of pandoc, Sphinx
and others), or if it looks like one ("1", "[2]", "*") and its target links back to it. The note is then
written after the paragraph with its first mark, and left out where it stands.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any
from urllib.parse import unquote, urlsplit

from core.data.documents.container_parts import find_local_name

EPUB_TYPE = "{http://www.idpf.org/2007/ops}type"
_MARK_TYPES = frozenset({"noteref", "doc-noteref"})
_MARK_CLASSES = frozenset({"footnote-ref", "footnote-reference", "noteref", "fnref", "footnoteref"})
NOTE_TYPES = frozenset({"footnote", "endnote", "rearnote", "note", "doc-footnote", "doc-endnote"})
_SECTION_TYPES = frozenset({"footnotes", "endnotes", "rearnotes", "doc-endnotes"})
_BACK_TYPES = frozenset({"backlink", "doc-backlink"})
_BACK_CLASSES = frozenset({"footnote-back", "footnote-backref", "fn-backref"})
_MARK = re.compile(
    r"[\[(]?\s*(?:note |fn ?)?(?:\d{1,4}|[ivxlc]{1,6}|[a-z]|[*†‡§¶#]{1,4})\s*[\])]?[.:]?", re.IGNORECASE
)
_INLINE = frozenset({"a", "sup", "sub", "span", "b", "i", "em", "strong", "small", "cite", "font"})
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
NOTE_LENGTH_LIMIT = 5_000  # characters of a note that does not say that it is one
_NOTE_ELEMENTS = ("li", "aside", "p", "div", "section", "dd", "td", "blockquote")


def find_types(element: Any) -> set[str]:
    """The words of an element's epub:type and role.

    The HTML parser writes the attribute of the namespace as a plain name.
    """
    words = f"{element.get(EPUB_TYPE, '')} {element.get('epub:type', '')} {element.get('role', '')}"
    return set(words.lower().split())


def find_classes(element: Any) -> set[str]:
    """The classes of an element, in lower case."""
    return set((element.get("class") or "").lower().split())


def is_page_break(element: Any) -> bool:
    """Whether an element marks where a page of the printed book begins."""
    return bool(find_types(element) & {"pagebreak", "doc-pagebreak"}) or bool(
        find_classes(element) & {"pagenum", "pageno", "pagebreak", "page-number"}
    )


def join_text(element: Any) -> str:
    """All text of an element, with blanks as they are."""
    return "".join(element.itertext())


def read_label(element: Any) -> str:
    """The beginning of an element's text, from its first elements: enough to know a mark or a number."""
    return "".join(
        (e.text or "") + (e.tail or "" if e is not element else "") for e in islice(element.iter(), 20)
    )


def is_notes_section(element: Any) -> bool:
    """Whether an element holds the notes of a page or book."""
    return bool((find_types(element) | find_classes(element)) & _SECTION_TYPES)


class NoteIndex:
    """The notes of a set of pages that link to each other.

    Args:
        pages: the root element of each page by its path.
    """

    def __init__(self, pages: Mapping[str, Any]) -> None:
        self._ids = {
            (path, key): element
            for path, root in pages.items()
            for element in root.iter()
            for key in (element.get("id"), element.get("name") if find_local_name(element) == "a" else None)
            if find_local_name(element) and key
        }
        self._candidates: dict[Any, _Candidate | None] = {}  # target of a link -> what may be its note
        self.notes: dict[Any, Any] = {}  # mark -> note
        self.bodies: dict[Any, str] = {}  # note -> text of its first mark
        self.back_links: set[Any] = set()
        for path, root in pages.items():
            for link in root.iter():
                if find_local_name(link) == "a" and link.get("href"):
                    self._add(path, link)

    def _find_target(self, path: str, href: str) -> Any:
        try:
            parts = urlsplit(href.strip())
        except ValueError:
            return None
        if parts.scheme or parts.netloc or not parts.fragment:
            return None
        target = path
        if parts.path:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(parts.path)))
        return self._ids.get((target, unquote(parts.fragment)))

    def _add(self, path: str, link: Any) -> None:
        types, classes = find_types(link), find_classes(link)
        if link in self.back_links:
            return
        if types & _BACK_TYPES or classes & _BACK_CLASSES:
            self.back_links.add(link)
            return
        text = read_label(link).strip()
        is_declared = bool(types & _MARK_TYPES or classes & _MARK_CLASSES)
        if not is_declared and (len(text) > 12 or not _MARK.fullmatch(text)):
            return
        candidate = self._find_candidate(self._find_target(path, link.get("href")))
        if candidate is None or _contains(candidate.note, link):
            return
        back = [a for key in _list_keys(link) for a in candidate.links.get(key, ())]
        if not is_declared and not (back and candidate.is_short and not _begins_its_block(link)):
            return
        self.notes[link] = candidate.note
        self.bodies.setdefault(candidate.note, text)
        self.back_links.update(back)

    def _find_candidate(self, target: Any) -> _Candidate | None:
        if target is None:
            return None
        if target not in self._candidates:
            note = _find_note(target)
            self._candidates[target] = None if note is None else _Candidate(note)
        return self._candidates[target]


class _Candidate:
    """An element that may be a note: its links by the id that they lead to, and whether it is short."""

    def __init__(self, note: Any) -> None:
        self.note = note
        self.links: dict[str, list[Any]] = {}
        for link in note.iter():
            if find_local_name(link) == "a" and "#" in (href := link.get("href") or ""):
                self.links.setdefault(unquote(href.rpartition("#")[2]), []).append(link)
        names = {find_local_name(e) for e in note.iter()}
        self.is_short = not names & _HEADINGS and len(join_text(note)) <= NOTE_LENGTH_LIMIT


def _list_keys(mark: Any) -> list[str]:
    """The ids of a mark, and of what stands directly around it: a note leads back to one of them."""
    around = [*islice(mark.iter(), 20), *islice(mark.iterancestors(), 3)]
    if mark.getprevious() is not None:
        around.append(mark.getprevious())
    return [key for e in around if find_local_name(e) for key in (e.get("id"), e.get("name")) if key]


def _find_note(target: Any) -> Any:
    """The element that holds a note, for the target of its mark; None if it cannot be told from others."""
    note = target
    while note is not None and find_local_name(note) in _INLINE:
        note = note.getparent()
    if note is None or find_local_name(note) not in _NOTE_ELEMENTS:
        return None
    parent = note.getparent()
    if find_local_name(note) == "p" and parent is not None and parent[0] is note:
        if find_local_name(parent) in ("li", "aside", "dd") or find_types(parent) & NOTE_TYPES:
            note = parent
    if note is not target and not find_types(note) & NOTE_TYPES:
        others = [a for a in note.iter() if find_local_name(a) == "a" and a is not target and a.get("id")]
        if len(others) > 2:  # several notes in one paragraph
            return None
    return note


def _contains(element: Any, other: Any) -> bool:
    return any(ancestor is element for ancestor in other.iterancestors())


def _begins_its_block(mark: Any) -> bool:
    """Whether nothing stands before a mark in its paragraph: it is a note's link back, or a list of links."""
    node = mark
    while node is not None and find_local_name(node) in _INLINE:
        parent = node.getparent()
        before = list(islice(node.itersiblings(preceding=True), 50))
        texts = [
            "" if parent is None else parent.text or "",
            *[read_label(e) + (e.tail or "") for e in before],
        ]
        if "".join(texts).strip(" \t\r\n[("):
            return False
        node = parent
    return True
