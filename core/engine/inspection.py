"""Inspections of datasets in the background: starting, following and cancelling them. `engine.inspection`."""

from __future__ import annotations

from dataclasses import dataclass

STATES = ("waiting", "running", "done", "failed", "cancelled")


@dataclass(frozen=True)
class InspectionStatus:
    """One inspection, as the page and the terminal show it.

    Attributes:
        key: what `Inspections.start` returned.
        state: one of STATES; the last three are final.
        text: what it is doing now, such as "Counting tokens".
        done, total: steps of work that are finished, and in all; rows times checks.
        problem: why it failed, for the user; else "".
    """

    key: str
    state: str = "waiting"
    text: str = "Waiting for another inspection"
    done: int = 0
    total: int = 0
    problem: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether the state is final."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def share(self) -> float:
        """The finished share of the work, from 0 to 1."""
        if self.state == "done":
            return 1.0
        return min(1.0, self.done / self.total) if self.total else 0.0
