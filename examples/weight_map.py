"""Measures the perplexity of a dataset over the weights of two adapters, and prints the map.

    python -m examples.weight_map [WORKSPACE]

The row of weight 0 is a sweep of the other adapter alone. A map is stored: a second call reads it.
"""

import sys
import tempfile

from core.engine import Engine
from core.engine.analysis import WeightAxis
from examples.train import get_adapters


def main(workspace: str) -> None:
    with Engine(workspace) as engine:
        domain, task = get_adapters(engine)
        axis = WeightAxis(low=-0.5, high=1.5, points=5)
        dataset = engine.library.adapter(task).dataset
        stream = engine.analysis.weight_map(x=task, y=domain, dataset=dataset, limit=8, axis=axis)
        weight_map = None
        for progress in stream:  # a stream shows the newest state; it can be closed at any time
            weight_map = progress.map
            print(f"{progress.done} of {progress.total}", flush=True)
        assert weight_map is not None
        print("domain \\ task" + "".join(f"{w:>9.2f}" for w in axis.weights))
        for y in axis.weights:
            values = (weight_map.value_at(x, y) for x in axis.weights)
            print(f"{y:>13.2f}" + "".join(f"{value:>9.2f}" for value in values))
        print(weight_map.summary({task: "task", domain: "domain"}))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
