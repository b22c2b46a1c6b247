"""Trains a domain adapter on texts, and a task adapter on labelled pairs on top of it.

    python -m examples.train [WORKSPACE [TEXTS PAIRS]]

Run the examples in the repository's folder. Without a workspace, they use a temporary one; without files,
this one reads a part of the sample data.
"""

import sys
import tempfile
from pathlib import Path

from core.engine import Engine
from core.spec.presets import resolve

STEPS = 20  # without this limit, the preset trains for minutes


def train(engine: Engine, texts: str | Path, pairs: str | Path) -> tuple[str, str]:
    """Trains both adapters and returns their ids."""
    corpus = engine.datasets.import_files([texts], "Texts", "domain")
    examples = engine.datasets.import_files([pairs], "Pairs", "task")
    changes = {"name": "Domain", "dataset": corpus.id, "max_steps": STEPS}
    runs = [engine.runs.start(resolve("domain", "embedded", changes))]
    # The id of an adapter is known before its run begins, so the second run can be queued behind the first.
    domain = engine.runs.get(runs[0]).adapter
    changes = {"name": "Task", "dataset": examples.id, "max_steps": STEPS, "stack_on": domain}
    runs.append(engine.runs.start(resolve("task", "embedded", changes)))
    for run in map(engine.runs.wait, runs):
        losses = [loss for _, loss in engine.runs.history(run.id).train]
        print(f"{run.name}: {run.status.value}, loss {losses[0]:.2f} -> {losses[-1]:.2f} {run.error}")
    return domain, run.adapter


def get_adapters(engine: Engine) -> tuple[str, str]:
    """A domain and a task adapter of the workspace; trains them if it has none."""
    by_kind = {a.kind: a.id for a in engine.library.adapters()}
    if {"domain", "task"} <= set(by_kind):
        return by_kind["domain"], by_kind["task"]
    return train(engine, engine.samples.folder / "domain" / "log.txt", engine.samples.task)


if __name__ == "__main__":
    with Engine(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()) as engine:
        print(train(engine, *sys.argv[2:4]) if len(sys.argv) > 3 else get_adapters(engine))
