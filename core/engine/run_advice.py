"""Recommended settings for a dataset, and the run that trains a finished one further."""

from __future__ import annotations

import re
from dataclasses import replace

from core.data.datasets import Dataset, load_dataset, read_split
from core.errors import RunError
from core.spec.recommendation import DataSize, Recommendation, floor_of, recommend
from core.spec.training import RunStatus, TrainSpec
from core.store.runs import Run
from core.store.workspace import Workspace, check_name

SAMPLE_ROWS = 400  # rows whose characters are counted; the rest of the split counts as like them
BYTES_PER_TOKEN = 3.5  # of the embedded base on its language, and about that of larger ones on English
TURN_TOKENS = 4  # what a chat template adds to a message
NAME_SUFFIX = re.compile(r" \+\d+ steps$")
NAME_LIMIT = 120  # characters, as in TrainSpec


def estimate_size(workspace: Workspace, dataset_id: str) -> DataSize:
    """How much a run on a dataset would train on; reads at most SAMPLE_ROWS rows.

    Raises:
        NotFound, StorageError
    """
    dataset = load_dataset(workspace, dataset_id)
    count = dataset.splits.get("train", 0)
    rows = read_split(workspace, dataset_id, "train", limit=SAMPLE_ROWS)
    tokens = trained = 0.0
    for row in rows:
        if dataset.kind == "domain":
            tokens += _count_tokens(row["text"])
            trained += _count_tokens(row["text"])
            continue
        for message in row["messages"]:
            size = _count_tokens(message["content"]) + TURN_TOKENS
            tokens += size
            trained += size * (message["role"] == "assistant" and bool(message.get("weight", 1)))
    scale = count / max(1, len(rows))
    return DataSize(count, round(tokens * scale), round(trained * scale))


def _count_tokens(text: str) -> float:
    return len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN


def recommend_settings(
    dataset: Dataset, size: DataSize, preset: str, parameters: int, context: int
) -> Recommendation:
    """The settings that suit a dataset, on top of a preset; see `core.spec.recommendation.recommend`."""
    return recommend(dataset.kind, preset, size, parameters, context)


def continue_spec(run: Run, parameters: int, steps: int = 0, name: str = "") -> TrainSpec:
    """The settings of a run that trains a finished one further: the same, with a new schedule.

    Args:
        run: the finished run.
        parameters: of the base.
        steps: optimizer steps; 0 takes the suggestion (`core.train.convergence`), else as many as the run
            had.
        name: of the new adapter; "" takes that of the run, with the number of steps.

    Raises:
        RunError: the run is not finished. InvalidName, SpecError
    """
    if run.status is not RunStatus.DONE:
        advice = "Resume it instead." if run.resumable else "Wait until it has finished."
        raise RunError(
            f"Only a finished run can be trained on, and {run.name!r} is {run.status.value}.", advice
        )
    if run.unknown_settings:
        raise RunError(
            f"{run.name!r} has settings of another version: {', '.join(sorted(run.unknown_settings))}.",
            "Start a new run instead.",
        )
    steps = steps or run.extra.train_on_steps or max(run.step, floor_of(parameters).steps - run.step)
    suffix = f" +{steps} steps"
    name = name or NAME_SUFFIX.sub("", run.spec.name)[: NAME_LIMIT - len(suffix)] + suffix
    return replace(run.spec, name=check_name(name), max_steps=steps, continue_from=run.id)
