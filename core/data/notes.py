"""Notes of an import: what was left out, changed or chosen, each with the number of its rows."""

from __future__ import annotations

from core.data.formats.readers import RawRow

NOTE_LIMIT = 20  # sentences that are shown and stored
_SINGULAR = {"have": "has", "end": "ends"}


class RowLeftOut(Exception):
    """Raised while a row is read: the row cannot be learned; it is counted and not imported.

    Args:
        reason: why, as the end of "3 rows left out: ...".
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Notes:
    """Sentences about the rows of an import, in the order in which they first came up."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, RawRow | None] = {}
        self._last: dict[str, RawRow] = {}
        self.left_out = 0

    def say(self, sentence: str) -> None:
        """Adds a sentence about the data as a whole, once."""
        self._counts.setdefault(sentence, 0)
        self._first.setdefault(sentence, None)

    def count(self, what: str, row: RawRow) -> None:
        """Counts a row, once for each `what`, which completes "3 rows ..."; for example "have tool calls"."""
        if self._last.get(what) is row:
            return
        self._last[what] = row
        self._counts[what] = self._counts.get(what, 0) + 1
        self._first.setdefault(what, row)

    def leave_out(self, reason: str, row: RawRow) -> None:
        """Counts one row that is not imported."""
        self.left_out += 1
        self.count(f"left out: {reason}", row)

    def extend(self, other: Notes) -> None:
        """Adds the notes of another reading step."""
        for what, count in other._counts.items():
            self._counts[what] = self._counts.get(what, 0) + count
            self._first.setdefault(what, other._first[what])
        self.left_out += other.left_out

    def list_general(self) -> list[str]:
        """The sentences about the data as a whole."""
        return [what for what, row in self._first.items() if row is None]

    def list_sentences(self) -> list[str]:
        """Writes the notes as sentences, each with its number of rows and the place of the first one."""
        sentences = []
        for what, row in self._first.items():
            if row is None:
                sentences.append(what)
                continue
            count = self._counts[what]
            verb, _, rest = what.partition(" ")
            subject = f"1 row {_SINGULAR.get(verb, verb)}" if count == 1 else f"{count:,} rows {verb}"
            sentences.append(f"{subject} {rest} (first: {row.file}, line {row.line}).")
        if len(sentences) > NOTE_LIMIT:
            more = len(sentences) - NOTE_LIMIT + 1
            sentences = [*sentences[: NOTE_LIMIT - 1], f"{more} more notes are not shown."]
        return sentences
