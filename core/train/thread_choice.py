"""Which number of threads and which way of waiting is fastest, from the load and the measured speed.

`core.train.threads` measures and applies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

LOWER_CORES = 0.4  # a run gives up a core when other processes use more than this share of it
RAISE_CORES = 0.2  # and takes it back when they use less than this
MIN_SHARE = 0.85  # of its time; a training thread that computes for less has lost its core to something else
MIN_GAIN = 1.05  # speed over that of the present policy, from which another one is worth a change
NEW_LOAD_CORES = 0.25  # a change of the load after which an earlier comparison says nothing
LONG_SECONDS = 2.0  # a window of at least this length counts as a whole
HOLD_SECONDS = 3.0  # the shortest time between two comparisons, unless all threads spin
RETRY_SECONDS = (6.0, 80.0)  # first and longest time until a comparison without a change is repeated


class Policy(NamedTuple):
    """How the threads of a run are used.

    Attributes:
        threads: their number.
        is_passive: a thread that waits for another one sleeps at once instead of spinning first.
    """

    threads: int
    is_passive: bool = False


@dataclass(frozen=True)
class Window:
    """What was measured over some forward and backward passes.

    Attributes:
        seconds: their time.
        work: token positions that they computed, padding included.
        share: CPU time of the training thread over the time.
        others: cores that other processes used meanwhile; None if unknown.
    """

    seconds: float
    work: float
    share: float
    others: float | None


def list_counts(most: int) -> list[int]:
    """Numbers of threads that are tried, the largest first: all, all but one, half and one."""
    return sorted({most, max(1, most - 1), max(1, most // 2), 1}, reverse=True)


class ThreadChoice:
    """Decides how the next passes use threads. It measures nothing itself, so that tests can drive it.

    On a quiet machine the policy is `most` threads that spin. When the load has changed, the policies that
    may suit it take turns for a few windows, and the fastest stays.

    Args:
        most: the largest number of threads.
        cores: cores that this process may use.
        can_wait: passive waiting is available.

    Attributes:
        policy: the present choice.
    """

    def __init__(self, most: int, cores: int, can_wait: bool = False) -> None:
        self.most, self.cores, self.can_wait = most, cores, can_wait
        self.counts = list_counts(most)
        self.policy = Policy(most)
        self._totals: dict[Policy, tuple[float, float]] = {}  # (work, seconds) in the present comparison
        self._untried: list[Policy] = []
        self._settled_load: float | None = None  # cores of others, in the first window after a comparison
        self._is_settled = False
        self._retry_at, self._retry_seconds = 0.0, RETRY_SECONDS[0]
        self._hold_until = 0.0
        self._has_candidates = False  # in the previous window

    def forbid(self, threads: int) -> None:
        """Removes a number that gives other bits, and returns to the largest."""
        self.counts = [c for c in self.counts if c != threads or c == self.most]
        self._totals, self._untried, self.policy = {}, [], Policy(self.most)

    def choose_first(self, others: float) -> None:
        """Chooses before the first step, from the load alone."""
        self._totals, self._untried, self.policy = {}, [], Policy(self._fit(others))

    def update(self, window: Window, now: float) -> Policy:
        """Chooses after a window under the present policy.

        Args:
            now: seconds of any steady clock.
        """
        full = Policy(self.most)
        if self._totals:
            self._count(window)
            is_alone = self.policy.threads == 1 and window.share >= MIN_SHARE
            if window.others is None and is_alone and full not in [*self._totals, *self._untried]:
                self._untried.append(full)  # the machine seems quiet
            self._continue(now)
            return self.policy
        if not self._is_settled:
            self._is_settled, self._settled_load = True, window.others
        candidates = [p for p in self._propose(window, now) if p != self.policy and p.threads in self.counts]
        # a load that began within a window did not slow all of it: the next one is compared
        is_whole = self._has_candidates or window.seconds >= LONG_SECONDS
        self._has_candidates = bool(candidates)
        if candidates and is_whole:
            # Two rounds, because the load changes while they last. Spinning beside others is not repeated,
            # because one step of it may take seconds.
            repeated = [p for p in (self.policy, *candidates) if p != full]
            self._untried = [*candidates, *repeated] if repeated else candidates
            self._has_candidates = False
            self._count(window)
            self._continue(now)
        return self.policy

    def _count(self, window: Window) -> None:
        """Adds a window under the present policy to the comparison."""
        work, seconds = self._totals.get(self.policy, (0.0, 0.0))
        self._totals[self.policy] = work + window.work, seconds + window.seconds

    def _continue(self, now: float) -> None:
        """Tries the next policy of a comparison, or ends it with the fastest."""
        if self._untried:
            self.policy = self._untried.pop(0)
            return
        speeds = {p: work / seconds for p, (work, seconds) in self._totals.items()}
        present = next(iter(speeds))
        best = max(speeds, key=lambda p: speeds[p])
        if speeds[best] < MIN_GAIN * speeds[present]:
            best = present
        first, longest = RETRY_SECONDS
        self._retry_seconds = first if best != present else min(longest, 2 * self._retry_seconds)
        self._retry_at = now + self._retry_seconds
        self._hold_until = now + HOLD_SECONDS
        self.policy, self._totals, self._is_settled = best, {}, False

    def _propose(self, window: Window, now: float) -> list[Policy]:
        """The policies that may be faster than the present one; none while a comparison still counts."""
        if self.most == 1:
            return []
        # a thread that waits passively for the others computes for less of its time, too
        is_preempted = window.share < MIN_SHARE and not self.policy.is_passive
        is_early = now < self._retry_at and not self._has_new_load(window.others)
        full = Policy(self.most)
        if self.policy != full and now < self._hold_until:
            return []
        passive = [Policy(self.most, True)] if self.can_wait else []
        if window.others is None:
            if is_early or (self.policy == full and not is_preempted):
                return []
            if is_preempted:
                return [Policy(1), *passive]
            return [Policy(1)] if self.policy.is_passive else [full]
        spare = self.cores - self.most
        if window.others > spare + LOWER_CORES:
            return [] if is_early else [Policy(self._fit(window.others)), *passive]
        if window.others > spare + RAISE_CORES or is_early:
            return []
        if is_preempted:  # by a limit of the container, which the counters of the CPUs do not show
            return [Policy(max((c for c in self.counts if c < self.most), default=1)), *passive]
        return [full]

    def _has_new_load(self, others: float | None) -> bool:
        """Whether the load has changed since the policies were compared."""
        if others is None or self._settled_load is None:
            return False
        return abs(others - self._settled_load) > NEW_LOAD_CORES

    def _fit(self, others: float) -> int:
        """The largest number of threads that have a core each."""
        return next((c for c in self.counts if c <= self.cores - others + LOWER_CORES), self.counts[-1])
