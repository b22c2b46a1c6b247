"""Kills an experiment at random moments and continues it: `python -m benchmarks.experiment_kills`.

    template ── copied ──> twin: the experiment runs to its end
        └──── copied ──> workspace: it is killed and continued, until it is complete ─ must equal the twin

Every process is a fork of this one, which has imported everything. Compared are answers, the figures of each
answer, and general questions; times differ. Each process writes down what it computes and what it appends, so
that the benchmark counts answers that were computed again (at most one batch for each kill), and answers that
were appended twice (none). A general question that two rows share is computed once and appended twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.crash_operations import CONFIG
from benchmarks.crashes import fork, temporary_folder, wait
from core.engine import Engine
from core.engine.experiment_cells import BATCH_QUESTIONS
from core.spec.experiment_presets import ask_what_helps
from core.store import adapters
from core.store import experiments as store
from core.store.workspace import Workspace

QUESTIONS, GENERAL, TIMED, TOKENS = 8, 3, 2, 6
ROWS = 4  # of the preset
RANK = CONFIG["r"]
MARK, ENDED, COMPUTED, APPENDED = "mark", "ended", "computed", "appended"
WAIT_SECONDS = 120.0  # for the answers that a process gives before it is killed
TOLERANCE = 1e-4  # of figures: a batch of other rows rounds differently
KILLS_EACH = 4  # about so many kills interrupt one experiment, or more
MOMENT_SECONDS = 0.02  # between an answer and the kill, at most


@dataclass
class Outcome:
    """What the kills left.

    Attributes:
        kills: processes that were killed before the experiment was complete.
        experiments: that were completed behind kills, and compared.
        appended, computed: answers in those experiments.
        needed_lines, needed_answers: that they append and compute without a kill.
        places: what the newest answer before a kill was -> number of kills.
    """

    kills: int = 0
    experiments: int = 0
    needed_lines: int = 0
    needed_answers: int = 0
    appended: int = 0
    computed: int = 0
    places: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON."""
        return {**self.__dict__, "places": dict(self.places), "seconds": round(self.seconds, 1)}

    def describe(self) -> str:
        """One line of figures."""
        return (
            f"{self.kills} kills in {self.experiments} experiments: {self.computed} answers were computed "
            f"({self.needed_answers} without a kill) and {self.appended} lines appended "
            f"({self.needed_lines}); {len(self.problems)} problems; {self.seconds:.0f} s"
        )


# --- one process


