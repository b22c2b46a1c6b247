"""Promotions: which mix the name `production` stands for, as an appended record (promotions.jsonl).

    {"kind": "promote", "id": "p-1", mix, digests, experiment, row, decision, ...}
    {"kind": "promote", "id": "p-2", ...}          production is p-2
    {"kind": "rollback", "id": "r-1", "of": "p-2"}  production is p-1

Nothing is rewritten: a rollback is a line of its own that takes back the newest promotion still in force.
Each line is on the disk before the name changes.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from core.errors import NotFound
from core.spec.mix import Mix
from core.store.experiments import KIND, append_line, read_lines
from core.store.record_types import Time, check_type
from core.store.workspace import Workspace

PROMOTE, ROLLBACK = "promote", "rollback"


@dataclass(frozen=True)
class Promotion:
    """A mix that was promoted.

    Attributes:
        name: of the mix, when it was promoted.
        weights, tilt, auto: fields of the `Mix`.
        digests: adapter id -> sha256 of its weights.
        base, base_fingerprint: that it was measured on.
        experiment, row: where it was measured.
        decision: of the gate, as JSON.
        notes: what the gate could not know, one sentence each.
    """

    id: str
    name: str
    weights: dict[str, float]
    digests: dict[str, str]
    experiment: str
    row: str
    decision: dict[str, Any]
    base: str = ""
    base_fingerprint: str = ""
    tilt: dict[str, float] = field(default_factory=dict)
    auto: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    time: Time = 0.0

    @property
    def mix(self) -> Mix:
        """The mix that was promoted."""
        return Mix(name=self.name, weights=self.weights, tilt=self.tilt, auto=self.auto)


@dataclass(frozen=True)
class Rollback:
    """A promotion that was taken back."""

    id: str
    of: str
    time: Time


def promote(workspace: Workspace, promotion: Promotion) -> Promotion:
    """Appends a promotion; from then on it is in force.

    Args:
        promotion: its id and time are set here.

    Raises:
        StorageError. Busy: another process appends a line.
    """
    made = Promotion(**{**promotion.__dict__, "id": f"p-{secrets.token_hex(4)}", "time": time.time()})
    with workspace.lock(KIND):
        _append(workspace, {"kind": PROMOTE, **asdict(made)})
    return made


def roll_back(workspace: Workspace) -> tuple[Promotion, Promotion | None]:
    """Takes back the promotion in force.

    Returns:
        (what was taken back, what is in force now; None where nothing is)

    Raises:
        NotFound: no promotion is in force. StorageError
    """
    with workspace.lock(KIND):
        active = _list_active(workspace)
        if not active:
            raise NotFound("No mix is promoted.", "Promote one first.")
        rollback = Rollback(f"r-{secrets.token_hex(4)}", active[-1].id, time.time())
        _append(workspace, {"kind": ROLLBACK, **asdict(rollback)})
    return active[-1], active[-2] if len(active) > 1 else None


def find_current(workspace: Workspace) -> Promotion | None:
    """The promotion in force; None where nothing is promoted."""
    active = _list_active(workspace)
    return active[-1] if active else None


def load_history(workspace: Workspace) -> list[Promotion | Rollback]:
    """Every promotion and rollback, the oldest first; lines that cannot be read are left out."""
    found: list[Promotion | Rollback] = []
    for line in read_lines(workspace.promotions_path):
        with contextlib.suppress(ValueError):
            kind = {PROMOTE: Promotion, ROLLBACK: Rollback}.get(str(line.get("kind")))
            if kind is not None:
                found.append(check_type(kind, line))
    return found


def _list_active(workspace: Workspace) -> list[Promotion]:
    """The promotions that were not taken back, the newest last."""
    history = load_history(workspace)
    withdrawn = {r.of for r in history if isinstance(r, Rollback)}
    return [p for p in history if isinstance(p, Promotion) and p.id not in withdrawn]


def _append(workspace: Workspace, value: dict[str, Any]) -> None:
    append_line(workspace.promotions_path, json.dumps(value, ensure_ascii=False) + "\n")
