"""The progress of long work, which a stream reports between its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The progress of one piece of work.

    Attributes:
        done, total: units of work that are finished, and in all.
        text: what it is doing now.
        report: id of its result (a report or an adapter), at the end; before that, "".
    """

    done: int
    total: int
    text: str
    report: str = ""


@dataclass(frozen=True)
class ReadProgress(Progress):
    """The progress of reading files; `done` and `total` are bytes.

    Attributes:
        rows: rows read so far.
    """

    rows: int = 0


Report = Callable[[ReadProgress], None]  # is called once a block; what it raises ends the work
