"""The gates of weights on Auto, as the page and the terminal show them. `core.model.gating` decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.spec.gate import GateCalibration, GateDecision, describe_decision

NOT_CALIBRATED = "it is not calibrated yet"
OTHER_BASE = "it was calibrated on another base"
DELETED = "a deleted adapter"


def find_gate_state(metadata: Mapping[str, Any], base_fingerprint: str) -> dict[str, Any]:
    """Whether the weight of an adapter of the library can be on Auto.

    Args:
        metadata: of the adapter; `gate` holds its calibration, or why there is none.
        base_fingerprint: of the resident base; "" while none is loaded.

    Returns:
        `usable`, and `reason`: why not, as a clause, or "".
    """
    gate = metadata.get("gate")
    calibration, reason = GateCalibration.from_json(gate), ""
    if calibration is None:
        note = str(gate.get("note") or "") if isinstance(gate, dict) else ""
        reason = f"it is not calibrated: {note}" if note else NOT_CALIBRATED
    elif base_fingerprint and calibration.base_fingerprint != base_fingerprint:
        reason = OTHER_BASE
    else:
        reason = calibration.obstacle
    return {"usable": not reason, "reason": reason}


def read_decisions(stamp: Mapping[str, Any]) -> dict[str, GateDecision]:
    """What the gates of an answer decided, by adapter id, from its stamp."""
    known = set(GateDecision.__dataclass_fields__)
    listed = stamp.get("auto")
    return {
        adapter: GateDecision(**{"weight": 0.0, **{k: v for k, v in decision.items() if k in known}})
        for adapter, decision in (listed.items() if isinstance(listed, dict) else ())
        if isinstance(decision, dict)
    }


def describe_decisions(
    decisions: Mapping[str, GateDecision], labels: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Why each weight on Auto is what it is: adapter id -> a sentence without its end.

    Args:
        labels: adapter id -> name.
    """
    names = labels or {}
    return {
        adapter: describe_decision(
            decision,
            names.get(adapter, DELETED),
            names.get(decision.rival, DELETED) if decision.rival else "",
        )
        for adapter, decision in decisions.items()
    }
