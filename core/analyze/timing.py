"""What a piece of work costs: seconds and forwards of its own steps, not of whatever it is interleaved with.

Knows generators and a clock. Knows nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")


class Watch:
    """Counts the steps of generators that run a forward a step, and the seconds spent inside them."""

    def __init__(self, seconds: float = 0.0, forwards: int = 0) -> None:
        self.seconds = seconds
        self.forwards = forwards

    def over(self, steps: Generator[T, None, None]) -> Iterator[T]:
        """Passes on what `steps` yields, and closes it when nobody wants more."""
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
