"""Speed and memory of a training run, compared with TRL, a script that pads, and a bare loop.

    OMP_NUM_THREADS=1 python -m benchmarks.training --quick         the embedded base
    OMP_NUM_THREADS=1 python -m benchmarks.training                 also a base of 30M parameters, and nf4
    python -m benchmarks.training --device cuda --bases 0.5b 7b     on a GPU, in nf4

All sides use the same token ids, base, rank, precision and tokens per step. Every side runs in its own
process, and all sides run in every turn. Speed is non-padding tokens per second, over the steps after the
first three. Needs `trl` (requirements-bench.txt). The work itself is in `benchmarks.trainers`. With --json,
the last line is one JSON object of named figures.
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
from core.store.events import ResultEvent, StepEvent, of_kind

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {
    "speed_over_trl": (">=", 1.0),
    "speed_over_padded_script": (">=", 3.0),
    "speed_over_floor": (">=", 0.9),
    "heard_ms": ("<=", 100.0),
}
STEPS = {"embedded": 20, "30m": 6}
SLOW = {"padded": 0.2}  # share of the steps that a slow side runs; one of its steps costs ten of the others


def measure_side(job: Job) -> dict[str, Any]:
    """Runs one side in its own process; returns its figures."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.trainers", json.dumps(asdict(job))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    if done.returncode:
        raise SystemExit(f"{job.side} failed: {done.stderr.strip()[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {**figures, "speed": figures["tokens"] / figures["seconds"]}


def run_turns(
    base: str, source: str, kind: str, quantization: str, device: str, turns: int, sides: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Figures of every side in every turn."""
    measured: dict[str, list[dict[str, Any]]] = {s: [] for s in sides}
    for _ in range(turns):
        for side in sides:
            steps = max(2, round(STEPS.get(base, 6) * SLOW.get(side, 1.0)))
            measured[side].append(measure_side(Job(side, source, kind, quantization, device, steps=steps)))
    return measured


def compute_ratios(measured: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Ratios between the sides, medians over the turns; the studio and TRL in their faster variants."""

    def best(*sides: str) -> str:
        return max(
            (s for s in sides if s in measured),
            key=lambda s: statistics.median(m["speed"] for m in measured[s]),
        )

    def ratio(above: str, below: str, key: str = "speed") -> float:
        return statistics.median(
            a[key] / b[key] for a, b in zip(measured[above], measured[below], strict=True)
        )

    ours, peer = best("studio", "studio_unpacked"), best("trl_packed", "trl_unpacked")
    return {
        "speed_over_trl": ratio(ours, peer),
        "speed_over_trl_packed": ratio("studio", "trl_packed"),
        "speed_over_trl_unpacked": ratio("studio_unpacked", "trl_unpacked"),
        "speed_over_padded_script": ratio(ours, "padded"),
        "speed_over_floor": ratio(ours, "floor"),
        "peak_memory_over_trl": ratio(ours, peer, "peak_bytes"),
        "tokens_per_second": statistics.median(m["speed"] for m in measured[ours]),
    }


def measure_latency(source: str, quantization: str, device: str) -> dict[str, float]:
    """Time from the start of a run to its first step, and from its end to its adapter's first token."""
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
            engine.chat.stream(
                "Where is the lamp?", [Mix(weights={run.adapter: 1.0})], Sampling(max_new_tokens=1)
            )
        )
        first_token = time.perf_counter() - begin
        events = engine.runs.events(run_id)[0]
        last = max(e["elapsed"] for e in of_kind(events, StepEvent))
        ended = of_kind(events, ResultEvent)[0]["elapsed"]
    return {
        "start_to_first_step_seconds": first,
        "last_step_to_library_seconds": ended - last,
        "heard_ms": 1000 * first_token,
    }


def main() -> int:
    """Runs all turns and compares the figures with the targets."""
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
        help="short pairs, or texts",
    )
    parser.add_argument(
        "--quantizations", nargs="+", default=None, choices=("none", "nf4"), help="precision of the base"
    )
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES), help="sides to run")
    parser.add_argument("--turns", type=int, default=0, help="turns per side (1 with --quick, 3 without)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="device")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    args = parser.parse_args()
    quantizations = args.quantizations
    if not quantizations and args.device == "cuda":
        quantizations = ["nf4"]
    elif not quantizations:
        quantizations = ["none"] if args.quick else ["none", "nf4"]
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
                    measured = run_turns(
                        base,
                        source,
                        kind,
                        quantization,
                        args.device,
                        args.turns or (1 if args.quick else 3),
                        args.sides,
                    )
                    print(
                        f"{base}, {kind}, {quantization}: non-padding tokens per second and peak memory, "
                        f"after {WARM} steps",
                        flush=True,
                    )
                    for side, turns in measured.items():
                        speeds = ", ".join(f"{m['speed']:.0f}" for m in turns)
                        mib = max(m["peak_bytes"] for m in turns) / 2**20
                        loss = turns[0]["loss"]
                        print(f"  {side:16s} {speeds:28s} {mib:6.0f} MiB   loss {loss:.3f}", flush=True)
                    if set(args.sides) == set(SIDES):
                        figures |= {
                            f"{name}{mark}": value for name, value in compute_ratios(measured).items()
                        }
    figures |= measure_latency("embedded", "none", args.device)
    for name, value in figures.items():
        sign, limit = next(
            (t for n, t in TARGETS.items() if n == name or name.startswith(f"{n}_") and name not in TARGETS),
            ("", 0.0),
        )
        verdict = ""
        if sign:
            met = value >= limit if sign == ">=" else value <= limit
            verdict = f"({'met' if met else 'MISSED'}: target {sign} {limit:g})"
        print(f"  {name:44s} {value:10.4g}  {verdict}")
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
