"""Training speed on a busy machine: fixed numbers of threads compared with the studio's own choice.

    python -m benchmarks.busy --quick           windows of 6 seconds, two turns (about 4 minutes)
    python -m benchmarks.busy                   windows of 10 seconds, five turns

The embedded base trains on short pairs in one process per policy: one thread per core that spins while it
waits, one per core that waits passively, one thread, and the studio's own choice. All processes are loaded
once. One of them runs at a time, and the others are stopped (SIGSTOP), so that the policies take turns within
seconds of each other, alone and beside one and two processes that compute all the time. Steps are counted
from the event logs, after a settling time in each window. Linux and macOS only. With --json, the last line is
one JSON object.

Other programs falsify the figures: "load" is the number of cores that they used just before.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from core.store.events import MachineEvent, StepEvent, of_kind

ROOT = Path(__file__).resolve().parents[1]
POLICIES: dict[str, dict[str, str]] = {  # policy to the environment of its process
    "spinning": {"OMP_NUM_THREADS": "{cores}"},
    "passive": {"OMP_NUM_THREADS": "{cores}", "OMP_WAIT_POLICY": "passive"},
    "one": {"OMP_NUM_THREADS": "1"},
    "ours": {},
}
FIXED = ("spinning", "passive", "one")
SITUATIONS = {"alone": 0, "beside_one": 1, "beside_two": 2}  # name to the number of busy processes
TARGET = 0.9  # speed of our choice over the best fixed policy
SETTLE_SECONDS = 3.0  # from the start of a window until steps are counted
START_SECONDS = 600.0  # until every process has taken its first steps
BUSY_LOOP = "while True: pass"


def train(policy: str, workspace: Path) -> int:
    """Trains under a policy until the process is ended; this is what each process does."""
    import functools

    from core.data.samples import Samples
    from core.engine import Engine
    from core.spec.presets import resolve
    from core.train import train as training

    if policy in FIXED:
        fixed: Any = functools.partial(training.ThreadControl, is_fixed=True)
        training.ThreadControl = fixed  # type: ignore[misc]
    with Engine(workspace, "embedded", "none", "cpu") as engine:
        engine.bases.current(wait=True)
        data = engine.datasets.import_files([Samples().task], "Pairs", "task")
        settings = {"max_steps": 1_000_000, "eval_steps": 1_000_000, "save_steps": 1_000_000, "batch_size": 4}
        spec = resolve("task", "embedded", {"name": policy, "dataset": data.id, **settings})
        engine.runs.wait(engine.runs.start(spec), 1e9)
    return 0


class Trainee:
    """One policy's process, which runs only while it is measured."""

    def __init__(self, policy: str, folder: Path) -> None:
        self.policy, self.workspace = policy, folder / policy
        cores = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MKL_"))}
        added = {k: v.format(cores=cores) for k, v in POLICIES[policy].items()}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.busy", "--train", policy, str(self.workspace)],
            cwd=ROOT,
            env={**kept, **added},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def events(self) -> list[dict[str, Any]]:
        """The events of its run so far."""
        logs = list(self.workspace.glob("runs/*/events.jsonl"))
        lines = logs[0].read_text(encoding="utf-8").splitlines() if logs else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait_for_steps(self, count: int) -> None:
        """Waits until it has taken its first steps."""
        end = time.monotonic() + START_SECONDS
        while len(of_kind(self.events(), StepEvent)) < count:
            if self._process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"The process of {self.policy!r} did not start to train.")
            time.sleep(0.5)

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.resume()
        self._process.kill()
        self._process.wait()

    def measure(self, seconds: float) -> tuple[float, float]:
        """Runs it for a while; returns the first and last moment of the time that counts, in Unix seconds."""
        self.resume()
        time.sleep(SETTLE_SECONDS)
        begin = time.time()
        time.sleep(seconds)
        end = time.time()
        self.pause()
        return begin, end


