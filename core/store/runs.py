"""A run on disk: what it was asked, where it stands, who owns it.

Knows run.json, the event log and the claim that tells a living run from one whose process died.
Knows nothing of models.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.spec.training import RunStatus, TrainSpec
from core.store.event_log import EventLog
from core.store.workspace import Workspace, claimed, make_id, read_json, whole_file, write_json

TAIL_BYTES = 64 * 1024
ANYHOW = (
    RunStatus.INTERRUPTED,
    RunStatus.PAUSED,
    RunStatus.DISK_FULL,
)  # resumed from the start where there is no checkpoint yet
FROM_CHECKPOINT = (RunStatus.STOPPED, RunStatus.FAILED, RunStatus.DIVERGED, RunStatus.OUT_OF_MEMORY)


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        adapter: the library id that its adapter has, or will have.
        step, total_steps: optimizer steps taken and planned; 0 while unknown.
        resumable: a checkpoint of ours exists and nobody is running it.
        waited: it was still in the queue when the process that held it ended; it can be queued again.
    """

    id: str
    name: str
    kind: str
    status: RunStatus
    spec: TrainSpec
    adapter: str
    created: float
    base: str
    base_fingerprint: str = ""
    dataset_sha256: str = ""
    step: int = 0
    total_steps: int = 0
    error: str = ""
    resumable: bool = False
    waited: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def create(
    workspace: Workspace, spec: TrainSpec, base: str, dataset_sha256: str, extra: dict[str, Any] | None = None
) -> Run:
    """Writes a new run down as queued, with its folder and its first event."""
    run_id, place = workspace.new_dir("runs", spec.name)
    run = Run(
        id=run_id,
        name=spec.name,
        kind=spec.kind,
        status=RunStatus.QUEUED,
        spec=spec,
        adapter=make_id(spec.name),
        created=time.time(),
        base=base,
        dataset_sha256=dataset_sha256,
        extra=dict(extra or {}),
    )
    write_json(place / "run.json", _to_json(run))
    workspace.commit_dir("runs", run_id, place)
    log(workspace, run_id).append("status", status=run.status.value)
    return run


def put(workspace: Workspace, run: Run, events: bytes = b"") -> None:
    """Writes a run down that has its id already, because it comes from elsewhere; one of that id is replaced.

    Args:
        events: its whole log.

    Raises:
        StorageError
    """
    if workspace.path("runs", run.id).exists():
        with whole_file(events_path(workspace, run.id)) as f:
            f.write(events)
        write_json(folder(workspace, run.id) / "run.json", _to_json(run))
        return
    workspace.clear_place("runs", run.id)
    _, place = workspace.new_dir("runs", run.name, run.id)
    with whole_file(place / "events.jsonl") as f:
        f.write(events)
    write_json(place / "run.json", _to_json(run))
    workspace.commit_dir("runs", run.id, place)


def _to_json(run: Run) -> dict[str, Any]:
    keep = (
        "id",
        "name",
        "kind",
        "adapter",
        "created",
        "base",
        "base_fingerprint",
        "dataset_sha256",
        "error",
        "extra",
    )
    return {**{k: getattr(run, k) for k in keep}, "status": run.status.value, "spec": run.spec.to_json()}


def folder(workspace: Workspace, run_id: str) -> Path:
    return workspace.existing("runs", run_id)


def checkpoints_folder(workspace: Workspace, run_id: str) -> Path:
    return workspace.path("runs", run_id, "checkpoints")


def events_path(workspace: Workspace, run_id: str) -> Path:
    return workspace.path("runs", run_id, "events.jsonl")


def claim_path(workspace: Workspace, run_id: str) -> Path:
    return workspace.path("runs", run_id, "owner.lock")


def job_path(workspace: Workspace, run_id: str) -> Path:
    """The claim of a run's own processes, apart from whoever launched them."""
    return workspace.path("runs", run_id, "job.lock")


def alive(workspace: Workspace, run_id: str) -> bool:
    """Does a living process own the run, or train it?"""
    return claimed(claim_path(workspace, run_id)) or claimed(job_path(workspace, run_id))


def ask(workspace: Workspace, run_id: str, word: str) -> None:
    """Leaves a wish ("keep", "pause", "close") for a run in processes of its own; "" takes it back."""
    path = workspace.path("runs", run_id, "asked")
    if not word:
        path.unlink(missing_ok=True)
        return
    with whole_file(path, "w") as f:
        f.write(word)


def asked(workspace: Workspace, run_id: str) -> str:
    """The wish that was left for a run, or ""."""
    try:
        return workspace.path("runs", run_id, "asked").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def log(workspace: Workspace, run_id: str) -> EventLog:
    return EventLog(events_path(workspace, run_id))


def load(workspace: Workspace, run_id: str) -> Run:
    """Reads a run; one that says it lives but whose process is gone is INTERRUPTED.

    Raises:
        NotFound, StorageError
    """
    raw = read_json(folder(workspace, run_id) / "run.json")
    status = RunStatus(raw["status"])
    if status.alive and not alive(workspace, run_id):
        status = RunStatus.INTERRUPTED
    step, total = _progress(events_path(workspace, run_id))
    has_checkpoint = any(checkpoints_folder(workspace, run_id).glob("checkpoint-*/MANIFEST.json"))
    return Run(
        **{k: raw[k] for k in ("id", "name", "kind", "adapter", "created", "base", "error") if k in raw},
        base_fingerprint=raw.get("base_fingerprint", ""),
        dataset_sha256=raw.get("dataset_sha256", ""),
        extra=raw.get("extra", {}),
        status=status,
        spec=TrainSpec.from_json(raw["spec"]),
        step=step,
        total_steps=total,
        waited=status is RunStatus.INTERRUPTED and raw["status"] == RunStatus.QUEUED.value,
        resumable=status in ANYHOW or (status in FROM_CHECKPOINT and has_checkpoint),
    )


def change(workspace: Workspace, run: Run, **fields: Any) -> Run:
    """Writes changed fields of a run; a new status also becomes an event."""
    new = replace(run, **fields)
    write_json(folder(workspace, run.id) / "run.json", _to_json(new))
    if "status" in fields:
        log(workspace, run.id).append(
            "status", status=new.status.value, **({"error": new.error} if new.error else {})
        )
    return new


def tidy(workspace: Workspace) -> None:
    """Removes the checkpoints of finished runs whose process was killed before it could."""
    for run_id in workspace.ids("runs"):
        place = checkpoints_folder(workspace, run_id)
        if place.exists() and load(workspace, run_id).status is RunStatus.DONE:
            shutil.rmtree(place, ignore_errors=True)


def _progress(path: Path) -> tuple[int, int]:
    """The newest (step, total_steps) in the end of a log."""
    try:
        with open(path, "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - TAIL_BYTES))
            lines = f.read().split(b"\n")
    except FileNotFoundError:
        return 0, 0
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "total_steps" in event:
            return int(event.get("step", 0)), int(event["total_steps"])
    return 0, 0
