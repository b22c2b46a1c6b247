"""Checkpoints on disk: a manifest, written last, marks one as complete.

`Trainer` writes the files of a checkpoint in place, one after the other, and resumes from the highest number,
complete or not. Here a checkpoint counts only when its manifest of sha256 sums exists and verifies. The
manifest is written after all other files have reached the disk, through a rename, and it is the first file
that is deleted. So a kill at any moment leaves a checkpoint that either verifies or does not count. A run
resumes from the newest checkpoint that verifies.

Checkpoints are rotated by step, never by clock, and the best checkpoint that a remaining one names stays. A
run is marked as finished before its checkpoints are removed, never after (`core.train.train`).
"""

from __future__ import annotations

import math
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from safetensors import SafetensorError

from core.errors import DiskFull, RunError, StorageError, StudioError
from core.store.files import (
    read_json,
    sha256_of,
    storage_error,
    suggest_space,
    sync_file,
    sync_folder,
    write_json,
)
from core.store.record_types import Between, Count
from core.store.records import read_record
from core.train.early_stopping import EarlyStopping

MANIFEST = "MANIFEST.json"
STATE = "studio_state.json"  # `StudioState`, beside Trainer's own trainer_state.json
REQUIRED = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
KEEP = 2
PROCESS_LIMIT = 64 * 64  # as in `core.spec.training.Launch`


@dataclass
class StudioState:
    """What a resumed run needs and `trainer_state.json` does not hold.

    With it a resumed run stops early, or keeps its best checkpoint, at the step at which a run without
    interruption would.

    Attributes:
        tokens: trained tokens of this process.
        busy_seconds: time spent in training steps, without the time that other requests had the model.
        last_loss: training loss of the newest step.
        losses: training losses of the steps since the last validation.
        ended_early: validation stopped improving, and the run ended before its last step.
    """

    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    tokens: int = 0
    busy_seconds: float = 0.0
    last_loss: float = math.nan
    losses: list[float] = field(default_factory=list)
    ended_early: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "track": self.early_stopping.to_json(),
            "since": self.losses,
            "ended_early": self.ended_early,
            "tokens": self.tokens,
            "busy": self.busy_seconds,
            "last_loss": self.last_loss,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StudioState:
        return cls(
            early_stopping=EarlyStopping.from_json(value["track"]),
            tokens=int(value["tokens"]),
            busy_seconds=float(value["busy"]),
            last_loss=float(value["last_loss"]),
            losses=list(value["since"]),
            ended_early=bool(value["ended_early"]),
        )


@dataclass(frozen=True)
class Manifest:
    """The content of MANIFEST.json.

    Attributes:
        processes: number of processes that wrote the checkpoint.
        files: name -> sha256 of every other file.
    """

    run: str
    step: Count
    files: dict[str, str]
    processes: Annotated[int, Between(1, PROCESS_LIMIT)] = 1


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name, or -1."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match.group(1)) if match else -1


def checkpoint_files(world_size: int) -> tuple[str, ...]:
    """The files of a complete checkpoint; every process has random generators of its own."""
    if world_size == 1:
        return (*REQUIRED, "rng_state.pth")
    return (*REQUIRED, *(f"rng_state_{rank}.pth" for rank in range(world_size)))


def commit(folder: Path, run_id: str, world_size: int = 1) -> None:
    """Writes the manifest of a checkpoint, after its files have been flushed to the disk.

    Args:
        world_size: number of processes that wrote the checkpoint.

    Raises:
        StorageError: the disk refused. RunError: a required file is missing.
    """
    files = {p.name: sha256_of(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != MANIFEST}
    if missing := [n for n in checkpoint_files(world_size) if n not in files]:
        raise RunError(
            f"The checkpoint lacks {', '.join(missing)}.",
            "This is a bug in Adapter Studio; please report it.",
        )
    for name in files:
        sync_file(folder / name)
    manifest = {"run": run_id, "step": step_of(folder), "processes": world_size, "files": files}
    write_json(folder / MANIFEST, manifest)
    sync_folder(folder.parent)


def is_intact(folder: Path, run_id: str) -> bool:
    """Whether this is a complete, unchanged checkpoint of this run."""
    try:
        manifest = read_record(folder / MANIFEST, Manifest)
        files = manifest.files
        return (
            manifest.run == run_id
            and manifest.step == step_of(folder)
            and all(n in files for n in checkpoint_files(manifest.processes))
            and all("/" not in n and sha256_of(folder / n) == digest for n, digest in files.items())
        )
    except (StorageError, OSError):
        return False


def world_size_of(folder: Path) -> int:
    """The number of processes that wrote a committed checkpoint."""
    return read_record(folder / MANIFEST, Manifest).processes


def _newest_first(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("checkpoint-*") if step_of(p) >= 0), key=step_of, reverse=True)


def find_newest(folder: Path, run_id: str) -> Path | None:
    """The newest checkpoint in `folder` that verifies, or None."""
    return next((p for p in _newest_first(folder) if is_intact(p, run_id)), None)


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON of a checkpoint's `StudioState`; empty in a checkpoint of version 0.1, which had none."""
    value = read_json(folder / STATE) if (folder / STATE).is_file() else {}
    return value if isinstance(value, dict) else {}


def best_checkpoint(folder: Path) -> Path:
    """The checkpoint that was the best one when `folder` was written; step 0 if there was none."""
    try:
        track = read_state(folder).get("track")
        step = track.get("best_step", 0) if isinstance(track, dict) else 0
    except StorageError:  # `is_intact` refuses this checkpoint; the others stay usable
        step = 0
    return folder.with_name(f"checkpoint-{step if isinstance(step, int) else 0}")


def rotate(folder: Path) -> None:
    """Removes old checkpoints.

    The newest two committed checkpoints stay, and the best ones that they name. A checkpoint that was never
    committed is removed once a newer one is.
    """
    paths = _newest_first(folder)
    committed = [p for p in paths if (p / MANIFEST).is_file()]
    keep = {*committed[:KEEP], *(best_checkpoint(p) for p in committed[:KEEP])}
    for path in paths:
        if path not in keep and (not committed or step_of(path) < step_of(committed[0])):
            remove(path)


def remove(path: Path) -> None:
    """Removes a checkpoint, its manifest first."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def write_error(error: Exception, root: Path, need_bytes: int, step: int) -> StudioError:
    """The error to raise when a checkpoint could not be written.

    safetensors and torch report only that writing failed, so a file of the same size is written to find out
    why.

    Args:
        error: what the writer raised.
        root: folder of the run's checkpoints.
        need_bytes: size of the checkpoint.
    """
    cause: Exception = error
    probe = root / ".probe.partial"
    try:
        if isinstance(error, (RuntimeError, SafetensorError)) and not isinstance(error, OSError):
            probe.write_bytes(b"\0" * need_bytes)
    except OSError as e:
        cause = e
    finally:
        probe.unlink(missing_ok=True)
    if isinstance(cause, OSError):
        cause = storage_error(cause, root / f"checkpoint-{step}")
    reason = cause.what if isinstance(cause, StudioError) else cause
    kind = DiskFull if isinstance(cause, DiskFull) else StorageError
    return kind(
        f"The checkpoint of step {step} could not be written. {reason}",
        f"{suggest_space(root / 'checkpoint')} The run can then be resumed from its last checkpoint.",
    )
