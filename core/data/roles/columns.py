"""Raw rows to canonical rows: the role of each column, and the checks of each cell.

A canonical row has one of two forms; the last message of a task row is the assistant's, and trained on.

    domain   {"text": ...}
    task     {"messages": [{"role": "user", ...}, ..., {"role": "assistant", ...}], "type": ...}

Which roles an import guesses is in `guesses`, the layouts of other tools in `layouts`, and the forms of
messages in `messages`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.formats.json_rows import FIELD_LIMIT
from core.data.formats.readers import RawRow
from core.data.layouts.messages import (
    Message,
    finish,
    is_message_list,
    list_messages,
    mark_context,
    read_conversation,
)
from core.data.notes import Notes, RowLeftOut
from core.data.roles.cells import read_cell
from core.data.roles.foreign_names import FOREIGN_NAMES
from core.errors import DataError
from core.spec.training import KINDS

TYPE_LIMIT = 1000  # distinct values of the type column
TYPE_LENGTH = 120  # characters of a type


@dataclass(frozen=True)
class RoleSet:
    """Roles that columns can have together.

    Attributes:
        kind: "domain" or "task".
        required: roles that need a column.
        optional: roles that may have a column.
    """

    kind: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " + ".join(self.required)


ROLE_SETS = (
    RoleSet("domain", ("text",)),
    RoleSet("task", ("messages",), ("system", "type")),
    RoleSet("task", ("prompt", "completion"), ("system", "type")),
    RoleSet("task", ("question", "answer"), ("context", "system", "type")),
    RoleSet("task", ("instruction", "output"), ("input", "context", "system", "type")),
)
ROLES = {
    kind: tuple(dict.fromkeys(r for s in ROLE_SETS if s.kind == kind for r in s.required + s.optional))
    for kind in KINDS
}

# Column names that suggest a role, best first, as `normalize_name` writes them.
_NAMES: dict[str, tuple[str, ...]] = {
    "text": ("text", "content", "document", "body", "story", "passage", "article"),
    "messages": (
        "messages",
        "conversations",
        "conversation",
        "dialog",
        "dialogue",
        "chat",
        "chatmessages",
        "contents",
        "items",
    ),
    "prompt": ("prompt", "prompts"),
    "completion": ("completion", "completions", "response", "target", "chosen"),
    "question": ("question", "questions", "query", "q"),
    "answer": ("answer", "answers", "response", "reply", "a"),
    "context": ("context", "passage", "background", "document", "article"),
    "instruction": ("instruction", "instructions", "task"),
    "input": ("input", "inputs"),
    "output": ("output", "outputs", "response", "completion"),
    "system": ("system", "systemprompt", "systemmessage", "systeminstruction"),
    "type": ("type", "category", "questiontype", "tasktype", "topic", "kind"),
}


def list_columns(rows: Iterable[RawRow]) -> list[str]:
    """Lists all columns of the rows, in order of first appearance.

    Raises:
        DataError: the rows have more than FIELD_LIMIT different columns.
    """
    columns: dict[str, None] = {}
    last: Any = None
    for row in rows:
        if row.values.keys() != last:
            last = row.values.keys()
            columns.update(dict.fromkeys(last))
            if len(columns) > FIELD_LIMIT:
                raise DataError(
                    f"the rows up to this line have more than {FIELD_LIMIT} different columns.",
                    "Give all rows the same columns.",
                    file=row.file,
                    line=row.line,
                )
    return list(columns)


def normalize_name(column: str) -> str:
    """A column's name in lower case, letters and digits only, without accents: how names are compared."""
    if column.isascii():
        return re.sub(r"[^a-z0-9]", "", column.lower())
    plain = unicodedata.normalize("NFKD", column.casefold())
    return unicodedata.normalize("NFC", "".join(c for c in plain if c.isalnum()))


def find_columns(role: str, columns: Sequence[str]) -> list[str]:
    """Finds the columns whose names suggest a role, the best first; names in other languages come last."""
    plain = {normalize_name(c): c for c in reversed(columns)}
    names = (*_NAMES[role], *FOREIGN_NAMES.get(role, ()))
    return [plain[name] for name in names if name in plain]


