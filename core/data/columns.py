"""Raw rows to canonical rows: the role of each column, and the checks of each cell.

A canonical row has one of two forms; the last message of a task row is the assistant's.

    domain   {"text": ...}
    task     {"messages": [{"role": "user", ...}, ..., {"role": "assistant", ...}], "type": ...}
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.jsonrows import FIELD_LIMIT, parse_json
from core.data.readers import RawRow
from core.errors import DataError
from core.spec.training import KINDS

TYPE_LIMIT = 1000  # distinct values of the type column
TYPE_LENGTH = 120  # characters of a type


@dataclass(frozen=True)
class RoleSet:
    """One supported layout of training data.

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
    RoleSet("task", ("instruction", "output"), ("input", "system", "type")),
)
ROLES = {
    kind: tuple(dict.fromkeys(r for s in ROLE_SETS if s.kind == kind for r in s.required + s.optional))
    for kind in KINDS
}

# Column names that suggest a role, best first; compared in lower case, letters and digits only.
_NAMES = {
    "text": ("text", "content", "document", "body", "story", "passage", "article"),
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "chat"),
    "prompt": ("prompt", "prompts"),
    "completion": ("completion", "completions", "response", "target", "chosen"),
    "question": ("question", "questions", "query", "q"),
    "answer": ("answer", "answers", "response", "reply", "a"),
    "context": ("context", "passage", "background", "document"),
    "instruction": ("instruction", "instructions", "task"),
    "input": ("input", "inputs"),
    "output": ("output", "outputs", "response", "completion"),
    "system": ("system", "systemprompt", "systemmessage"),
    "type": ("type", "category", "questiontype", "tasktype", "topic", "kind"),
}
_MESSAGE_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


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


def guess_kind(rows: Sequence[RawRow]) -> str:
    """Guesses the kind: "task" if the column names cover messages or a labelled pair, else "domain"."""
    columns = list_columns(rows)
    return "task" if _match_role_set(guess_roles(columns, "task"), "task") else "domain"


def guess_roles(columns: Sequence[str], kind: str) -> dict[str, str]:
    """Guesses the role of each column from its name; the user may correct the guess.

    Returns:
        Role to column: a complete role set if the columns cover one, else the largest part of one.
    """
    _check_kind(kind)
    best: dict[str, str] = {}
    for role_set in (s for s in ROLE_SETS if s.kind == kind):
        roles: dict[str, str] = {}
        for role in role_set.required + role_set.optional:
            if column := _find_column(role, [c for c in columns if c not in roles.values()]):
                roles[role] = column
        if all(role in roles for role in role_set.required):
            return roles
        if sum(role in roles for role in role_set.required) > len(best):
            best = {role: roles[role] for role in role_set.required if role in roles}
    if kind == "domain" and len(columns) == 1:
        return {"text": columns[0]}
    return best


def _find_column(role: str, columns: Sequence[str]) -> str:
    plain = {re.sub(r"[^a-z0-9]", "", c.lower()): c for c in reversed(columns)}
    return next((plain[name] for name in _NAMES[role] if name in plain), "")


def _match_role_set(roles: Mapping[str, str], kind: str) -> RoleSet | None:
    """Finds the role set whose required roles are all given and which allows every given role."""
    matches = [
        s
        for s in ROLE_SETS
        if s.kind == kind and set(s.required) <= set(roles) <= set(s.required + s.optional)
    ]
    return matches[0] if matches else None


def _check_kind(kind: str) -> None:
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
    _check_kind(kind)
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
    role_set = _match_role_set(roles, kind)
    if role_set is None:
        assigned = ", ".join(f"{role} = {column}" for role, column in roles.items()) or "none"
        raise DataError(
            f"These columns do not form {kind} data. {column_list} Roles given: {assigned}.",
            f"Assign columns to these roles: {allowed}.",
        )
    return role_set


