"""Raw rows to a reading: the layout, the roles, the canonical rows, and what was left out or not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.data.documents.sections import Cut, cut_documents
from core.data.formats.parquet import UnreadCell
from core.data.formats.readers import RawRow
from core.data.layouts.known_layouts import Rewrite, find_layout
from core.data.layouts.layout import Layout, Table
from core.data.roles.columns import check_kind, describe_type_problem, list_columns
from core.data.roles.guesses import Attempt, attempt, read_with_guesses
from core.data.split_record import SECTION_COLUMNS, SplitRecord, describe_refusal, restore
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
        rows: canonical rows; empty if there is a problem other than roles that are not confirmed.
        places: for each canonical row the raw row that it comes from.
        problem: why the rows cannot be imported, or None.
        cuts: the documents that were cut into sections.
        question, reason: what the user has to confirm, and why these roles are proposed; "" if nothing.
        splits: the split of each row, where the files record it (`split_record`); else empty.
        purpose: "training" or "evaluation", where the files record it; else "".
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
    rows: Sequence[dict[str, Any]]
    places: list[RawRow]
    problem: DataError | None
    cuts: list[Cut] = field(default_factory=list)
    question: str = ""
    reason: str = ""
    splits: list[str] = field(default_factory=list)
    purpose: str = ""


@dataclass(frozen=True)
class Plan:
    """How many rows are read, as a sample of them decides; see `row_stream`.

    Attributes:
        kind, roles, columns, choices, unread: as in `Reading`.
        layout: the layout that was recognized, or None.
        parts: part of the layout to column.
        notes: sentences about the data as a whole.
        is_chosen: whether the user chose the roles.
    """

    kind: str
    roles: dict[str, str]
    columns: list[str]
    choices: list[str]
    unread: list[str]
    layout: Layout | None
    parts: dict[str, str]
    notes: list[str]
    is_chosen: bool

    def without_type(self) -> Plan:
        """The same plan without a type, whose column has too many values or too long ones.

        Raises:
            DataError: the user chose that column.
        """
        column = self.roles["type"]
        problem = describe_type_problem(column)
        if self.is_chosen:
            raise DataError(problem, "Choose another column as the type, or none.")
        return replace(
            self,
            roles={role: c for role, c in self.roles.items() if role != "type"},
            unread=[*self.unread, column],
            notes=[*self.notes, f"Not used as type: {problem}"],
        )

    def reads_like(self, other: Plan) -> bool:
        """Whether both read a row in the same way."""
        return (self.kind, self.roles, self.layout, self.parts) == (
            other.kind,
            other.roles,
            other.layout,
            other.parts,
        )


def make_plan(
    rows: Sequence[RawRow], kind: str | None = None, roles: Mapping[str, str] | None = None
) -> Plan:
    """Finds out from a sample of rows how all of them are read.

    Raises:
        DataError: the sample cannot be read.
    """
    columns, rewrite, result = _interpret(rows, kind, roles)
    if result.problem is not None:
        raise result.problem
    read = {*result.roles.values(), *(rewrite.reads if rewrite else ())}
    return Plan(
        kind=result.kind,
        roles=result.roles,
        columns=columns,
        choices=_list_choices(rewrite.rows if rewrite else rows),
        unread=[c for c in columns if c not in read],
        layout=rewrite.layout if rewrite else None,
        parts=rewrite.layout.match(Table(columns, rows)) if rewrite else {},
        notes=[*(rewrite.notes.list_general() if rewrite else ()), *result.notes.list_general()],
        is_chosen=any((roles or {}).values()),
    )


def read_rows(
    rows: Sequence[RawRow],
    kind: str | None = None,
    roles: Mapping[str, str] | None = None,
    record: SplitRecord | None = None,
) -> Reading:
    """Reads raw rows: recognizes their layout, and gives each column its role.

    Args:
        rows: raw rows from `readers`.
        kind: "domain" or "task"; None guesses it.
        roles: role to column, as the user chose; None or empty guesses them.
        record: the splits and sections that the zip of the rows records. It is not used where the user chose
            another kind or other roles.

    Raises:
        DataError: the kind is unknown, or the rows have too many columns. Other problems are in
            `Reading.problem`.
    """
    if record is not None:
        try:
            return _read_recorded_rows(rows, kind, roles, record)
        except ValueError as e:
            reading = read_rows(rows, kind, roles)
            return replace(reading, notes=[*reading.notes, describe_refusal(record.archive, str(e))])
    columns, rewrite, result = _interpret(rows, kind, roles)
    return _summarize(columns, rewrite.rows if rewrite else rows, rewrite, result)


def _read_recorded_rows(
    rows: Sequence[RawRow], kind: str | None, roles: Mapping[str, str] | None, record: SplitRecord
) -> Reading:
    """Reads the rows of a zip that records their splits and sections.

    Raises:
        ValueError: the record cannot be used.
    """
    recorded = record.roles(list_columns(rows))
    chosen = {role: column for role, column in (roles or {}).items() if column}
    if kind not in (None, record.kind) or (chosen and chosen != recorded):
        raise ValueError("another kind or other roles were chosen")
    columns, rewrite, result = _interpret(rows, record.kind, recorded)
    source = rewrite.rows if rewrite else rows
    reading = _summarize(columns, source, rewrite, result, is_cut=True)
    if reading.problem is not None:
        return reading
    restored = restore(record, reading.rows, reading.places)
    own = SECTION_COLUMNS if record.kind == "domain" else ()
    return replace(
        reading,
        rows=restored.rows,
        splits=restored.splits,
        purpose=record.purpose,
        cuts=restored.cuts,
        notes=[*restored.notes, *reading.notes],
        unread=[column for column in reading.unread if column not in own],
    )


def _interpret(
    rows: Sequence[RawRow], kind: str | None, roles: Mapping[str, str] | None
) -> tuple[list[str], Rewrite | None, Attempt]:
    """Recognizes the layout and assigns the roles.

    Returns:
        The columns of the files; the rows as the layout rewrote them, if any; the assignment, which may have
        failed.
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
            return columns, None, Attempt(kind or "task", {}, problem=e)
        rewrite = None
    source = rewrite.rows if rewrite else rows
    layout_kind = rewrite.layout.kind if rewrite else kind
    if chosen:
        return columns, rewrite, attempt(source, kind or "task", chosen)
    return columns, rewrite, read_with_guesses(source, kind or layout_kind)


def _summarize(
    columns: list[str],
    source: Sequence[RawRow],
    rewrite: Rewrite | None,
    result: Attempt,
    is_cut: bool = False,
) -> Reading:
    """Makes a reading of an attempt.

    Args:
        is_cut: whether the rows are sections already.
    """
    read = set(result.roles.values())
    notes, left_out = result.notes.list_sentences(), result.notes.left_out
    if rewrite:
        # A column that the layout wrote itself is not a column of the files.
        read |= set(rewrite.reads)
        notes = [*rewrite.notes.list_sentences(), *notes]
        left_out += rewrite.notes.left_out
    rows, places, cuts = result.rows, result.places, list[Cut]()
    if result.kind == "domain" and not is_cut and (result.problem is None or result.question):
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
        question=result.question,
        reason=result.reason,
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
