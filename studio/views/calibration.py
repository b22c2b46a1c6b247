"""Views of the calibration of a gate: what it is, its progress, and what was measured."""

from __future__ import annotations

from typing import Any

from studio import formatting
from studio.tree import Node, chip, node, progress_bar

EXPLANATION = node(
    "p",
    "On Auto, the weight of this adapter follows the prompt: the adapter is on where it makes the prompt "
    "clearly likelier. The limit is measured on prompts of its own and on others. No labels are needed, and "
    "the adapter stays as it is.",
    cls="quiet",
)


def render_progress(status: Any) -> Node:
    """A calibration that waits or runs.

    Args:
        status: a `core.engine.calibration.CalibrationStatus`, or None.
    """
    share, text = (status.share, status.text) if status else (0.0, "Starting")
    return node(
        "div",
        progress_bar(share, "Progress of the calibration"),
        node("p", f"{text}: {100 * share:.0f} %" if share else text, cls="quiet", role="status"),
    )


def render_result(result: Any) -> Node:
    """What was measured.

    Args:
        result: a `core.engine.calibration.Calibrated`; None where it was stopped.
    """
    if result is None:
        return node("p", "Stopped. What was calibrated before stays as it is.", cls="quiet", role="status")
    mark = chip("stays off", "warn") if result.calibration.obstacle else chip("ready for Auto", "good")
    return node(
        "div",
        node("div", mark, cls="row"),
        node("p", f"{formatting.end_sentence(result.text)} {result.change}".strip(), role="status"),
    )
