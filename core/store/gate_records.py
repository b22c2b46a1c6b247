"""What the metadata of an adapter says about its gate: the calibration, or why there is none.

metadata["gate"]  the fields of a GateCalibration, "own_name" and "created"; or {"note": reason}
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from core.spec.gate import GateCalibration

NAMES_SHOWN = 3  # of the sources of other prompts
NOTE_LIMIT = 300  # characters of a reason
OFF = "on Auto it stays off"


def make_gate(calibration: GateCalibration, own_name: str) -> dict[str, Any]:
    """The metadata of a calibration.

    Args:
        own_name: what the adapter's own prompts came from.
    """
    return {**calibration.to_json(), "own_name": own_name, "created": time.time()}


def make_note(reason: str) -> dict[str, Any]:
    """The metadata of a gate that could not be calibrated.

    Args:
        reason: a sentence.
    """
    return {"note": reason.rstrip(".")[:NOTE_LIMIT], "created": time.time()}


def describe_gate(gate: Any) -> str:
    """What is known about a gate, as a sentence without its end."""
    calibration = GateCalibration.from_json(gate)
    if calibration is None:
        note = str(gate.get("note") or "") if isinstance(gate, dict) else ""
        return f"not calibrated: {note}. So {OFF}" if note else f"not calibrated, so {OFF}"
    own, other = calibration.rows
    form = "questions" if calibration.questions else "sentences"
    sentence = (
        f"calibrated on {own} {form} of {gate.get('own_name') or 'its own data'} against {other} of "
        f"{join_names(calibration.against) or 'others'}: threshold {calibration.threshold:.2f} nats a token, "
        f"area under the curve {calibration.area:.2f}"
    )
    return f"{sentence}. But {OFF}: {calibration.obstacle}" if calibration.obstacle else sentence


def join_names(names: Sequence[str]) -> str:
    """Names in words: "general text, Answers and 2 others"."""
    shown = list(names[:NAMES_SHOWN])
    if more := len(names) - len(shown):
        shown.append(f"{more} other{'s' if more > 1 else ''}")
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
