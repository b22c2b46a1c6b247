"""Test rows that an adapter has seen: such a row measures memory, so the gate refuses the adapter with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.splits import list_question_parts
from core.data.training_rows import hash_rows, read_training_rows
from core.store.adapters import Adapter
from core.store.workspace import Workspace

TEXT_LIMIT = 120  # characters of a row in a sentence


@dataclass(frozen=True)
class SeenRow:
    """A test row that an adapter has seen.

    Attributes:
        row: its index among the rows that were given.
        text: the beginning of what it asks.
        use: "trained" if the adapter was trained on it, "validated" if it only helped to choose a checkpoint.
    """

    row: int
    text: str
    use: str

    def describe(self, adapter: Adapter) -> str:
        """The sentence with which the row is refused."""
        verb = "was trained on" if self.use == "trained" else "was selected with"
        return f"{adapter.name!r} {verb} row {self.row + 1} of the test rows: {self.text!r}."


@dataclass(frozen=True)
class SeenRows:
    """What is known about the rows.

    Attributes:
        rows: those that the adapter has seen, in the order of the test rows.
        unknown: why the answer may be incomplete, one sentence each; empty where the record is complete.
    """

    rows: tuple[SeenRow, ...] = ()
    unknown: tuple[str, ...] = ()


def find_seen_rows(workspace: Workspace, adapter: Adapter, rows: Sequence[Mapping[str, Any]]) -> SeenRows:
    """Finds the rows that an adapter, or anything that it grew from, has seen.

    A row was seen if a training row asks the same: case, blanks and punctuation at the ends do not count
    (`core.data.splits.question_key`).

    Args:
        workspace: workspace of the adapter.
        rows: canonical rows, such as `read_split(workspace, dataset, "test")`.

    Example:
        >>> seen = find_seen_rows(workspace, adapters.load(workspace, "law-0001"), rows)
        >>> [found.describe(adapter) for found in seen.rows]
    """
    record = read_training_rows(workspace, adapter)
    found = []
    for index, digest in enumerate(hash_rows(rows)):
        if digest in record.trained:
            found.append(SeenRow(index, _shorten(rows[index]), "trained"))
        elif digest in record.validated:
            found.append(SeenRow(index, _shorten(rows[index]), "validated"))
    return SeenRows(tuple(found), record.unknown)


def _shorten(row: Mapping[str, Any]) -> str:
    """The beginning of a row's text, or of its last question."""
    parts = [row["text"]] if "text" in row else [m["content"] for m in row["messages"] if m["role"] == "user"]
    text = " ".join(str(parts[-1] if parts else list_question_parts(row)).split())
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"
