"""Raw rows to a reading: the layout, the roles, the canonical rows, and what was left out or not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.data.columns import check_kind, list_columns
from core.data.guesses import Attempt, attempt, read_with_guesses
from core.data.layouts import Rewrite, find_layout
from core.data.parquet import UnreadCell
from core.data.readers import RawRow
from core.data.sections import Cut, cut_documents
from core.errors import DataError


@dataclass(frozen=True)
class Reading:
    """How raw rows were read.

    Attributes:
        kind: "domain" or "task", as given or guessed.
        roles: role to column, as given or guessed.
        columns: columns of the files.
        choices: columns that can have a role; those of the files, or those that the layout gives.
        layout: name of the layout that was recognized; "" for plain columns.
        title: what the page calls the layout.
        unread: columns of the files that nothing reads.
        notes: sentences about what was left out, changed or chosen.
        left_out: rows that were left out.
        rows: canonical rows; empty if there is a problem.
        places: for each canonical row the raw row that it comes from.
        problem: why the rows cannot be imported, or None.
        cuts: the documents that were cut into sections.
    """

    kind: str
    roles: dict[str, str]
    columns: list[str]
    choices: list[str]
    layout: str
    title: str
    unread: list[str]
    notes: list[str]
    left_out: int
    rows: list[dict[str, Any]]
    places: list[RawRow]
    problem: DataError | None
    cuts: list[Cut] = field(default_factory=list)


def read_rows(
    rows: Sequence[RawRow], kind: str | None = None, roles: Mapping[str, str] | None = None
) -> Reading:
    """Reads raw rows: recognizes their layout, and gives each column its role.

    Args:
        rows: raw rows from `readers`.
        kind: "domain" or "task"; None guesses it.
        roles: role to column, as the user chose; None or empty guesses them.

    Raises:
        DataError: the kind is unknown, or the rows have too many columns. Other problems are in
            `Reading.problem`.
    """
    columns = list_columns(rows)
    if kind:
        check_kind(kind)
    chosen = {role: column for role, column in (roles or {}).items() if column}
    if chosen and not kind:
        kind = "domain" if "text" in chosen else "task"
    try:
        rewrite = find_layout(rows, kind, chosen)
    except DataError as e:
        if not chosen:
            return _fail(columns, kind or "task", e)
        rewrite = None
    source = rewrite.rows if rewrite else rows
    layout_kind = rewrite.layout.kind if rewrite else kind
    if chosen:
        result = attempt(source, kind or "task", chosen)
    else:
        result = read_with_guesses(source, kind or layout_kind)
    return _summarize(columns, source, rewrite, result)


def _summarize(
    columns: list[str], source: Sequence[RawRow], rewrite: Rewrite | None, result: Attempt
) -> Reading:
    read = set(result.roles.values())
    notes, left_out = result.notes.list_sentences(), result.notes.left_out
    if rewrite:
        # A column that the layout wrote itself is not a column of the files.
        read |= set(rewrite.reads)
        notes = [*rewrite.notes.list_sentences(), *notes]
        left_out += rewrite.notes.left_out
    rows, places, cuts = result.rows, result.places, list[Cut]()
    if result.kind == "domain" and result.problem is None:
        notes += _list_document_notes(places)
        rows, places, cuts = _cut_rows(rows, places)
    return Reading(
        kind=result.kind,
        roles=result.roles,
        columns=columns,
        choices=_list_choices(source),
        layout=rewrite.layout.name if rewrite else "",
        title=rewrite.layout.title if rewrite else "",
        unread=[c for c in columns if c not in read],
        notes=notes,
        left_out=left_out,
        rows=rows,
        places=places,
        problem=result.problem,
        cuts=cuts,
    )


def _list_document_notes(places: Sequence[RawRow]) -> list[str]:
    """What the readers of documents left out or changed."""
    return [f"{p.file}: {note}" for p in places if p.document for note in p.document.notes]


def _cut_rows(
    rows: Sequence[dict[str, Any]], places: Sequence[RawRow]
) -> tuple[list[dict[str, Any]], list[RawRow], list[Cut]]:
    """Cuts long documents into sections; see `sections`."""
    in_file = Counter(place.file for place in places)
    numbers: Counter[str] = Counter()
    documents = []
    for row, place in zip(rows, places, strict=True):
        numbers[place.file] += 1
        name = place.file if in_file[place.file] == 1 else f"{place.file}, text {numbers[place.file]}"
        documents.append((name, row["text"], place.document))
    cut, indices, cuts = cut_documents(documents)
    return cut, [places[i] for i in indices], cuts


def _list_choices(rows: Sequence[RawRow]) -> list[str]:
    """The columns that can have a role: all but those of types that are not read."""
    unread = {c for row in rows[:1] for c, cell in row.values.items() if isinstance(cell, UnreadCell)}
    return [c for c in list_columns(rows) if c not in unread]


def _fail(columns: list[str], kind: str, problem: DataError) -> Reading:
    return Reading(kind, {}, columns, columns, "", "", columns, [], 0, [], [], problem)