def guess_kind(rows: Sequence[RawRow]) -> str:
    """Guesses the kind: "task" if the column names cover messages or a labelled pair, else "domain"."""
    columns = list_columns(rows)
    return "task" if match_role_set(guess_roles(columns, "task"), "task") else "domain"


def guess_roles(columns: Sequence[str], kind: str) -> dict[str, str]:
    """Guesses the role of each column from its name alone; `guesses` also looks at the cells.

    Returns:
        Role to column: a complete role set if the columns cover one, else the largest part of one.
    """
    check_kind(kind)
    best: dict[str, str] = {}
    for role_set in (s for s in ROLE_SETS if s.kind == kind):
        roles: dict[str, str] = {}
        for role in role_set.required + role_set.optional:
            if names := find_columns(role, [c for c in columns if c not in roles.values()]):
                roles[role] = names[0]
        if all(role in roles for role in role_set.required):
            return roles
        if sum(role in roles for role in role_set.required) > len(best):
            best = {role: roles[role] for role in role_set.required if role in roles}
    if kind == "domain" and len(columns) == 1:
        return {"text": columns[0]}
    return best


def match_role_set(roles: Mapping[str, str], kind: str) -> RoleSet | None:
    """Finds the role set whose required roles are all given and which allows every given role."""
    matches = [
        s
        for s in ROLE_SETS
        if s.kind == kind and set(s.required) <= set(roles) <= set(s.required + s.optional)
    ]
    return matches[0] if matches else None


def check_kind(kind: str) -> None:
    """Checks the name of a kind.

    Raises:
        DataError: it is not in KINDS.
    """
    if kind not in KINDS:
        raise DataError(
            f"The kind of a dataset must be {' or '.join(KINDS)}, got {kind!r}.",
            "Choose domain for texts, or task for labelled pairs.",
        )


def check_roles(columns: Sequence[str], kind: str, roles: Mapping[str, str]) -> RoleSet:
    """Checks that every role is known, has a column that exists, and that together they form a role set.

    Returns:
        The role set.

    Raises:
        DataError: names the columns, the given roles and the required ones.
    """
    check_kind(kind)
    roles = {role: column for role, column in roles.items() if column}
    allowed = "; or ".join(
        f"{s}" + (f" (optional: {', '.join(s.optional)})" if s.optional else "")
        for s in ROLE_SETS
        if s.kind == kind
    )
    column_list = f"The columns are: {', '.join(columns)}."
    if unknown := [role for role in roles if role not in ROLES[kind]]:
        raise DataError(
            f"{', '.join(map(repr, unknown))} is not a role of {kind} data.",
            f"Choose from: {', '.join(ROLES[kind])}.",
        )
    if missing := [column for column in roles.values() if column not in columns]:
        raise DataError(f"The column {missing[0]!r} does not exist.", column_list)
    if shared := [c for c in roles.values() if list(roles.values()).count(c) > 1]:
        raise DataError(f"The column {shared[0]!r} has two roles.", "Give each role its own column.")
    role_set = match_role_set(roles, kind)
    if role_set is None:
        assigned = ", ".join(f"{role} = {column}" for role, column in roles.items()) or "none"
        is_table = kind == "domain" and len(columns) > 1
        other = " Questions with answers are task data: choose that kind." if is_table else ""
        raise DataError(
            f"These columns do not form {kind} data. {column_list} Roles given: {assigned}.",
            f"Assign columns to these roles: {allowed}.{other}",
        )
    return role_set


