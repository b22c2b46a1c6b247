"""What long work says between its steps, so that whoever waits can see how far it is.

Knows nothing of the work.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is: units done and planned, and what it does now."""

    done: int
    total: int
    text: str
    report: str = ""  # id of what it made (a report, an adapter), on the last one
