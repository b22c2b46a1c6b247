"""What tables and forms of an HTML page hold, found in one pass: which of them only place text on it."""

from __future__ import annotations

from typing import Any

from lxml import etree

from core.data.documents.container_parts import find_local_name
from core.data.documents.html_notes import find_types, read_label

HEADINGS = {f"h{n}": n for n in range(1, 7)}
_CONTENT_OF_FORM = frozenset(("main", "article", "h1", "h2", "h3"))
_NOT_IN_CELLS = frozenset(("table", "pre", *HEADINGS))
FORM_LENGTH = 500  # characters of paragraphs; a form with more holds the text of the page


class Survey:
    """What tables and forms hold, found in one pass over a tree."""

    def __init__(self) -> None:
        self._frames: set[Any] = set()
        self._forms: dict[Any, int] = {}  # form -> characters of its paragraphs
        self._full_forms: set[Any] = set()
        self.labels: set[Any] = set()  # labels of forms

    def add(self, root: Any) -> None:
        """Goes through a tree."""
        tables: list[Any] = []
        forms: list[Any] = []
        for event, element in etree.iterwalk(root, events=("start", "end")):
            name = find_local_name(element)
            if event == "end":
                if name == "table":
                    tables.pop()
                elif name == "form":
                    forms.pop()
                continue
            if tables and (name in _NOT_IN_CELLS):
                self._frames.add(tables[-1])
            if forms and name in _CONTENT_OF_FORM:
                self._full_forms.update(forms)
            elif forms and name == "p":
                self._forms[forms[-1]] = self._forms.get(forms[-1], 0) + len(read_label(element))
            if forms and name in ("label", "legend"):
                self.labels.add(element)
            if name == "table":
                tables.append(element)
            elif name == "form":
                forms.append(element)

    def holds_content(self, form: Any) -> bool:
        """Whether a form holds the text of the page, as some servers write all of it into one form."""
        return form in self._full_forms or self._forms.get(form, 0) > FORM_LENGTH

    def is_frame(self, table: Any) -> bool:
        """Whether a table only places text on the page: it holds tables or headings, or has one column."""
        if table in self._frames or find_types(table) & {"presentation", "none"}:
            return True
        rows, _ = list_rows(table)
        return all(sum(find_local_name(c) in ("td", "th") for c in row) <= 1 for row in rows)


def list_rows(table: Any) -> tuple[list[Any], list[Any]]:
    """The rows of a table, its head first and its foot last, and its captions."""
    groups: dict[str, list[Any]] = {"thead": [], "tbody": [], "tfoot": []}
    captions = []
    for child in table:
        name = find_local_name(child)
        if name == "tr":
            groups["tbody"].append(child)
        elif name in groups:
            groups[name] += [row for row in child if find_local_name(row) == "tr"]
        elif name == "caption":
            captions.append(child)
    return groups["thead"] + groups["tbody"] + groups["tfoot"], captions
