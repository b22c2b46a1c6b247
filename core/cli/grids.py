"""The terminal's verbs over grids: run here, sent elsewhere, shown and collected.

Knows arguments and printing; all work is the engine's and `core/bundles.py`'s.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from core.cli.common import Add, add_setting, given, print_table
from core.engine import Engine
from core.errors import SpecError
from core.remote import bundle
from core.spec.presets import PRESETS, resolve
from core.spec.settings import label_of
from core.spec.training import KINDS, TrainSpec
from core.store import grids
from core.store.workspace import atomic_write


def add_verbs(grid: Any, add: Add) -> None:
    """The group `grid`."""
    p = add(grid, "start", start, "Queue a run for every cell and follow them to the end.")
    _add_description(p)
    add(grid, "show", _show, "A grid's results, the best first; without a name, all grids.").add_argument(
        "grid", nargs="?", default=""
    )
    p = add(grid, "csv", _csv, "A grid's results as CSV.")
    p.add_argument("grid")
    p.add_argument("--output", type=Path, help="Write a file instead of printing.")
    add(grid, "cancel", _cancel, "Take a grid's cells out of the queue that have not begun.").add_argument(
        "grid"
    )
    p = add(
        grid,
        "define",
        _define,
        "Write a grid down without queueing anything; `grid send` has its cells run elsewhere.",
    )
    _add_description(p)
    p = add(
        grid, "send", _send, "Pack a bundle for every cell that nobody has run, and run a command with each."
    )
    p.add_argument("grid")
    p.add_argument(
        "--template",
        required=True,
        help='Fills in {command}, {bundle}, {result}, {name}; no shell of ours reads it: sbatch --wrap "{command}"',
    )
    p.add_argument(
        "--again", action="store_true", help="Also cells that were handed over before and have not come back."
    )
    add(
        grid, "collect", _collect, "Take runs of this workspace in that trained what an open cell asks for."
    ).add_argument("grid")


def _add_description(p: argparse.ArgumentParser) -> None:
    """What a grid is made of."""
    p.add_argument("kind", choices=KINDS)
    p.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help='Settings that the cells share. Default: "embedded" on the embedded base, else "standard".',
    )
    p.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="SETTING=VALUES",
        help='For example rank=16,32 or "schedule=linear,cosine".',
    )
    p.add_argument("--grid", choices=tuple(grids.GRID_PRESETS), help="A usual grid; --vary changes or adds to it.")
    for f in dataclasses.fields(TrainSpec):
        if f.name != "kind":
            add_setting(p, f)


def _axes(args: argparse.Namespace) -> grids.Axes:
    """What was asked to be varied.

    Raises:
        SpecError: it has no such form, or cannot be.
    """
    axes = dict(grids.GRID_PRESETS.get(args.grid or "", {}))
    for text in args.vary:
        name, equals, values = text.partition("=")
        if not equals:
            raise SpecError(
                f"{text!r} varies nothing.", "Write a setting and its values, for example rank=16,32."
            )
        name = name.strip().replace("-", "_")
        axes[name] = grids.parse_axis(name, values)
    return axes


def _described(engine: Engine, args: argparse.Namespace) -> TrainSpec:
    """What the cells share, as it was typed."""
    preset = args.preset or ("embedded" if args.base == "embedded" else "standard")
    changes = {k: v for k, v in given(args, TrainSpec).items() if k != "kind"}
    changes.setdefault("name", f"{args.kind} grid")
    if "stack_on" in changes:
        changes["stack_on"] = engine.library.find_adapter(changes["stack_on"])
    return resolve(args.kind, preset, changes)


def start(engine: Engine, args: argparse.Namespace) -> Any:
    spec = _described(engine, args)
    grid = engine.grids.start(spec, _axes(args), spec.name)
    for i, run_id in enumerate(grid.runs, 1):
        print(f"cell {i} of {len(grid.runs)}: {engine.runs.get(run_id).name}")
        engine.runs.wait(run_id, 30 * 86400.0)
    return _told(engine, grid.id)


def _define(engine: Engine, args: argparse.Namespace) -> Any:
    spec = _described(engine, args)
    return _told(engine, engine.grids.define(spec, _axes(args), spec.name).id)


def _send(engine: Engine, args: argparse.Namespace) -> Any:
    gone = []
    for errand in bundle.send(engine, args.grid, args.template, args.quantization, args.again):
        gone.append(errand)
        print(f"cell {errand.cell + 1}: {errand.name}\n{errand.said}".rstrip(), flush=True)
    print(
        f"{len(gone)} cells were sent"
        + (f"; `bundle collect` takes in what comes back, for example {gone[0].result}" if gone else "")
    )
    return gone


def _told(engine: Engine, grid_id: str) -> Any:
    results = engine.grids.results(grid_id)
    names = list(results.grid.axes)
    heads = [
        "",
        *[label_of(grids.FIELDS[n]) for n in names],
        "Status",
        "Best loss",
        "Final loss",
        "Seconds",
        "Adapter",
    ]
    lines = []
    for r in results.rows:
        figures = r.figures()
        shown = [figures[n] for n in ("status", "best_loss", "final_loss", "seconds", "adapter")]
        lines.append(["best" if r.best else "", *[grids.format_value(r.cell.values[n]) for n in names], *shown])
    print_table([heads, *lines])
    print(results.note)
    rows = [{**{n: r.cell.values[n] for n in names}, **r.figures(), "best": r.best} for r in results.rows]
    return {
        "id": grid_id,
        "name": results.grid.name,
        "counts": results.counts,
        "note": results.note,
        "rows": rows,
    }


def _show(engine: Engine, args: argparse.Namespace) -> Any:
    if args.grid:
        return _told(engine, args.grid)
    for g in engine.grids.list():
        print(f"{g.id:<40} {len(g.runs):>3} cells  {g.name}")
    return engine.grids.list()


def _csv(engine: Engine, args: argparse.Namespace) -> Any:
    text = engine.grids.csv(args.grid)
    if args.output:
        with atomic_write(args.output, "w") as f:
            f.write(text)
    print(f"wrote {args.output}" if args.output else text, end="\n" if args.output else "")
    return {"csv": text}


def _cancel(engine: Engine, args: argparse.Namespace) -> Any:
    gone = engine.grids.cancel_waiting(args.grid)
    print(f"{len(gone)} cells will not begin")
    return {"cancelled": gone}


def _collect(engine: Engine, args: argparse.Namespace) -> Any:
    filled = engine.grids.collect(args.grid)
    print(f"{len(filled)} cells found their run")
    return {"cells": filled}
