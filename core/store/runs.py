"""Training runs on disk: settings, status, event log, and the locks that show whether a run is alive.

    runs/<id>/run.json      settings and status      events.jsonl   the event log (`core.store.events`)
              owner.lock    held by the process that queued or launched the run
              job.lock      held by rank 0 of a run with processes of its own
              asked         a stop request for such processes
              checkpoints/
              final/        the last checkpoint of a finished run that was still learning, for training on
              worth.json    what its adapter is worth on held-out rows (`core.store.worth`)

The operating system releases a lock when its process dies. So a run whose status says that it runs, but whose
locks are free, was interrupted. A run with processes of its own is alive as long as its launcher or its
processes are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict

from core.errors import DamagedRecord, SpecError, StorageError
from core.spec.training import EQUALS_BASE, STILL_LEARNING, VERDICT_TEXTS, Launch, RunStatus, TrainSpec
from core.store.event_log import EventLog, parse_line
from core.store.events import PlanEvent, StepEvent, is_kind
from core.store.files import atomic_write, delete, link_folder, storage_error, write_json
from core.store.grids import check_complete
from core.store.locks import is_locked
from core.store.record_types import Kind, Mismatch, Time, check_type
from core.store.records import check_file, load_items, read_object, read_record, report_damage, write_record
from core.store.workspace import Workspace, check_name, make_id

logger = logging.getLogger(__name__)

RECORD, EVENTS, CHECKPOINTS, FINAL = "run.json", "events.jsonl", "checkpoints", "final"
FINAL_LIMIT = 4  # finished runs whose last checkpoint is kept for training on
SETTINGS = frozenset(f.name for f in fields(TrainSpec))
STOP_REQUESTS = ("keep", "pause", "close")
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
        equals_base: the run ended with an adapter that has no effect.
        still_learning: its validation loss was still falling at the end (`core.train.convergence`).
        train_on_steps: how many more steps are suggested then.
        verdict: "better", "unclear" or "worse" than the base on held-out rows; "" where that is not measured.
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
    equals_base: bool = False
    still_learning: bool = False
    train_on_steps: int | None = None
    verdict: str = ""
    unknown: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> RunExtra:
        """Reads an "extra" object. A `launch` that is invalid here is kept as unknown.

        Raises:
            ValueError: a value has another type.
        """
        known = {k: v for k, v in raw.items() if k in _EXTRA_KEYS and k != "launch"}
        unknown = {k: v for k, v in raw.items() if k not in _EXTRA_KEYS}
        launch = None
        if raw.get("launch") is not None:
            try:
                launch = Launch.from_json(raw["launch"])
            except SpecError:  # another version may allow more
                unknown["launch"] = raw["launch"]
        try:
            extra: RunExtra = check_type(cls, known)
        except Mismatch as e:
            raise e.under("extra") from None
        return replace(extra, launch=launch, unknown=unknown)

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
        unknown_settings: settings of another version; the run is listed, and cannot be resumed here.
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
    unknown_settings: dict[str, Any] = field(default_factory=dict)

    @property
    def has_learned_nothing(self) -> bool:
        """Whether it ended with an adapter that equals its base."""
        return self.extra.equals_base and self.status in (RunStatus.DONE, RunStatus.STOPPED)

    @property
    def was_still_learning(self) -> bool:
        """Whether it completed its steps while its validation loss was still falling."""
        return self.extra.still_learning and self.status is RunStatus.DONE

    @property
    def is_better_than_base(self) -> bool | None:
        """Whether its adapter is better than the base on held-out rows; None where that is not measured."""
        if self.has_learned_nothing:
            return False
        return self.extra.verdict == "better" if self.extra.verdict else None

    @property
    def outcome(self) -> str:
        """What its status does not say about its end, in a few words; "" if there is nothing."""
        if self.has_learned_nothing:
            return "equals the base"
        words = [VERDICT_TEXTS[self.extra.verdict][0]] if self._has_poor_verdict else []
        return ", ".join(words + [STILL_LEARNING[0]] * self.was_still_learning)

    @property
    def _has_poor_verdict(self) -> bool:
        return self.status is RunStatus.DONE and self.extra.verdict in VERDICT_TEXTS

    @property
    def explanation(self) -> str:
        """One or two sentences: what its status means."""
        if self.has_learned_nothing:
            return EQUALS_BASE[0]
        texts = [VERDICT_TEXTS[self.extra.verdict][1]] if self._has_poor_verdict else []
        texts += [STILL_LEARNING[1]] * self.was_still_learning
        return " ".join(texts) or self.status.explanation

    @property
    def next_step(self) -> str:
        """One sentence: what the user can do next."""
        if self.has_learned_nothing:
            return EQUALS_BASE[1]
        if self.was_still_learning:
            return STILL_LEARNING[2].format(steps=self.extra.train_on_steps or self.step)
        return VERDICT_TEXTS[self.extra.verdict][2] if self._has_poor_verdict else self.status.next_step

    def to_json(self) -> dict[str, Any]:
        """All fields under the keys of the terminal's `--json`; run.json holds a part of them."""
        spec = {**self.unknown_settings, **self.spec.to_json()}
        values = {**asdict(self), "spec": spec, "extra": self.extra.to_json()}
        del values["unknown_settings"]
        return {("waited" if k == "was_queued" else k): v for k, v in values.items()}


