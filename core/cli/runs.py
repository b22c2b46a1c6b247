"""The terminal's verbs over training runs: `train` and `runs`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from core.cli.common import (
    AddVerb,
    add_setting,
    add_training_settings,
    follow,
    print_table,
    read_settings,
    read_train_spec,
    warn_of_damaged,
)
from core.engine import Engine
from core.spec.training import KINDS, Launch, RunStatus
from core.store import grids
from core.store.events import MachineEvent, latest
from core.store.run_order import MOVES
from core.store.worth import Worth


def add_train_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `train`."""
    for kind in KINDS:
        p = add(group, kind, train, f"Train a {kind} adapter and follow the run.", needs_model=True)
        p.set_defaults(kind=kind)
        add_training_settings(p, "Default: the one for the size of the base.")
        _add_launch(p)


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `runs`."""
    add(group, "list", list_runs, "List runs, and what each status means.")
    add(group, "show", show_run, "Show a run's status, what it means and what to do next.").add_argument(
        "run"
    )
    add(
        group,
        "pause",
        pause_run,
        "Save a checkpoint and free the model; also for a run of another process.",
    ).add_argument("run")
    add(group, "follow", follow_run, "Show a run's events until it ends.").add_argument("run")
    add(
        group, "resume", resume_run, "Continue a run from its newest checkpoint.", needs_model=True
    ).add_argument("run")
    add(group, "stop", stop_run, "End a run after its present step and keep the adapter.").add_argument("run")
    p = add(
        group,
        "train-on",
        train_on_run,
        "Train the adapter of a finished run further, as a new run with a new adapter.",
        needs_model=True,
    )
    p.add_argument("run")
    p.add_argument("--steps", type=int, default=0, help="Optimizer steps; 0 takes the suggestion of the run.")
    p.add_argument("--name", default="", help="Name of the new adapter.")
    p = add(group, "join", join_run, "Add this machine's processes to a run that another machine started.")
    p.add_argument("run")
    _add_launch(p)
    add(
        group,
        "again",
        requeue_runs,
        "Queue again the runs that were queued when their process ended, and follow them.",
        needs_model=True,
    )
    p = add(group, "move", move_run, "Move a queued run; also one of another process.")
    p.add_argument("run")
    p.add_argument("to", choices=MOVES)
    p = add(group, "cancel", cancel_run, "Remove a run from the queue before it begins.")
    p.add_argument("run")
    p.add_argument(
        "--together", action="store_true", help="Also remove the runs that need the adapter it would train."
    )
    p = add(group, "compare", compare_runs, "Figures and settings of two to eight runs side by side.")
    p.add_argument("runs", nargs="+", metavar="RUN")
    p.add_argument("--all", action="store_true", help="Also show the settings that do not differ.")


def _add_launch(p: argparse.ArgumentParser) -> None:
    """Adds the options that start several processes."""
    for f in dataclasses.fields(Launch):
        add_setting(p, f)


def _read_launch(args: argparse.Namespace) -> Launch | None:
    settings = read_settings(args, Launch)
    return Launch(**settings) if settings else None


def train(engine: Engine, args: argparse.Namespace) -> Any:
    spec = read_train_spec(engine, args, f"{args.kind} adapter")
    run = follow(engine, engine.runs.start(spec, _read_launch(args)))
    print_worth(engine, run.id)
    return run


def list_runs(engine: Engine, args: argparse.Namespace) -> Any:
    runs = engine.runs.list()
    for r in runs:
        outcome = "its adapter equals the base" if r.has_learned_nothing else r.outcome
        notes = "  (resumable)" * r.resumable + (f"  ({outcome})" if outcome else "")
        print(f"{r.id:<40} {r.kind:<7} {r.status.value:<12} {r.step}/{r.total_steps}  {r.name}{notes}")
    for status in sorted({r.status for r in runs}, key=lambda s: s.value):
        print(f"{status.value}: {status.explanation} {status.next_step}")
    warn_of_damaged(engine, "runs")
    return runs


def show_run(engine: Engine, args: argparse.Namespace) -> Any:
    r = engine.runs.get(args.run)
    progress = f"{r.name}: {r.status.value}, step {r.step} of {r.total_steps}"
    machine = latest(engine.runs.events(r.id)[0], MachineEvent) if r.status is RunStatus.RUNNING else None
    for line in (progress, r.error, r.explanation, machine and machine.get("text"), r.next_step):
        if line:
            print(line)
    worth = print_worth(engine, r.id)
    value = {**r.to_json(), "meaning": r.explanation, "next_step": r.next_step}
    return {**value, "worth": dataclasses.asdict(worth)} if worth else value


def print_worth(engine: Engine, run_id: str) -> Worth | None:
    """Prints what the adapter of a run is worth: its figures, and held-out rows with both answers."""
    worth = engine.runs.worth(run_id)
    if worth is None:
        return None
    for gain in (worth.main, *worth.others):
        if gain is not None:
            print(gain.describe())
    for e in worth.examples:
        print(f"  {e.prompt}\n    base:      {e.base}\n    adapter:   {e.adapter}")
        print(f"    reference: {e.reference}")
    if worth.note:
        print(worth.note)
    return worth


def train_on_run(engine: Engine, args: argparse.Namespace) -> Any:
    run = follow(engine, engine.runs.train_on(args.run, args.steps, args.name))
    print_worth(engine, run.id)
    return run


def pause_run(engine: Engine, args: argparse.Namespace) -> Any:
    engine.runs.pause(args.run)
    return engine.runs.get(args.run)


def follow_run(engine: Engine, args: argparse.Namespace) -> Any:
    return follow(engine, args.run)


def resume_run(engine: Engine, args: argparse.Namespace) -> Any:
    engine.runs.resume(args.run)
    return follow(engine, args.run)


def stop_run(engine: Engine, args: argparse.Namespace) -> Any:
    engine.runs.stop(args.run)
    return follow(engine, args.run)


def join_run(engine: Engine, args: argparse.Namespace) -> Any:
    engine.runs.join(args.run, _read_launch(args) or Launch())
    return engine.runs.get(args.run)


def requeue_runs(engine: Engine, args: argparse.Namespace) -> Any:
    return [follow(engine, run_id) for run_id in engine.runs.requeue()]


def move_run(engine: Engine, args: argparse.Namespace) -> Any:
    engine.queue.move(args.run, args.to)
    waiting = [w.run for w in engine.queue.list() if not w.leaving]
    for i, run in enumerate(waiting, 1):
        print(f"{i:>3}  {run.id:<40} {run.name}")
    return {"queue": [run.id for run in waiting]}


def cancel_run(engine: Engine, args: argparse.Namespace) -> Any:
    cancelled = engine.queue.cancel(args.run, args.together)
    for run_id in cancelled:
        print(f"cancelled {run_id}")
    return {"cancelled": cancelled}


def compare_runs(engine: Engine, args: argparse.Namespace) -> Any:
    comparison = engine.runs.compare(args.runs)
    settings = [s for s in comparison.settings if args.all or s.is_varied]
    rows = [
        {
            "run": r.id,
            "name": r.name,
            "status": r.status.value,
            "final_loss": h.final and h.final.loss,
            "best_loss": h.best and h.best.loss,
            "seconds": h.seconds,
        }
        for r, h in zip(comparison.runs, comparison.histories, strict=True)
    ]
    figures = [[name.replace("_", " ").capitalize(), *[row[name] for row in rows]] for name in rows[0]]
    print_table([*figures, *[[s.label, *[grids.format_value(v) for v in s.values]] for s in settings]])
    return {"runs": rows, "settings": {s.name: s.values for s in settings}}
