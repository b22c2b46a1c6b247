"""What the studio does on a GPU, beside TRL, peft and the bare base; ten minutes.

    python -m benchmarks.gpu                   Qwen2.5-0.5B and Mistral-7B shapes, nf4, bf16, and the tests
    python -m benchmarks.gpu --quick           the 0.5B shape, fewer steps
    python -m benchmarks.gpu --device cpu      the same code on a tiny base, to try the script itself

The bases are random. Training: tokens a second of the studio, of TRL with packing and of a bare loop, each in
its own process. Answers: N mixes of two adapters in one batch, beside peft, one mix after the other (four are
measured, and their time is multiplied), and beside a batch of the bare base. Last come the tests with the
marker `cuda`. What does not fit into the time is named as not measured. The figures are printed and stored
as JSON. Without a CUDA device nothing is run, and the stored object is {"ran": false}.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.mixing import generate_ids, ratio, take_turns
from benchmarks.peers import Peer, RandomAdapters, build, load
from benchmarks.trainers import Job, run_job
from benchmarks.training import measure_side

ROOT = Path(__file__).resolve().parents[1]
NOT_RUN = "not run: no CUDA device"
PARTS = ("training", "mixing", "tests")
PRECISIONS = ("nf4", "none")  # "none" is bf16 on a GPU and fp32 on a CPU
KINDS = ("task", "domain")
SIDES = ("studio", "trl_packed", "floor")
COUNTS = (4, 16, 64)
PEER_MIXES = 4  # that peft answers, one after the other
VOCABULARIES = {"tiny": 8192, "0.5b": 151_936, "mistral-7b": 32_768}  # at least the embedded tokenizer's
TARGETS = {"training_over_trl": 1.5}
SECONDS = 600.0


@dataclass
class Plan:
    """What is measured, and what was found.

    Attributes:
        bases: of `benchmarks.peers.shape`. device: "cuda" or "cpu".
        steps, tokens, turns: timed training steps, tokens an answer, turns of the answers.
        measure: runs the job of a training side.
        end: `time.monotonic()` at which nothing else is begun.
    """

    folder: Path
    device: str
    bases: tuple[str, ...]
    steps: int
    tokens: int
    turns: int
    counts: tuple[int, ...] = COUNTS
    sides: tuple[str, ...] = SIDES
    precisions: tuple[str, ...] = PRECISIONS
    kinds: tuple[str, ...] = KINDS
    measure: Callable[[Job], dict[str, Any]] = measure_side
    end: float = float("inf")
    figures: dict[str, Any] = field(default_factory=dict)

    def report(self, name: str, value: float) -> None:
        """Prints and keeps a figure."""
        limit = next((v for k, v in TARGETS.items() if name.endswith(k)), None)
        verdict = ""
        if limit is not None:
            verdict = f"({'met' if value >= limit else 'MISSED'}: target >= {limit:g})"
        self.figures[name] = round(float(value), 4)
        print(f"  {name:52s} {value:10.4g}  {verdict}", flush=True)

    def has_time(self, name: str) -> bool:
        """Whether something can be begun; if not, says that it was not measured."""
        if time.monotonic() < self.end:
            return True
        print(f"  {name}: not measured, the time is over", flush=True)
        self.figures.setdefault("not_measured", []).append(name)
        return False


def measure_training(plan: Plan, name: str, source: str, quantization: str) -> None:
    """Training speed and peak memory of every side, on the sample data's pairs and texts."""
    mark = f"{name}_{quantization}"
    for kind in plan.kinds:
        found: dict[str, dict[str, Any]] = {}
        for side in plan.sides:
            if not plan.has_time(f"{mark}_{kind}_{side}"):
                return
            job = Job(side, source, kind, quantization, plan.device, steps=plan.steps, held_out=0)
            found[side] = plan.measure(job)
            plan.report(f"{mark}_{kind}_{side}_tokens_per_second", found[side]["speed"])
            plan.report(f"{mark}_{kind}_{side}_peak_mib", found[side]["peak_bytes"] / 2**20)
        ours = found.get("studio")
        for side, label in (("trl_packed", "trl"), ("floor", "floor")):
            if ours and side in found:
                plan.report(f"{mark}_{kind}_training_over_{label}", ours["speed"] / found[side]["speed"])


