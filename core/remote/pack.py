"""Packs a run as a bundle: its settings, its datasets and its parent adapter."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from core.errors import BaseModelError, Busy, DamagedRecord, NotFound, RunError, StudioError
from core.remote.bundle import BUNDLE_FILE, list_files, load_inputs
from core.spec.training import RunStatus, TrainSpec
from core.store import archives, grids, runs
from core.store.bundles import SENT_FILE, Bundle, find_bundle, list_bundles, save_bundle
from core.store.runs import Run, RunExtra
from core.store.workspace import Workspace, make_id


def pack(
    workspace: Workspace,
    run: str | TrainSpec,
    out: Path | None,
    base: str = "embedded",
    quantization: str = "auto",
    extra: RunExtra | None = None,
) -> Bundle:
    """Writes a bundle. The other machine trains the run from its first step.

    Settings that are packed twice give one run, so that a second bundle does not become a second adapter.

    Args:
        run: id of a run of this workspace that has not finished, or the settings of a new one.
        out: the file to write; None writes exports/<run id>/bundle.zip.
        base: base model of a new run; a run of this workspace keeps its own.
        quantization: how the other machine loads the base.
        extra: what is recorded with a new run.

    Raises:
        Busy: the run is queued or training. RunError: it has finished, or began on other weights of its base.
        BaseModelError: the base is not on this machine. StudioError: an input is missing or damaged.
    """
    existing = None
    if isinstance(run, str):
        existing = runs.load(workspace, run)
        _check_can_pack(existing)
        spec, base = existing.spec, existing.base
        extra = RunExtra(grid=existing.extra.grid, cell=existing.extra.cell)
    else:
        spec = run
    base, fingerprint = _identify_base(base)
    if existing is not None and existing.base_fingerprint not in ("", fingerprint):
        raise RunError(
            f"The run {existing.name!r} began on other weights of the base {base!r}.", "Start a new run."
        )
    if spec.continue_from:
        raise RunError(
            "A run that trains another one further needs that run's files, which a bundle does not hold.",
            "Train it on here, or bundle a new run with more steps.",
        )
    data, parent = load_inputs(workspace, spec)
    run_id, adapter_id = _assign_ids(workspace, spec, existing)
    bundle = Bundle(
        run_id=run_id,
        adapter_id=adapter_id,
        spec=spec,
        checksum=grids.spec_checksum(spec),
        base=base,
        base_fingerprint=fingerprint,
        quantization=quantization,
        data_sha256={d.id: d.sha256 for d in data},
        parent={"id": parent.id, "sha256": parent.sha256} if parent else {},
        extra=extra or RunExtra(),
    )
    items = [("datasets", d.id) for d in data]
    if parent:
        items.append(("adapters", parent.id))
    files = {name: path for kind, item_id in items for name, path in list_files(workspace, kind, item_id)}
    if workspace.templates_path.is_file():  # the run must see the same prompts there
        files[workspace.templates_path.name] = workspace.templates_path
    description = {**bundle.to_json(), "extra": {}}
    earlier = None
    with contextlib.suppress(NotFound, DamagedRecord):
        earlier = find_bundle(workspace, run_id)
    save_bundle(workspace, bundle)  # before the file, whose result could not be collected without it
    try:
        archives.write(
            out or workspace.path("exports", run_id, "bundle.zip"),
            {BUNDLE_FILE: json.dumps(description).encode(), **files},
        )
    except BaseException:
        _withdraw(workspace, run_id, earlier)
        raise
    return bundle


def _withdraw(workspace: Workspace, run_id: str, earlier: Bundle | None) -> None:
    """Puts the record of a bundle back that could not be written."""
    with contextlib.suppress(StudioError, OSError):
        if earlier is not None:
            save_bundle(workspace, earlier)
            return
        record = workspace.path("exports", run_id, SENT_FILE)
        record.unlink(missing_ok=True)
        record.parent.rmdir()  # unless it holds other exports


def _check_can_pack(run: Run) -> None:
    if run.status.is_alive:
        raise Busy(f"The run {run.name!r} is {run.status.value}.", "Cancel or stop it first.")
    if run.status is RunStatus.DONE:
        raise RunError(f"The run {run.name!r} has finished.", "Pack a run that has not finished.")


def _assign_ids(workspace: Workspace, spec: TrainSpec, existing: Run | None) -> tuple[str, str]:
    """Ids of run and adapter: existing ones, those of an earlier bundle of these settings, or new ones."""
    if existing is not None:
        return existing.id, existing.adapter
    checksum = grids.spec_checksum(spec)
    finished = {r.id for r in runs.load_all(workspace) if r.status is RunStatus.DONE}
    for earlier in list_bundles(workspace):
        if earlier.checksum == checksum and earlier.run_id not in finished:
            return earlier.run_id, earlier.adapter_id
    return make_id(spec.name), make_id(spec.name)


def _identify_base(name: str) -> tuple[str, str]:
    """Name and fingerprint of a base, which is not loaded; the name of a folder is its full path.

    Raises:
        BaseModelError: the base is not on this machine.
    """
    from core.model.base import fingerprint, folder_of, locate

    source, is_local = locate(name)
    if not is_local:
        raise BaseModelError(
            f"The base {name!r} is not on this machine, so its fingerprint cannot be computed.",
            "Download it first.",
        )
    digest = fingerprint(folder_of(source, is_local))
    folder = Path(name).expanduser()
    return (str(folder.resolve()) if folder.is_dir() else name), digest
