"""How much of the CPUs other processes use, from the system's own counters."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

STAT = Path("/proc/stat")
MIN_COVERAGE = 0.5  # counters that moved by a smaller share of the time are not those of this machine


@dataclass(frozen=True)
class Load:
    """The CPUs of this process over some time.

    Attributes:
        seconds: length of the time.
        others: cores that other processes used.
        idle: cores that no process used.
    """

    seconds: float
    others: float
    idle: float


def available_cpus() -> tuple[int, ...]:
    """Numbers of the CPUs that this process may use."""
    try:
        return tuple(sorted(os.sched_getaffinity(0)))
    except AttributeError:  # macOS and Windows
        return tuple(range(os.cpu_count() or 1))


def ticks_per_second() -> int:
    """The unit of the counters in /proc/stat."""
    return os.sysconf("SC_CLK_TCK")


class CpuMeter:
    """Measures the load from one `read` to the next.

    Linux counts the time of every CPU in /proc/stat, in ticks of 10 ms. Where there is no such file, as on
    macOS and Windows, `read` returns None.

    Args:
        stat: the file with the counters.
        clock: wall-clock time in seconds.
        own_time: CPU seconds of this process.
    """

    def __init__(
        self,
        stat: Path = STAT,
        clock: Callable[[], float] = time.perf_counter,
        own_time: Callable[[], float] = time.process_time,
    ) -> None:
        self._stat, self._clock, self._own_time = stat, clock, own_time
        self._cpus = available_cpus()
        self.cores = len(self._cpus)
        self._last = self._sample()

    def read(self) -> Load | None:
        """The load since the previous call; None where the system does not report it."""
        before, self._last = self._last, self._sample()
        seconds = self._last[0] - before[0]
        busy, idle = self._last[2] - before[2], self._last[3] - before[3]
        if seconds <= 0 or busy + idle < MIN_COVERAGE * seconds * self.cores:
            return None
        own = self._last[1] - before[1]
        return Load(seconds, max(0.0, busy - own) / seconds, max(0.0, idle) / seconds)

    def _sample(self) -> tuple[float, float, float, float]:
        """(wall-clock time, own CPU seconds, busy seconds, idle seconds), the last two over all CPUs."""
        busy, idle = read_cpu_seconds(self._stat, self._cpus)
        return self._clock(), self._own_time(), busy, idle


def read_cpu_seconds(stat: Path, cpus: tuple[int, ...]) -> tuple[float, float]:
    """Busy and idle seconds of some CPUs since the start of the system; zeros where they are not reported.

    Source: proc_stat(5). The columns are user, nice, system, idle, iowait, irq, softirq and steal; the
    time of guests, which follows, is a part of user.
    """
    try:
        lines, ticks = stat.read_text(encoding="ascii").splitlines(), ticks_per_second()
    except (OSError, ValueError, AttributeError):
        return 0.0, 0.0
    names, busy, idle = {f"cpu{n}" for n in cpus}, 0, 0
    for line in lines:
        name, _, rest = line.partition(" ")
        if name in names:
            columns = [int(n) for n in rest.split()[:8] if n.isdigit()]
            waiting = sum(columns[3:5])
            idle += waiting
            busy += sum(columns) - waiting
    return busy / ticks, idle / ticks
