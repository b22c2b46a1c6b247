"""The schema of events: what is appended and what old logs hold is what the types say."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from core.store import events
from core.store.event_log import read_all
from core.store.events import (
    EVENT_KINDS,
    NoteEvent,
    StepEvent,
    UnreadableEvent,
    is_event,
    is_kind,
    latest,
    latest_by_kind,
    of_kind,
)

ROOT = Path(__file__).resolve().parents[3]
LOG: list[dict[str, Any]] = [
    {"kind": "note", "text": "a"},
    {"kind": "step", "step": 1},
    {"kind": "unreadable"},
    {"kind": "step", "step": 2},
    {"no": "kind"},
]


def appended() -> list[tuple[str, str, set[str]]]:
    """(place, kind, fields that are spelled) of every `append("kind", field=...)` in the core."""
    rows = []
    for path in sorted((ROOT / "core").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_append = (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "append"
            )
            if is_append and node.keywords and node.args and isinstance(node.args[0], ast.Constant):
                fields = {k.arg for k in node.keywords if k.arg}
                rows.append((f"{path.name}:{node.lineno}", str(node.args[0].value), fields))
    return rows


def test_every_event_that_the_core_appends_is_in_the_schema() -> None:
    rows = appended()
    assert {kind for _, kind, _ in rows} == set(EVENT_KINDS.values()) - {"unreadable"}
    types = {kind: t for t, kind in EVENT_KINDS.items()}
    for place, kind, fields in rows:
        assert fields <= set(get_type_hints(types[kind])), place


def test_every_event_of_an_old_workspace_is_in_the_schema() -> None:
    types = {kind: t for t, kind in EVENT_KINDS.items()}
    logs = sorted((ROOT / "tests/data/old_workspace").rglob("*.jsonl"))
    read = [e for log in logs if log.name in ("events.jsonl", "votes.jsonl") for e in read_all(log)]
    assert len({e["kind"] for e in read}) >= 8
    for event in read:
        assert set(event) <= set(get_type_hints(types[event["kind"]])), event


def test_the_table_of_the_schema_names_every_kind_with_its_type() -> None:
    for event_type, kind in EVENT_KINDS.items():
        assert f"    {kind} " in (events.__doc__ or "") and f" {event_type.__name__} " in (
            events.__doc__ or ""
        )


def test_readers_select_events_by_their_type() -> None:
    assert [e["step"] for e in of_kind(LOG, StepEvent)] == [1, 2]
    last = latest(LOG, StepEvent)
    assert last is not None and last["step"] == 2 and latest(LOG[:1], StepEvent) is None
    assert latest_by_kind(LOG, (StepEvent, NoteEvent)) == {"note": LOG[0], "step": LOG[3]}
    assert [is_event(e) for e in LOG] == [True, True, False, True, False]
    assert is_kind(LOG[2], UnreadableEvent) and not is_kind(LOG[4], NoteEvent)


@pytest.mark.parametrize("folder", ["core", "studio", "benchmarks"])
def test_no_reader_compares_kinds_of_events_on_its_own(folder: str) -> None:
    kinds = {k for k in EVENT_KINDS.values() if k not in ("data",)}  # "data" also names a tab of the page
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path.name == "events.py" and folder == "core":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and "kind" in ast.unparse(node.left):
                constants = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                assert not constants & kinds, f"{path}:{node.lineno}"
