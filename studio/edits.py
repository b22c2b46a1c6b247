"""What changed from one value of a stream to the next, as the edits that Gradio's client applies in order.

Gradio's own list of edits (6.31) moves the index of an element that is removed from a list by the elements
that are removed from other lists of the same value: two columns that lose a line each then show a wrong line,
or end the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Edit = list[Any]  # "replace", "append", "add" or "delete"; the keys and indices of its place; its value


def list_edits(before: Any, after: Any, place: Sequence[Any] = ()) -> list[Edit]:
    """The edits that make `after` of `before`, both values of JSON.

    Args:
        place: of the two values, in what the client edits.
    """
    path = list(place)
    if isinstance(before, str) and isinstance(after, str) and before != after and after.startswith(before):
        return [["append", path, after[len(before) :]]]
    if isinstance(before, dict) and isinstance(after, dict):
        return _list_dict_edits(before, after, path)
    if isinstance(before, list) and isinstance(after, list):
        common = min(len(before), len(after))
        edits = [e for i in range(common) for e in list_edits(before[i], after[i], [*path, i])]
        edits += [["delete", [*path, i], None] for i in reversed(range(common, len(before)))]
        return edits + [["add", [*path, i], after[i]] for i in range(common, len(after))]
    if type(before) is type(after) and before == after:
        return []
    return [["replace", path, after]]


def _list_dict_edits(before: dict[Any, Any], after: dict[Any, Any], path: list[Any]) -> list[Edit]:
    edits: list[Edit] = []
    for key in before:
        if key in after:
            edits += list_edits(before[key], after[key], [*path, key])
        else:
            edits.append(["delete", [*path, key], None])
    return edits + [["add", [*path, key], after[key]] for key in after if key not in before]
