"""Adapters and saved mixes: listing, checking, naming, baking, deleting. `engine.library`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.data import datasets
from core.engine.damaged import WORKSPACE, check_deletable, delete_file, list_damaged
from core.engine.gates import find_gate_state
from core.engine.mix_names import label_adapters, name_mix
from core.engine.mix_warnings import list_mix_warnings
from core.engine.resident_base import ResidentBase
from core.engine.runs import Runs
from core.engine.uses import is_used_by, list_uses
from core.engine.worker import Stream, Worker
from core.errors import Busy, NotFound, SpecError
from core.merge.methods import BakeSpec
from core.spec.gate import IN_TRAINING
from core.spec.mix import Mix
from core.store import adapters as adapter_store
from core.store import backup
from core.store import grids as grid_store
from core.store import mixes as mix_store
from core.store import runs as run_store
from core.store.adapters import Adapter
from core.store.files import size_of
from core.store.mixes import SavedMix
from core.store.records import Damaged
from core.store.trash import TrashedItem
from core.store.workspace import KINDS, Workspace


@dataclass(frozen=True)
class MixableAdapter:
    """An adapter as the mixer lists it.

    Attributes:
        base: the name of the base it was trained on.
        training: whether it is the adapter in training, which is not in the library yet.
        fits: whether it can be mixed on the resident base.
        reason: why it cannot be mixed; "" if it can.
        created: Unix seconds. steps: optimizer steps that it trained; 0 where that is not known.
        dataset: id of the dataset that it was trained on, or "".
        alone: why it can only be used alone in its column, as a clause, or "".
        gate: whether its weight can be on Auto ("usable"), and why not ("reason", "" where it can).
    """

    id: str
    name: str
    kind: str
    rank: int
    base: str
    training: bool
    fits: bool
    reason: str
    created: float = 0.0
    steps: int = 0
    dataset: str = ""
    alone: str = ""
    gate: dict[str, Any] = field(default_factory=lambda: {"usable": False, "reason": IN_TRAINING})


class Library:
    """Adapters and mixes of the workspace. Safe to call from any thread."""

    def __init__(self, workspace: Workspace, worker: Worker, resident_base: ResidentBase, runs: Runs) -> None:
        self._workspace, self._worker, self._resident_base = workspace, worker, resident_base
        self._runs = runs

    # --- adapters

    def adapters(self) -> list[Adapter]:
        """All adapters, newest first."""
        return adapter_store.load_all(self._workspace)

    def adapter(self, adapter_id: str) -> Adapter:
        """One adapter.

        Raises:
            NotFound, StorageError
        """
        return adapter_store.load(self._workspace, adapter_id)

    def find_adapter(self, text: str) -> str:
        """The id of the adapter with this id or display name (the newest of several).

        Raises:
            NotFound
        """
        for adapter in self.adapters():
            if text in (adapter.id, adapter.name):
                return adapter.id
        for damaged in self.damaged("adapters"):  # it can be deleted; loading it says what is wrong
            if text in (damaged.id, damaged.name):
                return damaged.id
        raise NotFound(f"The library has no adapter {text!r}.", "`adapters list` shows all adapters.")

    def mixable_adapters(self) -> list[MixableAdapter]:
        """The library's adapters and the one in training, oldest first."""
        base = self._resident_base.info.fingerprint
        listed = [_describe(adapter, base) for adapter in reversed(self.adapters())]
        resident = self._resident_base.peek()
        trainee = resident.trainee_id if resident else ""
        if resident and trainee and all(a.id != trainee for a in listed):
            run = next((r for r in self._runs.list() if r.adapter == trainee), None)
            if run:
                unmixable = resident.trainee_unmixable_reason
                reason = f"It cannot be mixed live: {unmixable}." if unmixable else ""
                listed.append(
                    MixableAdapter(
                        trainee,
                        run.name,
                        run.kind,
                        run.spec.rank,
                        run.base,
                        True,
                        not reason,
                        reason,
                        dataset=run.spec.dataset,
                    )
                )
        return listed

    def labels(self) -> dict[str, str]:
        """Adapter id -> its name in words, different for every adapter; see `label_adapters`."""
        return label_adapters(self.mixable_adapters())

    def uses(self, kind: str, item_id: str) -> list[str]:
        """What in the workspace uses an item, one phrase each: "the saved mix 'Tone'".

        Args:
            kind: one of `core.store.workspace.KINDS`.
        """
        return list_uses(self._workspace, self._runs.list(), kind, item_id)

    def verify(self, adapter_id: str) -> list[str]:
        """Checks an adapter's files; one sentence per check that passed.

        Raises:
            AdapterError: a file changed, is missing, or holds unusable weights.
        """
        return adapter_store.verify(self._workspace, adapter_id)

    def archive(self, adapter_id: str) -> Path:
        """Writes the adapter's folder as a zip and returns its path."""
        return adapter_store.export_zip(self._workspace, adapter_id)

    def bake(self, mix: Mix, spec: BakeSpec) -> Stream:
        """Merges a mix into one ordinary adapter of the library.

        Returns:
            a stream of Progress that ends with a BakeResult.
        """

        def work() -> Generator[Any, None, None]:
            from core.merge.bake import bake

            yield from bake(self._resident_base.get(), mix, spec)

        return self._worker.stream(work)

    # --- mixes

    def mixes(self) -> list[SavedMix]:
        """All saved mixes, oldest first."""
        return mix_store.load_all(self._workspace)

    def mix(self, mix_id: str) -> SavedMix:
        """One saved mix, with warnings about adapters that have changed or were deleted.

        Raises:
            NotFound, StorageError
        """
        return mix_store.load(self._workspace, mix_id)

    def save_mix(
        self,
        name: str,
        weights: dict[str, float],
        tilt: dict[str, float] | None = None,
        auto: dict[str, str] | None = None,
    ) -> SavedMix:
        """Saves a mix of adapters of the library; the arguments are the fields of a `Mix`.

        Raises:
            SpecError, InvalidName, NotFound
        """
        return mix_store.save(self._workspace, name, weights, tilt, auto)

    def default_mixes(self) -> list[Mix]:
        """Mixes to start from: the base, a domain adapter, a task adapter, and both adapters, by name.

        Only adapters that fit the resident base and can be mixed with others are used: the newest task
        adapter, and its parent adapter, or the newest domain adapter if it has none.
        """
        listed = self.mixable_adapters()
        labels = label_adapters(listed)
        usable = [a for a in listed if a.fits and not a.alone]
        domains, tasks = ([a for a in usable if a.kind == kind] for kind in ("domain", "task"))
        task = tasks[-1] if tasks else None
        parent = self.adapter(task.id).stacked_on if task and not task.training else ""
        domain = next((d for d in domains if d.id == parent), domains[-1] if domains else None)
        chosen: list[dict[str, float]] = [{}]
        if domain:
            chosen.append({domain.id: 1.0})
        if task:
            chosen.append({task.id: 1.0})
        if domain and task:
            chosen.append({domain.id: 1.0, task.id: 1.0})
        mixes = [Mix(weights=weights) for weights in chosen]
        return [replace(mix, name=name_mix(mix, labels)) for mix in mixes]

    def mix_warnings(self, mix: Mix) -> list[str]:
        """Where a mix differs from how its adapters were trained, one sentence each."""
        return list_mix_warnings(mix, {a.id: a for a in self.adapters()}) if mix.weights else []

    # --- all kinds of items

    def rename(self, kind: str, item_id: str, name: str) -> None:
        """Gives a dataset, adapter, mix, run or grid another display name, in one step.

        Args:
            kind: "datasets", "adapters", "mixes", "runs" or "grids".

        Raises:
            SpecError: items of this kind cannot be renamed, or another mix has the name.
            NotFound, InvalidName, StorageError
        """
        renamers: dict[str, Callable[[Workspace, str, str], Any]] = {
            "datasets": datasets.rename_dataset,
            "adapters": adapter_store.rename,
            "mixes": mix_store.rename,
            "runs": run_store.rename,
            "grids": grid_store.rename,
        }
        if kind not in renamers:
            raise SpecError(f"A {kind.rstrip('s')} cannot be renamed.", f"Only {', '.join(renamers)} can.")
        renamers[kind](self._workspace, item_id, name)

    def delete(self, kind: str, item_id: str) -> TrashedItem:
        """Moves an item of the workspace to the trash; deleting a grid keeps its runs and adapters.

        Args:
            kind: one of `core.store.workspace.KINDS`.

        Raises:
            Busy: a live run uses it. NotFound
        """
        self._workspace.find(kind, item_id)
        for run in self._runs.list():
            if run.status.is_alive and is_used_by(run, kind, item_id):
                raise Busy(f"The run {run.name!r} is using it.", "Stop the run first, or wait until it ends.")
        if kind == "adapters" and (resident := self._resident_base.peek()) is not None:
            self._worker.call(lambda: resident.unload(item_id))
        with self._workspace.lock(kind, item_id):  # a change that has begun ends first
            return self._workspace.remove(kind, item_id)

    # --- damaged items

    def damaged(self, *kinds: str) -> list[Damaged]:
        """What cannot be read in the workspace, with the file and the reason; the lists leave it out.

        Args:
            kinds: kinds of items, and "workspace" for files that belong to no item; none means all.
        """
        return list_damaged(self._workspace, kinds or (*KINDS, WORKSPACE))

    def delete_damaged(self, kind: str, item_id: str) -> None:
        """Moves a damaged item to the trash; deletes a damaged file of the workspace.

        Args:
            kind, item_id: of `Damaged`.

        Raises:
            Busy: a live run uses it. NotFound, StorageError
        """
        if kind == WORKSPACE:
            delete_file(self._workspace, item_id)
            return
        check_deletable(self._workspace, kind, item_id)
        self.delete(kind, item_id)

    # --- the trash

    def trash(self) -> list[TrashedItem]:
        """The deleted items, the newest first."""
        return self._workspace.trash()

    def restore(self, entry: str) -> TrashedItem:
        """Undoes a deletion.

        Args:
            entry: `TrashedItem.entry`.

        Raises:
            NotFound: the trash has no such entry. Busy: its id, or the name of a mix, is taken.
        """
        return self._workspace.restore(entry)

    def empty_trash(self) -> int:
        """Deletes the items in the trash for good; returns their number."""
        return self._workspace.empty_trash()

    # --- the disk

    def back_up(self) -> Path:
        """Writes a backup of the whole workspace and returns its path; the caller deletes it.

        Raises:
            Busy: another backup is being made. DiskFull, StorageError
        """
        return backup.pack_download(self._workspace)

    def disk_usage(self) -> dict[str, int]:
        """Free bytes on the disk of the workspace, and bytes that the workspace and its trash use."""
        return {
            "free_bytes": shutil.disk_usage(self._workspace.root).free,
            "used_bytes": size_of(self._workspace.root),
            "trash_bytes": sum(item.bytes for item in self.trash()),
        }


def _describe(adapter: Adapter, base_fingerprint: str) -> MixableAdapter:
    """An adapter of the library as the mixer lists it; while no base is loaded, every adapter fits."""
    reason = ""
    if base_fingerprint and adapter.base_fingerprint != base_fingerprint:
        reason = f"It was trained on {adapter.base!r}, another base."
    steps = adapter.results.get("steps")
    return MixableAdapter(
        adapter.id,
        adapter.name,
        adapter.kind,
        adapter.rank,
        adapter.base,
        False,
        not reason,
        reason,
        adapter.created,
        steps if isinstance(steps, int) else 0,
        adapter.dataset,
        adapter.alone,
        find_gate_state(adapter.metadata, base_fingerprint),
    )
