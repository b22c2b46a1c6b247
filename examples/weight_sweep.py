"""Sweeps one adapter's weight and prints the perplexity of a dataset's test split at each.

python examples/weight_sweep.py WORKSPACE DATASET ADAPTER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.engine import Engine
from core.spec.mix import Mix

WEIGHTS = (-0.5, 0.0, 0.5, 1.0, 1.5)


def main(workspace: str, dataset: str, adapter: str, base: str = "embedded") -> dict[float, float]:
    """Returns weight -> perplexity."""
    with Engine(workspace, base) as engine:
        engine.bases.current(wait=True)
        adapter_id = engine.library.find_adapter(adapter)
        mixes = [Mix(name=f"{w:+.2f}", weights={adapter_id: w}) for w in WEIGHTS]
        last = engine.evaluation.measure(mixes, dataset, "test", general=False).last()
        found = {
            w: row["perplexity"] for w, row in zip(WEIGHTS, engine.evaluation.report(last.report).rows, strict=True)
        }
        for weight, perplexity in found.items():
            print(f"{weight:+.2f}  {perplexity:10.2f}")
        return found


if __name__ == "__main__":
    main(*sys.argv[1:4])
