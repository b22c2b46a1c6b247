"""The progress of long work, which a stream reports between its steps."""

from __future__ import annotations

import time
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


LINE_SECONDS = 5.0  # between two lines of progress in a log or a pipe


class LineClock:
    """Decides when long work writes its next line where the output is not a terminal.

    Args:
        seconds: between two lines.
        now: the clock, in seconds.
    """

    def __init__(self, seconds: float = LINE_SECONDS, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._now = seconds, now
        self._last = now()

    def is_due(self) -> bool:
        """Whether the time since the last line, or since the start, has passed; the next wait begins then."""
        if self._now() - self._last < self._seconds:
            return False
        self._last = self._now()
        return True

    def restart(self) -> None:
        """Begins the next wait: a line was written for another reason."""
        self._last = self._now()


Report = Callable[[ReadProgress], None]  # is called once a block; what it raises ends the work
