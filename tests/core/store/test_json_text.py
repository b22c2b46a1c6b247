"""JSON of records: parsed up to 32 levels of nesting, refused beyond."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import StorageError
from core.store.base_models import describe_defect
from core.store.event_log import read_since
from core.store.files import read_json
from core.store.json_text import DEPTH_LIMIT, find_depth_excess, parse_json


def nest(levels: int, kind: str = "[]") -> str:
    """A value of at most a few dozen levels."""
    opening, closing = ("[", "]") if kind == "[]" else ('{"a":', "}")
    assert levels <= DEPTH_LIMIT + 1
    text = "0"
    for _ in range(DEPTH_LIMIT + 1):
        if levels > 0:
            text, levels = opening + text + closing, levels - 1
    return text


@pytest.mark.parametrize("kind", ["[]", "{}"])
def test_the_limit_is_exact(kind: str) -> None:
    parse_json(nest(DEPTH_LIMIT, kind))
    with pytest.raises(ValueError, match="nested deeper than 32 levels"):
        parse_json(nest(DEPTH_LIMIT + 1, kind))
    assert find_depth_excess(nest(DEPTH_LIMIT + 1), DEPTH_LIMIT) == DEPTH_LIMIT


def test_brackets_in_texts_and_beside_each_other_do_not_count() -> None:
    many = "[" + ",".join(["[]"] * 5000) + "]"
    assert len(parse_json(many)) == 5000
    text = '{"a": "\\"' + "[{" * 20 + '\\\\", "b": 1}'
    assert parse_json(text)["b"] == 1 and parse_json(text.encode())["a"].count("[") == 20


@given(
    st.recursive(st.none() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=20)
)
def test_what_python_writes_is_read_back(value: object) -> None:
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize("data", [b"\xff", b"{", b"", "1" * 5000])
def test_what_is_not_json_is_a_value_error(data: bytes | str) -> None:
    with pytest.raises(ValueError):
        parse_json(data)


def test_records_logs_and_configs_of_bases_are_read_with_the_limit(tmp_path) -> None:
    deep = nest(DEPTH_LIMIT + 1)
    (tmp_path / "config.json").write_text(f'{{"architectures": {nest(DEPTH_LIMIT)}}}')
    assert describe_defect(tmp_path) == "Its config.json is missing or cannot be read."
    (tmp_path / "a.json").write_text(deep)
    with pytest.raises(StorageError, match="nested deeper than 32 levels"):
        read_json(tmp_path / "a.json")
    (tmp_path / "log.jsonl").write_text(f'{deep}\n{{"kind": "note", "text": "a"}}\n')
    assert [e["kind"] for e in read_since(tmp_path / "log.jsonl")[0]] == ["unreadable", "note"]
