"""JSON objects without one array of rows, as other programs write tables and sections.

    {"columns": [...], "data": [[...]]}                pandas, orient="split"
    {"q": {"0": "..."}, "a": {"0": "..."}}             pandas, columns of cells (its default)
    {"0": {"q": ..., "a": ...}, "1": {...}}            pandas, orient="index", and objects named by an id
    {"q": ["..."], "a": ["..."]}                       columns as lists
    {"rows": [{"row": {...}}], "features": [...]}      rows of the Hub's dataset viewer
    {"paper": {"METHODS": {"improved": "..."}}}        sections with an improved text, at any depth

The parser has bounded the depth before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
_SECTION_TEXT = "improved"


def find_rows(outer: dict[str, Any]) -> list[Row]:
    """Finds the rows of an object that does not hold exactly one array; empty if it has no such shape."""
    for find in (_find_viewer_rows, _find_split, _find_sections, _find_columns, _find_cells, _find_records):
        if rows := find(outer):
            return rows
    return []


def _find_viewer_rows(outer: dict[str, Any]) -> list[Row]:
    items = outer.get("rows")
    if "features" not in outer or not isinstance(items, list):
        return []
    rows = [item.get("row") for item in items if isinstance(item, dict)]
    return [r for r in rows if isinstance(r, dict)] if all(isinstance(r, dict) for r in rows) else []


def _find_split(outer: dict[str, Any]) -> list[Row]:
    columns, data = outer.get("columns"), outer.get("data")
    if not isinstance(columns, list) or not isinstance(data, list):
        return []
    fits = all(isinstance(row, list) and len(row) == len(columns) for row in data)
    return [dict(zip(map(str, columns), row)) for row in data] if fits else []


def _find_columns(outer: dict[str, Any]) -> list[Row]:
    """Columns as lists of cells, all of the same length; objects are rows, not cells."""
    columns = list(outer.values())
    if len(columns) < 2 or not all(isinstance(c, list) and c for c in columns):
        return []
    if len({len(c) for c in columns}) > 1 or any(isinstance(cell, dict) for c in columns for cell in c):
        return []
    return [dict(zip(outer, cells)) for cells in zip(*columns)]


def _find_cells(outer: dict[str, Any]) -> list[Row]:
    """Columns as objects of cells, which have the same numbers as names."""
    columns = list(outer.values())
    if not columns or not all(isinstance(c, dict) and c for c in columns):
        return []
    names = columns[0].keys()
    if not all(name.isdecimal() for name in names) or any(c.keys() != names for c in columns):
        return []
    if any(isinstance(cell, dict) for c in columns for cell in c.values()):
        return []
    return [{column: cells[name] for column, cells in outer.items()} for name in names]


def _find_records(outer: dict[str, Any]) -> list[Row]:
    """Objects named by an id: at least two, which share a column with a text."""
    rows = list(outer.values())
    if len(rows) < 2 or not all(isinstance(r, dict) and r for r in rows):
        return []
    shared = set.intersection(*(set(r) for r in rows))
    has_text = any(all(isinstance(r[c], (str, list)) for r in rows) for c in shared)
    return rows if has_text else []


def _find_sections(outer: dict[str, Any]) -> list[Row]:
    """The improved texts of sections, in their order."""
    return [{_SECTION_TEXT: text} for text in _walk_sections(outer)]


def list_improved_texts(value: Any) -> list[str]:
    """The improved texts of nested sections, in their order."""
    return list(_walk_sections(value))


def _walk_sections(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _walk_sections(item)
    if not isinstance(value, dict):
        return
    text = next((v for k, v in value.items() if k.lower() == _SECTION_TEXT), None)
    if isinstance(text, str):
        if text.strip():
            yield text
        return
    for item in value.values():
        yield from _walk_sections(item)