_RECORD_KEYS = (  # of run.json
    "id", "name", "kind", "adapter", "created", "base", "base_fingerprint", "dataset_sha256", "error",
    "extra", "status", "spec",
)  # fmt: skip
# Keys whose value in run.json is that of the attribute.
_COMMON_KEYS = tuple(k for k in _RECORD_KEYS if k not in ("extra", "status", "spec"))


@dataclass(frozen=True)
class _Record:
    """The content of run.json."""

    id: str
    name: str
    status: RunStatus
    kind: Kind
    spec: dict[str, Any]
    adapter: str
    created: Time
    base: str
    base_fingerprint: str = ""
    dataset_sha256: str = ""
    error: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def create(
    workspace: Workspace, spec: TrainSpec, base: str, dataset_sha256: str, extra: RunExtra | None = None
) -> Run:
    """Creates a queued run: its folder, run.json and first event; they appear together."""
    adapter = make_id(spec.name)
    while workspace.path("adapters", adapter).exists():  # the run would replace that adapter
        adapter = make_id(spec.name)
    with workspace.build("runs", spec.name) as draft:
        run = Run(
            id=draft.id,
            name=spec.name,
            kind=spec.kind,
            status=RunStatus.QUEUED,
            spec=spec,
            adapter=adapter,
            created=time.time(),
            base=base,
            dataset_sha256=dataset_sha256,
            extra=extra or RunExtra(),
        )
        write_json(draft.path / RECORD, _to_record(run))
        EventLog(draft.path / EVENTS).append("status", status=run.status.value)
        draft.expect(RECORD, EVENTS)
    return run


def put(workspace: Workspace, run: Run, events: bytes = b"") -> None:
    """Writes a run of another machine, which already has its id; replaces a run of the same id, in one step.

    The other files of that run stay, such as the lock that the caller holds; checkpoints are left out.

    Args:
        events: the content of its event log.

    Raises:
        StorageError: it could not be written.
    """
    with workspace.lock("runs", run.id), workspace.build("runs", run.name, run.id, replace=True) as draft:
        present = workspace.path("runs", run.id)
        if present.exists():
            link_folder(present, draft.path, (RECORD, EVENTS, CHECKPOINTS))
        with atomic_write(draft.path / EVENTS) as f:
            f.write(events)
        write_json(draft.path / RECORD, _to_record(run))
        draft.expect(RECORD, EVENTS)


def _to_record(run: Run) -> dict[str, Any]:
    values = run.to_json()
    return {k: values[k] for k in _RECORD_KEYS}


