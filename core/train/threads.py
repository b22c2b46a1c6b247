"""How many threads a run on the CPU uses, and how they wait for each other, chosen again while it trains.

With one thread per core, the threads of a step wait for each other after every layer, and libgomp lets them
spin. Beside another busy process, one of them has no core of its own, and all others wait for it: on two
cores, the embedded base falls from 10 steps a second to 3, and beside two processes to less than 1. One
thread keeps 6 and 4; two threads that sleep while they wait keep 5 and 4, but only 8 alone. So a run watches:

    /proc/stat ── CpuMeter ──> cores of other processes ─┐
    CPU time of the training thread ─────────────────────┼─> ThreadChoice ──> torch.set_num_threads
    tokens per second under each policy ─────────────────┘                    PassiveWait

The load decides when policies are compared, and the measured speed decides which one stays. Where the system
does not report the load, the CPU time that the training thread gets decides when to compare.

A number of threads is used only after one step has given the same bits with it (`digest_step`), because the
losses of a run must not depend on what else the machine does. Runs on a GPU, and runs of several processes,
keep their policy.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

from core.model.scoring import score
from core.train.machine import CpuMeter, LoadReport, describe_load
from core.train.thread_choice import Policy, ThreadChoice, Window

WINDOW_SECONDS = 0.4  # the shortest time over which speed and load are compared
STOPPED_SHARE = 0.03  # a training thread that computed for less was stopped, or the machine slept
TEAM_SECONDS = 5.0  # the longest time that a second team may take to start or to end
TEAM_POLL_SECONDS = 0.05


class Background(Protocol):
    """A job on a thread of its own, which can be ended (`core.engine.worker.BackgroundTask`)."""

    stopping: bool

    def stop(self) -> None:
        """Requests the end of the job."""

    def join(self, seconds: float) -> None:
        """Waits until it has ended."""


StartBackground = Callable[[Callable[[Any], None]], Background]


class PassiveWait:
    """Makes libgomp's threads sleep instead of spin, at run time.

    OMP_WAIT_POLICY counts only when libgomp is loaded. But libgomp also spins for 100 rounds only, which is
    next to nothing, while the process has more OpenMP threads than CPUs. So a second team of threads, which
    computes nothing, makes the first one passive, and its end makes the first one spin again. An OpenMP
    library without this rule ignores it, and then the measured speed is the same.

    Source: GOMP_SPINCOUNT in the manual of libgomp.

    Args:
        start: starts a job on a thread of its own.
        team: threads of the second team, so many that both teams outnumber the CPUs.
    """

    def __init__(self, start: StartBackground, team: int) -> None:
        self._start, self._team = start, team
        self._task: Background | None = None
        self._is_ready = False

    def switch(self, on: bool) -> None:
        """Starts or ends the second team."""
        if on and self._task is None:
            self._is_ready, end = False, time.monotonic() + TEAM_SECONDS
            self._task = self._start(self._hold_team)
            while not self._is_ready and time.monotonic() < end:
                time.sleep(0.001)
        elif not on and self._task is not None:
            self._task.stop()
            self._task.join(TEAM_SECONDS)
            self._task = None

    def _hold_team(self, task: Any) -> None:
        torch.set_num_threads(self._team)
        torch.zeros(1 << 18).add_(1)  # large enough for a parallel region, which makes the team
        self._is_ready = True
        while not task.stopping:
            time.sleep(TEAM_POLL_SECONDS)


class ThreadControl:
    """Applies the choice to torch, on the thread that trains, and reports it.

    Args:
        report: receives the fields of a "machine" event.
        is_fixed: keep the policy, and only report.
        background: starts a job on a thread of its own; without it, threads always spin.
        meter: the load of the machine.
        clock, thread_time: wall-clock time, and CPU time of the calling thread, in seconds.
    """

    def __init__(
        self,
        report: Callable[[dict[str, Any]], None],
        is_fixed: bool = False,
        background: StartBackground | None = None,
        meter: CpuMeter | None = None,
        clock: Callable[[], float] = time.perf_counter,
        thread_time: Callable[[], float] = time.thread_time,
    ) -> None:
        self._report, self._is_fixed = report, is_fixed
        self._meter = meter or CpuMeter()
        self._clock, self._thread_time = clock, thread_time
        self.most, cores = torch.get_num_threads(), self._meter.cores
        self.policy = Policy(self.most)
        self.choice = ThreadChoice(self.most, cores, background is not None)
        self._passive = PassiveWait(background, max(2, cores - self.most + 2)) if background else None
        self._load = LoadReport(self.most, cores)
        self._exact = {self.most: True}  # threads to whether they give the bits of `most`
        self._seconds = self._cpu_seconds = self._work = 0.0

    def choose_first(self, digest: Callable[[], str]) -> None:
        """Chooses before the first pass, from the load since the run began to read its data."""
        load = self._meter.read()
        if load and load.seconds >= WINDOW_SECONDS / 2:
            self.choice.choose_first(load.others)
        self.apply(digest)

    def apply(self, digest: Callable[[], str] | None = None) -> None:
        """Switches to the chosen policy, if its number of threads is known to be exact or can be checked.

        Args:
            digest: computes one step, and returns a checksum of its bits; only between two steps, when all
                gradients are cleared.
        """
        wanted = self.choice.policy
        if self._is_fixed or wanted == self.policy:
            return
        count = wanted.threads
        if count not in self._exact:
            if digest is None:
                return
            all_threads = Policy(self.most, self._passive is not None)  # spinning would take longest here
            self._exact[count] = self._digest_with(all_threads, digest) == self._digest_with(wanted, digest)
        if not self._exact[count]:
            self.choice.forbid(count)
        self._set(self.choice.policy)

    def _digest_with(self, policy: Policy, digest: Callable[[], str]) -> str:
        self._set(policy)
        return digest()

    def _set(self, policy: Policy) -> None:
        if policy == self.policy:
            return
        if self._passive:
            self._passive.switch(policy.is_passive)
        torch.set_num_threads(policy.threads)
        self.policy = policy
        self._seconds = self._cpu_seconds = self._work = 0.0  # a window has one policy

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
        if window.share < STOPPED_SHARE:
            return
        if self._load.update(window, self.policy.threads, now):
            self._report(self._describe(window, step))
        if not self._is_fixed and self.choice.policy == self.policy:
            self.choice.update(window, now)

    def restore(self) -> None:
        """Returns to the policy before the run."""
        self._set(Policy(self.most))

    def _describe(self, window: Window, step: int) -> dict[str, Any]:
        """The fields of a "machine" event; its text is a sentence for the user, "" on a quiet machine."""
        text = ""
        if self._load.is_slowed:
            text = describe_load(window.others, self._meter.cores, self.policy.threads, self.most)
        others = None if window.others is None else round(window.others, 2)
        return {
            "step": step,
            "threads": self.policy.threads,
            "most_threads": self.most,
            "cores": self._meter.cores,
            "others": others,
            "text": text,
        }


def digest_step(trainer: Any, batch: dict[str, Any], sequences: Iterable[Any], mix: Any) -> str:
    """Computes a step without taking it, and returns a checksum of its loss, gradients, norm and scores.

    Gradients and random state are as before it.

    Args:
        trainer: a StudioTrainer between two steps.
        batch: as its collator returns it.
        sequences: a few validation sequences, which are scored under `mix`.
    """
    batch = {k: v for k, v in batch.items() if k != "row_lengths"}  # counts tokens only
    count = trainer._get_num_items_in_batch([batch], trainer.args.device)
    trainer.model_wrapped.train()
    checksum = hashlib.sha256()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss = trainer.compute_loss(
            trainer.model_wrapped, trainer._prepare_inputs(batch), num_items_in_batch=count
        )
        loss.backward()
        gradients = [p.grad for p in trainer.model_wrapped.parameters() if p.grad is not None]
        for tensor in (loss.detach(), torch.nn.utils.get_total_norm(gradients), *gradients):
            checksum.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        trainer.model_wrapped.zero_grad()
        if few := list(sequences):
            for _, scores in score(trainer.resident, few, [mix]):
                checksum.update(repr(scores[0].nats).encode())
    trainer.model_wrapped.train()
    return checksum.hexdigest()
