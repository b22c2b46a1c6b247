"""Trains the same settings in one process and in two, and prints both losses.

    python -m examples.two_processes [WORKSPACE]

Two processes share the batch of every optimizer step, so that the losses are the same.
"""

import sys
import tempfile
from dataclasses import replace

from core.engine import Engine
from core.spec.presets import resolve
from core.spec.training import Launch


def main(workspace: str) -> None:
    with Engine(workspace) as engine:
        data = engine.datasets.import_files([engine.samples.folder / "domain" / "log.txt"], "Log", "domain")
        # The number of accumulation steps must be a multiple of the number of processes.
        changes = {"name": "One process", "dataset": data.id, "max_steps": 4, "accumulation": 2}
        spec = resolve("domain", "embedded", changes)
        launch = Launch(launcher="torchrun", nproc=2)  # on a machine with GPUs, usually one process per GPU
        runs = [
            engine.runs.start(spec),
            engine.runs.start(replace(spec, name="Two processes"), launch),
        ]
        for run in map(engine.runs.wait, runs):
            losses = ", ".join(f"{loss:.4f}" for _, loss in engine.runs.history(run.id).train)
            print(f"{run.name}: {run.status.value}, losses {losses} {run.error}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