def folder(workspace: Workspace, run_id: str) -> Path:
    """The folder of an existing run. Raises NotFound."""
    return workspace.find("runs", run_id)


def checkpoints_folder(workspace: Workspace, run_id: str) -> Path:
    return workspace.path("runs", run_id, CHECKPOINTS)


def events_path(workspace: Workspace, run_id: str) -> Path:
    return workspace.path("runs", run_id, EVENTS)


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

    Raises:
        StorageError
    """
    path = workspace.path("runs", run_id, "asked")
    try:
        if not word or path.is_dir():
            delete(path)
    except OSError as e:
        raise storage_error(e, path) from e
    if not word:
        return
    with atomic_write(path, "w") as f:
        f.write(word)


def read_stop_request(workspace: Workspace, run_id: str) -> str:
    """The stop request of a run, or ""; a file that cannot be read is not a request."""
    try:
        word = workspace.path("runs", run_id, "asked").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""
    return word if word in STOP_REQUESTS else ""


def log(workspace: Workspace, run_id: str) -> EventLog:
    """Opens the event log of a run."""
    return EventLog(events_path(workspace, run_id))


def load(workspace: Workspace, run_id: str) -> Run:
    """Reads a run. A run that should be alive, but whose locks are free, is INTERRUPTED.

    Raises:
        NotFound: no such run. DamagedRecord: run.json or the event log cannot be read.
    """
    place = ("runs", run_id)
    record, extra, spec, unknown = workspace.records.read(place, (RECORD,), lambda: _read(workspace, run_id))
    status = record.status
    if status.is_alive and not is_alive(workspace, run_id):
        status = RunStatus.INTERRUPTED
    step, total = workspace.records.read(
        place, (EVENTS,), lambda: _read_progress(events_path(workspace, run_id))
    )
    is_resumable = status in RESUMABLE or (
        status in RESUMABLE_FROM_CHECKPOINT and _has_checkpoint(workspace, run_id)
    )
    return Run(
        **{**record.__dict__, "status": status, "spec": spec, "extra": extra},
        step=step,
        total_steps=total,
        was_queued=status is RunStatus.INTERRUPTED and record.status is RunStatus.QUEUED,
        resumable=is_resumable and not extra.has_unknown_launch and not unknown,
        unknown_settings=unknown,
    )


def _read(workspace: Workspace, run_id: str) -> tuple[_Record, RunExtra, TrainSpec, dict[str, Any]]:
    """The content of run.json: the record, its two objects, and the settings of other versions."""
    path = folder(workspace, run_id) / RECORD
    record = read_record(path, _Record, run_id)
    with report_damage(path):
        extra = RunExtra.from_json(record.extra)
        check_complete(record.spec)
        unknown = {k: v for k, v in record.spec.items() if k not in SETTINGS}
        spec = TrainSpec.from_record({k: v for k, v in record.spec.items() if k in SETTINGS})
    return record, extra, spec, unknown


def load_all(workspace: Workspace) -> list[Run]:
    """Every run that can be read, newest first."""
    return sorted(load_items(workspace, "runs", load)[0], key=lambda r: -r.created)


def _has_checkpoint(workspace: Workspace, run_id: str) -> bool:
    """Whether a checkpoint of the run is committed; resuming verifies its files."""
    for manifest in checkpoints_folder(workspace, run_id).glob("checkpoint-*/MANIFEST.json"):
        with contextlib.suppress(DamagedRecord):
            if read_object(manifest).get("run") == run_id:
                return True
    return False


def update(workspace: Workspace, run: Run, **fields: Any) -> Run:
    """Changes fields of a run in run.json; a new status is also appended to its event log.

    The fields are applied to the record on disk, so what another thread or process has changed meanwhile
    stays. Of `extra`, only the keys that differ from those of `run` are changed. A damaged record is written
    whole.

    Returns:
        the run as it is recorded now.

    Raises:
        NotFound, StorageError. Busy: another process changes the record.
    """
    new = replace(run, **fields)
    with workspace.lock("runs", run.id):
        path, record = folder(workspace, run.id) / RECORD, _to_record(new)
        with contextlib.suppress(DamagedRecord), report_damage(path):
            stored = read_record(path, _Record, run.id)
            changed = {k: record[k] for k in fields if k in record}
            if "extra" in changed:
                changed["extra"] = _merge(stored.extra, run.extra.to_json(), record["extra"])
            merged = {**record, **read_object(path), **changed}
            present = {k: merged[k] for k in _COMMON_KEYS}
            new, record = replace(new, **present, extra=RunExtra.from_json(merged["extra"])), merged
        write_record(path, record)
    if "status" in fields:
        try:
            log(workspace, run.id).append(
                "status", status=new.status.value, **({"error": new.error} if new.error else {})
            )
        except StorageError:  # the status itself is recorded
            logger.exception("the status of the run %s was not logged", run.id)
    return new


def _merge(stored: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What is stored, with the differences between `before` and `after` applied to it."""
    merged = {k: v for k, v in stored.items() if k in after or k not in before}
    return merged | {k: v for k, v in after.items() if k not in before or before[k] != v}


