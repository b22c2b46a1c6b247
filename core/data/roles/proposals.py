"""Roles that the cells suggest where the names of the columns say nothing. The user confirms them.

A proposal is never learned by itself: an import stops with its question until the roles are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.data.formats.readers import RawRow
from core.data.roles.column_shapes import ColumnShape, measure_column
from core.data.roles.columns import find_columns, list_columns, normalize_name
from core.errors import DataError, UnconfirmedRoles

LONG_WORDS = 60  # mean words of a column that is a document rather than a question or an answer
# Names of columns that describe a text, and are neither a question nor an answer.
METADATA = frozenset(
    (
        *("title", "heading", "header", "section", "sectiontitle", "chapter", "part", "page", "pages"),
        *("url", "uri", "link", "source", "website", "file", "filename", "filepath", "path", "doc", "docid"),
        *("id", "author", "authors", "publisher", "date", "created", "published", "year", "language", "lang"),
    )
)
_SPAN_COLUMNS = ("entities", "spans", "annotations", "tokens", "relations")


@dataclass(frozen=True)
class Proposal:
    """Roles to confirm.

    Attributes:
        kind: "domain" or "task".
        roles: role to column.
        question: what to confirm, for the user.
        reason: why these roles.
    """

    kind: str
    roles: dict[str, str]
    question: str
    reason: str

    def to_error(self) -> UnconfirmedRoles:
        """The error that an import without confirmation ends with."""
        flags = " ".join(f"--role {role}={column}" for role, column in self.roles.items())
        return UnconfirmedRoles(
            f"{self.question} {self.reason}",
            f"Confirm or change the roles of the columns; in the terminal with --yes or {flags!r}.",
            kind=self.kind,
            roles=self.roles,
        )


def measure_columns(rows: Sequence[RawRow]) -> list[ColumnShape]:
    """Measures all columns of the rows."""
    return [measure_column(rows, column) for column in list_columns(rows)]


def find_sole_text(shapes: Sequence[ColumnShape]) -> str:
    """The only column with texts, if no other column can be what belongs to them; "" otherwise."""
    texts = [s.column for s in shapes if s.kind == "text"]
    rivals = [
        s for s in shapes if s.kind == "label" or s.column.lower() in _SPAN_COLUMNS and s.kind == "other"
    ]
    return texts[0] if len(texts) == 1 and not rivals else ""


def propose(shapes: Sequence[ColumnShape], kind: str | None = None) -> Proposal | None:
    """Proposes roles: a pair for two columns of texts, or for texts beside labels; else one text.

    Args:
        shapes: of all columns.
        kind: the kind that the user chose, or None.

    Returns:
        None if no proposal is better than the others.
    """
    texts = [s for s in shapes if s.kind == "text"]
    labels = [s for s in shapes if s.kind == "label"]
    if kind == "domain":
        return _propose_text(texts[0], shapes) if len(texts) == 1 else None
    about = [s for s in (*texts, *labels) if normalize_name(s.column) not in METADATA]
    is_one = len(about) == 1 and about[0].kind == "text"
    if kind is None and is_one and find_columns("text", [about[0].column]):
        return _propose_text(about[0], shapes)
    if len(texts) == 2:
        text = _find_document(texts)
        return _propose_text(text, shapes) if text and kind is None else _propose_pair(texts)
    if len(texts) == 1 and len(labels) == 1:
        roles = {"question": texts[0].column, "answer": labels[0].column}
        reason = f"{labels[0].column!r} has only {labels[0].distinct} different values beside these texts."
        return Proposal("task", roles, _ask_pair(roles), reason)
    if len(texts) == 1 and kind is None:
        return _propose_text(texts[0], shapes)
    return None


def _propose_pair(texts: Sequence[ColumnShape]) -> Proposal:
    first, second = texts
    reason = "These are the only two columns with texts, and the question usually comes first."
    if abs(first.questions - second.questions) >= 0.2:
        first, second = sorted(texts, key=lambda s: -s.questions)
        share = round(100 * first.questions)
        reason = f"{share} % of the texts in {first.column!r} end with a question mark."
    elif max(first.words, second.words) > LONG_WORDS and min(first.words, second.words) < LONG_WORDS / 2:
        first, second = sorted(texts, key=lambda s: -s.words)
        reason = f"{first.column!r} has long texts, and {second.column!r} short ones."
    roles = {"question": first.column, "answer": second.column}
    return Proposal("task", roles, _ask_pair(roles), reason)


def _ask_pair(roles: dict[str, str]) -> str:
    return f"Is {roles['question']!r} the question and {roles['answer']!r} its answer?"


def _propose_text(text: ColumnShape, shapes: Sequence[ColumnShape]) -> Proposal:
    others = ", ".join(repr(s.column) for s in shapes if s.column != text.column)
    question = f"Is {text.column!r} the text to learn, and nothing else?"
    return Proposal("domain", {"text": text.column}, question, f"Not read would be: {others or 'nothing'}.")


def _find_document(texts: Sequence[ColumnShape]) -> ColumnShape | None:
    """Of two columns, that of the documents, if the other one holds their titles."""
    short, long = sorted(texts, key=lambda s: s.words)
    is_named = bool(find_columns("text", [long.column]))
    return long if is_named and long.words >= LONG_WORDS / 4 and short.words <= long.words / 4 else None


def refuse(shapes: Sequence[ColumnShape], rows: Sequence[RawRow]) -> DataError:
    """The error for columns whose roles cannot be guessed: it says what each holds."""
    described = "; ".join(s.describe() for s in shapes[:12])
    more = f"; and {len(shapes) - 12} more" if len(shapes) > 12 else ""
    return DataError(
        f"the columns do not say what to learn: {described}{more}.",
        "Choose the roles of the columns: text alone for domain data; or question and answer, or instruction "
        "and output, for task data. In the terminal: --role question=COLUMN --role answer=COLUMN.",
        file=rows[0].file if rows else "",
    )