def measure_answers(plan: Plan, name: str, source: str, quantization: str) -> None:
    """Answers of N mixes in one batch, of peft and of the bare base."""
    mark = f"{name}_{quantization}"
    if not plan.has_time(f"{mark}_mixing"):
        return
    bare = load(source, quantization, plan.device, plan.folder / "bare")
    adapters = RandomAdapters(2)
    ours = adapters.add_to(load(source, quantization, plan.device, plan.folder / "ours"))
    peer = Peer(ours, source)
    ids = ours.base.tokenizer("The history of the lighthouse begins in 1842.").input_ids
    first, second = adapters.names
    for count in plan.counts:
        if not plan.has_time(f"{mark}_{count}_mixes"):
            break
        mixes = [{first: (i + 1) / count, second: 1 - i / (2 * count)} for i in range(count)]

        def answer_by_ours(mixes: list[dict[str, float]] = mixes) -> Any:
            return generate_ids(ours, ids, mixes, plan.tokens)

        def answer_by_peft(mixes: list[dict[str, float]] = mixes) -> Any:
            return [peer.generate_ids(ids, mix, plan.tokens) for mix in mixes[:PEER_MIXES]]

        def answer_by_base(count: int = count) -> Any:
            return generate_ids(bare, ids, [{}] * count, plan.tokens)

        if plan.device == "cpu" and quantization == "none":
            assert answer_by_ours()[:PEER_MIXES] == answer_by_peft(), "the answers equal those of peft"
        seconds = take_turns({"ours": answer_by_ours, "bare": answer_by_base}, plan.turns)
        peft = take_turns({"peft": answer_by_peft}, 1)["peft"]
        plan.report(f"{mark}_{count}_mixes_tokens_per_second", count * plan.tokens / min(seconds["ours"]))
        scaled = min(peft) * count / min(count, PEER_MIXES)
        plan.report(f"{mark}_{count}_mixes_over_peft", scaled / min(seconds["ours"]))
        plan.report(f"{mark}_{count}_mixes_over_bare_base", ratio(seconds["bare"], seconds["ours"]))
    if plan.device == "cuda":
        plan.report(f"{mark}_mixing_peak_mib", torch.cuda.max_memory_allocated() / 2**20)


def free_memory(plan: Plan) -> None:
    """Frees the models of a measurement."""
    gc.collect()
    if plan.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def run_tests(plan: Plan) -> None:
    """The tests with the marker `cuda`."""
    if not plan.has_time("tests"):
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests/test_cuda.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    print(done.stdout[-3000:] if done.returncode else f"  tests: {last}", flush=True)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    plan.figures["tests"] = {**counts, "rc": done.returncode}


def run_plan(plan: Plan, parts: tuple[str, ...]) -> dict[str, Any]:
    """Measures the parts on every base in every precision; returns the figures."""
    for name in plan.bases:
        source = build(name, plan.folder, VOCABULARIES[name])
        for quantization in plan.precisions:
            if "training" in parts:
                measure_training(plan, name, source, quantization)
            if "mixing" in parts:
                measure_answers(plan, name, source, quantization)
                free_memory(plan)
        if "tests" in parts and name == plan.bases[0]:
            run_tests(plan)
    return {"ran": True, "device": describe_device(plan.device), **plan.figures}


def describe_device(device: str) -> str:
    """The name of the GPU, or "cpu"."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; returns 0, also without a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the 0.5B shape only, fewer steps")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu takes a tiny base")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what is run")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES, help="that train")
    parser.add_argument(
        "--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS, help="of the base"
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="pairs, or texts")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which nothing is begun")
    parser.add_argument("--store", type=Path, default=Path("gpu_figures.json"), help="file of the figures")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    args = parser.parse_args(arguments)
    figures: dict[str, Any] = {"ran": False}
    if args.device == "cuda" and not torch.cuda.is_available():
        print(NOT_RUN)
    else:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        with tempfile.TemporaryDirectory() as folder:
            plan = make_plan(Path(folder), args)
            figures = run_plan(plan, tuple(args.parts))
    args.store.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(figures))
    return 0


def make_plan(folder: Path, args: argparse.Namespace) -> Plan:
    """The plan of a device; on a CPU a tiny base, whose sides train in this process."""
    bases = ("0.5b",) if args.quick else ("0.5b", "mistral-7b")
    plan = Plan(folder, "cuda", bases, steps=10, tokens=48, turns=3)
    if args.quick:
        plan.steps, plan.tokens, plan.turns = 6, 32, 2
    if args.device == "cpu":
        plan = Plan(folder, "cpu", ("tiny",), 1, 3, 1, counts=COUNTS[:1], measure=run_job)
    plan.end = time.monotonic() + args.seconds
    plan.sides, plan.precisions, plan.kinds = tuple(args.sides), tuple(args.precisions), tuple(args.kinds)
    return plan


if __name__ == "__main__":
    raise SystemExit(main())
