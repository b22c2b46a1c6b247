"""A JSON array is parsed element by element, with the rows and errors of the whole text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.formats import json_rows
from core.data.formats.json_rows import read_json, read_json_array
from core.errors import DataError

values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "a", '"', "\\", "[{", "é\n", "]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab\\"), inner, max_size=3),
    max_leaves=6,
)
elements = st.lists(st.dictionaries(st.sampled_from(["text", "q", "a"]), values, max_size=3), max_size=5)


@st.composite
def arrays(draw):
    """The text of an array of objects; in half of them, characters are removed, doubled or replaced."""
    text = json.dumps(
        draw(elements),
        indent=draw(st.sampled_from([None, None, 1])),
        ensure_ascii=draw(st.booleans()),
        separators=draw(st.sampled_from([(",", ":"), (" ,\n", ": ")])),
    )
    text = draw(st.sampled_from(["", " \n"])) + text + draw(st.sampled_from(["", "\n", " x", "[]"]))
    for _ in range(draw(st.sampled_from([0, 1]))):
        at = draw(st.integers(0, len(text) - 1))
        text = (
            text[:at]
            + draw(st.sampled_from(["", '"', "[", "}", "]", ",", "NaN", "\\", "{"]))
            + text[at + 1 :]
        )
    return text


def collect(rows):
    """The rows, and the error that ended them."""
    found = []
    try:
        for row in rows:
            found.append(row)
    except DataError as e:
        return found, str(e)
    return found, ""


@settings(max_examples=120, deadline=None)
@given(text=arrays(), size=st.sampled_from([1, 2, 7, 1000]))
def test_an_array_in_blocks_gives_what_the_whole_text_gives(text, size):
    if not text.lstrip(" \n").startswith("["):
        return
    blocks = [text[at : at + size] for at in range(0, len(text), size)]
    rows, error = collect(read_json_array(iter(blocks), "a.json"))
    assert (rows, error) == collect(read_json(text, "a.json"))


@pytest.mark.parametrize("size", [3, 50, 10_000])
def test_limits_of_an_element_hold_in_blocks(monkeypatch, size):
    monkeypatch.setattr(json_rows, "LINE_LIMIT", 100)

    def read(text):
        blocks = [text[at : at + size] for at in range(0, len(text), size)]
        return collect(read_json_array(iter(blocks), "a.json"))

    fits = [{"text": "x" * 88}, {"text": "y"}]
    assert read(json.dumps(fits)) == ([(1, fits[0]), (1, fits[1])], "")
    long = json.dumps([{"text": "y"}, {"text": "x" * 90}], indent=0)
    rows, error = read(long)
    assert rows == [(2, {"text": "y"})]
    assert error.startswith("a.json, line 5: the row is longer than 100 characters.")
    rows, error = read('[{"text": "y"},\n' + "[" * 32 + "]" * 32 + "]")
    assert error.startswith("a.json, line 2: the JSON is nested deeper than 32 levels.") and len(rows) == 1
    assert read("[\n1,\n2]")[1].startswith("a.json, line 2: the row is a number, not an object.")


def test_an_array_of_many_blocks_is_never_held_whole():
    """At most a block and an element are in memory: the blocks are made while they are read."""
    made = 0

    def blocks():
        nonlocal made
        yield "["
        for i in range(2000):
            made += 1
            yield json.dumps({"text": f"Row {i} of many."}) + ","
        yield '{"text": "last"}]'

    lead = 0
    for count, _ in enumerate(read_json_array(blocks(), "a.json"), start=1):
        lead = max(lead, made - count)
    assert count == 2001 and lead <= 1
