"""Training runs on disk: settings, status, event log, and the locks that show whether a run is alive.

    runs/<id>/run.json      settings and status      events.jsonl   the event log (`core.store.events`)
              owner.lock    held by the process that queued or launched the run
              job.lock      held by rank 0 of a run with processes of its own
              asked         a stop request for such processes
              checkpoints/

The operating system releases a lock when its process dies. So a run whose status says that it runs, but whose
locks are free, was interrupted. A run with processes of its own is alive as long as its launcher or its
processes are.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from core.errors import SpecError
from core.spec.training import RULES, Launch, RunStatus, TrainSpec
from core.store.event_log import EventLog
from core.store.files import atomic_write, read_json, write_json
from core.store.locks import is_locked
from core.store.workspace import Workspace, make_id

TAIL_BYTES = 64 * 1024  # the end of a log in which the newest step is looked up
# Statuses that can be resumed without a checkpoint: the run then starts from its first step.
RESUMABLE = (RunStatus.INTERRUPTED, RunStatus.PAUSED, RunStatus.DISK_FULL)
RESUMABLE_FROM_CHECKPOINT = (
    RunStatus.STOPPED,
    RunStatus.FAILED,
    RunStatus.DIVERGED,
    RunStatus.OUT_OF_MEMORY,
)


class MicroBatch(TypedDict):
    """A smaller batch with the same effective batch."""

    batch_size: int
    accumulation: int


class BatchReduction(MicroBatch):
    """One reduction of the batch, after memory ran out."""

    from_step: int  # the checkpoint that training continued from, or 0


@dataclass(frozen=True)
class RunExtra:
    """The "extra" object of a run.json: what is recorded with a run beside its settings.

    Attributes:
        launch: the processes of its own that train the run; None trains it on the resident base.
        quantization, device: how these processes load the base; "" without `launch`.
        grid, cell: id of the grid that the run belongs to, and the index of its cell.
        memory_ratio: measured by estimated memory of one step.
        micro_batch: the batch that fits, after memory ran out.
        made_smaller: every reduction of the batch, oldest first.
        cancelled: the run was cancelled before it began.
        handed, collected: when it was handed to another machine, and collected from there; Unix seconds.
        rules: version of the training rules that the run began under; None in runs of 0.1.0, which is 1.
        unknown: keys and values of other versions; they stay as they are.
    """

    launch: Launch | None = None
    quantization: str = ""
    device: str = ""
    grid: str = ""
    cell: int | None = None
    memory_ratio: float | None = None
    micro_batch: MicroBatch | None = None
    made_smaller: tuple[BatchReduction, ...] = ()
    cancelled: bool = False
    handed: float | None = None
    collected: float | None = None
    rules: int | None = None
    unknown: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> RunExtra:
        """Reads an "extra" object. A `launch` that is invalid here is kept as unknown."""
        known = {k: v for k, v in raw.items() if k in _EXTRA_KEYS}
        unknown = {k: v for k, v in raw.items() if k not in _EXTRA_KEYS}
        if "launch" in known:
            try:
                known["launch"] = Launch.from_json(known["launch"])
            except SpecError:  # another version allows more; such a run must not hide all others
                unknown["launch"] = known.pop("launch")
        if "made_smaller" in known:
            known["made_smaller"] = tuple(known["made_smaller"])
        return cls(**known, unknown=unknown)

    @property
    def has_unknown_launch(self) -> bool:
        """Whether the run has processes of its own whose settings are invalid in this version."""
        return "launch" in self.unknown

    def to_json(self) -> dict[str, Any]:
        """The keys that are set."""
        values = {**{k: getattr(self, k) for k in _EXTRA_KEYS}, **self.unknown}
        if self.launch is not None:
            values["launch"] = self.launch.to_json()
        values["made_smaller"] = list(self.made_smaller)
        return {k: v for k, v in values.items() if k in self.unknown or not _is_unset(v)}


def _is_unset(value: Any) -> bool:
    return value is None or value is False or value in ("", [])


_EXTRA_KEYS = tuple(name for name in RunExtra.__dataclass_fields__ if name != "unknown")


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        adapter: id that its adapter has in the library, or will have.
        step, total_steps: optimizer steps taken and planned; 0 if not known yet.
        resumable: the run can be resumed: it is not alive, and has a checkpoint or can start from its first
            step.
        was_queued: the run was still queued when its process ended; it can be queued again.
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
    was_queued: bool = False
    extra: RunExtra = field(default_factory=RunExtra)

    @property
    def rules(self) -> int:
        """Version of the training rules that the run began under (`core.spec.training.RULES`)."""
        return 1 if self.extra.rules is None else self.extra.rules

    def to_json(self) -> dict[str, Any]:
        """All fields under the keys of the terminal's `--json`; run.json holds a part of them."""
        values = {**asdict(self), "spec": self.spec.to_json(), "extra": self.extra.to_json()}
        return {("waited" if k == "was_queued" else k): v for k, v in values.items()}


_RECORD_KEYS = (  # of run.json
    "id", "name", "kind", "adapter", "created", "base", "base_fingerprint", "dataset_sha256", "error",
    "extra", "status", "spec",
)  # fmt: skip


