"""Trains every combination of two ranks and two learning rates, and prints the results, best first.

python -m examples.grid [WORKSPACE]
"""

import sys
import tempfile

from core.engine import Engine
from core.spec.presets import resolve


def main(workspace: str) -> None:
    with Engine(workspace) as engine:
        data = engine.datasets.import_files([engine.samples.folder / "domain" / "log.txt"], "Log", "domain")
        shared = resolve("domain", "embedded", {"name": "Log", "dataset": data.id, "max_steps": 6})
        grid = engine.grids.start(shared, {"rank": [2, 16], "learning_rate": [3e-4, 3e-3]}, "Rank x rate")
        for run_id in grid.runs:
            run = engine.runs.wait(run_id)
            print(f"{run.name}: {run.status.value}")
        results = engine.grids.results(grid.id)
        for row in results.rows:
            behind = f"+{row.behind.nats:.3f}" if row.behind else "best"
            print(f"{row.cell.values}  loss {row.loss:.3f}  {behind}")
        print(results.note)  # whether the differences are larger than chance


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
