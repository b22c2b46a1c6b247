"""Taking in what came back from another machine.

Knows what is compared before anything of a result is believed, and what is believed then: its weights and its figures. What
was asked for is read from our own record (`core/bundles.py`).
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
from core.engine import Engine
from core.errors import AdapterError, NotFound, RunError, StorageError, StudioError
from core.remote.bundle import IN_RESULT, RESULT, Bundle, asked_for, record
from core.spec.training import RunStatus, TrainSpec
from core.store import adapters, archives, grids, runs
from core.store.event_log import read_all
from core.store.events import is_event
from core.store.runs import Run
from core.store.workspace import FileLock, Workspace, read_json

TEXT_LIMIT = 200  # characters of a text that a result tells of itself
TABLE_LIMIT_BYTES = 16 << 20
AGAIN = "Run the bundle again."


def collect(engine: Engine, path: Path) -> Run:
    """Takes a result in: its adapter into the library, its run as finished, and with it the cells of grids that asked for it.

    Nothing of a result is believed but the numbers it brings: what was asked for is read from our own record, and the adapter is
    checked like any other before it is added.

    Raises:
        DataError: the file. NotFound: nothing like it was asked for here. RunError: it is no result of that, or is here already.
        AdapterError: the adapter is not fit to be kept. Busy: the run is alive here.
    """
    workspace = engine.workspace
    with _aside(workspace) as place:
        names = archives.extract(path, place, IN_RESULT)
        if large := [
            n for n in names if n.endswith(".json") and (place / n).stat().st_size > TABLE_LIMIT_BYTES
        ]:
            raise RunError(f"{large[0]} of the result is too large to be one of ours.", AGAIN)
        told, said = _table(place / RESULT), _table(place / "run.json")
        asked = asked_for(workspace, str(told.get("run", "")))
        _compare(asked, told, said)
        folder = place / "adapters" / asked.adapter
        meta = _verified(asked, folder)
        events = _events(place / "events.jsonl")
        with _held(workspace, asked):
            config = adapters.parse_config(read_json(folder / adapters.CONFIG), mixed=False)
            metadata = _provenance(workspace, asked, meta)
            adapters.add(
                workspace,
                asked.adapter,
                asked.spec.name,
                lambda target: _copy(folder / adapters.WEIGHTS, target),
                config,
                metadata,
            )
            extra = {k: v for k, v in asked.extra.items() if k != "handed"}
            runs.put(
                workspace,
                record(dataclasses.replace(asked, extra={**extra, "collected": time.time()}), RunStatus.DONE),
                events,
            )
    for grid in engine.grids.list():
        if any(c.key == asked.key for c in grid.cells):
            engine.grids.collect(grid.id)
    return engine.runs.get(asked.run)


@contextmanager
def _aside(workspace: Workspace) -> Iterator[Path]:
    """An empty folder in the workspace, which is swept away at the next start if we die."""
    _, place = workspace.new_dir("exports", "result")
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _held(workspace: Workspace, asked: Bundle) -> Iterator[None]:
    """The run is not trained here meanwhile.

    Raises:
        RunError: it is here, finished. Busy: it is alive.
    """
    if asked.run not in workspace.ids("runs"):
        yield
        return
    known = runs.load(workspace, asked.run)
    if known.status is RunStatus.DONE:
        raise RunError(f"The run {known.name!r} is here already, and finished.", "Nothing was changed.")
    claim = FileLock(runs.lock_path(workspace, asked.run))
    try:
        yield
    finally:
        claim.release()


def _table(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise StorageError(f"{path.name} of the result is no table.", AGAIN)
    return value


def _compare(asked: Bundle, told: dict[str, Any], said: dict[str, Any]) -> None:
    """Refuses what was trained with other settings, on other data, or on another base than was asked for."""
    try:
        trained = grids.spec_checksum(TrainSpec.from_json(said["spec"]))
    except (KeyError, TypeError, AttributeError, StudioError) as e:
        raise RunError(f"The result's settings cannot be read ({e}).", AGAIN) from e
    found = {
        "settings": trained == asked.key == told.get("settings"),
        "data": told.get("data") == asked.data
        and said.get("dataset_sha256") == asked.data[asked.spec.dataset],
        "base model": told.get("fingerprint") == asked.fingerprint == said.get("base_fingerprint"),
    }
    if wrong := [name for name, same in found.items() if not same]:
        what = (
            f"The result was not trained with the {' and '.join(wrong)} that {asked.spec.name!r} asked for."
        )
        raise RunError(what, "Run the bundle itself, and collect what it writes.")
    if said.get("status") != RunStatus.DONE.value or said.get("adapter") != asked.adapter:
        raise RunError(
            "The result is not of a run that finished.", "Run the bundle again: it goes on where it ended."
        )


def _verified(asked: Bundle, folder: Path) -> dict[str, Any]:
    """Checks the adapter's files as the library does, and that they say the same of where they come from; returns their metadata."""
    if not folder.is_dir():
        raise AdapterError(f"The result has no adapter {asked.adapter!r}.", AGAIN)
    adapters.verify_folder(folder)
    meta = _table(folder / adapters.METADATA)
    base, data, below = (_plain(meta.get(k)) for k in ("base", "dataset", "stacked_on"))
    said = (base.get("fingerprint"), data.get("sha256"), below.get("sha256", ""), meta.get("run"))
    if said != (asked.fingerprint, asked.data[asked.spec.dataset], asked.below.get("sha256", ""), asked.run):
        raise AdapterError(
            "The adapter's metadata tells of another base, dataset, adapter below or run than was asked for.",
            AGAIN,
        )
    return meta


