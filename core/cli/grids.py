"""The terminal's verbs over grids: `grid`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.cli.common import (
    CALIBRATION_SECONDS,
    REFRESH_SECONDS,
    AddVerb,
    ProgressBar,
    add_training_settings,
    print_table,
    read_train_spec,
    warn_of_damaged,
)
from core.cli.inspections import find_dataset
from core.engine import Engine
from core.errors import NotFound, SpecError
from core.remote.run_bundle import WAIT_SECONDS
from core.remote.send import send_cells
from core.spec.experiment import OFF, ON
from core.spec.grid_questions import GridQuestions
from core.spec.settings import label_of
from core.spec.training import KINDS, TrainSpec
from core.store import grids
from core.store.files import atomic_write

ALL = "all"  # documents of every dataset of texts


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `grid`."""
    help = "Queue a run for every cell and wait until all have ended."
    _add_description(add(group, "start", start_grid, help, needs_model=True))
    p = add(group, "show", show_grid, "Show a grid's results, best first; without an id, list all grids.")
    p.add_argument("grid", nargs="?", default="")
    p = add(group, "csv", write_csv, "Print a grid's results as CSV.")
    p.add_argument("grid")
    p.add_argument("--output", type=Path, help="Write a file instead of printing.")
    add(group, "cancel", cancel_grid, "Remove the grid's queued runs from the queue.").add_argument("grid")
    help = "Store a grid without queueing its cells; `grid send` sends them to other machines."
    _add_description(add(group, "define", define_grid, help))
    p = add(group, "send", send_grid, "Pack a bundle for every open cell, and run a command with each.")
    p.add_argument("grid")
    p.add_argument(
        "--template",
        required=True,
        help="The command, with the placeholders {command}, {bundle}, {result} and {name}; "
        'it is run without a shell. For example: sbatch --wrap "{command}"',
    )
    p.add_argument(
        "--again",
        action="store_true",
        help="Also send cells that were sent before and whose result was not collected.",
    )
    help = "Fill open cells with runs of this workspace that have the cell's settings."
    add(group, "collect", collect_cells, help).add_argument("grid")


def _add_description(p: argparse.ArgumentParser) -> None:
    """Adds the options that describe a grid: the settings that its cells share, and those that vary."""
    p.add_argument("kind", choices=KINDS)
    p.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="SETTING=VALUES",
        help='For example rank=16,32 or "schedule=linear,cosine". Give --vary once per setting.',
    )
    p.add_argument(
        "--grid",
        choices=tuple(grids.GRID_PRESETS),
        help="A grid that is often useful; --vary and other options change it or add to it.",
    )
    p.add_argument(
        "--then-ask",
        default="",
        metavar="DATASET",
        help="Questions, by id or name: once the last cell has ended, an experiment asks the base, the "
        "base with documents, and every adapter of the grid.",
    )
    p.add_argument(
        "--documents",
        action="append",
        nargs="?",
        const=ALL,
        metavar="DATASET",
        help="With --then-ask: every adapter also answers with documents, of all datasets of texts or of the "
        "ones that are named. The grids of the portfolio do so without it.",
    )
    add_training_settings(
        p,
        'Settings that the cells share. Default: "embedded" on the embedded base, otherwise "standard".',
    )


def _read_axes(args: argparse.Namespace) -> grids.Axes:
    """The settings that vary, and their values.

    Raises:
        SpecError: a --vary has another form, or its setting or a value is invalid.
    """
    axes = dict(grids.GRID_PRESETS[args.grid].axes) if args.grid else {}
    for text in args.vary:
        name, equals, values = text.partition("=")
        if not equals:
            raise SpecError(
                f"--vary must be SETTING=VALUES, got {text!r}.",
                "Give a setting and its values, for example rank=16,32.",
            )
        name = name.strip().replace("-", "_")
        axes[name] = grids.parse_axis(name, values)
    return axes


def _read_spec(engine: Engine, args: argparse.Namespace) -> TrainSpec:
    """The settings that the cells share: those of the command line, then those of the grid preset."""
    preset = grids.GRID_PRESETS.get(args.grid or "", grids.GridPreset({}))
    for name, value in preset.settings.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if preset.help:
        print(preset.help)
    return read_train_spec(engine, args, f"{args.kind} grid")


def _read_questions(engine: Engine, args: argparse.Namespace) -> GridQuestions | None:
    """The questions that the grid ends in; None without any.

    Raises:
        NotFound: a dataset. SpecError: documents without questions.
    """
    if not args.then_ask:
        if args.documents:
            raise SpecError("--documents needs --then-ask.", "Name a dataset of questions with --then-ask.")
        return None
    preset = grids.GRID_PRESETS.get(args.grid or "", grids.GridPreset({}))
    named = [text for text in args.documents or [] if text != ALL]
    usual = preset.documents if engine.retrieval.list_documents() else ""
    return GridQuestions(
        dataset=find_dataset(engine, args.then_ask),
        documents=ON if args.documents else usual or OFF,
        sources=tuple(find_dataset(engine, text) for text in named),
    )


