"""JSON values become typed records; a value of another type is refused with its place and its content."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest

from core.errors import DamagedRecord
from core.store.event_log import parse_line
from core.store.record_types import Between, Count, Figure, Mismatch, OneOf, Time, check_type
from core.store.records import read_object, read_record, write_record


class Colour(enum.Enum):
    RED = "red"


class _Named(TypedDict):
    name: str


class Part(_Named, total=False):
    weight: Figure


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, Between(1, 3)] = 1


@dataclass(frozen=True)
class Record:
    id: str
    count: Count = 0
    created: Time = 0.0
    kind: Annotated[str, OneOf(("a", "b"))] = "a"
    colour: Colour = Colour.RED
    flags: dict[str, bool] = field(default_factory=dict)
    pair: tuple[float, float] = (0.0, 0.0)
    many: tuple[int, ...] = ()
    inner: Inner | None = None
    parts: list[Part] = field(default_factory=list)
    anything: Any = None


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, 3), (float, 3), (float, 0.5), (str, ""), (bool, False), (None, None), (Any, [{}]),
        (Count, 0), (Count, 2**63), (Figure, math.inf), (int | None, None), (str | int, 1),
        (dict[str, Any], {"a": 1}), (list[str], []), (Annotated[str, OneOf(("a",))], "a"),
    ],
)  # fmt: skip
def test_a_value_of_its_type_comes_back_unchanged(hint: Any, value: Any) -> None:
    checked = check_type(hint, value)
    assert checked == value and type(checked) is type(value)


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, True), (int, 3.0), (int, "3"), (int, None), (float, True), (float, "0.5"), (float, math.nan),
        (float, math.inf), (str, 1), (str, None), (str, ["a"]), (bool, 1), (bool, "true"), (None, 0),
        (Count, -1), (Count, 2**64), (Time, 1e12), (Time, -1), (Figure, "nan"), (Figure, True),
        (int | None, "1"), (dict[str, int], []), (dict[str, int], {"a": "1"}), (list[str], "ab"),
        (list[str], {"a": 1}), (tuple[int, int], [1]), (tuple[int, ...], [1, None]), (Colour, "blue"),
        (Colour, []), (Annotated[str, OneOf(("a",))], "b"), (Annotated[str, OneOf(("a",))], []),
        (Part, {}), (Part, {"name": 1}), (Part, {"name": "a", "weight": "1"}), (Inner, []),
        (Inner, {"size": 4}),
    ],
)  # fmt: skip
def test_a_value_of_another_type_or_outside_its_limits_is_refused(hint: Any, value: Any) -> None:
    with pytest.raises(Mismatch):
        check_type(hint, value)


def test_objects_become_dataclasses_and_unknown_keys_are_left_out() -> None:
    raw = {
        "id": "x", "count": 2, "kind": "b", "colour": "red", "flags": {"f": True}, "pair": [1, 2.5],
        "many": [1, 2], "inner": {"size": 2, "newer": 1}, "parts": [{"name": "p", "newer": [1]}], "newer": 1,
    }  # fmt: skip
    assert check_type(Record, json.loads(json.dumps(raw))) == Record(
        "x", 2, 0.0, "b", Colour.RED, {"f": True}, (1, 2.5), (1, 2), Inner(2), [{"name": "p", "newer": [1]}]
    )
    assert check_type(Record, {"id": "x"}) == Record("x"), "a missing key gets its default"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": None}, "id must be text, got null"),
        ({"count": -1}, "count must be at least 0, got -1"),
        ({"inner": {"size": 9}}, "inner.size must be between 1 and 3, got 9"),
        ({"parts": [{"name": "a"}, {}]}, "parts.1.name is missing"),
        ({"flags": {"f": "yes"}}, 'flags.f must be true or false, got "yes"'),
        ({"kind": "x" * 99}, "kind must be one of a, b, got " + '"' + "x" * 59 + " …"),
    ],
)
def test_the_message_names_the_place_what_is_allowed_and_the_value(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(Mismatch) as caught:
        check_type(Record, {"id": "x", **change})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is not JSON (Expecting value, line 1)"),
        (b'{"id": "x"', "it is not JSON (Expecting ',' delimiter, line 1)"),
        (b"[]", "it does not hold a JSON object"),
        (b'{"id": "\xff"}', "it is not UTF-8 text"),
        (b'{"id": "\\ud800"}', "it is not UTF-8 text"),
        (b'{"id": "x", "a": [1' + b"0" * 30 + b"]}", "a number has 31 digits"),
        (b'{"id": "x", "a": ' + b"[" * 33 + b"]" * 33 + b"}", "the JSON is nested deeper than 32 levels"),
        (b'{"id": 3}', "id must be text, got 3"),
        (b'{"id": "y"}', "it is the record of 'y'"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "item" / "record.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(DamagedRecord) as caught:
        read_record(path, Record, "x")
    assert (caught.value.file, caught.value.reason) == ("item/record.json", reason)
    path.unlink()
    with pytest.raises(DamagedRecord, match="item/record.json cannot be read: the file is missing"):
        read_object(path)
    path.mkdir()
    with pytest.raises(DamagedRecord, match="it is not a file"):
        read_object(path)


def test_a_record_keeps_unknown_keys_and_replaces_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_record(path, {"id": "x"})
    path.write_text('{"id": "x", "count": 1, "newer": [1]}', encoding="utf-8")
    write_record(path, {"id": "x", "count": 2})
    assert read_object(path) == {"id": "x", "count": 2, "newer": [1]}
    path.write_text("{", encoding="utf-8")
    write_record(path, {"id": "x"})
    assert read_object(path) == {"id": "x"}


@pytest.mark.parametrize(
    ("fields", "is_readable"),
    [
        ({"kind": "step", "step": 1, "loss": "nan", "grad_norm": "inf"}, True),
        ({"kind": "step", "step": 1, "loss": "low"}, False),
        ({"kind": "step", "loss": 1.0}, False),
        ({"kind": "step", "step": True}, False),
        ({"kind": "step", "step": -1}, False),
        ({"kind": "validation", "step": 1, "rows": [[1.5, 3], ["nan", 2]]}, True),
        ({"kind": "validation", "step": 1, "rows": [[1.5]]}, False),
        ({"kind": "sample", "step": 1, "answers": [{"who": "a", "text": 1}]}, False),
        ({"kind": "memory", "what": "probe", "ratio": None}, True),
        ({"kind": "note", "text": "a", "time": 1e300}, False),
        ({"kind": "of a newer version", "step": []}, True),
        ({"kind": 1}, False),
        ({}, False),
    ],
)
def test_an_event_whose_fields_have_other_types_is_unreadable(
    fields: dict[str, Any], is_readable: bool
) -> None:
    event = parse_line(json.dumps(fields).encode())
    assert event == (fields if is_readable else {"kind": "unreadable"})
