"""Guessed roles: which columns an import reads when the user has not chosen them.

A guess from names never blocks an import: a column that turns out empty or not text gives way to the next
candidate, or its role is dropped, and a note says so. Where names say nothing, or where a text stands beside
other texts, the user confirms what `proposals` finds in the cells. Only the roles that the user chose are
final.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.data.formats.readers import RawRow
from core.data.layouts.messages import is_message_list
from core.data.notes import Notes
from core.data.roles.cells import is_blank, read_cell
from core.data.roles.column_shapes import measure_column
from core.data.roles.columns import (
    ROLE_SETS,
    check_type,
    find_columns,
    guess_roles,
    list_columns,
    to_canonical,
)
from core.data.roles.proposals import find_sole_text, measure_columns, propose, refuse
from core.errors import DataError

ATTEMPT_LIMIT = 12  # role assignments that are tried


@dataclass
class Attempt:
    """One assignment of roles, and what it gave.

    Attributes:
        kind: "domain" or "task".
        roles: role to column.
        rows: canonical rows; empty if they could not be read.
        places: the raw row of each canonical row.
        notes: what was left out or changed.
        problem: why the rows cannot be read, or None. With UnconfirmedRoles, `rows` are what they would give.
        question, reason: what the user has to confirm, and why these roles are proposed; "" if nothing.
    """

    kind: str
    roles: dict[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    places: list[RawRow] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    problem: DataError | None = None
    question: str = ""
    reason: str = ""


def attempt(rows: Sequence[RawRow], kind: str, roles: dict[str, str], notes: Notes | None = None) -> Attempt:
    """Reads the rows with these roles; an error becomes the attempt's `problem`."""
    result = Attempt(kind, roles)
    if notes is not None:
        result.notes.extend(notes)
    try:
        result.rows = to_canonical(rows, kind, roles, result.notes, result.places)
    except DataError as e:
        result.problem = e
    return result


def read_with_guesses(rows: Sequence[RawRow], kind: str | None) -> Attempt:
    """Reads rows with guessed roles: the first assignment that works, else the first one with its problem.

    Args:
        rows: raw rows.
        kind: "domain" or "task"; None guesses it from the column names. A guessed task becomes a domain only
            if not one cell of a column that it needs can be read.
    """
    columns = list_columns(rows)
    is_task = any(all(find_columns(r, columns) for r in s.required) for s in ROLE_SETS if s.kind == "task")
    chosen = kind or ("task" if is_task else "domain")
    if chosen == "domain" or not is_task:
        return _read_by_shape(rows, columns, kind)
    first = _try_assignments(rows, chosen)
    if first.problem is None:
        return _check_ids(rows, first)
    if kind or not _is_hopeless(rows, first.roles):
        return first
    if any(not is_blank(row.values.get(c)) for row in rows for c in first.roles.values()):
        return first  # what stands in these columns would be lost without a word
    domain = _read_by_shape(rows, columns, None)
    if domain.problem is not None:
        return first
    domain.notes.say(f"Read as text, because these are not labelled pairs: {first.problem.what}")
    return domain


def _read_by_shape(rows: Sequence[RawRow], columns: Sequence[str], kind: str | None) -> Attempt:
    """Reads rows whose columns' names do not form labelled pairs: as text, or as the user has to confirm."""
    if kind == "domain" and find_columns("text", columns):
        return _try_assignments(rows, "domain")
    if len(columns) == 1 and find_columns("text", columns):
        return _try_assignments(rows, "domain")
    shapes = measure_columns(rows)
    sole = find_sole_text(shapes)
    if kind != "task" and sole and (len(columns) == 1 or find_columns("text", [sole])):
        return _read_text(rows, sole)
    proposal = propose(shapes, kind)
    if proposal is None:
        result = Attempt(kind or "domain", {} if kind != "task" else guess_roles(columns, "task"))
        result.problem = refuse(shapes, rows)
        return result
    result = attempt(rows, proposal.kind, proposal.roles)
    if result.problem is None:
        result.problem = proposal.to_error()
        result.question, result.reason = proposal.question, proposal.reason
    return result


def _read_text(rows: Sequence[RawRow], column: str) -> Attempt:
    """Reads the column as text; another column with the name of a text is named if it could not be."""
    by_name = _try_assignments(rows, "domain")
    return by_name if by_name.roles.get("text") == column else attempt(rows, "domain", {"text": column})


