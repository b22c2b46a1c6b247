"""Compares three ways to train a task adapter for a domain: independent, stacked, stacked with dropout.

    python -m benchmarks.stacking --quick          one training seed
    python -m benchmarks.stacking --seeds 0 1 2    three

Uses the embedded preset on the shipped domain; the domain adapter is trained once per seed. The dropout is
domain dropout. With --json the last line is one JSON object of named figures: `<way>/on/exact_match` is the
mix of both adapters, `<way>/off/...` the task adapter alone.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from core.data.samples import Samples
from core.engine import Engine
from core.evaluate.measure import EvaluationData
from core.spec.mix import Mix
from core.spec.presets import resolve
from core.spec.settings import SEED
from core.spec.training import RunStatus

WAYS: dict[str, dict[str, Any]] = {
    "independent": {},
    "stacked": {"domain_dropout": 0.0},
    "stacked, dropped in half": {"domain_dropout": 0.5},
}
COLUMNS = (
    ("on", "exact_match", "held-out EM %, domain on"),
    ("on", "recall", "recall %, domain on"),
    ("off", "general_exact_match", "general EM %, domain off"),
    ("on", "general_exact_match", "general EM %, domain on"),
    ("half", "exact_match", "held-out EM %, domain at 0.5"),
    ("off", "general_perplexity", "general perplexity, domain off"),
)


def train(engine: Engine, kind: str, changes: dict[str, Any], say) -> str:
    """Trains with the embedded preset; returns the id of the adapter."""
    begin = time.monotonic()
    run = engine.runs.wait(engine.runs.start(resolve(kind, "embedded", changes)))
    assert run.status is RunStatus.DONE, run.error
    say(f"{changes['name']}: {run.step} steps in {time.monotonic() - begin:.0f} s")
    return run.adapter


def run_seed(seed: int, say) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of one training seed: way -> mix ("on", "half", "off") -> figures."""
    samples = Samples()
    with (
        tempfile.TemporaryDirectory() as folder,
        Engine(Path(folder), base="embedded", quantization="none") as engine,
    ):
        corpus = engine.datasets.import_files(samples.domain, "Domain", "domain", seed=SEED).id
        pairs = engine.datasets.import_files([samples.task], "Task", "task", seed=SEED).id
        domain = train(engine, "domain", {"name": "Domain", "dataset": corpus, "seed": seed}, say)
        mixes: list[Mix] = []
        for way, changes in WAYS.items():
            parent = {} if way == "independent" else {"stack_on": domain}
            task = train(
                engine, "task", {"name": way, "dataset": pairs, "seed": seed, **parent, **changes}, say
            )
            weights = {"on": {task: 1.0, domain: 1.0}, "half": {task: 1.0, domain: 0.5}, "off": {task: 1.0}}
            mixes += [Mix(name=f"{way}/{name}", weights=w) for name, w in weights.items()]
        rows: dict[str, Any] = {}
        data = EvaluationData(
            questions={"": samples.questions(), "general": samples.general_questions()},
            trusted_texts={"general": samples.texts("general_heldout")},
            cloze=samples.recall_probe(),
        )
        for part in (mixes[:6], mixes[6:]):
            progress = None
            for progress in engine.evaluation.measure_data(
                part, lambda: data, corpus, "Held-out questions", "test"
            ):
                pass
            assert progress is not None
            rows |= {row["name"]: row for row in engine.evaluation.report(str(progress.report)).rows}
    return {way: {name: rows[f"{way}/{name}"] for name in ("on", "half", "off")} for way in WAYS}


def main() -> int:
    """Trains and measures all seeds, and prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the first seed only")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    args = parser.parse_args()
    seeds = args.seeds[:1] if args.quick else args.seeds
    results = []
    for seed in seeds:
        results.append(
            run_seed(seed, lambda line, seed=seed: print(f"seed {seed}: {line}", file=sys.stderr, flush=True))
        )
        print(f"seed {seed}: done", file=sys.stderr, flush=True)
    figures: dict[str, float] = {}
    print(
        "| task adapter | "
        + " | ".join(label for *_, label in COLUMNS)
        + " |\n"
        + "|---" * (len(COLUMNS) + 1)
        + "|"
    )
    for way in WAYS:
        cells = []
        for mix, key, label in COLUMNS:
            values = [seed[way][mix][key] for seed in results]
            figures[f"{way}/{mix}/{key}"] = statistics.mean(values)
            factor = 100 if "%" in label else 1
            cells.append(" / ".join(f"{factor * v:.{0 if factor > 1 else 2}f}" for v in values))
        print(f"| {way} | " + " | ".join(cells) + " |")
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
