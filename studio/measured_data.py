"""The datasets to measure mixes on, as choices: data that nothing trains on comes first."""

from __future__ import annotations

from core.engine import Engine
from studio import labels, samples


def list_datasets(engine: Engine) -> list[tuple[str, str]]:
    """Datasets as choices: those that nothing trains on first, then the newest first."""
    datasets, whole = engine.datasets.list(), set(list_whole_datasets(engine))
    names = labels.label_datasets(datasets)
    newest_first = list(reversed(datasets))
    first, rest = ([d for d in newest_first if (d.id in whole) is held_out] for held_out in (True, False))
    ordered = [*first, *rest]
    return [(f"{names[d.id]} (for evaluation)" if d.id in whole else names[d.id], d.id) for d in ordered]


def list_whole_datasets(engine: Engine) -> list[str]:
    """Ids of the datasets that are measured whole: those for evaluation only, and the sample's questions."""
    held_out = samples.list_held_out(engine)
    return [d.id for d in engine.datasets.list() if d.purpose == "evaluation" or d.id in held_out]
