"""Trains a bundle on this machine and writes the result: opens an engine on a workspace made from the bundle.

The workspace lies beside the result until the result is written. A job that was interrupted and is started
again therefore resumes from its newest checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.engine import Engine
from core.errors import BaseModelError, Busy, RunError, SpecError
from core.remote.bundle import BUNDLE_FILE, BUNDLE_MEMBERS, RESULT_FILE, list_files, load_inputs
from core.spec.training import RunStatus
from core.store import adapters, archives, grids, runs
from core.store.bundles import FORMAT, PACK_AGAIN, Bundle
from core.store.files import read_json, sync_folder
from core.store.runs import Run
from core.store.workspace import Workspace

WAIT_SECONDS = 30 * 86400.0  # longest training that is waited for


def run_bundle(
    path: Path,
    out: Path,
    base: str = "",
    quantization: str = "",
    follow: Callable[[Engine, str], Any] | None = None,
) -> Run:
    """Trains the run of a bundle and writes the result.

    Called again after an interruption, it resumes from the newest checkpoint. The workspace beside the result
    is removed once the result is written.

    Args:
        path, out: the bundle and the result.
        base, quantization: used instead of the bundle's; the base must have the same weights.
        follow: shows a run and returns when it has ended; None waits without output.

    Raises:
        DataError, SpecError: the bundle is damaged. BaseModelError: the base is not on this machine, or has
            other weights. RunError: the run did not finish.
    """
    folder = out.with_name(out.name + ".workspace")
    bundle = unpack(path, folder)
    with Engine(folder, base or bundle.base, quantization or bundle.quantization) as engine:
        info = engine.bases.current(wait=True)
        if info.error:
            raise BaseModelError(info.error, "Give --base: a folder on this machine, or a Hub id.")
        if info.fingerprint != bundle.base_fingerprint:
            raise BaseModelError(
                f"The base {info.name!r} has other weights than the bundle's base {bundle.base!r}.",
                "Give --base with a copy of the bundle's base.",
            )
        if engine.runs.get(bundle.run_id).status is not RunStatus.DONE:
            engine.runs.check(bundle.spec)
            engine.runs.resume(bundle.run_id)
            if follow is None:
                engine.runs.wait(bundle.run_id, WAIT_SECONDS)
            else:
                follow(engine, bundle.run_id)
        run = engine.runs.get(bundle.run_id)
        if run.status is not RunStatus.DONE:
            raise RunError(
                f"The run {run.name!r} did not finish ({run.status.value}). {run.error}".strip(),
                "Run the bundle again: it resumes from the newest checkpoint.",
            )
        _write_result(engine.workspace, bundle, run, out)
    shutil.rmtree(folder, ignore_errors=True)
    return run


def _write_result(workspace: Workspace, bundle: Bundle, run: Run, out: Path) -> None:
    """Verifies the trained adapter and writes it, with the run's record and log, as result.zip."""
    adapters.verify(workspace, bundle.adapter_id)
    folder = runs.folder(workspace, bundle.run_id)
    description = {
        "format": FORMAT,
        "run": bundle.run_id,
        "settings": grids.spec_checksum(run.spec),
        "data": bundle.data_sha256,
        "fingerprint": run.base_fingerprint,
    }
    files = {
        "run.json": folder / "run.json",
        "events.jsonl": folder / "events.jsonl",
        **dict(list_files(workspace, "adapters", bundle.adapter_id)),
    }
    archives.write(out, {RESULT_FILE: json.dumps(description).encode(), **files})


def unpack(path: Path, folder: Path) -> Bundle:
    """Makes a workspace from a bundle, with its run ready to begin.

    A workspace that an earlier attempt made from the same bundle is used as it is.

    Raises:
        DataError, SpecError, StudioError: the bundle is damaged. Busy: the folder belongs to another bundle.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        archives.extract(path, partial, BUNDLE_MEMBERS)
        bundle = Bundle.from_json(read_json(partial / BUNDLE_FILE))
        if folder.exists():
            if _belongs_to(folder, bundle):
                return bundle
            raise Busy(
                f"The folder {folder.name} exists and belongs to another bundle.",
                "Give another -o, or remove the folder.",
            )
        workspace = Workspace(partial)
        data, parent = load_inputs(workspace, bundle.spec)
        digests = {d.id: d.sha256 for d in data}, parent.sha256 if parent else ""
        if digests != (bundle.data_sha256, bundle.parent.get("sha256", "")):
            raise SpecError(
                "The bundle's datasets or its parent adapter do not match its description.", PACK_AGAIN
            )
        runs.put(workspace, bundle.to_run(RunStatus.QUEUED))
        partial.replace(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return bundle


def _belongs_to(folder: Path, bundle: Bundle) -> bool:
    """Whether a workspace was made from this bundle."""
    file = folder / BUNDLE_FILE
    return file.is_file() and Bundle.from_json(read_json(file)) == bundle
