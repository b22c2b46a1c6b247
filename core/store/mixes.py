"""Mixes as saved objects: named weights that remember which adapters they were made of.

Knows mixes/<id>.json. Knows nothing of models.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import NotFound, SpecError, StorageError
from core.spec.mix import Mix
from core.store import adapters
from core.store.workspace import Workspace, check_name, make_id, read_json, write_json


@dataclass(frozen=True)
class SavedMix:
    """A named mix.

    Attributes:
        adapters: id -> sha256 of the weights when the mix was saved.
        warnings: sentences about adapters that changed or went since then.
    """

    id: str
    name: str
    weights: dict[str, float]
    adapters: dict[str, str]
    created: float
    warnings: list[str] = field(default_factory=list)
    tilt: dict[str, float] = field(default_factory=dict)

    @property
    def mix(self) -> Mix:
        return Mix(name=self.name, weights=self.weights, tilt=self.tilt)


def save(
    workspace: Workspace, name: str, weights: Mapping[str, float], tilt: Mapping[str, float] | None = None
) -> SavedMix:
    """Saves a mix of adapters that are in the library.

    Raises:
        SpecError, InvalidName, NotFound
    """
    mix = Mix(name=check_name(name), weights=dict(weights), tilt=dict(tilt or {}))
    if any(mix.name == m.name for m in load_all(workspace)):
        raise SpecError(
            f"There is a mix called {mix.name!r} already.",
            "Choose another name, or delete the old one first.",
        )
    digests = {a: adapters.load(workspace, a).sha256 for a in mix.weights}
    saved = SavedMix(make_id(mix.name), mix.name, mix.weights, digests, time.time(), tilt=mix.tilt)
    _write(workspace, saved)
    return saved


def _write(workspace: Workspace, saved: SavedMix) -> None:
    value: dict[str, Any] = {k: v for k, v in saved.__dict__.items() if k != "warnings"}
    write_json(workspace.path("mixes", saved.id), value)


def load(workspace: Workspace, mix_id: str) -> SavedMix:
    """Reads a mix, with warnings where its adapters are no longer what they were."""
    raw = read_json(workspace.find("mixes", mix_id))
    warnings = []
    for adapter_id, digest in raw["adapters"].items():
        try:
            adapter = adapters.load(workspace, adapter_id)
        except (NotFound, StorageError):
            warnings.append(f"The adapter {adapter_id!r} is no longer in the library.")
            continue
        if adapter.sha256 != digest:
            warnings.append(f"The adapter {adapter.name!r} changed since this mix was saved.")
    return SavedMix(**raw, warnings=warnings)


def load_all(workspace: Workspace) -> list[SavedMix]:
    """Every saved mix, oldest first."""
    return [load(workspace, i) for i in workspace.ids("mixes")]


def rename(workspace: Workspace, mix_id: str, name: str) -> SavedMix:
    saved = load(workspace, mix_id)
    new = SavedMix(saved.id, check_name(name), saved.weights, saved.adapters, saved.created, tilt=saved.tilt)
    _write(workspace, new)
    return load(workspace, mix_id)