def _provenance(workspace: Workspace, asked: Bundle, meta: dict[str, Any]) -> dict[str, Any]:
    """What the library says of the adapter: our own record, and of the result its figures and what it ran on."""
    spec, base, data = asked.spec, _plain(meta.get("base")), _plain(meta.get("dataset"))
    with suppress(NotFound):  # the dataset may have been deleted since
        dataset = load_dataset(workspace, spec.dataset)
        data = {"name": dataset.name, "split_seed": dataset.seed, "splits": dataset.splits}
    below = None
    if asked.below:
        parent = adapters.load(workspace, asked.below["id"])
        if parent.sha256 != asked.below["sha256"]:
            raise AdapterError(
                f"The adapter {parent.name!r}, which it was trained on top of, has changed since.",
                "Pack the run again.",
            )
        below = {"id": parent.id, "name": parent.name, "sha256": parent.sha256}
    return {
        "kind": spec.kind,
        "run": asked.run,
        "base": {**base, "name": asked.base, "fingerprint": asked.fingerprint},
        "dataset": {**data, "id": spec.dataset, "sha256": asked.data[spec.dataset]},
        "stacked_on": below,
        "trained_with": {below["id"]: 1.0} if below else {},
        "domain_dropout": spec.domain_dropout if below else 0.0,
        "hyperparameters": spec.to_json(),
        "runtime": {**_plain(meta.get("runtime")), "collected": True},
        "versions": _plain(meta.get("versions")),
        "results": {k: v for k, v in _plain(meta.get("results")).items() if isinstance(v, (int, float))},
    }


def _plain(value: Any) -> dict[str, Any]:
    """Of a table that came from elsewhere: its numbers and short texts."""
    given = value.items() if isinstance(value, dict) else ()
    return {
        str(k)[:TEXT_LIMIT]: v[:TEXT_LIMIT] if isinstance(v, str) else v
        for k, v in given
        if isinstance(v, (str, int, float))
    }


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _events(path: Path) -> bytes:
    """The lines of a log that are events; the others are left out."""
    lines = [json.dumps(e, ensure_ascii=False) for e in read_all(path) if is_event(e)]
    return "".join(line + "\n" for line in lines).encode("utf-8", "replace")
