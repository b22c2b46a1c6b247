"""What the Train form suggests for the next run, from the datasets, adapters and runs of the workspace."""

from __future__ import annotations

from typing import Any, NamedTuple

from core.engine import Engine
from core.errors import StudioError
from core.spec import presets
from core.spec.presets import resolve
from core.spec.recommendation import Recommendation
from core.spec.training import TrainSpec
from studio import samples

NO_PARENT = ("The base model alone", "")


class Suggestion(NamedTuple):
    """What the form suggested last, kept on the page to detect a new base and the user's own changes."""

    fingerprint: str = ""  # of the base that it was suggested for
    preset: str = ""
    max_length: int = 0


def suggest_run(engine: Engine, kind: str) -> TrainSpec:
    """The next run of a kind: its newest dataset, and for a task the newest domain adapter as parent."""
    dataset = next(iter(list_datasets(engine, kind)), None)
    parents = list_parents(engine) if kind == "task" else []
    preset = suggest_preset(engine)
    changes = {
        "dataset": dataset.id if dataset else "",
        "name": dataset.name if dataset else "",
        "stack_on": parents[0][1] if parents else "",
    }
    advice = recommend(engine, changes["dataset"], preset).settings
    return resolve(kind, preset, {**changes, **fit_preset(engine, kind, preset), **advice})


def recommend(engine: Engine, dataset: str | None, preset: str) -> Recommendation:
    """The settings that suit a dataset; none without a dataset, or where it cannot be read."""
    try:
        return engine.runs.recommend(dataset, preset) if dataset else Recommendation()
    except StudioError:  # it was deleted; starting the run reports it
        return Recommendation()


def fit_preset(engine: Engine, kind: str, preset: str) -> dict[str, Any]:
    """The settings of a preset that the resident base changes: no sequence is longer than its context."""
    return {"max_length": limit_length(engine.bases.current(), resolve(kind, preset, {}).max_length)}


def limit_length(base: Any, length: int) -> int:
    """A sequence length in tokens, at most the base's context length where that is known."""
    return min(length, base.context) if base.context else length


def suggest_preset(engine: Engine) -> str:
    """The preset made for the resident base, its family or its size."""
    base = engine.bases.current()
    return presets.suggest_preset(base.name, base.family, base.parameters)


def list_datasets(engine: Engine, kind: str) -> list[Any]:
    """Datasets of a kind to train on, newest first; the sample's held-out questions come last."""
    held_out = samples.list_held_out(engine)
    listed = (d for d in reversed(engine.datasets.list()) if d.purpose != "evaluation")
    datasets = (d for d in listed if d.kind == kind)
    return sorted(datasets, key=lambda d: d.id in held_out)


def list_parents(engine: Engine) -> list[tuple[str, str]]:
    """Domain adapters that a task can be trained on top of, as (label, id), newest first.

    An adapter in training is one of them, because its run ends before the task run starts.
    """
    fingerprint, labels = engine.bases.current().fingerprint, engine.library.labels()
    finished = [
        (labels.get(a.id, a.name), a.id)
        for a in engine.library.adapters()
        if a.kind == "domain" and (not fingerprint or a.base_fingerprint == fingerprint)
    ]
    finished_ids = {adapter_id for _, adapter_id in finished}
    training = [
        (f"{r.name} (still training)", r.adapter)
        for r in engine.runs.list()
        if r.kind == "domain" and r.status.is_alive and r.adapter and r.adapter not in finished_ids
    ]
    return training + finished
