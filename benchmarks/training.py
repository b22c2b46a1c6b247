"""How fast is a run, and what memory does it take? Against TRL, a script that pads, and a bare loop.

    OMP_NUM_THREADS=1 python -m benchmarks.training --quick            the embedded base
    OMP_NUM_THREADS=1 python -m benchmarks.training                    with a base of 30 million parameters, and in nf4
    python -m benchmarks.training --device cuda --bases 0.5b 7b        on a GPU, in nf4

Same token ids, base, rank, precision and tokens a step for everybody; each side is a process of its own, and the sides
take turns. Speed is tokens that are no padding a second, over the steps after the first three. Needs `trl`
(requirements-bench.txt). Knows a table and ratios; `benchmarks.trainers` knows the work. With --json the last line is one
JSON object of named figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers import build
from benchmarks.trainers import SIDES, WARM, Job

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {
    "speed_over_trl": (">=", 1.0),
    "speed_over_padded_script": (">=", 3.0),
    "speed_over_floor": (">=", 0.9),
    "heard_ms": ("<=", 100.0),
}
STEPS = {"embedded": 20, "30m": 6}
SLOW = {
    "padded": 0.2
}  # share of the steps that a side takes: every step of it costs as much as ten of the others


def measured(job: Job) -> dict[str, Any]:
    """One side, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.trainers", json.dumps(asdict(job))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    if done.returncode:
        raise SystemExit(f"{job.side} failed: {done.stderr.strip()[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**found, "speed": found["tokens"] / found["seconds"]}


def contest(
    base: str, source: str, kind: str, quantization: str, device: str, turns: int, sides: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """What every side measured, in every turn."""
    found: dict[str, list[dict[str, Any]]] = {s: [] for s in sides}
    for _ in range(turns):
        for side in sides:
            steps = max(2, round(STEPS.get(base, 6) * SLOW.get(side, 1.0)))
            found[side].append(measured(Job(side, source, kind, quantization, device, steps=steps)))
    return found


def figures_of(found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Ratios between the sides: the median over turns; the studio and TRL each at their faster way."""

    def best(*sides: str) -> str:
        return max(
            (s for s in sides if s in found), key=lambda s: statistics.median(m["speed"] for m in found[s])
        )

    def ratio(above: str, below: str, what: str = "speed") -> float:
        return statistics.median(a[what] / b[what] for a, b in zip(found[above], found[below], strict=True))

    ours, peer = best("studio", "studio_unpacked"), best("trl_packed", "trl_unpacked")
    return {
        "speed_over_trl": ratio(ours, peer),
        "speed_over_trl_packed": ratio("studio", "trl_packed"),
        "speed_over_trl_unpacked": ratio("studio_unpacked", "trl_unpacked"),
        "speed_over_padded_script": ratio(ours, "padded"),
        "speed_over_floor": ratio(ours, "floor"),
        "peak_memory_over_trl": ratio(ours, peer, "peak_bytes"),
        "tokens_per_second": statistics.median(m["speed"] for m in found[ours]),
    }


def waiting(source: str, quantization: str, device: str) -> dict[str, float]:
    """From pressing Start to the first step, and from the last step until the adapter is heard in the mixer."""
    from core.data.samples import Samples
    from core.engine import Engine
    from core.spec.mix import Mix, Sampling
    from core.spec.presets import resolve

    with (
        tempfile.TemporaryDirectory() as folder,
        Engine(Path(folder), source, quantization, device) as engine,
    ):
        engine.bases.current(wait=True)
        pairs = engine.datasets.import_files([Samples().task], "Pairs", "task")
        spec = resolve(
            "task", "embedded", {"name": "Timed", "dataset": pairs.id, "max_steps": 20, "batch_size": 4}
        )
        begin = time.perf_counter()
        run_id = engine.runs.start(spec)
        while not engine.runs.get(run_id).step:
            time.sleep(0.002)
        first = time.perf_counter() - begin
        run = engine.runs.wait(run_id)
        begin = time.perf_counter()
        list(
            engine.chat.stream("Where is the lamp?", [Mix(weights={run.adapter: 1.0})], Sampling(max_new_tokens=1))
        )
        heard = time.perf_counter() - begin
        events = engine.runs.events(run_id)[0]
        last = max(e["elapsed"] for e in events if e["kind"] == "step")
        ended = next(e["elapsed"] for e in events if e["kind"] == "result")
    return {
        "start_to_first_step_seconds": first,
        "last_step_to_library_seconds": ended - last,
        "heard_ms": 1000 * heard,
    }


def main() -> int:
    """Runs the contests and holds the figures against the targets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the embedded base in fp32, one turn")
    parser.add_argument(
        "--bases",
        nargs="+",
        default=None,
        choices=("embedded", "30m", "0.5b", "7b"),
        help="bases to train on",
    )
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=["task", "domain"],
        choices=("task", "domain"),
        help="short pairs, texts",
    )
    parser.add_argument(
        "--quantizations", nargs="+", default=None, choices=("none", "nf4"), help="precision of the base"
    )
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES), help="who takes part")
    parser.add_argument(
        "--turns", type=int, default=0, help="turns of every side (1 with --quick, 3 without)"
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    quantizations = args.quantizations or (
        ["nf4"] if args.device == "cuda" else ["none"] if args.quick else ["none", "nf4"]
    )
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for base in args.bases or (["embedded"] if args.quick else ["embedded", "30m"]):
            source = build(base, Path(folder))
            for quantization in quantizations:
                for kind in args.kinds:
                    mark = "".join(
                        f"_{m}"
                        for m in (
                            kind if kind != "task" else "",
                            base if base != "embedded" else "",
                            "nf4" if quantization == "nf4" else "",
                        )
                        if m
                    )
                    found = contest(
                        base,
                        source,
                        kind,
                        quantization,
                        args.device,
                        args.turns or (1 if args.quick else 3),
                        args.sides,
                    )
                    print(
                        f"{base}, {kind}, {quantization}: tokens that are no padding a second, and peak MiB, after {WARM} steps",
                        flush=True,
                    )
                    for side, turns in found.items():
                        speeds = ", ".join(f"{m['speed']:.0f}" for m in turns)
                        print(
                            f"  {side:16s} {speeds:28s} {max(m['peak_bytes'] for m in turns) / 2**20:6.0f} MiB   loss {turns[0]['loss']:.3f}",
                            flush=True,
                        )
                    if set(args.sides) == set(SIDES):
                        figures |= {f"{name}{mark}": value for name, value in figures_of(found).items()}
    figures |= waiting("embedded", "none", args.device)
    for name, value in figures.items():
        sign, limit = next(
            (t for n, t in TARGETS.items() if n == name or name.startswith(f"{n}_") and name not in TARGETS),
            ("", 0.0),
        )
        verdict = (
            ""
            if not sign
            else f"({'met' if (value >= limit if sign == '>=' else value <= limit) else 'MISSED'}: target {sign} {limit:g})"
        )
        print(f"  {name:44s} {value:10.4g}  {verdict}")
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
