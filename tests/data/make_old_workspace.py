"""Writes the workspace that is stored in tests/data/old_workspace.

Kept for the record. It was run once, with version 0.1.0 at commit fbce2d0, and its imports are those of
that commit; later versions need not be able to run it. See tests/data/README.md.

    git worktree add /some/folder fbce2d0
    cp make_old_workspace.py /some/folder/tests/data/
    OMP_NUM_THREADS=1 python tests/data/make_old_workspace.py TARGET

TARGET must not exist. The interrupted run is trained in a child process that kills itself with SIGKILL
(`--interrupt`). The name of the platform, which an adapter's metadata contains, is replaced by a neutral one.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from core.composer import Grid  # noqa: E402

from core import bundles  # noqa: E402
from core.engine import Engine  # noqa: E402
from core.spec import Mix, RunStatus, Sampling, TrainSpec  # noqa: E402
from core.train import checkpoints, runs  # noqa: E402

BASE: tuple[str, str, str] = ("embedded", "none", "cpu")
PLATFORM = "Linux-x86_64"
KILL_STEP = 7  # the child is killed in the step after this one; its newest checkpoint is that of step 6
PAUSE_STEP = 5

COMMON: dict[str, Any] = {
    "learning_rate": 3e-3,
    "batch_size": 2,
    "accumulation": 2,
    "max_length": 64,
    "rank": 2,
    "alpha": 4,
    "dropout": 0.1,
    "warmup_ratio": 0.1,
}
SMALL = ("q_proj", "v_proj")  # fewer layers, smaller files
MACHINES = ("north pump", "south pump", "old boiler", "new boiler", "main valve", "spare valve")
ROOMS = ("cellar", "engine room", "workshop", "yard", "store", "control room")


def write_sources(folder: Path) -> tuple[Path, Path]:
    """Writes a text file with 36 documents and a JSONL file with 36 questions; returns both paths."""
    documents, pairs = [], []
    for i, machine in enumerate(MACHINES):
        for j, room in enumerate(ROOMS):
            day = 1 + (5 * i + 3 * j) % 28
            documents.append(
                f"Report {day} of the water works. The {machine} was moved to the {room} on day {day}. "
                "It was checked twice and it runs without faults. "
                f"The next check of the {machine} is on day {day + 2}."
            )
            pairs.append(
                {
                    "question": f"Where was the {machine} on day {day}?",
                    "answer": f"On day {day} the {machine} was in the {room}.",
                }
            )
    text, questions = folder / "reports.txt", folder / "questions.jsonl"
    text.write_text("\n\n---\n\n".join(documents) + "\n", encoding="utf-8")
    questions.write_text("".join(json.dumps(p) + "\n" for p in pairs), encoding="utf-8")
    return text, questions


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Polls until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the condition did not become true in time")
        time.sleep(0.005)


def finish(engine: Engine, spec: TrainSpec) -> str:
    """Trains a run to its end and returns its adapter's id."""
    run = engine.wait_run(engine.start_run(spec))
    if run.status is not RunStatus.DONE:
        raise RuntimeError(f"{run.name}: {run.status.value} {run.error}")
    return run.adapter


def interrupt(workspace: str, spec: str) -> None:
    """In the child process: starts a run and kills the process in the step after KILL_STEP."""
    from core.train.trainer import Trainer

    inner = Trainer.training_step

    def kill_or_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == KILL_STEP:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(self, *args, **kwargs)

    Trainer.training_step = kill_or_step
    with Engine(workspace, *BASE) as engine:
        engine.wait_run(engine.start_run(TrainSpec.from_json(json.loads(spec))))


def make_interrupted(target: Path, spec: TrainSpec) -> None:
    """Trains a run in a child process that is killed, and checks what it left behind."""
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--interrupt",
        str(target),
        json.dumps(spec.to_json()),
    ]
    code = subprocess.run(command, check=False).returncode
    if code != -signal.SIGKILL:
        raise RuntimeError(f"the child process ended with {code}")
    with Engine(target, *BASE, load=False) as engine:
        run = next(r for r in engine.runs() if r.name == spec.name)
        newest = checkpoints.newest(runs.checkpoints_folder(engine.workspace, run.id), run.id)
        assert run.status is RunStatus.INTERRUPTED and run.step == KILL_STEP, run
        assert newest is not None and checkpoints.step_of(newest) == KILL_STEP - 1


