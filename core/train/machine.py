"""How much of the CPUs other processes use, from the system's counters, and what the user reads about it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.train.thread_choice import LOWER_CORES, RAISE_CORES, Window

REPORT_SECONDS = 3.0  # a shorter change of the load is not reported
SMOOTHING = 0.3  # weight of the newest window in the reported load
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

    Linux counts the time of every CPU in /proc/stat, in ticks of 10 ms. Without this file, as on macOS and
    Windows, `read` returns None.

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


class LoadReport:
    """Notices when other processes slow a run down for a while, and when they no longer do.

    Args:
        most: threads that the run would use on a quiet machine.
        cores: cores that this process may use.
    """

    def __init__(self, most: int, cores: int) -> None:
        self._most, self._cores = most, cores
        self._missing = 0.0  # cores that the run lacks, smoothed
        self._since: float | None = None  # since when the state differs from the reported one
        self.is_slowed = False  # as reported

    def update(self, window: Window, threads: int, now: float) -> bool:
        """Whether the reported state has changed.

        Args:
            threads: threads during the window.
            now: seconds of any steady clock.
        """
        if window.others is None:
            missing = threads * (1 - min(1.0, window.share)) + (self._most - threads)
        else:
            missing = max(0.0, window.others - max(0, self._cores - self._most))
        self._missing += SMOOTHING * (missing - self._missing)
        if (self._missing > LOWER_CORES) == self.is_slowed or RAISE_CORES < self._missing <= LOWER_CORES:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        if now - self._since < REPORT_SECONDS:
            return False
        self._since, self.is_slowed = None, not self.is_slowed
        return True


def describe_load(others: float | None, cores: int, threads: int, most: int) -> str:
    """Why a run is slower than the machine allows, and what to do, for the user.

    Args:
        others: cores that other processes use; None if unknown.
        cores: cores of the machine.
        threads, most: threads of the run, and on a quiet machine.
    """
    use = "compete for the CPU" if others is None else f"use about {others:.1f} of {cores} CPU cores"
    plural = "" if threads == 1 else "s"
    now = f"it trains on {threads} thread{plural}" + (f" instead of {most}" if threads != most else "")
    return (
        f"The machine is busy: other processes {use}, so this run is slower; {now}. "
        "Close other programs to speed it up; its losses stay the same."
    )
