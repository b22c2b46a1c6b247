"""Passages: what a search returns, a chunk of a document with its score and the words that matched."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Passage:
    """A chunk of a document that answers a question, as far as the index can tell.

    Attributes:
        dataset: id of the dataset.
        dataset_name: its display name.
        document: name of the document, such as its file.
        section: the nearest heading at or above its beginning, or "".
        start, end: where it lies in the document, in characters; `text` is exactly this slice.
        text: the passage.
        score: its relevance; higher is better. See `core.retrieve.index`.
        words: the words of the question that it holds, as the passage writes them, each once.
        marks: where these words lie in `text`: (first character, character behind the last).
        chunk: its number in the index of its dataset, from 0.
    """

    dataset: str
    dataset_name: str
    document: str
    section: str
    start: int
    end: int
    text: str
    score: float
    words: tuple[str, ...] = ()
    marks: tuple[tuple[int, int], ...] = ()
    chunk: int = 0

    @property
    def title(self) -> str:
        """Its document and section, for people."""
        return f"{self.document}, {self.section}" if self.section else self.document

    def to_json(self) -> dict[str, Any]:
        """The passage as JSON holds it."""
        return dataclasses.asdict(self)
