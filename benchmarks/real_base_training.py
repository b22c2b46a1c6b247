"""Training on a real base on a CPU: the studio, TRL and a bare loop, on the same token ids.

    OMP_NUM_THREADS=1 python -m benchmarks.real_base_training --base FOLDER            both kinds, three turns
    OMP_NUM_THREADS=1 python -m benchmarks.real_base_training --base FOLDER --quick    one turn of few steps

Every side runs in its own process, one after the other, in turns, and the best turn of each side counts:
other programs can slow a turn down, never speed it up. Speed is real tokens, those of the data without
padding, for each second of processor time of the process; with one thread and nothing else running, that is
wall time. A token that sequences share counts once for each of them, on all sides. Memory is the peak of the
resident set; that of the studio includes a validation, except with --quick, which ends the run after its
timed step. With --json, the last line is one JSON object of named figures. Needs `trl`
(requirements-bench.txt)."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from benchmarks.trainers import Job
from benchmarks.training import measure_side

SIDES = ("studio", "trl_packed", "floor")
KINDS = ("task", "domain")
TARGETS = {
    "training_over_trl_task": (">=", 2.5),
    "training_over_trl_domain": (">=", 2.2),
    "training_over_floor_task": (">=", 1.0),
    "training_over_floor_domain": (">=", 1.0),
    "peak_memory_over_trl_task": ("<=", 0.5),
    "peak_memory_over_trl_domain": ("<=", 0.5),
}


def measure_training(
    base: str,
    quick: bool = False,
    kinds: tuple[str, ...] = KINDS,
    sides: tuple[str, ...] = SIDES,
    turns: int = 0,
) -> dict[str, float]:
    """Ratios of the studio to TRL and to a bare loop, and the figures that they are made of.

    All sides compute in fp32, which is the fastest precision of each on a processor without 16-bit products.

    Args:
        base: a folder or anything else that `core.model.base.load_base` takes.
        quick: one turn of one timed step, after one step that is not timed; without validation.
        turns: how often each side runs; 0 chooses.

    Returns:
        "training_over_trl_task" and so on; speeds in tokens a second, peaks in MiB, the load of the machine.
    """
    figures: dict[str, float] = {}
    for kind in kinds:
        best: dict[str, dict[str, Any]] = {}
        for _ in range(turns or (1 if quick else 3)):
            for side in sides:
                steps, held_out = (1, 0) if quick else (4, 16)
                job = Job(side, base, kind, steps=steps, warm=1, held_out=held_out)
                measured = measure_side(job)
                measured["speed"] = measured["tokens"] / measured["cpu_seconds"]
                if side not in best or measured["speed"] > best[side]["speed"]:
                    best[side] = measured
        for side, measured in best.items():
            figures[f"{side}_{kind}_tokens_per_second"] = round(measured["speed"], 1)
            figures[f"{side}_{kind}_peak_mib"] = round(measured["peak_bytes"] / 2**20)
        ours = best["studio"]
        if "trl_packed" in best:
            trl = best["trl_packed"]
            figures[f"training_over_trl_{kind}"] = ours["speed"] / trl["speed"]
            figures[f"peak_memory_over_trl_{kind}"] = ours["peak_bytes"] / trl["peak_bytes"]
        if "floor" in best:
            figures[f"training_over_floor_{kind}"] = ours["speed"] / best["floor"]["speed"]
    figures["load"] = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0
    return figures


def main() -> int:
    """Measures and compares the figures with the targets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True, help="folder of the base")
    parser.add_argument("--quick", action="store_true", help="one turn of one timed step")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="pairs, or texts")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="sides to run")
    parser.add_argument("--turns", type=int, default=0, help="turns per side (1 with --quick, 3 without)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    args = parser.parse_args()
    figures = measure_training(args.base, args.quick, tuple(args.kinds), tuple(args.sides), args.turns)
    for name, value in figures.items():
        sign, limit = TARGETS.get(name, ("", 0.0))
        verdict = ""
        if sign:
            met = value >= limit if sign == ">=" else value <= limit
            verdict = f"({'met' if met else 'MISSED'}: target {sign} {limit:g})"
        print(f"  {name:40s} {value:10.4g}  {verdict}")
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
