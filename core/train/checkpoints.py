"""Checkpoints that can be trusted: a manifest written last marks one as whole.

Trainer writes a checkpoint's files in place, one after the other, and takes the highest number,
complete or not. So we write sha256 sums of all files through a rename when all are there, resume only
from the newest checkpoint whose sums hold, and rotate by step, never by clock. The best checkpoint stays
as long as one is there that names it. Knows files only.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from core.errors import DiskFull, RunError, StorageError, StudioError
from core.store.workspace import read_json, sha256_of, storage_error, write_json

MANIFEST = "MANIFEST.json"
STATE = "studio_state.json"  # what we count ourselves, beside Trainer's own state
NEEDED = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
KEEP = 2


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name, or -1."""
    found = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(found.group(1)) if found else -1


def needed(processes: int) -> tuple[str, ...]:
    """The files of a whole checkpoint; every process has dice of its own."""
    return (
        *NEEDED,
        *(("rng_state.pth",) if processes == 1 else (f"rng_state_{i}.pth" for i in range(processes))),
    )


def commit(folder: Path, run_id: str, processes: int = 1) -> None:
    """Marks a checkpoint as whole, once its files are on the disk and not only on their way there.

    Args:
        processes: how many trained together.

    Raises:
        StorageError: the disk refused. RunError: a needed file was not written.
    """
    files = {p.name: sha256_of(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != MANIFEST}
    if lacking := [n for n in needed(processes) if n not in files]:
        raise RunError(
            f"The checkpoint lacks {', '.join(lacking)}.", "This is a defect of the studio; please report it."
        )
    for name in files:
        with open(folder / name, "rb") as f:
            os.fsync(f.fileno())
    write_json(
        folder / MANIFEST, {"run": run_id, "step": step_of(folder), "processes": processes, "files": files}
    )


def holds(folder: Path, run_id: str) -> bool:
    """Is this a whole, unchanged checkpoint of this very run?"""
    try:
        manifest = read_json(folder / MANIFEST)
        files = manifest["files"]
        return (
            manifest["run"] == run_id
            and manifest["step"] == step_of(folder)
            and all(n in files for n in needed(manifest.get("processes", 1)))
            and all("/" not in n and sha256_of(folder / n) == digest for n, digest in files.items())
        )
    except (StorageError, OSError, KeyError, TypeError):
        return False


def processes_of(folder: Path) -> int:
    """How many processes wrote a committed checkpoint."""
    return int(read_json(folder / MANIFEST).get("processes", 1))


def newest(folder: Path, run_id: str) -> Path | None:
    """The newest checkpoint that holds, or None."""
    found = sorted((p for p in folder.glob("checkpoint-*") if step_of(p) >= 0), key=step_of, reverse=True)
    return next((p for p in found if holds(p, run_id)), None)


def state_of(folder: Path) -> dict[str, Any]:
    """What we counted up to a checkpoint; empty in one that an earlier version wrote."""
    found = read_json(folder / STATE) if (folder / STATE).is_file() else {}
    return found if isinstance(found, dict) else {}


def best_of(folder: Path) -> Path:
    """The checkpoint that was the best one when `folder` was written; step 0 if there was none."""
    return folder.with_name(f"checkpoint-{int(state_of(folder).get('track', {}).get('best_step', 0))}")


def rotate(folder: Path) -> None:
    """Removes all but the newest committed checkpoints and the best ones that they name, by step, and whatever was never committed below them.

    A manifest goes first, so that what a kill leaves half-removed counts no more.
    """
    found = sorted((p for p in folder.glob("checkpoint-*") if step_of(p) >= 0), key=step_of, reverse=True)
    committed = [p for p in found if (p / MANIFEST).is_file()]
    kept = {*committed[:KEEP], *(best_of(p) for p in committed[:KEEP])}
    for path in found:
        if path not in kept and (not committed or step_of(path) < step_of(committed[0])):
            remove(path)


def remove(path: Path) -> None:
    """Removes a checkpoint, its manifest first."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def refused(error: Exception, root: Path, need_bytes: int, step: int) -> StudioError:
    """What it means that a checkpoint could not be written.

    safetensors and torch say only that writing failed: a file of the same size says why.
    """
    why: Exception = error
    probe = root / ".probe.partial"
    try:
        if isinstance(error, (RuntimeError, SafetensorError)) and not isinstance(error, OSError):
            probe.write_bytes(b"\0" * need_bytes)
    except OSError as e:
        why = e
    finally:
        probe.unlink(missing_ok=True)
    if isinstance(why, OSError):
        why = storage_error(why, root / f"checkpoint-{step}")
    what = f"The checkpoint of step {step} could not be written. {why.what if isinstance(why, StudioError) else why}"
    kind = DiskFull if isinstance(why, DiskFull) else StorageError
    return kind(what, "Free some space; the run can then be resumed from its last checkpoint.")
