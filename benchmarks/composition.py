"""Does a mix of a domain adapter and a task adapter answer questions that neither answers alone?

    python -m benchmarks.composition --quick          the shipped domain, one training seed
    python -m benchmarks.composition --seeds 0 1 2    the shipped domain, three training seeds
    python -m benchmarks.composition --fresh 1 2 3    domains that were not used while choosing the settings

Runs the demo (`core.cli.demo`) with the embedded preset. With --json the last line is one JSON object of
named figures.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from assets.samples import write_sample
from assets.world.domain import SHIPPED_SEED
from benchmarks.trained_adapters import AdapterCache
from core.cli import demo
from core.data.samples import Samples
from core.engine import Engine
from core.spec.presets import PRESETS

# The mixes of the demo: the references, and the two ways of combining the adapters.
PARTS = ("base", "domain", "task", "task (apart)")
STACKED, SUMMED = "domain+task", "domain+task (summed)"
COLUMNS = (
    ("exact_match", "EM", 100.0),
    ("general_exact_match", "general EM", 100.0),
    ("recall", "recall", 100.0),
    ("domain_perplexity", "domain ppl", 1.0),
    ("general_perplexity", "general ppl", 1.0),
    ("f1", "F1", 100.0),
)


def run_once(domain_seed: int, seed: int, say, trained: Path | None = None) -> dict[str, Any]:
    """Runs the demo on one domain with one training seed, in a temporary workspace.

    Args:
        domain_seed: selects the station, its papers and its questions.
        seed: of the three training runs.
        say: called with a line of progress from time to time.
        trained: folder of adapters that are not trained again (`benchmarks.trained_adapters`).

    Returns:
        The result of `core.cli.demo.run_demo`: figures by mix, seconds, training by adapter.
    """
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "sample"
        write_sample(sample, domain_seed)
        with Engine(Path(folder) / "workspace", base="embedded", quantization="none") as engine:
            result, shown = None, -1
            train = AdapterCache(engine, trained).train if trained else None
            for moment in demo.run_demo(engine, Samples(sample), seed=seed, train=train):
                result = moment.result or result
                if int(moment.share * 20) > shown:
                    shown = int(moment.share * 20)
                    say(f"domain {domain_seed} seed {seed}: {moment.share:4.0%} {moment.text}")
    assert result is not None
    return result


def compute_margins(mixes: dict[str, dict[str, float]]) -> dict[str, float]:
    """Gain of the combination over the best part, in points of exact match, and the drop of domain
    perplexity.

    The parts are the base, the domain adapter alone and the two task adapters alone.
    """
    best = max(mixes[part]["exact_match"] for part in PARTS)
    return {
        "stacked_gain_points": 100 * (mixes[STACKED]["exact_match"] - best),
        "summed_gain_points": 100 * (mixes[SUMMED]["exact_match"] - best),
        "domain_perplexity_drop_percent": 100
        * (1 - mixes["domain"]["domain_perplexity"] / mixes["base"]["domain_perplexity"]),
    }


def format_table(mixes: dict[str, dict[str, float]]) -> str:
    """The figures of one run as a Markdown table."""
    lines = [
        "| mix | " + " | ".join(label for _, label, _ in COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for name, row in mixes.items():
        cells = []
        for key, _, factor in COLUMNS:
            digits = 0 if factor > 1 else 2
            cells.append(f"{factor * row[key]:.{digits}f}" if key in row else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Runs all jobs and prints a table for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the shipped domain with the first seed only")
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[0, 1, 2], help="training seeds on the shipped domain"
    )
    parser.add_argument(
        "--fresh",
        type=int,
        nargs="*",
        default=[],
        help="seeds of other domains, each trained once with seed 0",
    )
    parser.add_argument("--trained", type=Path, help="folder of adapters that are not trained again")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    args = parser.parse_args()
    shipped = args.seeds[:1] if args.quick else args.seeds
    jobs = [(SHIPPED_SEED, seed) for seed in shipped] + [(domain, 0) for domain in args.fresh]
    preset = PRESETS["embedded"]
    print(f"Embedded preset: domain {json.dumps(preset.domain)}, task {json.dumps(preset.task)}")
    figures: dict[str, float] = {}
    gains: dict[str, list[dict[str, float]]] = {"shipped": [], "fresh": []}
    for domain_seed, seed in jobs:
        result = run_once(
            domain_seed, seed, lambda line: print(line, file=sys.stderr, flush=True), args.trained
        )
        gain = compute_margins(result["mixes"])
        gains["shipped" if domain_seed == SHIPPED_SEED else "fresh"].append(gain)
        seconds = ", ".join(f"{name} {run['seconds']:.0f} s" for name, run in result["training"].items())
        total = f"{result['seconds']:.0f} s in total ({seconds})"
        print(f"\n### Domain {domain_seed}, training seed {seed}: {total}\n")
        print(format_table(result["mixes"]))
        print(
            "\n" + ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in gain.items()),
            flush=True,
        )
        label = f"d{domain_seed}_s{seed}"
        for mix, row in result["mixes"].items():
            figures |= {f"{label}/{mix}/{key}": row[key] for key, _, _ in COLUMNS if key in row}
        figures |= {f"{label}/{name}": value for name, value in gain.items()} | {
            f"{label}/seconds": result["seconds"]
        }
    for group, rows in gains.items():
        for name in rows[0] if rows else ():
            figures[f"{group}/{name}/least"] = min(row[name] for row in rows)
            figures[f"{group}/{name}/mean"] = statistics.mean(row[name] for row in rows)
    if args.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
