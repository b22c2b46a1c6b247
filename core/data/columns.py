"""Raw rows become canonical rows: which column plays which role, and what each cell must be.

Knows the ways people lay out training data. Knows nothing of files, splits or tokens.

    domain   {"text": ...}
    task     {"messages": [{"role": "user", ...}, ..., {"role": "assistant", ...}], "type": ...}
             the last message is the one that is learned
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

TYPE_LIMIT = 1000  # different values of the type column
TYPE_LENGTH = 120


@dataclass(frozen=True)
class RoleSet:
    """One way to lay out data: the roles it needs, and those that it may have."""

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

# Column names that are taken for a role, best first; compared in lower case, letters and digits only.
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
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def list_columns(rows: Iterable[RawRow]) -> list[str]:
    """All columns that occur in the rows, in order of first appearance.

    Raises:
        DataError: more than FIELD_LIMIT different ones.
    """
    found: dict[str, None] = {}
    last: Any = None
    for row in rows:
        if row.values.keys() != last:
            last = row.values.keys()
            found.update(dict.fromkeys(last))
            if len(found) > FIELD_LIMIT:
                raise DataError(
                    f"here the rows pass {FIELD_LIMIT} different columns.",
                    "Give all rows the same few columns.",
                    file=row.file,
                    line=row.line,
                )
    return list(found)


def guess_kind(rows: Sequence[RawRow]) -> str:
    """ "task" when the columns hold a whole labelled pair or messages, else "domain"."""
    columns = list_columns(rows)
    return "task" if _set_of(guess_roles(columns, "task"), "task") else "domain"


def guess_roles(columns: Sequence[str], kind: str) -> dict[str, str]:
    """Which column plays which role, judged by the columns' names; the user may correct it.

    Returns:
        role to column: a whole role set if there is one, else as much of one as was found.
    """
    _check_kind(kind)
    best: dict[str, str] = {}
    for role_set in (s for s in ROLE_SETS if s.kind == kind):
        roles: dict[str, str] = {}
        for role in role_set.required + role_set.optional:
            if column := _named(role, [c for c in columns if c not in roles.values()]):
                roles[role] = column
        if all(role in roles for role in role_set.required):
            return roles
        if sum(role in roles for role in role_set.required) > len(best):
            best = {role: roles[role] for role in role_set.required if role in roles}
    if kind == "domain" and len(columns) == 1:
        return {"text": columns[0]}
    return best


def _named(role: str, columns: Sequence[str]) -> str:
    plain = {re.sub(r"[^a-z0-9]", "", c.lower()): c for c in reversed(columns)}
    return next((plain[name] for name in _NAMES[role] if name in plain), "")


def _set_of(roles: Mapping[str, str], kind: str) -> RoleSet | None:
    """The one role set that these roles fill, if they do."""
    fits = [
        s
        for s in ROLE_SETS
        if s.kind == kind and set(s.required) <= set(roles) <= set(s.required + s.optional)
    ]
    return fits[0] if fits else None


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise DataError(f"{kind!r} is not a kind of data.", f"Choose one of: {', '.join(KINDS)}.")


def check_roles(columns: Sequence[str], kind: str, roles: Mapping[str, str]) -> RoleSet:
    """The role set that the roles fill, once every role is known and every column is there.

    Raises:
        DataError: names what was found and what is needed.
    """
    _check_kind(kind)
    roles = {role: column for role, column in roles.items() if column}
    needed = "; or ".join(
        f"{s}" + (f" (and, if there is, {', '.join(s.optional)})" if s.optional else "")
        for s in ROLE_SETS
        if s.kind == kind
    )
    found = f"The columns are: {', '.join(columns)}."
    if unknown := [role for role in roles if role not in ROLES[kind]]:
        raise DataError(
            f"{', '.join(map(repr, unknown))} is not a role of {kind} data.",
            f"Known are: {', '.join(ROLES[kind])}.",
        )
    if absent := [column for column in roles.values() if column not in columns]:
        raise DataError(f"There is no column {absent[0]!r}.", found)
    if twice := [c for c in roles.values() if list(roles.values()).count(c) > 1]:
        raise DataError(f"The column {twice[0]!r} plays two roles.", "Give each role its own column.")
    chosen = _set_of(roles, kind)
    if chosen is None:
        given = ", ".join(f"{role} = {column}" for role, column in roles.items()) or "none"
        raise DataError(
            f"The columns do not make {kind} data. {found} Roles given: {given}.",
            f"Needed are: {needed}. Say which column plays which role.",
        )
    return chosen


def to_canonical(rows: Sequence[RawRow], kind: str, roles: Mapping[str, str]) -> list[dict[str, Any]]:
    """Canonical rows, in the same order.

    Args:
        rows: as the readers give them.
        kind: "domain" or "task".
        roles: role to column; an empty column means that the role is not used.

    Raises:
        DataError: with file and line, for a cell that is missing, empty, NaN or not text.
    """
    roles = {role: column for role, column in roles.items() if column}
    chosen = check_roles(list_columns(rows), kind, roles)
    if kind == "domain":
        return [{"text": _text(row, roles["text"])} for row in rows]
    made: list[dict[str, Any]] = []
    types: set[str] = set()
    for row in rows:
        system = _text(row, roles["system"], needed=False) if "system" in roles else ""
        messages = (
            _messages(row, roles["messages"])
            if chosen.required == ("messages",)
            else _pair(row, chosen, roles)
        )
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
        made.append({"messages": messages})
        if "type" in roles and (label := _text(row, roles["type"], needed=False).strip()):
            types.add(label)
            if len(label) > TYPE_LENGTH or len(types) > TYPE_LIMIT:
                raise DataError(
                    f"the column {roles['type']!r} does not look like a type: it is longer than {TYPE_LENGTH} characters "
                    f"or takes more than {TYPE_LIMIT:,} values.",
                    "Choose another column for the type, or none.", file=row.file, line=row.line,
                )  # fmt: skip
            made[-1]["type"] = label
    return made


def _pair(row: RawRow, chosen: RoleSet, roles: Mapping[str, str]) -> list[dict[str, str]]:
    """The user's message and the assistant's; a context stands before the question, an input after the instruction."""
    asked, answered = chosen.required
    parts = [_text(row, roles[asked])]
    if "context" in roles:
        parts.insert(0, _text(row, roles["context"], needed=False))
    if "input" in roles:
        parts.append(_text(row, roles["input"], needed=False))
    user = "\n\n".join(p for p in parts if p.strip())
    return [{"role": "user", "content": user}, {"role": "assistant", "content": _text(row, roles[answered])}]


def _text(row: RawRow, column: str, needed: bool = True) -> str:
    return _as_text(
        row.values.get(column), f"the column {column!r}", row, needed, absent=column not in row.values
    )


def _as_text(cell: Any, what: str, row: RawRow, needed: bool, absent: bool = False) -> str:
    """The cell as text: numbers are written out, a missing cell is "" where it is not needed."""
    fix = "Fill it or delete the row."
    if isinstance(cell, str):
        if needed and not cell.strip():
            raise DataError(f"{what} is empty.", fix, file=row.file, line=row.line)
        if not cell.isascii() or "\0" in cell:
            if bad := _UNWRITABLE.search(cell):
                raise DataError(
                    f"{what} holds U+{ord(bad.group()):04X}, which is no character of a text.",
                    "Remove it.",
                    file=row.file,
                    line=row.line,
                )
        return cell
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        if needed:
            raise DataError(
                f"{what} is {'missing' if absent else 'NaN' if cell is not None else 'null'}.",
                fix,
                file=row.file,
                line=row.line,
            )
        return ""
    if isinstance(cell, (int, float)) and not isinstance(cell, bool) and math.isfinite(cell):
        return str(cell)
    shown = {bool: "true or false", list: "a list", dict: "an object", float: "infinite"}.get(
        type(cell), type(cell).__name__
    )
    raise DataError(f"{what} is {shown}, not text.", "Write it as text.", file=row.file, line=row.line)


def _messages(row: RawRow, column: str) -> list[dict[str, str]]:
    """The turns of a conversation: `role`/`content`, or `from`/`value`; as a list or as its JSON text."""
    cell = row.values.get(column)
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = parse_json(cell, row.file, row.line)
    fix = 'Write it as [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].'

    def refuse(what: str) -> DataError:
        return DataError(f"the column {column!r}: {what}", fix, file=row.file, line=row.line)

    if not isinstance(cell, list) or not cell:
        raise refuse("it is missing or empty." if not cell else "it is not a list of messages.")
    turns: list[dict[str, str]] = []
    for number, turn in enumerate(cell, start=1):
        if not isinstance(turn, dict):
            raise refuse(f"message {number} is not an object.")
        speaker = turn.get("role", turn.get("from"))
        role = _SPEAKERS.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            raise refuse(f"message {number} has the role {speaker!r}; known are system, user and assistant.")
        if role == "system" and number > 1:
            raise refuse(f"message {number} is the system's; only the first may be.")
        content = _as_text(
            turn.get("content", turn.get("value")), f"message {number} of the column {column!r}", row, True
        )
        turns.append({"role": role, "content": content})
    if turns[-1]["role"] != "assistant":
        raise refuse(
            f"the last message is the {turns[-1]['role']}'s; it has to be the assistant's, which is what is learned."
        )
    if not any(turn["role"] == "user" for turn in turns):
        raise refuse("no message is the user's.")
    return turns
