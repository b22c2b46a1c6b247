"""The terminal's verbs over bundles: runs that are trained on another machine.

Knows arguments and printing; all work is that of `core/bundles.py` and `core/collecting.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.cli.common import Add, follow
from core.engine import Engine
from core.remote import bundle, collect


def add_verbs(group: Any, add: Add) -> None:
    """The group `bundle`."""
    p = add(group, "pack", _pack, "Write one file with everything that a run needs but the base.")
    p.add_argument("run", help="A run of this workspace that has not finished.")
    p.add_argument("-o", "--output", type=Path, required=True, help="The file to write.")
    p = add(
        group,
        "run",
        run,
        "Train what a bundle asks for, in a folder of its own beside the result; called again, it goes on.",
    )
    p.add_argument("bundle", type=Path)
    p.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="The result to write; collect it where the bundle comes from.",
    )
    add(
        group,
        "collect",
        _collect,
        "Check a result and take it in: the adapter, the run, and the cell of a grid.",
    ).add_argument("result", nargs="+", type=Path)


def _pack(engine: Engine, args: argparse.Namespace) -> Any:
    made = bundle.pack(engine.workspace, args.run, args.output, quantization=args.quantization)
    print(f"wrote {args.output}: {made.spec.name}, settings {made.key[:12]}, base {made.base}")
    return {
        "bundle": str(args.output),
        "run": made.run,
        "adapter": made.adapter,
        "settings": made.key,
        "base_fingerprint": made.fingerprint,
        "data": made.data,
    }


def run(engine: Any, args: argparse.Namespace) -> Any:
    ended = bundle.run(args.bundle, args.output, args.base, args.quantization, follow)
    print(f"wrote {args.output}")
    return {
        "result": str(args.output),
        "run": ended.id,
        "adapter": ended.adapter,
        "status": ended.status.value,
    }


def _collect(engine: Engine, args: argparse.Namespace) -> Any:
    taken = []
    for path in args.result:
        taken.append(collect.collect(engine, path))
        print(f"{path.name}: {taken[-1].name}, adapter {taken[-1].adapter}")
    return taken