def start_grid(engine: Engine, args: argparse.Namespace) -> Any:
    axes = _read_axes(args)
    spec = _read_spec(engine, args)
    grid = engine.grids.start(spec, axes, spec.name, _read_questions(engine, args))
    for i, run_id in enumerate(grid.runs, 1):
        print(f"cell {i} of {len(grid.runs)}: {engine.runs.get(run_id).name}")
        engine.runs.wait(run_id, WAIT_SECONDS)
    engine.calibration.wait_for_all(CALIBRATION_SECONDS)
    follow_up = engine.grids.experiments.wait(grid.id).follow_up
    if follow_up and follow_up.experiment:
        _follow_experiment(engine, follow_up.experiment, args)
    return _print_results(engine, grid.id)


def _follow_experiment(engine: Engine, experiment_id: str, args: argparse.Namespace) -> None:
    """Waits until an experiment has ended."""
    bar = ProgressBar()
    while not (status := engine.experiments.wait(experiment_id, REFRESH_SECONDS)).has_ended:
        if not args.json:
            bar.show(status.share, status.text)


def define_grid(engine: Engine, args: argparse.Namespace) -> Any:
    axes = _read_axes(args)
    spec = _read_spec(engine, args)
    grid = engine.grids.define(spec, axes, spec.name, _read_questions(engine, args))
    return _print_results(engine, grid.id)


def send_grid(engine: Engine, args: argparse.Namespace) -> Any:
    cells = []
    for cell in send_cells(engine, args.grid, args.template, args.quantization, args.again):
        cells.append(cell)
        print(f"cell {cell.index + 1}: {cell.name}\n{cell.output}".rstrip(), flush=True)
    print(f"Sent {len(cells)} cells.")
    if cells:
        print(f"Add the results with `bundle collect`, for example {cells[0].result}.")
    return [
        {"cell": c.index, "name": c.name, "bundle": c.bundle, "result": c.result, "said": c.output}
        for c in cells
    ]


def show_grid(engine: Engine, args: argparse.Namespace) -> Any:
    if args.grid:
        return _print_results(engine, args.grid)
    stored = engine.grids.list()
    for g in stored:
        print(f"{g.id:<40} {len(g.runs):>3} cells  {g.name}")
    warn_of_damaged(engine, "grids")
    return stored


def _print_results(engine: Engine, grid_id: str) -> Any:
    """Prints the table of a grid; returns it for --json."""
    results = engine.grids.results(grid_id)
    names = list(results.grid.axes)
    columns = {
        "status": "Status",
        "best_loss": "Best loss",
        "final_loss": "Final loss",
        "seconds": "Seconds",
        "adapter": "Adapter",
    }
    lines = [["", *[label_of(grids.FIELDS[n]) for n in names], *columns.values()]]
    rows = []
    for r in results.rows:
        figures = r.figures()
        values = [grids.format_value(r.cell.values[n]) for n in names]
        lines.append(["best" if r.best else "", *values, *[figures[c] for c in columns]])
        rows.append({**{n: r.cell.values[n] for n in names}, **figures, "best": r.best})
    print_table(lines)
    print(results.note)
    ending = _print_experiment(engine, results.grid)
    return {
        "id": grid_id,
        "name": results.grid.name,
        "counts": results.counts,
        "note": results.note,
        "rows": rows,
        **ending,
    }


def _print_experiment(engine: Engine, grid: grids.Grid) -> dict[str, Any]:
    """Prints what a grid with questions ends in; returns it for --json."""
    if grid.is_pending:
        print("Experiment: it starts when the last cell has ended, while a studio has the workspace open.")
        return {"questions": grid.questions}
    if grid.follow_up is None:
        return {}
    for text in grid.follow_up.left_out:
        print(f"Left out: {text}.")
    if grid.follow_up.problem:
        print(f"Experiment: not started. {grid.follow_up.problem}")
    else:
        try:
            name = engine.experiments.get(grid.follow_up.experiment).name
            print(f"Experiment: {name}. `experiment show {grid.follow_up.experiment}` prints its table.")
        except NotFound:
            print("Experiment: it was deleted.")
    return {"questions": grid.questions, "follow_up": grid.follow_up}


def write_csv(engine: Engine, args: argparse.Namespace) -> Any:
    text = engine.grids.csv(args.grid)
    if args.output:
        with atomic_write(args.output, "w") as f:
            f.write(text)
        print(f"wrote {args.output}")
    else:
        print(text, end="")
    return {"csv": text}


def cancel_grid(engine: Engine, args: argparse.Namespace) -> Any:
    cancelled = engine.grids.cancel_open_cells(args.grid)
    print(f"Cancelled {len(cancelled)} cells.")
    return {"cancelled": cancelled}


def collect_cells(engine: Engine, args: argparse.Namespace) -> Any:
    filled = engine.grids.collect(args.grid)
    print(f"Filled {len(filled)} cells.")
    return {"cells": filled}