def make_template(folder: Path, base: str) -> None:
    """Makes a workspace with questions, documents and an adapter."""
    texts = [f"Lamp {i} is kept in room {(7 * i) % 40}." for i in range(40)]
    (folder / "notes.txt").write_text("\n\n---\n\n".join(texts), encoding="utf-8")
    rows = [{"question": f"Where is lamp {i} kept?", "answer": text} for i, text in enumerate(texts)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with Engine(folder / "ws", base, "none", "cpu") as engine:
        engine.datasets.import_files([folder / "notes.txt"], "Notes", "domain")
        engine.datasets.import_files([folder / "pairs.jsonl"], "Pairs", "task")
        engine.bases.current(wait=True)
        engine.worker.call(lambda: add_adapter(engine))


def add_adapter(engine: Engine) -> None:
    """Adds an adapter of random weights on the query projections, on the thread of the model."""
    base = engine.resident_base.get().base
    rng, tensors = np.random.default_rng(1), {}
    for name, weight in base.model.named_parameters():
        if name.endswith("q_proj.weight"):
            place = f"base_model.model.{name.removesuffix('.weight')}"
            for side, shape in (("A", (RANK, weight.shape[1])), ("B", (weight.shape[0], RANK))):
                values = rng.normal(scale=0.3, size=shape).astype(np.float32)
                tensors[f"{place}.lora_{side}.weight"] = values
    about = {"kind": "domain", "base": {"name": base.name, "fingerprint": base.fingerprint}}
    adapters.add(engine.workspace, "notes", "Notes", lambda path: save_file(tensors, path), CONFIG, about)


def run_experiment(folder: Path, base: str) -> None:
    """Starts the experiment of a workspace, or continues it, and waits until it is complete."""
    with Engine(folder / "ws", base, "none", "cpu") as engine:
        engine.bases.current(wait=True)
        watch(folder)
        (folder / MARK).write_text("begun")
        if listed := engine.experiments.list():
            key = listed[0].id
            engine.experiments.resume(key)
        else:
            datasets = {d.name: d.id for d in engine.datasets.list()}
            settings = {
                "split": "all", "limit": QUESTIONS, "general_questions": GENERAL,
                "timed_questions": TIMED, "max_new_tokens": TOKENS,
            }  # fmt: skip
            adapter = engine.library.adapters()[0].id
            key = engine.experiments.start(
                ask_what_helps(datasets["Pairs"], adapter, [datasets["Notes"]], settings)
            )
        status = engine.experiments.wait(key)
        (folder / ENDED).write_text(status.state)
        if status.state != "done":
            raise RuntimeError(f"{status.state}: {status.problem}")


def watch(folder: Path) -> None:
    """Writes down every answer that this process computes, and every line that it appends."""
    import core.evaluate.answers as answers

    def write(name: str, line: str) -> None:
        with open(folder / name, "a", encoding="utf-8") as f:
            f.write(line + "\n")

    def count(answer: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def answer_and_count(*args: Any) -> Iterator[Any]:
            for part in answer(*args):
                for _ in part or ():
                    write(COMPUTED, answer.__name__)
                yield part

        return answer_and_count

    append = store.CellLog.append

    def append_and_count(log: store.CellLog, kind: str, values: Any) -> None:
        append(log, kind, values)
        write(APPENDED, f"{log._path.stem} {kind} {values['index']}")

    answers.answer_tasks = count(answers.answer_tasks)
    answers.answer_alone = count(answers.answer_alone)
    store.CellLog.append = append_and_count  # type: ignore[method-assign]


# --- kills


def read_cells(folder: Path) -> dict[str, dict[str, Any]]:
    """The complete cells of the experiment, by the name of their row; times are left out."""
    workspace = Workspace(folder / "ws")
    return {
        row: {
            "answers": [[a.index, a.answer, a.outcome, a.passages] for a in cell.answers],
            "figures": [a.figures for a in cell.answers],
            "general": list(cell.general),
            "timed": [[t.index, t.tokens] for t in cell.timed],
            "notes": list(cell.notes),
        }
        for key in workspace.ids(store.KIND)
        for row, cell in store.read_cells(workspace, key).items()
    }


def compare_cells(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """How complete cells differ from those of the twin, a sentence each."""
    problems = []
    if expected.keys() != found.keys():
        problems.append(f"the rows are {sorted(found)}, expected {sorted(expected)}")
    for row in expected.keys() & found.keys():
        for part in ("answers", "general", "timed", "notes"):
            if expected[row][part] != found[row][part]:
                problems.append(f"{row}: {part} are {found[row][part]}, expected {expected[row][part]}")
        pairs = zip(expected[row]["figures"], found[row]["figures"], strict=True)
        for index, (a, b) in enumerate(pairs):
            if a.keys() != b.keys() or any(abs(a[name] - b[name]) > TOLERANCE for name in a):
                problems.append(f"{row}: the figures of answer {index} are {b}, expected {a}")
    return problems


def read_lines(path: Path) -> list[str]:
    """The lines of a file; none where it is missing."""
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


class Kills:
    """Kills the experiment on copies of one template workspace."""

    def __init__(self, folder: Path, base: str, seed: int) -> None:
        self.folder, self.base, self.rng, self.outcome = folder, base, random.Random(seed), Outcome()
        template = folder / "template"
        template.mkdir()
        if wait(fork(lambda: make_template(template, base))):
            raise RuntimeError("the template workspace could not be made")
        twin = self.copy("twin")
        if wait(fork(lambda: run_experiment(twin, base))):
            raise RuntimeError("the experiment failed without a kill")
        self.expected = read_cells(twin)
        if len({str(cell["answers"]) for cell in self.expected.values()}) < ROWS:
            raise RuntimeError("two rows of the experiment have the same answers")
        self.lines, self.answers = (len(read_lines(twin / name)) for name in (APPENDED, COMPUTED))

    def copy(self, name: str) -> Path:
        """A copy of the template."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self.folder / "template", target)
        return target

    def run(self, kills: int) -> None:
        """Kills and continues experiments until so many processes were killed; completes the last one."""
        while self.outcome.kills < kills:
            folder, before, count = self.copy("workspace"), {}, 0
            while self.outcome.kills < kills and self.kill(folder):
                count += 1
                before = self.check_progress(folder, before)
            code = wait(fork(lambda folder=folder: run_experiment(folder, self.base)))  # type: ignore[misc]
            if code:
                self.outcome.problems.append(f"the experiment could not be continued ({code})")
            self.check_end(folder, before, count)

    def kill(self, folder: Path) -> bool:
        """Runs the experiment and kills it a random moment after a random number of further answers.

        Returns:
            whether it was still running.
        """
        for name in (MARK, ENDED):
            (folder / name).unlink(missing_ok=True)
        wanted = len(read_lines(folder / APPENDED)) + self.rng.randrange(self.lines // KILLS_EACH)
        pid = fork(lambda: run_experiment(folder, self.base))
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end and not (folder / ENDED).exists():
            if (folder / MARK).exists() and len(read_lines(folder / APPENDED)) >= wanted:
                break
            time.sleep(0.001)
        time.sleep(self.rng.uniform(0.0, MOMENT_SECONDS))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        code = wait(pid)
        if code == -signal.SIGKILL:
            self.outcome.kills += 1
            lines = read_lines(folder / APPENDED)
            self.outcome.places[lines[-1].split()[1] if lines else "start"] += 1
            return True
        if code:
            self.outcome.problems.append(f"the experiment ended with {code}")
        return False

    def check_progress(self, folder: Path, before: dict[str, Any]) -> dict[str, Any]:
        """Checks that cells that were complete before a kill still are; returns the complete ones."""
        found = read_cells(folder)
        if lost := before.keys() - found.keys():
            self.outcome.problems.append(f"a kill has lost the complete cells {sorted(lost)}")
        return found

    def check_end(self, folder: Path, before: dict[str, Any], kills: int) -> None:
        """Compares a complete experiment with the twin."""
        self.check_progress(folder, before)
        appended, computed = read_lines(folder / APPENDED), read_lines(folder / COMPUTED)
        self.outcome.experiments += 1
        self.outcome.needed_lines += self.lines
        self.outcome.needed_answers += self.answers
        self.outcome.appended += len(appended)
        self.outcome.computed += len(computed)
        self.outcome.problems += compare_cells(self.expected, read_cells(folder))
        if twice := [line for line, count in Counter(appended).items() if count > 1]:
            self.outcome.problems.append(f"{len(twice)} answers were appended twice, such as {twice[0]}")
        limit = self.answers + kills * ROWS * BATCH_QUESTIONS
        if len(computed) > limit:
            self.outcome.problems.append(f"{len(computed)} answers were computed, at most {limit} expected")
        left = [p.name for p in (folder / "ws" / store.KIND).rglob("*.jsonl") if p.name != store.ROWS]
        if left:
            self.outcome.problems.append(f"{', '.join(left)} is left")


def run(kills: int, base: str, seed: int = 1) -> Outcome:
    """Kills experiments and checks what they end with."""
    begin = time.monotonic()
    import core.evaluate.answers
    import core.model.resident  # noqa: F401 (imported before the forks)

    with temporary_folder() as folder:
        killed = Kills(folder, base, seed)
        killed.run(kills)
    killed.outcome.seconds = time.monotonic() - begin
    return killed.outcome


def main() -> int:
    """Runs the benchmark; the exit code is 1 where something differs."""
    parser = argparse.ArgumentParser(description="Kill an experiment, continue it, and compare the results.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--base", default="embedded", help="A folder, or the embedded base.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="Print one JSON value as the last line.")
    args = parser.parse_args()
    if not hasattr(os, "fork"):
        print("This benchmark forks processes, which this system cannot: run it on Linux or macOS.")
        return 1
    outcome = run(args.kills, args.base, args.seed)
    for problem in outcome.problems:
        print(problem)
    print(outcome.describe())
    if args.json:
        print(json.dumps(outcome.to_json()))
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
