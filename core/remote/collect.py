"""Collects a result from another machine: checks it, and adds its adapter and its run to the workspace.

`SHA256SUMS` show damage, not intent, and a result is not signed. So the settings, the data, the fingerprint
of the base and the parent adapter are read from the record of what was packed (`sent.json`) and compared; the
adapter is verified like any other and written again by `adapters.add`; of its metadata, only figures and
versions are kept. That the weights come from that training rests on trust in the machine.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from core.data.datasets import load_dataset
from core.data.training_rows import TrainingRows, collect_training_rows, load_record
from core.engine import Engine
from core.errors import AdapterError, NotFound, RunError, StorageError, StudioError
from core.remote.bundle import RESULT_FILE, RESULT_MEMBERS
from core.spec.training import RunStatus, TrainSpec
from core.store import adapters, archives, grids, runs
from core.store.adapter_config import parse_config
from core.store.bundles import Bundle, load_bundle
from core.store.event_log import read_all
from core.store.events import is_event
from core.store.files import read_json
from core.store.locks import FileLock
from core.store.runs import Run
from core.store.workspace import Workspace

TEXT_LIMIT = 200  # characters of a text in a result
JSON_LIMIT_BYTES = 16 << 20
RUN_AGAIN = "Run the bundle again."


def collect(engine: Engine, path: Path) -> Run:
    """Adds the adapter and the run of a result to the workspace, and the run to every grid that has its cell.

    Name, settings, data, base and parent adapter come from the record of what was packed, never from the
    result.

    Raises:
        DataError: the file is damaged. NotFound: its run was not packed in this workspace. RunError: the
            result does not match its bundle, or was collected before. AdapterError: the adapter is unusable.
            Busy: the run is queued or training here.
    """
    workspace = engine.workspace
    with workspace.temporary_folder() as folder:
        names = archives.extract(path, folder, RESULT_MEMBERS)
        for name in names:
            if name.endswith(".json") and (folder / name).stat().st_size > JSON_LIMIT_BYTES:
                raise RunError(
                    f"{name} of the result must be at most {JSON_LIMIT_BYTES >> 20} MiB.", RUN_AGAIN
                )
        result, record = _read_object(folder / RESULT_FILE), _read_object(folder / "run.json")
        bundle = load_bundle(workspace, str(result.get("run", "")))
        _check_result(bundle, result, record)
        adapter_folder = folder / "adapters" / bundle.adapter_id
        metadata = _check_adapter(bundle, adapter_folder)
        events = _read_events(folder / "events.jsonl")
        with _lock_run(workspace, bundle):
            config = parse_config(read_json(adapter_folder / adapters.CONFIG), only_plain=False)
            adapters.add(
                workspace,
                bundle.adapter_id,
                bundle.spec.name,
                lambda target: _copy(adapter_folder / adapters.WEIGHTS, target),
                config,
                _make_metadata(workspace, bundle, metadata),
                _find_training_rows(workspace, bundle, adapter_folder).to_files(),
            )
            extra = dataclasses.replace(
                bundle.extra,
                handed=None,
                collected=time.time(),
                equals_base=_filter_plain(metadata.get("results")).get("equals_base") is True,
            )
            run = dataclasses.replace(bundle, extra=extra).to_run(RunStatus.DONE)
            runs.put(workspace, run, events)
    for grid in engine.grids.list():
        if any(c.key == bundle.checksum for c in grid.cells):
            engine.grids.collect(grid.id)
    return engine.runs.get(bundle.run_id)


@contextmanager
def _lock_run(workspace: Workspace, bundle: Bundle) -> Iterator[None]:
    """Holds the run's lock, so that it is not trained in this workspace meanwhile.

    Raises:
        RunError: the run has finished in this workspace. Busy: it is queued or training.
    """
    if bundle.run_id not in workspace.ids("runs"):
        yield
        return
    run = runs.load(workspace, bundle.run_id)
    if run.status is RunStatus.DONE:
        raise RunError(
            f"The run {run.name!r} has already finished in this workspace.", "Nothing was changed."
        )
    lock = FileLock(runs.lock_path(workspace, bundle.run_id))
    try:
        yield
    finally:
        lock.release()


def _read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a result."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise StorageError(
            f"{path.name} of the result must be a JSON object, got {type(value).__name__}.", RUN_AGAIN
        )
    return value


def _check_result(bundle: Bundle, result: dict[str, Any], record: dict[str, Any]) -> None:
    """Compares settings, data, base and status of a result with its bundle.

    Args:
        result, record: the result's result.json and run.json.

    Raises:
        RunError: they differ.
    """
    try:
        spec = TrainSpec.from_record(record["spec"])
        checksum = grids.spec_checksum(spec)
    except (KeyError, TypeError, AttributeError, StudioError) as e:
        raise RunError(f"The result's settings cannot be read ({e}).", RUN_AGAIN) from e
    main_sha256 = bundle.data_sha256[bundle.spec.dataset]
    matches = {
        "settings": checksum == bundle.checksum == result.get("settings") and spec.rules == bundle.spec.rules,
        "data": result.get("data") == bundle.data_sha256 and record.get("dataset_sha256") == main_sha256,
        "base model": result.get("fingerprint") == bundle.base_fingerprint == record.get("base_fingerprint"),
    }
    if wrong := [name for name, is_same in matches.items() if not is_same]:
        raise RunError(
            f"The result was not trained with the {' and '.join(wrong)} of the bundle {bundle.spec.name!r}.",
            "Run the bundle itself, and collect the result that it writes.",
        )
    if record.get("status") != RunStatus.DONE.value or record.get("adapter") != bundle.adapter_id:
        raise RunError(
            "The result is not of a run that finished.",
            "Run the bundle again: it resumes from the newest checkpoint.",
        )


def _check_adapter(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Verifies the adapter's files and compares its metadata with the bundle; returns the metadata.

    Raises:
        AdapterError: a file is missing, damaged or unusable, or the metadata differs.
    """
    if not folder.is_dir():
        raise AdapterError(f"The result has no adapter {bundle.adapter_id!r}.", RUN_AGAIN)
    adapters.verify_folder(folder)
    metadata = _read_object(folder / adapters.METADATA)
    base, data, parent = (_filter_plain(metadata.get(k)) for k in ("base", "dataset", "stacked_on"))
    claimed = (
        base.get("fingerprint"), data.get("sha256"), parent.get("sha256", ""), metadata.get("run")
    )  # fmt: skip
    expected = (
        bundle.base_fingerprint,
        bundle.data_sha256[bundle.spec.dataset],
        bundle.parent.get("sha256", ""),
        bundle.run_id,
    )
    if claimed != expected:
        raise AdapterError(
            "The adapter's metadata names another base, dataset, parent adapter or run than the bundle.",
            RUN_AGAIN,
        )
    return metadata


