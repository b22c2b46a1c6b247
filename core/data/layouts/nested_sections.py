"""Sections of papers with an improved text, one row per section or nested in a column."""

from __future__ import annotations

from collections.abc import Sequence

from core.data.formats.json_shapes import list_improved_texts
from core.data.formats.readers import RawRow
from core.data.layouts.layout import Layout, Parts, Table
from core.data.notes import Notes
from core.data.roles.cells import is_blank


def _match_sections(table: Table) -> Parts:
    if table.find("question", "answer", "prompt", "completion", "instruction", "output", "messages"):
        return {}
    if column := table.find("improved"):
        return {"improved": column} if table.every(column, lambda c: isinstance(c, str)) else {}
    for column in table.columns:
        if table.every(column, lambda c: isinstance(c, (dict, list)) and bool(list_improved_texts(c))):
            return {"sections": column}
    return {}


def _rewrite_sections(rows: Sequence[RawRow], parts: Parts, notes: Notes) -> list[RawRow]:
    rewritten = []
    for row in rows:
        cell = row.values.get(next(iter(parts.values())))
        texts = [cell] if "improved" in parts else list_improved_texts(cell)
        for text in texts:
            if is_blank(text):
                notes.leave_out("the section has no improved text", row)
            else:
                rewritten.append(RawRow({"text": text}, row.file, row.line))
    return rewritten


SECTIONS = Layout(
    "sections",
    "Sections with an improved text",
    _match_sections,
    _rewrite_sections,
    ("The improved text of each section is learned; the original is not read.",),
    kind="domain",
)