def create(
    workspace: Workspace, spec: TrainSpec, base: str, dataset_sha256: str, extra: RunExtra | None = None
) -> Run:
    """Creates a queued run: its folder, run.json and first event.

    A new run is trained under the present rules, unless `extra` names others.
    """
    extra = extra or RunExtra()
    with workspace.build("runs", spec.name) as draft:
        run = Run(
            id=draft.id,
            name=spec.name,
            kind=spec.kind,
            status=RunStatus.QUEUED,
            spec=spec,
            adapter=make_id(spec.name),
            created=time.time(),
            base=base,
            dataset_sha256=dataset_sha256,
            extra=extra if extra.rules is not None else replace(extra, rules=RULES),
        )
        write_json(draft.path / "run.json", _to_record(run))
        EventLog(draft.path / events_path(workspace, draft.id).name).append("status", status=run.status.value)
        draft.expect("run.json")
    return run


def put(workspace: Workspace, run: Run, events: bytes = b"") -> None:
    """Writes a run of another machine, which already has its id; replaces a run of the same id.

    Args:
        events: the content of its event log.

    Raises:
        StorageError: it could not be written.
    """
    if workspace.path("runs", run.id).exists():
        with atomic_write(events_path(workspace, run.id)) as f:
            f.write(events)
        write_json(folder(workspace, run.id) / "run.json", _to_record(run))
        return
    with workspace.build("runs", run.name, run.id) as draft:
        with atomic_write(draft.path / "events.jsonl") as f:
            f.write(events)
        write_json(draft.path / "run.json", _to_record(run))
        draft.expect("run.json", "events.jsonl")


def _to_record(run: Run) -> dict[str, Any]:
    values = run.to_json()
    return {k: values[k] for k in _RECORD_KEYS}


def folder(workspace: Workspace, run_id: str) -> Path:
    """The folder of an existing run. Raises NotFound."""
    return workspace.find("runs", run_id)


def checkpoints_folder(workspace: Workspace, run_id: str) -> Path:
    return workspace.path("runs", run_id, "checkpoints")


def events_path(workspace: Workspace, run_id: str) -> Path:
    return workspace.path("runs", run_id, "events.jsonl")


def lock_path(workspace: Workspace, run_id: str) -> Path:
    """The lock file of the process that queued or launched a run."""
    return workspace.path("runs", run_id, "owner.lock")


def job_lock_path(workspace: Workspace, run_id: str) -> Path:
    """The lock file of a run's own processes; its launcher holds `lock_path`."""
    return workspace.path("runs", run_id, "job.lock")


def is_alive(workspace: Workspace, run_id: str) -> bool:
    """Whether a living process owns the run or trains it."""
    return is_locked(lock_path(workspace, run_id)) or is_locked(job_lock_path(workspace, run_id))


def write_stop_request(workspace: Workspace, run_id: str, word: str) -> None:
    """Writes a stop request for a run with processes of its own; rank 0 reads it after each step.

    Args:
        word: "keep" stops and keeps the adapter, "pause" and "close" save a checkpoint, "" withdraws the
            request.
    """
    path = workspace.path("runs", run_id, "asked")
    if not word:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path, "w") as f:
        f.write(word)


def read_stop_request(workspace: Workspace, run_id: str) -> str:
    """The stop request of a run, or ""."""
    try:
        return workspace.path("runs", run_id, "asked").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def log(workspace: Workspace, run_id: str) -> EventLog:
    """Opens the event log of a run."""
    return EventLog(events_path(workspace, run_id))


def load(workspace: Workspace, run_id: str) -> Run:
    """Reads a run. A run that should be alive, but whose locks are free, is INTERRUPTED.

    Raises:
        NotFound: no such run. StorageError: its files are damaged.
    """
    raw = read_json(folder(workspace, run_id) / "run.json")
    status = RunStatus(raw["status"])
    if status.is_alive and not is_alive(workspace, run_id):
        status = RunStatus.INTERRUPTED
    step, total = _read_progress(events_path(workspace, run_id))
    has_checkpoint = any(checkpoints_folder(workspace, run_id).glob("checkpoint-*/MANIFEST.json"))
    is_resumable = status in RESUMABLE or (status in RESUMABLE_FROM_CHECKPOINT and has_checkpoint)
    extra = RunExtra.from_json(raw.get("extra", {}))
    return Run(
        **{k: raw[k] for k in ("id", "name", "kind", "adapter", "created", "base", "error") if k in raw},
        base_fingerprint=raw.get("base_fingerprint", ""),
        dataset_sha256=raw.get("dataset_sha256", ""),
        extra=extra,
        status=status,
        spec=TrainSpec.from_json(raw["spec"]),
        step=step,
        total_steps=total,
        was_queued=status is RunStatus.INTERRUPTED and raw["status"] == RunStatus.QUEUED.value,
        resumable=is_resumable and not extra.has_unknown_launch,
    )


def load_all(workspace: Workspace) -> list[Run]:
    """All runs, newest first.

    Raises:
        StorageError
    """
    return sorted((load(workspace, i) for i in workspace.ids("runs")), key=lambda r: -r.created)


def update(workspace: Workspace, run: Run, **fields: Any) -> Run:
    """Changes fields of a run and writes run.json; a new status is also appended to its event log."""
    new = replace(run, **fields)
    write_json(folder(workspace, run.id) / "run.json", _to_record(new))
    if "status" in fields:
        log(workspace, run.id).append(
            "status", status=new.status.value, **({"error": new.error} if new.error else {})
        )
    return new


def remove_finished_checkpoints(workspace: Workspace) -> None:
    """Removes checkpoints of finished runs. A process that was killed after its last step leaves them."""
    for run_id in workspace.ids("runs"):
        checkpoints = checkpoints_folder(workspace, run_id)
        if checkpoints.exists() and load(workspace, run_id).status is RunStatus.DONE:
            shutil.rmtree(checkpoints, ignore_errors=True)


def _read_progress(path: Path) -> tuple[int, int]:
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
