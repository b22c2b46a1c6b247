"""Trains a domain and a task adapter on your files, mixes them and prints what each mix answers.

python examples/train_and_mix.py texts.txt pairs.jsonl "Where is the lamp?"
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from core.engine import Engine
from core.spec.mix import Sampling
from core.spec.presets import resolve


def main(texts: str, pairs: str, prompt: str, base: str = "embedded", steps: int = 0) -> dict[str, str]:
    """Returns the answer of every mix, by the mix's name."""
    with tempfile.TemporaryDirectory() as workspace, Engine(workspace, base) as engine:
        corpus = engine.datasets.import_files([texts], "Texts", "domain")
        examples = engine.datasets.import_files([pairs], "Pairs", "task")
        domain = engine.runs.start(
            resolve("domain", "embedded", {"name": "Domain", "dataset": corpus.id, "max_steps": steps})
        )
        below = engine.runs.get(domain).adapter  # the id that it will have: the second run queues behind the first
        task = engine.runs.start(
            resolve(
                "task",
                "embedded",
                {"name": "Task", "dataset": examples.id, "stack_on": below, "max_steps": steps},
            )
        )
        for run in (domain, task):
            ended = engine.runs.wait(run)
            print(f"{ended.name}: {ended.status.value} after {ended.step} steps {ended.error}")
        frame = engine.chat.stream(prompt, engine.library.default_mixes(), Sampling(max_new_tokens=40)).last()
        answers = {c.stamp["mix"]: c.text for c in frame.columns}
        for name, text in answers.items():
            print(f"{name:<14} {text}")
        return answers


if __name__ == "__main__":
    main(*sys.argv[1:4])
