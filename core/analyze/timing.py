"""Counts the forwards and the seconds of one piece of work, without the work it is interleaved with."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")


class StepTimer:
    """Counts the steps of generators that run one forward per step, and the seconds spent inside them.

    Attributes:
        seconds: wall-clock time inside the steps. forwards: number of steps.
    """

    def __init__(self, seconds: float = 0.0, forwards: int = 0) -> None:
        self.seconds = seconds
        self.forwards = forwards

    def iterate(self, steps: Generator[T, None, None]) -> Iterator[T]:
        """Yields what `steps` yields, and closes `steps` when the caller closes this iterator."""
        try:
            while True:
                begin = time.perf_counter()
                try:
                    value = next(steps)
                except StopIteration:
                    return
                finally:
                    self.seconds += time.perf_counter() - begin
                self.forwards += 1
                yield value
        finally:
            steps.close()
