"""Answers one question with four mixes in one batch, changes a mix while it answers, and measures all four.

python -m examples.mix [WORKSPACE]
"""

import sys
import tempfile

from core.engine import Engine
from core.spec.mix import Mix, Sampling
from examples.train import get_adapters


def main(workspace: str) -> None:
    with Engine(workspace) as engine:
        domain, task = get_adapters(engine)
        mixes = [
            Mix(name="base"),  # no weights: the base model alone
            Mix(name="domain", weights={domain: 1.0}),
            Mix(name="task", weights={task: 1.0}),
            Mix(name="half domain + task", weights={domain: 0.5, task: 1.0}),
        ]
        question = engine.samples.questions()[0]["messages"][0]["content"]
        print(question)
        frame = engine.chat.stream(question, mixes, Sampling(max_new_tokens=40)).last()
        for mix, column in zip(mixes, frame.columns, strict=True):
            print(f"  {mix.name:<20} {column.text}")

        # While an answer is generated, its mixes can be replaced: the next token follows the new weights.
        stream = engine.chat.stream(question, [Mix()], Sampling(max_new_tokens=40))
        engine.chat.retune(stream, [Mix(weights={task: 1.5})])
        print(f"  {'base, then task 1.5':<20} {stream.last().columns[0].text}")

        dataset = engine.library.adapter(task).dataset
        progress = engine.evaluation.measure(mixes, dataset, "test", limit=20, general=False).last()
        for row in engine.evaluation.report(progress.report).rows:
            print(f"  {row['name']:<20} perplexity {row['perplexity']:8.2f}, F1 {row['f1']:.2f}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
