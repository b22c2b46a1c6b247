"""Saved mixes: mixes/<id>.json holds weights, tilts, gates, and the sha256 of each adapter at that time."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from core.errors import NotFound, SpecError, StudioError
from core.spec.mix import Mix
from core.store import adapters
from core.store.record_types import Time
from core.store.records import load_items, read_record, report_damage, write_record
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
        auto: adapter id -> its gate, for weights on Auto.
        names: adapter id -> its display name when the mix was saved, to name one that was deleted since.
    """

    id: str
    name: str
    weights: dict[str, float]
    adapters: dict[str, str]
    created: Time
    warnings: list[str] = field(default_factory=list)
    tilt: dict[str, float] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    auto: dict[str, str] = field(default_factory=dict)

    @property
    def mix(self) -> Mix:
        return Mix(name=self.name, weights=self.weights, tilt=self.tilt, auto=self.auto)


def save(
    workspace: Workspace,
    name: str,
    weights: Mapping[str, float],
    tilt: Mapping[str, float] | None = None,
    auto: Mapping[str, str] | None = None,
) -> SavedMix:
    """Saves a mix of adapters of the library.

    Raises:
        SpecError: a weight, tilt or gate is outside its limits, or the name exists already.
        Busy: another process is saving a mix. InvalidName, NotFound, StorageError.
    """
    mix = Mix(name=check_name(name), weights=dict(weights), tilt=dict(tilt or {}), auto=dict(auto or {}))
    with workspace.lock("mixes"):  # two processes that save one name at the same time make one mix
        _check_name_is_free(workspace, mix.name)
        used = {a: adapters.load(workspace, a) for a in mix.weights}
        digests, names = {a: u.sha256 for a, u in used.items()}, {a: u.name for a, u in used.items()}
        mix_id = make_id(mix.name)
        while workspace.path("mixes", mix_id).exists():
            mix_id = make_id(mix.name)
        saved = SavedMix(
            mix_id,
            mix.name,
            mix.weights,
            digests,
            time.time(),
            tilt=mix.tilt,
            names=names,
            auto=mix.auto,
        )
        _write(workspace, saved)
    return saved


def _check_name_is_free(workspace: Workspace, name: str, mix_id: str = "") -> None:
    """Checks that no mix but `mix_id` has this name.

    Raises:
        SpecError: another mix has it.
    """
    if any(name == m.name and m.id != mix_id for m in load_all(workspace)):
        raise SpecError(
            f"There is already a mix called {name!r}.",
            "Choose another name, or delete the existing mix first.",
        )


def _write(workspace: Workspace, saved: SavedMix) -> None:
    value: dict[str, Any] = {k: v for k, v in saved.__dict__.items() if k != "warnings"}
    write_record(workspace.path("mixes", saved.id), value)


def load(workspace: Workspace, mix_id: str) -> SavedMix:
    """Reads a mix, with a warning for each adapter that has changed or was deleted.

    Raises:
        NotFound, DamagedRecord
    """
    saved = workspace.records.read(("mixes",), (f"{mix_id}.json",), lambda: _read(workspace, mix_id))
    warnings = [
        _compare_adapter(workspace, a, digest, saved.names.get(a, a)) for a, digest in saved.adapters.items()
    ]
    return replace(saved, warnings=[w for w in warnings if w])


def _read(workspace: Workspace, mix_id: str) -> SavedMix:
    path = workspace.find("mixes", mix_id)
    saved = read_record(path, SavedMix, mix_id)
    with report_damage(path):
        _ = saved.mix  # checks its limits
        if set(saved.weights) != set(saved.adapters):
            raise ValueError("its weights and its sha256 sums belong to different adapters")
    return saved


def _compare_adapter(workspace: Workspace, adapter_id: str, digest: str, name: str) -> str:
    """The warning about an adapter that has changed since a mix was saved, or "".

    Args:
        name: of the adapter when the mix was saved.
    """
    try:
        adapter = adapters.load(workspace, adapter_id)
    except NotFound:
        return f"The adapter {name!r} was deleted from the library."
    except StudioError as e:
        return f"The adapter {name!r} is damaged. {e.what}"
    if adapter.sha256 != digest:
        return f"The adapter {adapter.name!r} has changed since this mix was saved."
    return ""


def load_all(workspace: Workspace) -> list[SavedMix]:
    """Every saved mix that can be read, oldest first."""
    return load_items(workspace, "mixes", load)[0]


def rename(workspace: Workspace, mix_id: str, name: str) -> SavedMix:
    """Changes the display name of a mix.

    Raises:
        SpecError: another mix has this name. InvalidName, NotFound, StorageError
    """
    new = check_name(name)
    with workspace.lock("mixes"), workspace.lock("mixes", mix_id):
        saved = replace(load(workspace, mix_id), name=new)
        _check_name_is_free(workspace, new, mix_id)
        _write(workspace, saved)
    return load(workspace, mix_id)