def rename(workspace: Workspace, run_id: str, name: str) -> Run:
    """Changes the display name of a run; its adapter keeps its own.

    Raises:
        InvalidName, NotFound, DamagedRecord, StorageError
    """
    update(workspace, load(workspace, run_id), name=check_name(name))
    return load(workspace, run_id)


def remove_finished_checkpoints(workspace: Workspace) -> None:
    """Removes checkpoints of finished runs. A process that was killed after its last step leaves them.

    A run that was still learning keeps its last one (`final_checkpoint`), until FINAL_LIMIT newer runs have
    one.
    """
    finals = 0
    for run in load_all(workspace):
        if run.status is not RunStatus.DONE:
            continue
        retire_checkpoints(workspace, run)
        final = workspace.path("runs", run.id, FINAL)
        if final.exists():
            finals += 1
            if finals > FINAL_LIMIT:
                shutil.rmtree(final, ignore_errors=True)


def retire_checkpoints(workspace: Workspace, run: Run) -> None:
    """Removes the checkpoints of a finished run; the last one of a run that was still learning is moved.

    Called after the run is marked as finished, and again at the next start after a kill in between.
    """
    folder = checkpoints_folder(workspace, run.id)
    if not folder.exists():
        return
    committed = [p for p in folder.glob("checkpoint-*") if (p / "MANIFEST.json").is_file()]
    last = max(committed, key=_step_of, default=None)
    target = workspace.path("runs", run.id, FINAL)
    if run.extra.still_learning and last is not None and final_checkpoint(workspace, run.id) is None:
        with contextlib.suppress(OSError):  # then the run is trained on from its adapter alone
            target.mkdir(exist_ok=True)
            os.replace(last, target / last.name)
    shutil.rmtree(folder, ignore_errors=True)


def final_checkpoint(workspace: Workspace, run_id: str) -> Path | None:
    """The last checkpoint of a finished run, where it is stored; reading it verifies its files."""
    return max(workspace.path("runs", run_id, FINAL).glob("checkpoint-*"), key=_step_of, default=None)


def _step_of(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _read_progress(path: Path) -> tuple[int, int]:
    """The newest (step, total_steps) in the end of a log."""
    if not path.exists():
        return 0, 0
    with report_damage(path):
        check_file(path)
        with open(path, "rb") as f:
            f.seek(max(0, os.fstat(f.fileno()).st_size - TAIL_BYTES))
            lines = f.read().split(b"\n")
    for line in reversed(lines):
        if b"total_steps" not in line:
            continue
        event = parse_line(line)
        is_progress = is_kind(event, StepEvent) or is_kind(event, PlanEvent)
        if is_progress and "total_steps" in event:
            return event.get("step", 0), event["total_steps"]
    return 0, 0
