"""Where a mix departs from how its adapters were trained: a sentence for each, with what to do.

Knows adapters of the library and mixes. Knows nothing of models: what a departure costs is measured, not
computed here.
"""

from __future__ import annotations

from collections.abc import Mapping

from core.spec.mix import Mix
from core.store.adapters import Adapter

FAR = 0.5  # a weight further than this from the trained one is worth a word


def departures(mix: Mix, adapters: Mapping[str, Adapter]) -> list[str]:
    """What a mix does that its adapters did not see while training, a sentence each.

    Args:
        adapters: the library by id.
    """
    said = []
    for adapter_id in mix.weights:
        adapter = adapters.get(adapter_id)
        if adapter:
            said += [
                s
                for below, trained in trained_with(adapter).items()
                if (s := _departure(mix, adapter, below, trained, adapters.get(below)))
            ]
    return said


def trained_with(adapter: Adapter) -> dict[str, float]:
    """The adapters that were active beside it in training, and their weights."""
    recorded = adapter.metadata.get("trained_with")
    return (
        dict(recorded)
        if isinstance(recorded, dict)
        else ({adapter.stacked_on: 1.0} if adapter.stacked_on else {})
    )


def _departure(mix: Mix, adapter: Adapter, below: str, trained: float, present: Adapter | None) -> str:
    stacked = adapter.metadata.get("stacked_on") or {}
    name = present.name if present else str(stacked.get("name") or below)
    weight = mix.weights.get(below, 0.0)
    if not weight:
        return _off(adapter, name, trained, gone=present is None)
    if present and stacked.get("id") == below and stacked.get("sha256") not in (None, present.sha256):
        return f"{adapter.name} was trained on top of an earlier {name}, which has changed since."
    if abs(weight - trained) > FAR:
        return f"{adapter.name} was trained with {name} at {trained:g}, and here it is at {weight:g}: answers may get worse the further it is."
    return ""


def _off(adapter: Adapter, name: str, trained: float, gone: bool) -> str:
    settings = adapter.metadata.get("hyperparameters") or {}
    if adapter.metadata.get("domain_dropout", settings.get("domain_dropout", 0.0)):
        return ""  # it has learned to do without
    first = f"{adapter.name} was trained with {name} always on, and " + (
        "that one is no longer here" if gone else "here it is off"
    )
    return f"{first}: it may answer badly. " + (
        "Train it again with domain dropout."
        if gone
        else f"Turn {name} on at {trained:g}, or train with domain dropout."
    )
