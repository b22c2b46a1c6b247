"""What the user chose about how dropped files are read: the kind, the role of each column, the encoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.data.roles.columns import ROLE_SETS, ROLES, RoleSet

NOT_USED = ""
# Roles of different role sets that say the same, so that a change of one column's role keeps the others.
SAME = (("question", "instruction", "prompt"), ("answer", "output", "completion"), ("context", "input"))
ROLE_NAMES = {
    NOT_USED: "Not used",
    "text": "Text (learned)",
    "messages": "Conversation",
    "question": "Question",
    "answer": "Answer (learned)",
    "context": "Context",
    "prompt": "Prompt",
    "completion": "Completion (learned)",
    "instruction": "Instruction",
    "input": "Input",
    "output": "Output (learned)",
    "system": "System prompt",
    "type": "Type, for reports",
}


@dataclass(frozen=True)
class Choices:
    """The user's choices about files that are not imported yet, and what the last preview showed.

    Attributes:
        kind: "domain" or "task"; None leaves it to the reader.
        roles: role to column; None leaves them to the reader.
        encoding: of the files that do not identify theirs.
        answered: the user has answered whether the proposed roles are right.
        shown_kind, shown_roles: what the preview shows, chosen or guessed.
        shown_columns: columns that can have a role.
    """

    kind: str | None = None
    roles: dict[str, str] | None = None
    encoding: str = "utf-8"
    answered: bool = False
    shown_kind: str = "task"
    shown_roles: dict[str, str] = field(default_factory=dict)
    shown_columns: tuple[str, ...] = ()


def list_roles(kind: str, roles: Mapping[str, str]) -> list[str]:
    """The roles that a column can get: first those of the present role set, then of the kind, then all."""
    first = [s for s in ROLE_SETS if s.kind == kind and set(s.required) <= set(roles)]
    present = [r for s in first[:1] for r in s.required + s.optional]
    usual = ["text", "question", "answer", "context"] if not present else []
    others = [r for k in ROLES for r in ROLES[k] if k != kind]
    return list(dict.fromkeys([*present, *usual, *ROLES[kind], *others]))


def kind_of(role: str, kind: str) -> str:
    """The kind that data has when a column gets this role: the present one where it has the role."""
    return next((k for k in (kind, *ROLES) if role in ROLES[k]), kind)


def find_role(roles: Mapping[str, str], column: str) -> str:
    """The role of a column; "" if it has none."""
    return next((role for role, c in roles.items() if c == column), NOT_USED)


def assign_role(kind: str, roles: Mapping[str, str], column: str, role: str) -> dict[str, str]:
    """Gives a column another role.

    A column that had this role before gets the role that this column had, so one change swaps two columns.
    Roles of other columns that do not go with the new one are replaced by those that say the same.

    Args:
        kind: "domain" or "task".
        roles: role to column, before.
        role: the new role, or "" for a column that is not used.
    """
    before = find_role(roles, column)
    result = {r: c for r, c in roles.items() if c != column}
    if role == NOT_USED:
        return result
    displaced = result.pop(role, None)
    result[role] = column
    if displaced is not None and before:
        result[before] = displaced
    return _fit(kind, result, role)


def swap_roles(roles: Mapping[str, str]) -> dict[str, str]:
    """Exchanges the columns of question and answer."""
    asked = next((r for r in SAME[0] if r in roles), None)
    learned = next((r for r in SAME[1] if r in roles), None)
    if asked is None or learned is None:
        return dict(roles)
    return {**roles, asked: roles[learned], learned: roles[asked]}


def _fit(kind: str, roles: dict[str, str], role: str) -> dict[str, str]:
    """Rewrites roles for a role set that has the new role."""
    sets = [s for s in ROLE_SETS if s.kind == kind and role in s.required + s.optional]
    best = max(sets, key=lambda s: _count_common_roles(s, roles), default=None)
    if best is None:
        return roles
    known = best.required + best.optional
    result = {role: roles[role]}  # what the user has just chosen comes first
    for name, column in roles.items():
        same = next((group for group in SAME if name in group), (name,))
        fitting = name if name in known else next((n for n in same if n in known), None)
        if fitting and fitting not in result:
            result[fitting] = column
    return result


def _count_common_roles(role_set: RoleSet, roles: Mapping[str, str]) -> tuple[int, int]:
    required = sum(r in roles for r in role_set.required)
    return required, sum(r in roles for r in role_set.optional)
