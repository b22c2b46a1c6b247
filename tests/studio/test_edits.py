"""The edits of a stream give the next value, whatever was removed from lists inside of lists."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from studio.edits import list_edits
from studio.page import Page

scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "ab", "abc"])
values = st.recursive(
    scalars,
    lambda v: st.lists(v, max_size=4) | st.dictionaries(st.sampled_from("xyz"), v, max_size=3),
    max_leaves=40,
)


def apply(target: Any, edits: list[list[Any]]) -> Any:
    """What Gradio's client (6.31) makes of a value and its edits."""
    value = copy.deepcopy(target)
    for action, path, content in edits:
        if not path:
            value = content if action == "replace" else value + content
            continue
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        if action == "append":
            inner[path[-1]] += content
        elif action == "delete":
            del inner[path[-1]]
        elif action == "add" and isinstance(inner, list):
            inner.insert(path[-1], content)
        else:
            inner[path[-1]] = content
    return value


@settings(max_examples=150, deadline=None)
@given(values, values)
def test_the_edits_make_the_next_value(before: Any, after: Any) -> None:
    edits = json.loads(json.dumps(list_edits(before, after)))
    assert json.dumps(apply(before, edits), sort_keys=True) == json.dumps(after, sort_keys=True)
    assert list_edits(after, after) == []


def test_two_columns_that_lose_a_line_each_lose_that_line() -> None:
    before, after = [{"kids": [1, 2]}, {"kids": [3, 4]}], [{"kids": [1]}, {"kids": [3]}]
    assert apply(before, list_edits(before, after)) == after
    assert list_edits({"text": "The"}, {"text": "The lamp"}) == [["append", ["text"], " lamp"]]


def test_a_stream_of_the_page_is_a_value_then_edits_then_a_value() -> None:
    page, event = Page(), SimpleNamespace(outputs=[None, None])
    frames = [[{"kids": [1, 2]}, "a"], [{"kids": [1]}, "ab"], [{"kids": []}, "ab"]]
    sent = [page.handle_streaming_diffs(event, list(f), "session", "run", False) for f in frames]  # type: ignore[arg-type]
    assert sent[0] == frames[0] and sent[1][1] == [["append", [], "b"]] and sent[2][1] == []
    assert apply(apply(frames[0][0], sent[1][0]), sent[2][0]) == frames[2][0]
    last = page.handle_streaming_diffs(event, [None, None], "session", "run", True)  # type: ignore[arg-type]
    assert last == frames[2]
