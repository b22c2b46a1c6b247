"""A process that imports everything once and then forks a child for every attempt at a run, so that killing one is cheap.

    python tests/core/train/zygote.py WORKSPACE BASE MARKS      one line on standard input is one attempt: "RUN_ID [WHERE TIMES]"

The child resumes the run and trains it to its end. It writes the letter of what it is doing into the file MARKS, so that whoever
kills it knows where it was: t train, e evaluate, s save, r rotate, k keep (into the library), o anything else. With WHERE, it
kills itself at the TIMES-th arrival at that place. For every attempt this prints the child's process id, then how it ended.
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

from core.engine import Engine  # noqa: E402
from core.spec.training import RunStatus  # noqa: E402
from core.store import (
    adapters,  # noqa: E402
    runs,  # noqa: E402
)
from core.train import checkpoints, train, trainer

Trainer = trainer.Trainer


def marked(letter: bytes, marks: mmap.mmap, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, with its letter on display while it runs."""

    def marking(*args: Any, **kwargs: Any) -> Any:
        before = marks[0:1]
        marks[0:1] = letter
        try:
            return call(*args, **kwargs)
        finally:
            marks[0:1] = before

    return marking


def deadly(call: Callable[..., Any], times: int, after: bool = False) -> Callable[..., Any]:
    """`call`, which is the end of the process at its `times`-th turn, before or after it did its work."""
    turns = [0]

    def killing(*args: Any, **kwargs: Any) -> Any:
        turns[0] += 1
        if turns[0] < times:
            return call(*args, **kwargs)
        if after:
            call(*args, **kwargs)
        return os.kill(os.getpid(), signal.SIGKILL)

    return killing


def half_removed(path: Path) -> None:
    """A removal of a checkpoint that is killed between its manifest and its files."""
    (path / checkpoints.MANIFEST).unlink(missing_ok=True)
    os.kill(os.getpid(), signal.SIGKILL)


HALFWAY = "half-way through rotating"
PLACES: dict[str, tuple[Any, str, bool]] = {  # where to be killed: (owner, attribute, after its work)
    "before a step": (Trainer, "training_step", False),
    "after a step's backward": (Trainer, "training_step", True),
    "in a validation": (trainer.validating, "validate", False),
    "before a save": (Trainer, "_save_checkpoint", False),
    "after the adapter is written": (trainer.StudioTrainer, "_save", True),
    "after the optimizer is written": (Trainer, "_save_optimizer_and_scheduler", True),
    "after the dice are written": (Trainer, "_save_rng_state", True),
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
        (train, "_keep", b"k"),
    ):
        setattr(owner, name, marked(letter, marks, getattr(owner, name)))
    if where == HALFWAY:
        checkpoints.remove = half_removed
    elif where:
        owner, name, after = PLACES[where]
        setattr(owner, name, deadly(getattr(owner, name), times, after))
    with Engine(workspace, base, "none", "cpu") as engine:
        if engine.runs.get(run_id).status is RunStatus.DONE:
            return 0
        engine.runs.resume(run_id)
        ended = engine.runs.wait(run_id)
        sys.stderr.write(f"{ended.status.value} {ended.error}\n")
        return 0 if ended.status is RunStatus.DONE else 3


def tell(what: object) -> None:
    sys.stdout.write(f"{what}\n")
    sys.stdout.flush()


def main() -> None:
    workspace, base, place = sys.argv[1:4]
    with open(place, "r+b") as f:
        marks = mmap.mmap(f.fileno(), 16)
    tell("ready")
    for line in sys.stdin:
        run_id, _, rest = line.strip().partition(" ")
        where, _, times = rest.rpartition(" ")
        marks[0:1] = b"o"
        pid = os.fork()
        if pid == 0:
            os._exit(child(workspace, base, run_id, marks, where, int(times or 1)))
        tell(pid)
        _, code = os.waitpid(pid, 0)
        tell(os.waitstatus_to_exitcode(code))


if __name__ == "__main__":
    main()
