"""Saved mixes: mixes/<id>.json holds weights, tilts, and the sha256 of each adapter at that time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.errors import NotFound, SpecError, StorageError
from core.spec.mix import Mix
from core.store import adapters
from core.store.files import read_json, write_json
from core.store.workspace import Workspace, check_name, make_id


@dataclass(frozen=True)
class SavedMix:
    """A saved mix.

    Attributes:
        weights: adapter id -> weight.
        adapters: adapter id -> sha256 of its weights when the mix was saved.
        created: Unix seconds.
        warnings: a sentence for each adapter that has changed or was deleted since then.
        tilt: adapter id -> tilt.
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
    """Saves a mix of adapters of the library.

    Raises:
        SpecError: a weight or tilt is outside its limits, or the name exists already. InvalidName, NotFound.
    """
    mix = Mix(name=check_name(name), weights=dict(weights), tilt=dict(tilt or {}))
    if any(mix.name == m.name for m in load_all(workspace)):
        raise SpecError(
            f"There is already a mix called {mix.name!r}.",
            "Choose another name, or delete the existing mix first.",
        )
    digests = {a: adapters.load(workspace, a).sha256 for a in mix.weights}
    saved = SavedMix(make_id(mix.name), mix.name, mix.weights, digests, time.time(), tilt=mix.tilt)
    _write(workspace, saved)
    return saved


def _write(workspace: Workspace, saved: SavedMix) -> None:
    value: dict[str, Any] = {k: v for k, v in saved.__dict__.items() if k != "warnings"}
    write_json(workspace.path("mixes", saved.id), value)


def load(workspace: Workspace, mix_id: str) -> SavedMix:
    """Reads a mix, with a warning for each adapter that has changed or was deleted.

    Raises:
        NotFound, StorageError
    """
    raw = read_json(workspace.find("mixes", mix_id))
    warnings = []
    for adapter_id, digest in raw["adapters"].items():
        try:
            adapter = adapters.load(workspace, adapter_id)
        except (NotFound, StorageError):
            warnings.append(f"The adapter {adapter_id!r} was deleted from the library.")
            continue
        if adapter.sha256 != digest:
            warnings.append(f"The adapter {adapter.name!r} has changed since this mix was saved.")
    return SavedMix(**raw, warnings=warnings)


def load_all(workspace: Workspace) -> list[SavedMix]:
    """Every saved mix, oldest first."""
    return [load(workspace, i) for i in workspace.ids("mixes")]


def rename(workspace: Workspace, mix_id: str, name: str) -> SavedMix:
    """Changes the display name of a mix."""
    saved = load(workspace, mix_id)
    new = SavedMix(saved.id, check_name(name), saved.weights, saved.adapters, saved.created, tilt=saved.tilt)
    _write(workspace, new)
    return load(workspace, mix_id)
