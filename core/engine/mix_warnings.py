"""Warns where a mix differs from how its adapters were trained, with what to do about it."""

from __future__ import annotations

from collections.abc import Mapping

from core.spec.mix import Mix
from core.store.adapters import Adapter

WEIGHT_TOLERANCE = 0.5  # a weight further than this from the trained one gets a warning


def list_mix_warnings(mix: Mix, adapters: Mapping[str, Adapter]) -> list[str]:
    """What a mix does that its adapters did not see in training, one sentence each.

    Args:
        adapters: the library by id.
    """
    warnings = []
    for adapter_id in mix.weights:
        adapter = adapters.get(adapter_id)
        if adapter is None:
            continue
        if adapter.alone and not is_alone(mix, adapter_id):
            warnings.append(
                f"{adapter.name} cannot answer in this mix: {adapter.alone}. Set its weight to 1, without a "
                "tilt, and switch the other adapters off; other columns may be anything."
            )
        for parent_id, trained_weight in parent_weights(adapter).items():
            warning = _compare_weight(mix, adapter, parent_id, trained_weight, adapters.get(parent_id))
            if warning:
                warnings.append(warning)
    return warnings


def is_alone(mix: Mix, adapter_id: str) -> bool:
    """Whether a mix has no other active adapter, and this one at weight 1 in every layer."""
    active = {a: w for a, w in mix.weights.items() if w}
    is_whole = mix.auto.get(adapter_id, "hard") == "hard"  # a gate that is on or off for the whole answer
    return active == {adapter_id: 1.0} and not mix.tilt.get(adapter_id) and is_whole


def parent_weights(adapter: Adapter) -> dict[str, float]:
    """The frozen adapters that were active while this one was trained, and their weights."""
    recorded = adapter.metadata.get("trained_with")
    if isinstance(recorded, dict):
        return dict(recorded)
    return {adapter.stacked_on: 1.0} if adapter.stacked_on else {}


def _compare_weight(
    mix: Mix, adapter: Adapter, parent_id: str, trained_weight: float, parent: Adapter | None
) -> str:
    """The warning about one parent adapter, or ""."""
    stacked_on = adapter.metadata.get("stacked_on") or {}
    name = parent.name if parent else str(stacked_on.get("name") or parent_id)
    weight = mix.weights.get(parent_id, 0.0)
    if not weight:
        return _warn_about_switched_off(adapter, name, trained_weight, deleted=parent is None)
    if parent_id in mix.auto and not _has_dropout(adapter):
        return (
            f"{adapter.name} was trained with {name} always on, and Auto switches {name} off where a prompt "
            "does not fit it: it may answer badly then. Train it again with domain dropout, or set "
            f"{name} to {trained_weight:g}."
        )
    if parent and stacked_on.get("id") == parent_id and stacked_on.get("sha256") not in (None, parent.sha256):
        return f"{adapter.name} was trained on top of an earlier {name}, which has changed since."
    if abs(weight - trained_weight) > WEIGHT_TOLERANCE:
        return (
            f"{adapter.name} was trained with {name} at {trained_weight:g}, and this mix sets it to "
            f"{weight:g}: the further it is from that, the worse answers may get."
        )
    return ""


def _warn_about_switched_off(adapter: Adapter, name: str, trained_weight: float, deleted: bool) -> str:
    """The warning about a parent adapter that the mix leaves out.

    "" if the adapter was trained with domain dropout, because it works without its parent then.
    """
    if _has_dropout(adapter):
        return ""
    if deleted:
        return (
            f"{adapter.name} was trained with {name} always on, and {name} was deleted: it may answer badly. "
            "Train it again with domain dropout."
        )
    return (
        f"{adapter.name} was trained with {name} always on, and in this mix it is off: it may answer badly. "
        f"Turn {name} on at {trained_weight:g}, or train with domain dropout."
    )


def _has_dropout(adapter: Adapter) -> bool:
    """Whether an adapter was trained with its parent switched off in some of the steps."""
    settings = adapter.metadata.get("hyperparameters") or {}
    return bool(adapter.metadata.get("domain_dropout", settings.get("domain_dropout", 0.0)))
