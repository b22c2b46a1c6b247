"""Bakes a mix into one ordinary LoRA adapter, compares both, and writes the adapter as a zip for other tools.

python -m examples.bake [WORKSPACE]
"""

import sys
import tempfile

from core.engine import Engine
from core.merge.methods import BakeSpec
from core.spec.mix import Mix
from examples.train import get_adapters


def main(workspace: str) -> None:
    with Engine(workspace) as engine:
        domain, task = get_adapters(engine)
        mix = Mix(name="live mix", weights={domain: 0.8, task: 1.0})
        # "svd" keeps the largest singular values; with rank 0 the result has the largest rank of the mix.
        result = engine.library.bake(mix, BakeSpec(name="Baked", method="svd")).last()
        print(result.summary())
        print("\n".join(engine.library.verify(result.adapter.id)))

        baked = Mix(name="baked", weights={result.adapter.id: 1.0})
        dataset = engine.library.adapter(task).dataset
        progress = engine.evaluation.measure([mix, baked], dataset, "test", limit=20, general=False).last()
        for row in engine.evaluation.report(progress.report).rows:
            print(f"{row['name']:<10} perplexity {row['perplexity']:.3f}")
        print(engine.library.archive(result.adapter.id))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