def _make_metadata(workspace: Workspace, bundle: Bundle, claimed: dict[str, Any]) -> dict[str, Any]:
    """The adapter's metadata: from the record of what was packed, and figures and versions from the result.

    Args:
        claimed: the metadata in the result.

    Raises:
        AdapterError: the parent adapter has changed since the run was packed.
    """
    spec = bundle.spec
    base, data = _filter_plain(claimed.get("base")), _filter_plain(claimed.get("dataset"))
    with suppress(NotFound):  # the dataset may have been deleted since
        dataset = load_dataset(workspace, spec.dataset)
        data = {"name": dataset.name, "split_seed": dataset.seed, "splits": dataset.splits}
    stacked_on = None
    if bundle.parent:
        parent = adapters.load(workspace, bundle.parent["id"])
        if parent.sha256 != bundle.parent["sha256"]:
            raise AdapterError(
                f"The parent adapter {parent.name!r} has changed since the run was packed.",
                "Pack the run again.",
            )
        stacked_on = {"id": parent.id, "name": parent.name, "sha256": parent.sha256}
    results = _filter_plain(claimed.get("results"))
    return {
        "kind": spec.kind,
        "run": bundle.run_id,
        "base": {**base, "name": bundle.base, "fingerprint": bundle.base_fingerprint},
        "dataset": {**data, "id": spec.dataset, "sha256": bundle.data_sha256[spec.dataset]},
        "stacked_on": stacked_on,
        "trained_with": {stacked_on["id"]: 1.0} if stacked_on else {},
        "domain_dropout": spec.domain_dropout if stacked_on else 0.0,
        "hyperparameters": spec.to_json(),
        "runtime": {**_filter_plain(claimed.get("runtime")), "collected": True},
        "versions": _filter_plain(claimed.get("versions")),
        "results": {k: v for k, v in results.items() if isinstance(v, (int, float))},
    }


def _find_training_rows(workspace: Workspace, bundle: Bundle, folder: Path) -> TrainingRows:
    """The rows that the run has seen, from the datasets that were packed.

    The record of the result counts only where a dataset or an adapter was deleted since.
    """
    own = collect_training_rows(workspace, bundle.spec)
    if own.unknown:
        with suppress(StudioError):
            return load_record(folder)
    return own


def _filter_plain(value: Any) -> dict[str, Any]:
    """The numbers and texts of an object in a result, texts cut to TEXT_LIMIT; {} if it is not an object."""
    if not isinstance(value, dict):
        return {}
    plain = {str(k)[:TEXT_LIMIT]: v for k, v in value.items() if isinstance(v, (str, int, float))}
    return {k: v[:TEXT_LIMIT] if isinstance(v, str) else v for k, v in plain.items()}


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _read_events(path: Path) -> bytes:
    """The lines of a log that are events; other lines are left out."""
    lines = [json.dumps(e, ensure_ascii=False) for e in read_all(path) if is_event(e)]
    return "".join(line + "\n" for line in lines).encode("utf-8", "replace")