def _check_ids(rows: Sequence[RawRow], result: Attempt) -> Attempt:
    """Refuses a guess by names that would learn a column of ids."""
    roles = {role: c for role, c in result.roles.items() if role in _REQUIRED and role != "messages"}
    shapes = [measure_column(rows, c) for c in roles.values()]
    if doubtful := [s for s in shapes if s.is_hash]:
        result.problem = DataError(
            f"the column {doubtful[0].column!r} would be learned by its name, but it holds "
            f"{doubtful[0].describe().partition(': ')[2]}.",
            "Choose the roles of the columns if this is right.",
            file=rows[0].file,
        )
    return result


def _try_assignments(rows: Sequence[RawRow], kind: str) -> Attempt:
    """Tries the assignments of a kind in turn."""
    columns = list_columns(rows)
    failures: list[Attempt] = []
    for roles in itertools.islice(_propose_roles(rows, columns, kind), ATTEMPT_LIMIT):
        notes = Notes()
        complete = _add_optional_roles(rows, columns, kind, roles, notes)
        result = attempt(rows, kind, complete, notes)
        if result.problem is None:
            for failure in failures:
                if failure.problem is not None:
                    names = ", ".join(f"{r} = {c}" for r, c in failure.roles.items())
                    result.notes.say(f"Not read with {names}: {failure.problem}")
            return result
        failures.append(result)
    return failures[0] if failures else attempt(rows, kind, guess_roles(columns, kind))


def _propose_roles(rows: Sequence[RawRow], columns: Sequence[str], kind: str) -> Iterator[dict[str, str]]:
    """Yields assignments of the required roles, the best names first; columns without a text come last."""
    later = []
    for role_set in (s for s in ROLE_SETS if s.kind == kind):
        names = [find_columns(role, columns) for role in role_set.required]
        for chosen in itertools.product(*names):
            if len(set(chosen)) < len(chosen):
                continue
            roles = dict(zip(role_set.required, chosen))
            if _is_hopeless(rows, roles):
                later.append(roles)
            else:
                yield roles
    yield from later
    if kind == "domain" and len(columns) == 1:
        yield {"text": columns[0]}


def _is_hopeless(rows: Sequence[RawRow], roles: dict[str, str]) -> bool:
    """Whether some required role has a column of which not one cell can be read."""
    return any(
        not any(_can_read(row, role, column) for row in rows)
        for role, column in roles.items()
        if role in _REQUIRED
    )


def _can_read(row: RawRow, role: str, column: str) -> bool:
    cell = row.values.get(column)
    if is_message_list(cell) and cell:
        return role in ("messages", "prompt", "completion")
    return role != "messages" and not is_blank(cell) and _reads_as_text(row, column)


def _reads_as_text(row: RawRow, column: str) -> bool:
    try:
        read_cell(row, column, required=False)
    except DataError:
        return False
    return True


def _add_optional_roles(
    rows: Sequence[RawRow], columns: Sequence[str], kind: str, roles: dict[str, str], notes: Notes
) -> dict[str, str]:
    """Adds the optional roles whose columns can be read in every row; a note names the others."""
    complete = dict(roles)
    role_set = next(s for s in ROLE_SETS if s.kind == kind and set(s.required) == set(roles))
    for role in role_set.optional:
        for column in find_columns(role, [c for c in columns if c not in complete.values()]):
            problem = _check_optional(rows, role, column)
            if not problem:
                complete[role] = column
                break
            notes.say(f"Not used as {role}: {problem}")
    return complete


def _check_optional(rows: Sequence[RawRow], role: str, column: str) -> str:
    """Finds out why a column cannot have an optional role; "" if it can."""
    if all(is_blank(row.values.get(column)) for row in rows):
        return f"the column {column!r} is empty."
    distinct: set[str] = set()
    try:
        for row in rows:
            text = read_cell(row, column, required=False).strip()
            if role == "type" and text:
                distinct.add(text)
                check_type(text, len(distinct), row, column)
    except DataError as e:
        return e.what
    return ""


_REQUIRED = frozenset(role for role_set in ROLE_SETS for role in role_set.required)
