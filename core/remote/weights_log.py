"""Trains a bundle and keeps a log of it: weights.json says which weights were trained where, and how well.

    weights.json   {"format": 1, "runs": [{"run", "adapter", "status", "step", "loss", "result", "sha256",
                                           "weights_sha256", "results", "settings", "base", "versions", ...}]}

There is one entry per run: it is written when the run begins, follows its steps, and names the checksums of
the result and of the adapter's weights at the end. Running a bundle again replaces its entry.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.engine import Engine
from core.errors import StorageError, StudioError
from core.remote.bundle import BUNDLE_FILE
from core.remote.run_bundle import run_bundle
from core.store import adapters
from core.store.bundles import Bundle
from core.store.events import StepEvent, ValidationEvent, is_kind
from core.store.files import read_json, sha256_of, write_json
from core.train.provenance import PACKAGES

FORMAT = 1
POLL_SECONDS = 0.5
WRITE_SECONDS = 10.0  # between two writes of the file while a run trains
Say = Callable[[str], None]


def train_bundle(
    bundle: Path,
    result: Path,
    weights: Path,
    base: str = "",
    quantization: str = "",
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Trains a bundle, writes its result, and logs both to weights.json.

    Called again after an interruption, it resumes from the newest checkpoint.

    Args:
        bundle: the file that `core.remote.pack` wrote.
        result: the file to write, for `bundle collect`.
        weights: the log; created if it does not exist, and its other entries stay.
        base, quantization: used instead of the bundle's; the base must have the same weights.
        say: receives a line at every validation, and from time to time a step.

    Returns:
        The entry of the run.

    Raises:
        StudioError: see `core.remote.run_bundle`; the entry then says why.
    """
    log = _Log(weights, _describe(bundle, base))
    try:
        run_bundle(bundle, result, base, quantization, lambda engine, run: _follow(engine, run, log, say))
    except StudioError as e:
        log.update({"status": "failed", "error": str(e)}, now=True)
        raise
    log.update(
        {"status": "finished", "finished": time.time(), **_describe_result(result, log.entry)}, now=True
    )
    say(f"finished: {result.name}, loss {log.entry.get('loss')}")
    return log.entry


def _describe(path: Path, base: str) -> dict[str, Any]:
    """The beginning of an entry: what the bundle says, and this machine."""
    try:
        with zipfile.ZipFile(path) as archive:
            bundle = Bundle.from_json(json.loads(archive.read(BUNDLE_FILE)))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as e:
        raise StorageError(f"{path.name} is not a bundle that can be read ({e}).", "Upload it again.") from e
    return {
        "run": bundle.run_id,
        "adapter": bundle.adapter_id,
        "name": bundle.spec.name,
        "status": "running",
        "started": time.time(),
        "base": base or bundle.base,
        "base_fingerprint": bundle.base_fingerprint,
        "settings": bundle.spec.to_json(),
        "data": bundle.data_sha256,
        "platform": platform.platform(),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
    }


def _describe_result(result: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """The end of an entry: the checksums of the result and of the weights in it, and the figures."""
    with zipfile.ZipFile(result) as archive:
        member = f"adapters/{entry['adapter']}/{adapters.METADATA}"
        metadata = json.loads(archive.read(member))
    return {
        "result": result.name,
        "sha256": sha256_of(result),
        "weights_sha256": metadata["sha256"],
        "results": metadata["results"],
        "runtime": metadata["runtime"],
    }


class _Log:
    """The entry of one run in weights.json."""

    def __init__(self, path: Path, entry: dict[str, Any]) -> None:
        self._path, self.entry, self._written = path, entry, 0.0
        self.update({}, now=True)

    def update(self, changes: dict[str, Any], now: bool = False) -> None:
        """Changes the entry; the file is written `now`, or when the last write is WRITE_SECONDS ago."""
        self.entry |= changes
        if not now and time.monotonic() - self._written < WRITE_SECONDS:
            return
        value = read_json(self._path) if self._path.exists() else {"format": FORMAT, "runs": []}
        if not isinstance(value, dict) or not isinstance(value.get("runs"), list):
            raise StorageError(f"{self._path.name} is not a log of weights.", "Move it away, then run again.")
        others = [r for r in value["runs"] if not isinstance(r, dict) or r.get("run") != self.entry["run"]]
        write_json(self._path, {**value, "runs": [*others, self.entry]})
        self._written = time.monotonic()


def _follow(engine: Engine, run_id: str, log: _Log, say: Say) -> None:
    """Logs the steps and validations of a run until it has ended."""
    cursor, has_ended, said = 0, False, 0.0
    while True:
        events, cursor = engine.runs.events(run_id, cursor)
        for event in events:
            if is_kind(event, StepEvent):
                log.update({"step": event["step"], "train_loss": event.get("loss")})
                if time.monotonic() - said > WRITE_SECONDS:
                    said = time.monotonic()
                    say(f"step {event['step']} of {event.get('total_steps', '?')}: loss {event.get('loss')}")
            elif is_kind(event, ValidationEvent):
                log.update({"step": event["step"], "loss": event.get("loss")}, now=True)
                say(f"validation at step {event['step']}: loss {event.get('loss')}")
        if has_ended and not events:
            return
        run = engine.runs.get(run_id)
        has_ended = not run.status.is_alive and not engine.runs.is_ending(run)
        engine.runs.check_base(run_id)
        time.sleep(POLL_SECONDS)
