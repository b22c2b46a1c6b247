"""Imports everything once and forks a child for every attempt at a run, so that kills are cheap.

    python tests/core/train/zygote.py WORKSPACE BASE MARKS

One line on standard input is one attempt: "RUN_ID [WHERE TIMES]". The child resumes the run and trains it to
its end. It writes the letter of its current work into the file MARKS, so that the test that kills it knows
where it was: t train, e evaluate, s save, r rotate, k keep (add to the library), o other. With WHERE, the
child kills itself when it reaches that place for the TIMES-th time. For every attempt the process prints the
child's id, then its exit code.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from transformers import Trainer  # noqa: E402

from core.engine import Engine  # noqa: E402
from core.spec.training import RunStatus  # noqa: E402
from core.store import adapters, runs  # noqa: E402
from core.train import checkpoints, provenance, trainer, validation  # noqa: E402


def add_mark(letter: bytes, marks: mmap.mmap, call: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `call` so that its letter stands in the file while it runs."""

    def call_with_mark(*args: Any, **kwargs: Any) -> Any:
        before = marks[0:1]
        marks[0:1] = letter
        try:
            return call(*args, **kwargs)
        finally:
            marks[0:1] = before

    return call_with_mark


def add_kill(call: Callable[..., Any], times: int, after: bool = False) -> Callable[..., Any]:
    """Wraps `call` so that its `times`-th execution kills the process, before or after it."""
    count = [0]

    def call_or_kill(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] < times:
            return call(*args, **kwargs)
        if after:
            call(*args, **kwargs)
        return os.kill(os.getpid(), signal.SIGKILL)

    return call_or_kill


def remove_half(path: Path) -> None:
    """Removes a checkpoint's manifest, and kills the process before its files are removed."""
    (path / checkpoints.MANIFEST).unlink(missing_ok=True)
    os.kill(os.getpid(), signal.SIGKILL)


HALFWAY = "half-way through rotating"
PLACES: dict[str, tuple[Any, str, bool]] = {  # where to kill: (owner, attribute, after the call)
    "before a step": (Trainer, "training_step", False),
    "after a step's backward": (Trainer, "training_step", True),
    "in a validation": (validation, "validate", False),
    "before a save": (Trainer, "_save_checkpoint", False),
    "after the adapter is written": (trainer.StudioTrainer, "_save", True),
    "after the optimizer is written": (Trainer, "_save_optimizer_and_scheduler", True),
    "after the random states are written": (Trainer, "_save_rng_state", True),
    "before the manifest": (checkpoints, "commit", False),
    "after the sums, before the manifest": (checkpoints, "write_json", False),
    "after the manifest": (checkpoints, "commit", True),
    "before rotating": (checkpoints, "rotate", False),
    "after rotating": (checkpoints, "rotate", True),
    "before the library": (adapters, "add", False),
    "in the library's folder": (adapters, "check_weights", True),
    "after the library": (adapters, "add", True),
    "after it says that it is finished": (runs, "update", True),
}


def child(workspace: str, base: str, run_id: str, marks: mmap.mmap, where: str, times: int) -> int:
    """One attempt; returns the exit code."""
    for owner, name, letter in (
        (Trainer, "training_step", b"t"),
        (trainer.StudioTrainer, "evaluate", b"e"),
        (trainer.StudioTrainer, "_save_checkpoint", b"s"),
        (checkpoints, "rotate", b"r"),
        (provenance, "add_to_library", b"k"),
    ):
        setattr(owner, name, add_mark(letter, marks, getattr(owner, name)))
    if where == HALFWAY:
        checkpoints.remove = remove_half
    elif where:
        owner, name, after = PLACES[where]
        setattr(owner, name, add_kill(getattr(owner, name), times, after))
    with Engine(workspace, base, "none", "cpu") as engine:
        if engine.runs.get(run_id).status is RunStatus.DONE:
            return 0
        engine.runs.resume(run_id)
        ended = engine.runs.wait(run_id)
        sys.stderr.write(f"{ended.status.value} {ended.error}\n")
        return 0 if ended.status is RunStatus.DONE else 3


def send(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main() -> None:
    workspace, base, place = sys.argv[1:4]
    with open(place, "r+b") as f:
        marks = mmap.mmap(f.fileno(), 16)
    send("ready")
    for line in sys.stdin:
        run_id, _, rest = line.strip().partition(" ")
        where, _, times = rest.rpartition(" ")
        marks[0:1] = b"o"
        pid = os.fork()
        if pid == 0:
            os._exit(child(workspace, base, run_id, marks, where, int(times or 1)))
        send(pid)
        _, code = os.waitpid(pid, 0)
        send(os.waitstatus_to_exitcode(code))


if __name__ == "__main__":
    main()
