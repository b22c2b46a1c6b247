"""The terminal's verbs over bundles: `bundle`. A bundle is a run that another machine trains."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.cli.common import AddVerb, follow
from core.engine import Engine
from core.remote.collect import collect
from core.remote.pack import pack
from core.remote.run_bundle import run_bundle
from core.spec.training import QUANTIZATIONS


def add_verbs(group: Any, add: AddVerb) -> None:
    """Adds the group `bundle`."""
    p = add(group, "pack", pack_run, "Write one file with all that a run needs, except the base model.")
    p.add_argument("run", help="Id of a run of this workspace that has not finished.")
    p.add_argument("-o", "--output", type=Path, required=True, help="The file to write.")

    help = "Train the run of a bundle, in a folder beside the result; started again, it resumes."
    p = add(group, "run", train_bundle, help, needs_engine=False)
    p.add_argument("bundle", type=Path)
    p.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="The result to write; collect it in the workspace that packed the bundle.",
    )
    p.add_argument(
        "--base",
        default="",
        help="A copy of the bundle's base: a folder or a Hub id.",
    )
    p.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="",
        help="How the base is loaded, instead of the bundle's setting.",
    )

    help = "Check results, and add their adapters and runs to the workspace and its grids."
    add(group, "collect", collect_results, help).add_argument("result", nargs="+", type=Path)


def pack_run(engine: Engine, args: argparse.Namespace) -> Any:
    bundle = pack(engine.workspace, args.run, args.output, quantization=args.quantization)
    print(f"wrote {args.output}: {bundle.spec.name}, settings {bundle.checksum[:12]}, base {bundle.base}")
    return {
        "bundle": str(args.output),
        "run": bundle.run_id,
        "adapter": bundle.adapter_id,
        "settings": bundle.checksum,
        "base_fingerprint": bundle.base_fingerprint,
        "data": bundle.data_sha256,
    }


def train_bundle(engine: Any, args: argparse.Namespace) -> Any:
    run = run_bundle(args.bundle, args.output, args.base, args.quantization, follow)
    print(f"wrote {args.output}")
    return {
        "result": str(args.output),
        "run": run.id,
        "adapter": run.adapter,
        "status": run.status.value,
    }


def collect_results(engine: Engine, args: argparse.Namespace) -> Any:
    runs = []
    for path in args.result:
        run = collect(engine, path)
        runs.append(run)
        print(f"{path.name}: {run.name}, adapter {run.adapter}")
    return runs