def to_canonical(
    rows: Sequence[RawRow],
    kind: str,
    roles: Mapping[str, str],
    notes: Notes | None = None,
    places: list[RawRow] | None = None,
    columns: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Converts raw rows to canonical rows, in the same order; rows that cannot be learned are left out.

    Args:
        rows: raw rows from `readers` or `layouts`.
        kind: "domain" or "task".
        roles: role to column; an empty column means that the role is not used.
        notes: gets the number of rows that are left out or read in part, and why.
        places: gets the raw row of each canonical row.
        columns: of all rows, where `rows` are a part of them, of which none need be left.

    Raises:
        DataError: names file and line of a cell that is missing, empty, NaN or not text; or no row is left.
    """
    roles = {role: column for role, column in roles.items() if column}
    role_set = check_roles(list_columns(rows) if columns is None else columns, kind, roles)
    notes = Notes() if notes is None else notes
    places = [] if places is None else places
    canonical: list[dict[str, Any]] = []
    types: set[str] = set()
    reasons: list[tuple[RawRow, str]] = []
    for row in rows:
        if kind == "domain":
            canonical.append({"text": read_cell(row, roles["text"])})
            places.append(row)
            continue
        try:
            messages = _read_messages(row, role_set, roles, notes)
        except RowLeftOut as e:
            notes.leave_out(e.reason, row)
            reasons.append((row, e.reason))
            continue
        canonical.append({"messages": messages})
        places.append(row)
        if "type" in roles and (label := read_cell(row, roles["type"], required=False).strip()):
            types.add(label)
            check_type(label, len(types), row, roles["type"])
            canonical[-1]["type"] = label
    if reasons and not canonical and columns is None:
        row, reason = reasons[0]
        raise DataError(
            f"no row can be learned: {reason}.",
            "Mark the answers to learn with weight 1.",
            file=row.file,
            line=row.line,
        )
    return canonical


def check_type(label: str, distinct: int, row: RawRow, column: str) -> None:
    """Checks the type of a row.

    Args:
        label: the type.
        distinct: how many different types there are up to this row.

    Raises:
        DataError: it is too long, or there are too many.
    """
    if len(label) > TYPE_LENGTH or distinct > TYPE_LIMIT:
        raise DataError(
            describe_type_problem(column),
            "Choose another column as the type, or none.",
            file=row.file,
            line=row.line,
        )


def describe_type_problem(column: str) -> str:
    """Why a column cannot be the type."""
    return (
        f"the column {column!r} does not look like a type: it is longer "
        f"than {TYPE_LENGTH} characters or has more than {TYPE_LIMIT:,} distinct values."
    )


def _read_messages(row: RawRow, role_set: RoleSet, roles: Mapping[str, str], notes: Notes) -> list[Message]:
    """Reads the conversation of a row, with the text of the system column in front."""
    if role_set.required == ("messages",):
        messages = read_conversation(row, roles["messages"], notes)
    elif role_set.required == ("prompt", "completion"):
        messages = _read_prompt(row, roles, notes)
    else:
        messages = _read_pair(row, role_set, roles)
    system = read_cell(row, roles["system"], required=False) if "system" in roles else ""
    if system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _read_prompt(row: RawRow, roles: Mapping[str, str], notes: Notes) -> list[Message]:
    """Reads a prompt and a completion; each is a text, or a list of messages.

    Assistant messages of the prompt are context, as in TRL.
    """
    prompt, completion = roles["prompt"], roles["completion"]
    sides = [row.values.get(prompt), row.values.get(completion)]
    if not any(is_message_list(side) for side in sides):
        return _read_pair(row, RoleSet("task", ("prompt", "completion")), roles)
    before: list[Message] = [{"role": "user", "content": ""}]
    after: list[Message] = [{"role": "assistant", "content": ""}]
    if is_message_list(sides[0]):
        before = mark_context(list_messages(sides[0], row, prompt, notes))
    else:
        before[0]["content"] = read_cell(row, prompt)
    if is_message_list(sides[1]):
        after = list_messages(sides[1], row, completion, notes)
    else:
        after[0]["content"] = read_cell(row, completion)
    return finish([*before, *after], row, completion, notes)


def _read_pair(row: RawRow, role_set: RoleSet, roles: Mapping[str, str]) -> list[Message]:
    """Builds a user and an assistant message; context and question, or instruction and input, are joined."""
    user_role, assistant_role = role_set.required
    parts = [read_cell(row, roles[user_role])]
    if "context" in roles:
        parts.insert(0, read_cell(row, roles["context"], required=False))
    if "input" in roles:
        parts.append(read_cell(row, roles["input"], required=False))
    user = "\n\n".join(p for p in parts if p.strip())
    assistant = read_cell(row, roles[assistant_role])
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