def to_canonical(rows: Sequence[RawRow], kind: str, roles: Mapping[str, str]) -> list[dict[str, Any]]:
    """Converts raw rows to canonical rows, in the same order.

    Args:
        rows: raw rows from `readers`.
        kind: "domain" or "task".
        roles: role to column; an empty column means that the role is not used.

    Raises:
        DataError: names file and line of a cell that is missing, empty, NaN or not text.
    """
    roles = {role: column for role, column in roles.items() if column}
    role_set = check_roles(list_columns(rows), kind, roles)
    if kind == "domain":
        return [{"text": _read_text(row, roles["text"])} for row in rows]
    canonical: list[dict[str, Any]] = []
    types: set[str] = set()
    for row in rows:
        system = _read_text(row, roles["system"], required=False) if "system" in roles else ""
        if role_set.required == ("messages",):
            messages = _read_messages(row, roles["messages"])
        else:
            messages = _read_pair(row, role_set, roles)
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        canonical.append({"messages": messages})
        if "type" in roles and (label := _read_text(row, roles["type"], required=False).strip()):
            types.add(label)
            if len(label) > TYPE_LENGTH or len(types) > TYPE_LIMIT:
                raise DataError(
                    f"the column {roles['type']!r} does not look like a type: it is longer "
                    f"than {TYPE_LENGTH} characters or has more than {TYPE_LIMIT:,} distinct values.",
                    "Choose another column as the type, or none.", file=row.file, line=row.line,
                )  # fmt: skip
            canonical[-1]["type"] = label
    return canonical


def _read_pair(row: RawRow, role_set: RoleSet, roles: Mapping[str, str]) -> list[dict[str, str]]:
    """Builds a user and an assistant message; context and question, or instruction and input, are joined."""
    user_role, assistant_role = role_set.required
    parts = [_read_text(row, roles[user_role])]
    if "context" in roles:
        parts.insert(0, _read_text(row, roles["context"], required=False))
    if "input" in roles:
        parts.append(_read_text(row, roles["input"], required=False))
    user = "\n\n".join(p for p in parts if p.strip())
    assistant = _read_text(row, roles[assistant_role])
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _read_text(row: RawRow, column: str, required: bool = True) -> str:
    is_missing = column not in row.values
    return _to_text(row.values.get(column), f"the column {column!r}", row, required, is_missing)


def _to_text(cell: Any, what: str, row: RawRow, required: bool, is_missing: bool = False) -> str:
    """Converts a cell to text: numbers are written out, and an optional cell without a value is ""."""
    fix = "Fill it in or delete the row."
    if isinstance(cell, str):
        if required and not cell.strip():
            raise DataError(f"{what} is empty.", fix, file=row.file, line=row.line)
        if not cell.isascii() or "\0" in cell:
            if match := _UNWRITABLE.search(cell):
                raise DataError(
                    f"{what} contains U+{ord(match.group()):04X}, which is not a valid text character.",
                    "Remove it.",
                    file=row.file,
                    line=row.line,
                )
        return cell
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        if not required:
            return ""
        value = "NaN" if cell is not None else "null"
        raise DataError(f"{what} is {'missing' if is_missing else value}.", fix, file=row.file, line=row.line)
    if isinstance(cell, (int, float)) and not isinstance(cell, bool) and math.isfinite(cell):
        return str(cell)
    value = {bool: "true or false", list: "a list", dict: "an object", float: "infinite"}.get(
        type(cell), type(cell).__name__
    )
    raise DataError(f"{what} is {value}, not text.", "Write it as text.", file=row.file, line=row.line)


def _read_messages(row: RawRow, column: str) -> list[dict[str, str]]:
    """Reads a conversation: `role` and `content`, or `from` and `value`; a list, or a list as JSON text."""
    cell = row.values.get(column)
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = parse_json(cell, row.file, row.line)
    fix = 'Write it as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'

    def error(what: str) -> DataError:
        return DataError(f"the column {column!r}: {what}", fix, file=row.file, line=row.line)

    if not isinstance(cell, list) or not cell:
        raise error("it is missing or empty." if not cell else "it is not a list of messages.")
    messages: list[dict[str, str]] = []
    for number, message in enumerate(cell, start=1):
        if not isinstance(message, dict):
            raise error(f"message {number} is not an object.")
        name = message.get("role", message.get("from"))
        role = _MESSAGE_ROLES.get(name) if isinstance(name, str) else None
        if role is None:
            raise error(f"the role of message {number} must be system, user or assistant, got {name!r}.")
        if role == "system" and number > 1:
            raise error(f"message {number} has the role system; only the first message may have it.")
        content = _to_text(
            message.get("content", message.get("value")),
            f"message {number} of the column {column!r}",
            row,
            required=True,
        )
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] != "assistant":
        raise error(
            f"the role of the last message must be assistant, got {messages[-1]['role']}: "
            "the adapter learns to write the last message."
        )
    if not any(message["role"] == "user" for message in messages):
        raise error("no message has the role user.")
    return messages
