"""How many threads a run on the CPU uses, chosen again while it trains.

With one thread per core, the threads of a step wait for each other after every layer, and libgomp lets them
spin. Beside another busy process, one of them has no core of its own, and all others wait for it: on two
cores, the embedded base falls from 10 steps a second to 3, and beside two processes to less than 1. One thread
keeps 6 and 4. So a run uses one thread per core that is free, and watches:

    /proc/stat ── CpuMeter ──> cores of other processes ─┐
    CPU time of the training thread ─────────────────────┼─> ThreadChoice ──> torch.set_num_threads
    tokens per second before and after a change ─────────┘

The load decides when another number is tried, and the measured speed decides whether it stays. Where the system
does not report the load, the CPU time that the training thread gets decides when to try.

A number is used only after one step has given the same bits with it (`digest_step`), because the losses of a
run must not depend on what else the machine does. On CUDA nothing of this happens.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from core.model.scoring import score
from core.train.machine import CpuMeter

WINDOW_SECONDS = 0.4  # the shortest time over which speed and load are compared
LOWER_CORES = 0.4  # a run gives up a core when other processes use more than this share of it
RAISE_CORES = 0.2  # and takes it back when they use less than this
MIN_SHARE = 0.85  # of its time; a training thread that computes for less has lost its core to something else
MIN_GAIN = 1.05  # speed of more threads over fewer, from which they are worth it
MAX_LOSS = 0.95  # speed after a change over the speed before, below which it is taken back
RETRY_SECONDS = (5.0, 160.0)  # first and longest time until a change that was taken back is tried again
NEW_LOAD_CORES = 0.5  # a change of the load after which an earlier trial says nothing
REPORT_SECONDS = 3.0  # a shorter change of the load is not reported
SMOOTHING = 0.3  # weight of the newest window in the reported load


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


def list_choices(most: int) -> list[int]:
    """Numbers of threads that are tried, the largest first: all, all but one, half and one."""
    return sorted({most, max(1, most - 1), max(1, most // 2), 1}, reverse=True)


@dataclass(frozen=True)
class Block:
    """A number of threads that was tried and was slower.

    Attributes:
        until: when it may be tried again.
        seconds: for how long it is blocked; twice as long after the next trial.
        others: cores that other processes used; None if unknown. Under another load it is tried at once.
    """

    until: float
    seconds: float
    others: float | None

    def holds(self, others: float | None, now: float) -> bool:
        """Whether it is still too early to try the number."""
        is_same = others is None or self.others is None or abs(others - self.others) <= NEW_LOAD_CORES
        return now < self.until and is_same


class ThreadChoice:
    """Decides how many threads the next passes use. It measures nothing itself, so that tests can drive it.

    Args:
        most: the largest number of threads.
        cores: cores that this process may use.

    Attributes:
        threads: the present choice.
    """

    def __init__(self, most: int, cores: int) -> None:
        self.most, self.cores = most, cores
        self.choices = list_choices(most)
        self.threads = most
        self._before: tuple[int, float] | None = None  # threads and speed before a change that is on trial
        self._blocked: dict[int, Block] = {}  # threads to the time for which they are not tried again

    def forbid(self, threads: int) -> None:
        """Removes a number that gives other bits, and returns to the largest."""
        self.choices = [c for c in self.choices if c != threads or c == self.most]
        self._before, self.threads = None, self.most

    def choose_first(self, others: float | None) -> None:
        """Chooses before the first step, from the load alone."""
        if others is not None:
            self.threads = self._fit(others, LOWER_CORES)

    def update(self, window: Window, now: float) -> int:
        """Chooses after a window with the present number of threads.

        Args:
            now: seconds of any steady clock.

        Returns:
            threads for the next passes.
        """
        speed = window.work / window.seconds
        if self._before is not None:
            return self._judge_trial(speed, window.others, now)
        wanted = self._propose(window)
        block = self._blocked.get(wanted)
        if wanted != self.threads and not (block and block.holds(window.others, now)):
            self._before, self.threads = (self.threads, speed), wanted
        return self.threads

    def _judge_trial(self, speed: float, others: float | None, now: float) -> int:
        """Keeps the number that is on trial, or returns to the one before and blocks it for a while."""
        assert self._before is not None
        (previous, previous_speed), tried = self._before, self.threads
        self._before = None
        limit = MIN_GAIN if tried > previous else MAX_LOSS
        if speed >= limit * previous_speed:
            self._blocked.pop(tried, None)
            return self.threads
        first, longest = RETRY_SECONDS
        last = self._blocked.get(tried)
        wait = min(longest, 2 * last.seconds) if last else first
        self._blocked[tried] = Block(now + wait, wait, others)
        self.threads = previous
        return previous

    def _propose(self, window: Window) -> int:
        """The number that fits the load, or the next one up or down where the load is not known."""
        is_preempted = window.share < MIN_SHARE
        if window.others is None:
            return self._next_below() if is_preempted else self._next_above()
        lower, higher = self._fit(window.others, LOWER_CORES), self._fit(window.others, RAISE_CORES)
        if lower < self.threads:
            return lower
        if is_preempted:  # by a limit of the container, which the counters of the CPUs do not show
            return self._next_below()
        return max(higher, self.threads)

    def _fit(self, others: float, slack: float) -> int:
        """The largest number of threads that have a core, where `slack` of a core does not count."""
        return next((c for c in self.choices if c <= self.cores - others + slack), self.choices[-1])

    def _next_below(self) -> int:
        return max((c for c in self.choices if c < self.threads), default=self.threads)

    def _next_above(self) -> int:
        return min((c for c in self.choices if c > self.threads), default=self.threads)


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
            missing = max(0.0, window.others - (self._cores - self._most))
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


class ThreadControl:
    """Applies the choice to torch, on the thread that trains, and reports it.

    Args:
        report: receives the fields of a "machine" event.
        is_fixed: keep the number of threads, and only report.
        meter: the load of the machine.
        clock, thread_time: wall-clock time, and CPU time of the calling thread, in seconds.
    """

    def __init__(
        self,
        report: Callable[[dict[str, Any]], None],
        is_fixed: bool = False,
        meter: CpuMeter | None = None,
        clock: Callable[[], float] = time.perf_counter,
        thread_time: Callable[[], float] = time.thread_time,
    ) -> None:
        self._report, self._is_fixed = report, is_fixed
        self._meter = meter or CpuMeter()
        self._clock, self._thread_time = clock, thread_time
        self.most = self.threads = torch.get_num_threads()
        self.choice = ThreadChoice(self.most, self._meter.cores)
        self._load = LoadReport(self.most, self._meter.cores)
        self._exact = {self.most: True}  # threads to whether they give the bits of `most`
        self._seconds = self._cpu_seconds = self._work = 0.0

    def choose_first(self, digest: Callable[[], str]) -> None:
        """Chooses before the first pass, from the load since the run began to read its data."""
        load = self._meter.read()
        self.choice.choose_first(load.others if load else None)
        self.apply(digest)

    def apply(self, digest: Callable[[], str]) -> None:
        """Switches to the chosen number of threads. Called between steps, while there are no gradients.

        Args:
            digest: computes one step, and returns a checksum of its bits.
        """
        wanted = self.choice.threads
        if self._is_fixed or wanted == self.threads:
            return
        if wanted not in self._exact:
            self._exact[wanted] = self._digest_with(self.most, digest) == self._digest_with(wanted, digest)
        if not self._exact[wanted]:
            self.choice.forbid(wanted)
            wanted = self.choice.threads
        self._set(wanted)

    def _digest_with(self, threads: int, digest: Callable[[], str]) -> str:
        self._set(threads)
        return digest()

    def _set(self, threads: int) -> None:
        if threads != self.threads:
            torch.set_num_threads(threads)
            self.threads = threads
            self._seconds = self._cpu_seconds = self._work = 0.0  # a window has one number of threads

    def start_pass(self) -> tuple[float, float]:
        """Starts to measure a forward and backward pass."""
        return self._clock(), self._thread_time()

    def end_pass(self, start: tuple[float, float], work: int, step: int) -> None:
        """Adds a pass to the present window; a long enough window decides about the next steps.

        Args:
            start: what `start_pass` returned.
            work: token positions of the pass, padding included.
            step: optimizer steps taken.
        """
        self._seconds += self._clock() - start[0]
        self._cpu_seconds += self._thread_time() - start[1]
        self._work += work
        if self._seconds < WINDOW_SECONDS:
            return
        load, now = self._meter.read(), self._clock()
        others = load.others if load else None
        window = Window(self._seconds, self._work, self._cpu_seconds / self._seconds, others)
        self._seconds = self._cpu_seconds = self._work = 0.0
        if self._load.update(window, self.threads, now):
            self._report(self._describe(window, step))
        if not self._is_fixed and self.choice.threads == self.threads:
            self.choice.update(window, now)

    def restore(self) -> None:
        """Returns to the number of threads before the run."""
        self._set(self.most)

    def _describe(self, window: Window, step: int) -> dict[str, Any]:
        """The fields of a "machine" event; its text is a sentence for the user, "" on a quiet machine."""
        text = ""
        if self._load.is_slowed:
            text = describe_load(window.others, self._meter.cores, self.choice.threads, self.most)
        others = None if window.others is None else round(window.others, 2)
        return {
            "step": step,
            "threads": self.choice.threads,
            "most_threads": self.most,
            "cores": self._meter.cores,
            "others": others,
            "text": text,
        }


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


def digest_step(trainer: Any, batch: dict[str, Any], sequences: Iterable[Any], mix: Any) -> str:
    """Computes a step without taking it, and returns a checksum of its loss, gradients, norm and scores.

    Gradients and random state are as before it.

    Args:
        trainer: a StudioTrainer between two steps.
        batch: as its collator returns it.
        sequences: a few validation sequences, which are scored under `mix`.
    """
    batch = {
        k: v for k, v in batch.items() if k != "row_lengths"
    }  # counts tokens; the model does not take it
    count = trainer._get_num_items_in_batch([batch], trainer.args.device)
    trainer.model_wrapped.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = trainer.compute_loss(
            trainer.model_wrapped, trainer._prepare_inputs(batch), num_items_in_batch=count
        )
        loss.backward()
    gradients = [p.grad for p in trainer.model_wrapped.parameters() if p.grad is not None]
    checksum = hashlib.sha256()
    for tensor in (loss.detach(), torch.nn.utils.get_total_norm(gradients), *gradients):
        checksum.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    trainer.model_wrapped.zero_grad()
    sequences = list(sequences)
    if sequences:
        for _, scores in score(trainer.resident, sequences, [mix]):
            checksum.update(repr(scores[0].nats).encode())
    trainer.model_wrapped.train()
    return checksum.hexdigest()