def make_paused(engine: Engine, spec: TrainSpec) -> None:
    """Starts a run and pauses it after PAUSE_STEP or a later step."""
    run_id = engine.start_run(spec)
    wait_for(lambda: engine.run(run_id).step >= PAUSE_STEP)
    engine.pause_run(run_id)
    run = engine.wait_run(run_id)
    assert run.status is RunStatus.PAUSED, run


def make_votes(engine: Engine, mixes: list[Mix]) -> None:
    """Casts five votes on three mixes and withdraws the last one."""
    prompts = (
        "Where was the north pump on day 1?",
        "Where was the old boiler on day 11?",
        "What is a valve?",
    )
    choices: tuple[int | None, ...] = (2, 2, None, 1, 0)
    vote = None
    for i, chosen in enumerate(choices):
        sampling = Sampling(max_new_tokens=10, temperature=0.7, seed=i)
        columns = engine.stream(prompts[i % len(prompts)], mixes, sampling).last().columns
        stamps = [
            {**c.stamp, "mix": m.name, "sampling": sampling.to_json()}
            for c, m in zip(columns, mixes, strict=True)
        ]
        vote = engine.vote(prompts[i % len(prompts)], stamps, chosen)
    assert vote is not None
    engine.withdraw_vote(vote.id)


def make_grid(engine: Engine, base: TrainSpec) -> None:
    """Defines a grid of two cells, trains the first one and packs the second one as a bundle."""
    grid = engine.plan.define(base, {"rank": [2, 4]}, "Ranks")
    finish(engine, grid.cells[0].spec)
    assert engine.plan.collect(grid.id) == [0]
    bundles.pack(engine.workspace, grid.cells[1].spec, None, "embedded", "none", {"grid": grid.id, "cell": 1})


def make(target: Path) -> None:
    """Writes the whole workspace."""
    platform.platform = lambda *args, **kwargs: PLATFORM  # type: ignore[assignment]
    if target.exists():
        raise SystemExit(f"{target} exists already")
    with Engine(target, *BASE) as engine, tempfile.TemporaryDirectory() as folder:
        text, questions = write_sources(Path(folder))
        reports = engine.import_dataset([text], "Water works reports", "domain").id
        pairs = engine.import_dataset([questions], "Water works questions", "task").id
        domain = TrainSpec(
            kind="domain",
            name="Water works",
            dataset=reports,
            max_steps=12,
            save_steps=6,
            eval_steps=6,
            **COMMON,
        )
        below = finish(engine, domain)
        task = TrainSpec(
            kind="task",
            name="Answers",
            dataset=pairs,
            stack_on=below,
            max_steps=12,
            save_steps=6,
            eval_steps=6,
            **COMMON,
        )
        above = finish(engine, task)
    killed = TrainSpec(
        kind="task",
        name="Killed",
        dataset=pairs,
        stack_on=below,
        max_steps=12,
        save_steps=3,
        eval_steps=4,
        target_modules=SMALL,
        seed=7,
        **COMMON,
    )
    make_interrupted(target, killed)
    with Engine(target, *BASE) as engine:
        small = {"kind": "domain", "dataset": reports, "target_modules": SMALL, **COMMON}
        make_paused(engine, TrainSpec(name="Paused", max_steps=24, save_steps=100, eval_steps=12, **small))
        make_grid(engine, TrainSpec(name="Ranks", max_steps=4, save_steps=4, eval_steps=4, **small))
        both = {below: 1.0, above: 1.0}
        mixes = [Mix(name="Base"), Mix(name="Reports", weights={below: 1.0}), Mix(name="Both", weights=both)]
        engine.save_mix("Both", both)
        engine.save_mix("Deep and shallow", {below: 0.75, above: 1.25}, {below: 1.0, above: -0.5})
        make_votes(engine, mixes)
        engine.evaluate(mixes, reports, "test", general=False, max_length=64).last()
        engine.evaluate(mixes, pairs, "test", general=False, max_length=64).last()
        engine.compose.weight_map(below, above, pairs, limit=4, grid=Grid(0.0, 1.0, 3)).last()
        engine.bases.switch("embedded", "none", sure=True)
        engine.base(wait=True)


if __name__ == "__main__":
    if sys.argv[1] == "--interrupt":
        interrupt(*sys.argv[2:4])
    else:
        make(Path(sys.argv[1]))
