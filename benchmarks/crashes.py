"""Kills processes that change a workspace and checks what they leave: `python -m benchmarks.crashes`.

    template ── copied ──> twin: the operation runs to its end, and its items are read after each commit
        └──── copied ──> workspace: the same operation, killed ──> an engine opens it; its items are read
                                                                    each must equal a state of the twin

Every process is a fork of this one, which has imported everything. A random kill comes at a random moment of
an operation, and the next operation works on what the kill left. A kill at a chosen call comes before the
n-th call that changes the disk, for every operation and every n.

An item counts as damaged if it fails its own verification, if it equals neither its old nor a new state, or
if a partial file is left after an engine was opened.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import importlib
import io
import json
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.crash_operations import HEAVY, OPERATIONS, Scene, make_workspace, read_items
from core.engine import Engine
from core.errors import StudioError
from core.store import trash

CALLS = ("replace", "rename", "link", "mkdir", "unlink", "rmdir", "fsync", "remove")  # of `os`
GENERATION = 40  # random kills on one workspace, which then starts again from the template
QUICK_STRIDE = 7  # with --quick, every seventh point
STATES, MARK, CHECK = "states.json", "mark", "check.json"
WAIT_SECONDS = 60.0  # an operation takes milliseconds


@dataclass
class Outcome:
    """What the kills left.

    Attributes:
        kills: processes that were killed; operations that ended before are not counted.
        points: kills of them at a chosen call.
        left: "old", "new" or "between" (some items old, others new) -> number of kills.
        problems: one sentence per damaged item or leftover.
    """

    kills: int = 0
    points: int = 0
    left: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "kills": self.kills,
            "at_points": self.points,
            "operations": dict(self.operations),
            "left": dict(self.left),
            "damaged": len(self.problems),
            "problems": self.problems[:20],
            "seconds": round(self.seconds, 1),
        }

    def describe(self) -> str:
        """One line of figures."""
        return (
            f"{self.kills} kills ({self.kills - self.points} at random moments, {self.points} at chosen "
            f"calls) in {len(self.operations)} operations: {self.left['old']} left the old state, "
            f"{self.left['new']} the new one, {self.left['between']} some items old and some new; "
            f"{len(self.problems)} damaged; {self.seconds:.0f} s"
        )


# --- one process


def fork(work: Callable[[], None]) -> int:
    """Runs `work` in a child and returns its process id. The child ends with 1 after an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns if this process has threads
        pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001 (the child must not return into the loop of its parent)
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    """Waits for a child; its exit code, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_before_call(number: int) -> None:
    """Makes the `number`-th call from now on that changes the disk kill this process. 1 is the first."""
    count = [0]

    def step() -> None:
        count[0] += 1
        if count[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(call: Callable[..., Any], does_write: Callable[..., bool]) -> Callable[..., Any]:
        def count_and_call(*args: Any, **kwargs: Any) -> Any:
            if does_write(*args, **kwargs):
                step()
            return call(*args, **kwargs)

        return count_and_call

    def is_open_for_writing(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> bool:
        return isinstance(mode, str) and any(letter in mode for letter in "wxa+")

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name), lambda *args, **kwargs: True))
    builtins.open = io.open = wrap(builtins.open, is_open_for_writing)  # type: ignore[assignment]


def run_operation(folder: Path, name: str, seed: int, after_commit: Callable[[], None]) -> None:
    """Runs an operation in this process, with the same random numbers for the same seed."""
    rng = random.Random(seed)
    secrets.token_hex = lambda n=32: f"{rng.getrandbits(8 * n):0{2 * n}x}"  # type: ignore[assignment]
    with Engine(folder / "ws", load=False) as engine:
        (folder / MARK).write_text("begun")
        after_commit()
        with contextlib.suppress(StudioError):  # such as a mix whose name is taken
            for _ in OPERATIONS[name](Scene(engine, folder, random.Random(seed), after_commit)):
                after_commit()


def record(folder: Path, name: str, seed: int) -> None:
    """Runs an operation to its end; writes its seconds and the items after each commit to STATES."""
    states: list[dict[str, Any]] = []
    reading = [0.0]
    begun = time.monotonic()

    def read() -> None:
        start = time.monotonic()
        states.append(read_items(folder))
        reading[0] += time.monotonic() - start

    run_operation(folder, name, seed, read)
    seconds = time.monotonic() - begun - reading[0]
    (folder / STATES).write_text(json.dumps({"states": states, "seconds": seconds}))


def check(folder: Path) -> None:
    """Opens an engine, lists everything, and writes the items and the leftovers to CHECK."""
    trash.UNFINISHED_SECONDS = 0.0  # a start at any later time removes what an interrupted deletion left
    with Engine(folder / "ws", load=False) as engine:
        lists = (
            engine.library.adapters, engine.library.mixes, engine.datasets.list, engine.runs.list,
            engine.grids.list, engine.queue.list, engine.votes.tally, engine.library.trash,
            engine.evaluation.reports, engine.experiments.list,
        )  # fmt: skip
        for items in lists:
            items()
        damaged = [f"{d.file}: {d.reason}" for d in engine.library.damaged()]
        names = [f"{p.relative_to(folder)} is left" for p in engine.workspace.root.rglob(".*")]
        items = read_items(folder)
    (folder / CHECK).write_text(json.dumps({"items": items, "problems": [*damaged, *names]}))


# --- kills


class Crashes:
    """Kills operations on copies of one template workspace."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.outcome = folder, random.Random(seed), Outcome()
        self.template = folder / "template"
        self.template.mkdir()
        if wait(fork(lambda: make_workspace(self.template))):
            raise RuntimeError("the template workspace could not be made")

    def copy(self, source: Path, name: str) -> Path:
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        (target / MARK).unlink(missing_ok=True)
        return target

    def record(self, source: Path, name: str, seed: int) -> dict[str, Any]:
        """The items of a copy of `source` after each commit of an operation, and its seconds."""
        twin = self.copy(source, "twin")
        if wait(fork(lambda: record(twin, name, seed))):
            raise RuntimeError(f"the operation {name!r} failed without a kill")
        value: dict[str, Any] = json.loads((twin / STATES).read_text())
        return value

    def kill_at_random(self, folder: Path, name: str, seed: int, seconds: float) -> bool:
        """Runs an operation and kills it after a random time; returns whether it was still running."""
        (folder / MARK).unlink(missing_ok=True)
        pid = fork(lambda: run_operation(folder, name, seed, lambda: None))
        end = time.monotonic() + WAIT_SECONDS
        while not (folder / MARK).exists() and time.monotonic() < end:
            time.sleep(0.0005)
        time.sleep(self.rng.uniform(0.0, seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return self._was_killed(wait(pid), name)

    def kill_at_point(self, folder: Path, name: str, seed: int, number: int) -> bool:
        """Runs an operation that kills itself before its `number`-th call; False if it has fewer calls."""
        has_begun = [False]

        def count() -> None:
            if not has_begun[0]:
                has_begun[0] = True
                kill_before_call(number)

        return self._was_killed(wait(fork(lambda: run_operation(folder, name, seed, count))), name)

    def _was_killed(self, code: int, name: str) -> bool:
        if code == -signal.SIGKILL:
            return True
        if code:
            self.outcome.problems.append(f"{name}: the operation ended with {code}")
        return False

    def compare(self, folder: Path, name: str, where: str, states: list[dict[str, Any]]) -> None:
        """Checks the workspace that a kill left against the states of an operation without a kill."""
        self.outcome.kills += 1
        self.outcome.operations[name] += 1
        problems = self.check(folder, states)
        self.outcome.problems += [f"{name}, killed {where}: {p}" for p in problems]

    def check(self, folder: Path, states: list[dict[str, Any]]) -> list[str]:
        (folder / CHECK).unlink(missing_ok=True)
        if wait(fork(lambda: check(folder))):
            return ["the workspace could not be opened and read"]
        found = json.loads((folder / CHECK).read_text())
        items, problems = found["items"], list(found["problems"])
        for key in sorted({*items, *(k for state in states for k in state)}):
            value = items.get(key)
            if all(value != state.get(key) for state in states):
                problems.append(f"{key} is {value!r}, expected one of {[s.get(key) for s in states]!r}")
        kind = "between"
        if items == states[-1]:
            kind = "new"
        elif items == states[0]:
            kind = "old"
        self.outcome.left[kind] += 1
        return problems

    def run_random(self, kills: int) -> None:
        """Kills at random moments; each operation works on what the kill before left."""
        folder, done = self.copy(self.template, "workspace"), 0
        while done < kills:
            name, seed = self.rng.choice(list(OPERATIONS)), self.rng.randrange(2**31)
            import_for([name])
            recorded = self.record(folder, name, seed)
            if not self.kill_at_random(folder, name, seed, recorded["seconds"]):
                continue
            self.compare(folder, name, "at a random moment", recorded["states"])
            done += 1
            if done % GENERATION == 0:
                folder = self.copy(self.template, "workspace")

    def run_points(self, names: list[str], stride: int = 1) -> None:
        """Kills every operation before each of its calls that change the disk, or every `stride`-th."""
        for name in names:
            seed = self.rng.randrange(2**31)
            states = self.record(self.template, name, seed)["states"]
            number = self.rng.randrange(1, stride + 1)
            while self.kill_at_point(folder := self.copy(self.template, "workspace"), name, seed, number):
                self.compare(folder, name, f"before call {number}", states)
                self.outcome.points += 1
                number += stride


def run(kills: int, seed: int = 1, stride: int = 1, names: list[str] | None = None) -> Outcome:
    """Kills operations and checks what they leave.

    Args:
        kills: at random moments.
        stride: of the kills at chosen calls; 0 makes none.
        names: the operations that are killed at chosen calls; None takes all.
    """
    begun = time.monotonic()
    with temporary_folder() as folder:
        points = (names or list(OPERATIONS)) if stride else []
        import_for(points)
        crashes = Crashes(folder, seed)
        crashes.run_random(kills)
        crashes.run_points(points, stride)
    crashes.outcome.seconds = time.monotonic() - begun
    return crashes.outcome


def import_for(names: list[str]) -> None:
    """Imports what operations need, so that forks need not."""
    for module in [m for name in names for m in HEAVY.get(name, ())]:
        importlib.import_module(module)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="crashes-") as folder:
        yield Path(folder)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Kill processes that change a workspace; check what is left."
    )
    parser.add_argument("--kills", type=int, default=500, help="Kills at random moments.")
    parser.add_argument("--every", type=int, default=1, help="Kill before every n-th chosen call; 0: none.")
    parser.add_argument("--only", nargs="+", choices=list(OPERATIONS), help="Operations for chosen calls.")
    parser.add_argument("--quick", action="store_true", help=f"The same as --every {QUICK_STRIDE}.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="Print one JSON value as the last line.")
    args = parser.parse_args()
    if not hasattr(os, "fork"):
        print("This benchmark forks processes, which this system cannot: run it on Linux or macOS.")
        return 1
    outcome = run(args.kills, args.seed, QUICK_STRIDE if args.quick else args.every, args.only)
    for problem in outcome.problems:
        print(problem)
    print(outcome.describe())
    if args.json:
        print(json.dumps(outcome.to_json()))
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