def count_steps(events: list[dict[str, Any]], begin: float, end: float) -> float:
    """Steps a second between two moments; the step at each end counts by the share of it inside."""
    times = [e["time"] for e in of_kind(events, StepEvent)]
    inside = [t for t in times if begin <= t <= end]
    before, after = (
        max((t for t in times if t < begin), default=begin),
        min((t for t in times if t > end), default=0.0),
    )
    if not inside:
        return 1.0 / (after - before) if after else 0.0
    first = (inside[0] - begin) / max(inside[0] - before, 1e-9)
    last = (end - inside[-1]) / (after - inside[-1]) if after else 0.0
    return (len(inside) - 1 + min(1.0, first) + last) / (end - begin)


def read_other_load() -> float:
    """Cores that other programs use now; NaN where the system does not report it."""
    from core.train.machine import CpuMeter

    meter = CpuMeter()
    time.sleep(1.0)
    load = meter.read()
    return load.others if load else float("nan")


def measure_turns(
    folder: Path, turns: int, seconds: float
) -> tuple[dict[str, dict[str, list[float]]], list[float]]:
    """Steps a second of every policy in every situation and turn, and the load of other programs."""
    trainees: list[Trainee] = []
    windows: list[tuple[str, str, float, float]] = []
    loads: list[float] = []
    try:
        for policy in POLICIES:  # one after the other, so that none starts under the load of another
            trainees.append(Trainee(policy, folder))
            trainees[-1].wait_for_steps(3)
            trainees[-1].pause()
        for turn in range(turns):
            for situation, count in SITUATIONS.items():
                loads.append(read_other_load())
                busy = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(count)]
                try:
                    shift = turn % len(trainees)  # no policy is always the first
                    for trainee in trainees[shift:] + trainees[:shift]:
                        windows.append((situation, trainee.policy, *trainee.measure(seconds)))
                finally:
                    for process in busy:
                        process.kill()
                        process.wait()
        for trainee in trainees:  # the step that was unfinished at the end of the last window
            trainee.resume()
        time.sleep(2.0)
        events = {t.policy: t.events() for t in trainees}
    finally:
        for trainee in trainees:
            trainee.end()
    speeds: dict[str, dict[str, list[float]]] = {s: {p: [] for p in POLICIES} for s in SITUATIONS}
    for situation, policy, begin, end in windows:
        speeds[situation][policy].append(count_steps(events[policy], begin, end))
    for e in of_kind(events["ours"], MachineEvent):
        print(f"  step {e['step']}: {e['text'] or 'quiet again'}")
    return speeds, loads


def main() -> int:
    """Measures all policies and compares our choice with the best fixed one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two turns with windows of 6 seconds")
    parser.add_argument("--turns", type=int, default=0, help="turns (2 with --quick, 5 without)")
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="length of a window (6 with --quick, 10 without)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    parser.add_argument("--train", nargs=2, metavar=("POLICY", "WORKSPACE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        return train(args.train[0], Path(args.train[1]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no stopped process stays behind
    turns, seconds = args.turns or (2 if args.quick else 5), args.seconds or (6.0 if args.quick else 10.0)
    with tempfile.TemporaryDirectory() as folder:
        speeds, loads = measure_turns(Path(folder), turns, seconds)
    figures: dict[str, Any] = {"load": round(statistics.median(loads), 2)}
    print(f"steps a second, medians of {turns} turns; other programs used {figures['load']} cores before")
    for situation, by_policy in speeds.items():
        medians = {p: statistics.median(values) for p, values in by_policy.items()}
        best = max(medians[p] for p in FIXED)
        ratios = [o / max(max(by_policy[p][i] for p in FIXED), 1e-9) for i, o in enumerate(by_policy["ours"])]
        figures |= {f"{situation}_{p}": round(value, 3) for p, value in medians.items()}
        figures[f"{situation}_ratio"] = round(medians["ours"] / best, 3) if best else float("nan")
        verdict = "met" if figures[f"{situation}_ratio"] >= TARGET else "MISSED"
        line = "  ".join(f"{p} {value:5.2f}" for p, value in medians.items())
        print(
            f"  {situation:12s} {line}   ours / best {figures[f'{situation}_ratio']:.2f} ({verdict})",
            flush=True,
        )
        print(f"  {'':12s} by turn: {', '.join(f'{r:.2f}' for r in ratios)}")
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
