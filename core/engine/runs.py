"""Training runs: starting, stopping, pausing, resuming, reading and comparing them. `engine.runs`.

A run trains on the model's thread (`core/engine/run_executor.py`), or in processes of its own
(`core/train/launcher.py`). `engine.queue` orders and cancels the waiting runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from core.data.datasets import Dataset, load_dataset, read_split
from core.engine import run_advice
from core.engine.gpu_estimates import SlicePlan, plan_slices
from core.engine.queue import RunQueue
from core.engine.resident_base import ResidentBase
from core.engine.run_executor import RunExecutor
from core.engine.worker import Worker, make_lock
from core.errors import BaseModelError, Busy, InvalidName, RunError, SpecError, StudioError
from core.spec.recommendation import DataSize, Recommendation
from core.spec.training import Launch, RunStatus, TrainSpec
from core.store import adapters, run_order, runs, worth
from core.store.event_log import read_since
from core.store.runs import Run, RunExtra
from core.store.workspace import Workspace, check_name
from core.store.worth import Worth
from core.train import comparison, launcher
from core.train.comparison import RunHistory, SettingValues

if TYPE_CHECKING:
    from core.train.memory import MemoryReport

logger = logging.getLogger(__name__)

# Where the loss can be logged, and the packages of which any one is enough.
REPORTERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
CHECK_SECONDS = 10.0  # longest wait for the model's thread before a start
DOUBLE_CLICK_SECONDS = 2.0  # the same start twice within this time is one start
COMPARISON_LIMITS = (2, 8)  # runs side by side


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side."""

    runs: tuple[Run, ...]
    histories: tuple[RunHistory, ...]
    settings: tuple[SettingValues, ...]


class Runs:
    """Starts, stops and reads runs. Safe to call from any thread."""

    def __init__(
        self,
        workspace: Workspace,
        worker: Worker,
        resident_base: ResidentBase,
        queue: RunQueue,
        executor: RunExecutor,
    ) -> None:
        self._workspace, self._worker, self._resident_base = workspace, worker, resident_base
        self._queue, self._executor = queue, executor
        self._model_shape: tuple[str, Any] | None = None  # (fingerprint of a base, what decides its memory)
        self._checked = ("", "")  # sha256 of a dataset, fingerprint of the base whose template accepts it
        self._starting = make_lock()  # a second click waits until the first one has its run
        self._last_start: tuple[float, Any, str] = (0.0, None, "")  # when, what was started, run id
        self._sizes: dict[str, DataSize] = {}  # sha256 of a dataset to how much it trains on
        self._histories: dict[str, tuple[int, RunHistory]] = {}  # run id to (bytes of its log, its history)

    # --- reading

    def list(self) -> Sequence[Run]:
        """All runs, newest first."""
        return runs.load_all(self._workspace)

    def get(self, run_id: str) -> Run:
        """One run.

        Raises:
            NotFound, StorageError
        """
        return runs.load(self._workspace, run_id)

    def events(self, run_id: str, cursor: int = 0) -> tuple[Sequence[dict[str, Any]], int]:
        """The events of a run after `cursor`, and the next cursor.

        `core.store.events` lists the kinds of events and their fields.

        Raises:
            NotFound
        """
        self._workspace.find("runs", run_id)
        return read_since(runs.events_path(self._workspace, run_id), cursor)

    def history(self, run_id: str) -> RunHistory:
        """The curves and figures in a run's log, which is read again only after it has grown."""
        size = comparison.log_bytes(self._workspace, run_id)
        cached = self._histories.get(run_id)
        if cached is None or cached[0] != size:
            cached = (size, comparison.load_history(self._workspace, run_id))
            others = {k: v for k, v in self._histories.items() if k != run_id}
            self._histories = {**others, run_id: cached}
        return cached[1]

    def worth(self, run_id: str) -> Worth | None:
        """What the adapter of a run is worth on held-out rows; None while that is not measured."""
        return worth.load(self._workspace, run_id)

    def compare(self, run_ids: Sequence[str]) -> RunComparison:
        """Runs side by side: curves, figures and settings.

        Raises:
            SpecError: fewer than two runs, or more than eight. NotFound
        """
        low, high = COMPARISON_LIMITS
        unique = tuple(dict.fromkeys(run_ids))
        if not low <= len(unique) <= high:
            raise SpecError(
                f"The number of runs must be between {low} and {high}, got {len(unique)}.",
                f"Choose {low} to {high} runs.",
            )
        chosen = tuple(self.get(i) for i in unique)
        histories = tuple(self.history(r.id) for r in chosen)
        return RunComparison(chosen, histories, tuple(comparison.compare_settings(chosen)))

    def is_ending(self, run: Run) -> bool:
        """Whether a run has ended, and this process still measures what its adapter is worth."""
        return not run.status.is_alive and run.id in self._queue.locks

    def wait(self, run_id: str, seconds: float = 3600.0) -> Run:
        """Blocks until a run has ended, and what its adapter is worth is measured.

        Raises:
            Busy: it has not ended after `seconds`. BaseModelError: see `check_base`.
        """
        end = time.monotonic() + seconds
        while (run := self.get(run_id)).status.is_alive or self.is_ending(run):
            self.check_base(run_id)
            if time.monotonic() > end:
                raise Busy(f"The run {run.name!r} is still {run.status.value}.", "Wait longer, or stop it.")
            time.sleep(0.05)
        return self.get(run_id)

    def explain_wait(self, run_id: str) -> str:
        """Why a queued run of this process cannot start yet, as a sentence; "" if it can."""
        return self._queue.explain_wait(run_id)

    def check_base(self, run_id: str) -> None:
        """Checks that a run does not wait for a base that is not being loaded. It stays in the queue.

        Raises:
            BaseModelError: the base could not be loaded, or is another one than that of the run.
        """
        info = self._resident_base.info
        has_base = bool(info.error) or self._resident_base.peek() is not None
        if has_base and not info.loading and (reason := self.explain_wait(run_id)):
            raise BaseModelError(
                reason, "Load that base: the run then starts. After a restart it can be queued again."
            )

    # --- before a start

    def list_problems(self, fields: dict[str, Any]) -> Sequence[str]:
        """What prevents a run from starting, one sentence per problem; empty when it can start.

        Args:
            fields: fields of a TrainSpec; the form may not have filled in all of them.
        """
        missing = []
        if error := self._resident_base.info.error:
            missing.append(error)
        if not fields.get("dataset"):
            is_domain = fields.get("kind", "domain") == "domain"
            missing.append("Choose a text dataset." if is_domain else "Choose a dataset of labelled pairs.")
        if not str(fields.get("name", "")).strip():
            missing.append("Give the adapter a name.")
        try:
            missing += check_reporters(TrainSpec.from_json(fields))
        except StudioError as e:
            missing.append(str(e))
        return missing

    def recommend(self, dataset_id: str, preset: str) -> Recommendation:
        """The settings that suit a dataset, on top of a preset.

        Raises:
            NotFound, StorageError, SpecError
        """
        dataset = load_dataset(self._workspace, dataset_id)
        size, info = self._estimate_size(dataset), self._resident_base.info
        return run_advice.recommend_settings(dataset, size, preset, info.parameters, info.context)

    def plan_slices(self, spec: TrainSpec) -> SlicePlan | None:
        """The GPU time that a run would need in slices; None where it trains on the resident base.

        Raises:
            NotFound, StorageError: its dataset.
        """
        slices = self._executor.slices
        if slices is None or not spec.dataset:
            return None
        size = self._estimate_size(load_dataset(self._workspace, spec.dataset))
        info = self._resident_base.info
        earlier = (r for r in self.list() if r.base_fingerprint and r.base_fingerprint == info.fingerprint)
        rates = (self.history(r.id).tokens_per_second for r in earlier)
        rate = next((r for r in rates if r > 0), 0.0)  # NaN where a run took no step
        return plan_slices(spec, size, info.parameters, round(slices.seconds), rate)

    def _estimate_size(self, dataset: Dataset) -> DataSize:
        """How much a run on a dataset would train on; computed once."""
        size = self._sizes.get(dataset.sha256)
        if size is None:
            size = run_advice.estimate_size(self._workspace, dataset.id)
            self._sizes = {**self._sizes, dataset.sha256: size}
        return size

    def estimate_memory(self, spec: TrainSpec) -> MemoryReport | None:
        """What a run would need of the device's memory, against what is free; None while no base is loaded.

        The estimate is calibrated by the newest run on the same base whose first step was measured.
        """
        resident = self._resident_base.peek()
        if resident is None:
            return None
        from core.train import memory

        fingerprint = resident.base.fingerprint
        if self._model_shape is None or self._model_shape[0] != fingerprint:
            shape = self._worker.call(lambda: memory.ModelShape.from_base(resident.base))
            self._model_shape = (fingerprint, shape)
        shape = self._model_shape[1]
        ratios = (r.extra.memory_ratio for r in self.list() if r.base_fingerprint == fingerprint)
        ratio = next((r for r in ratios if r), None)
        free = memory.available_bytes(shape.on_gpu)
        if free is not None:
            free -= self._resident_base.file_bytes
        return memory.report_memory(shape, spec, ratio, free)

    def check(self, spec: TrainSpec) -> Dataset:
        """Checks what a run needs before it can be queued: its name, dataset and parent adapter.

        Returns:
            the dataset.

        Raises:
            SpecError, NotFound, InvalidName, AdapterError. DataError: the base's chat template refuses a row.
        """
        try:
            check_name(spec.name)
        except InvalidName as e:
            raise e.at("name") from None
        if not spec.dataset:
            raise SpecError("No dataset is chosen.", "Import one on the Data page, then choose it here.").at(
                "dataset"
            )
        dataset = load_dataset(self._workspace, spec.dataset)
        if dataset.kind != spec.kind:
            raise SpecError(
                f"A {spec.kind} run needs a {spec.kind} dataset, "
                f"got the {dataset.kind} dataset {dataset.name!r}.",
                f"Choose a {spec.kind} dataset.",
            ).at("dataset")
        if dataset.purpose == "evaluation":
            raise SpecError(
                f"{dataset.name!r} is for evaluation only, so nothing trains on it.",
                "Choose another dataset, or import the files again for training.",
            ).at("dataset")
        if problem := self._explain_length(spec):
            raise SpecError(problem, "Lower Max length.").at("max_length")
        if missing := check_reporters(spec):
            raise SpecError(missing[0], "Or remove it from the places where the loss is logged.")
        if spec.stack_on:
            self._check_parent(spec)
        self._check_replay(spec)
        if spec.continue_from:
            self._check_source(spec)
        if spec.kind == "task" and spec.rules > 1:
            self._check_conversations(dataset)
        return dataset

    def _explain_length(self, spec: TrainSpec) -> str:
        """Why the base cannot read sequences of this length, as a sentence; "" if it can, or is not known."""
        context = self._resident_base.info.context
        if not context or spec.max_length <= context:
            return ""
        return f"Max length must be at most the base's context of {context} tokens, got {spec.max_length}."

    def _check_conversations(self, dataset: Dataset) -> None:
        """Checks that the chat template of the resident base accepts the rows, with one row of each shape.

        Without a base, or while the model is busy for long, the run checks it when it begins.

        Raises:
            DataError: it refuses a row; names the row, in the template's words.
        """
        resident = self._resident_base.peek()
        if resident is None or self._checked == (dataset.sha256, resident.base.fingerprint):
            return
        from core.data.tokens.conversations import check_conversations, read_turns, shape_of

        firsts: dict[Any, tuple[str, dict[str, Any]]] = {}
        for split in ("train", "val", "test"):
            for i, row in enumerate(read_split(self._workspace, dataset.id, split), start=1):
                place = f"Row {i} of the {split} split of {dataset.name!r}"
                firsts.setdefault(shape_of(read_turns(row["messages"])), (place, row))
        places = [(place, None) for place, _ in firsts.values()]

        def check() -> None:
            check_conversations(resident.base.tokenizer, [row for _, row in firsts.values()], places)

        with contextlib.suppress(Busy):
            self._worker.call(check, CHECK_SECONDS)
            self._checked = (dataset.sha256, resident.base.fingerprint)

    def _check_parent(self, spec: TrainSpec) -> None:
        """Checks the parent adapter: it is in the library and fits the base, or a live run will add it."""
        if any(r.adapter == spec.stack_on and r.status.is_alive for r in self.list()):
            return
        adapter = adapters.load(self._workspace, spec.stack_on)
        adapters.check_parent(adapter)
        resident = self._resident_base.peek()
        if resident is not None:
            resident.check_same_base(adapter)

    def _check_source(self, spec: TrainSpec) -> None:
        """Checks the run that is to be trained further: it is there, of the same shape, and on this base.

        Raises:
            RunError
        """
        from core.train.continuation import find_start

        start = find_start(self._workspace, spec)
        resident = self._resident_base.peek()
        if start and resident is not None:
            start.check_base(resident)

    def _check_replay(self, spec: TrainSpec) -> None:
        """Checks the dataset whose texts are mixed into a domain run, where it is another one than its own.

        Raises:
            SpecError, NotFound, StorageError
        """
        if not (spec.kind == "domain" and spec.replay_share and spec.replay_dataset):
            return
        dataset = load_dataset(self._workspace, spec.replay_dataset)
        if dataset.kind != "domain":
            raise SpecError(
                f"General text comes from a domain dataset, got the {dataset.kind} dataset {dataset.name!r}.",
                "Choose a domain dataset.",
            ).at("replay_dataset")
        if dataset.purpose == "evaluation":
            raise SpecError(
                f"{dataset.name!r} is for evaluation only, so nothing trains on it.",
                "Choose another dataset for the general text.",
            ).at("replay_dataset")

    # --- starting and stopping

    def start(self, spec: TrainSpec, launch: Launch | None = None, extra: RunExtra | None = None) -> str:
        """Queues a run and returns its id immediately; a second click on the same start returns the same run.

        A start is the same if its settings, its processes and what is recorded with it are the same. The run
        waits in the queue until a base is loaded. If it cannot enter the queue, nothing of it stays.

        Args:
            launch: the processes that train the run; None trains it on the resident base.
            extra: what is recorded with the run beside its settings, such as the grid that it belongs to.

        Raises:
            SpecError, NotFound, InvalidName, AdapterError, StorageError. Busy: the queue is full.
        """
        details = extra or RunExtra()
        if launch and launch.launcher:
            _, quantization, device = self._resident_base.choice
            launcher.check_launch(launch, spec)
            details = replace(details, launch=launch, quantization=quantization, device=device)
        with self._starting:
            when, last_request, run_id = self._last_start
            if last_request == (spec, details) and time.monotonic() - when < DOUBLE_CLICK_SECONDS:
                with contextlib.suppress(StudioError):  # the run or its adapter was deleted meanwhile
                    before = self.get(run_id)
                    if before.status in (RunStatus.DONE, RunStatus.STOPPED):
                        self._workspace.find("adapters", before.adapter)
                    if not before.extra.cancelled:
                        return run_id
            dataset = self.check(spec)
            self._queue.check_room(1)
            run = runs.create(self._workspace, spec, self._resident_base.info.name, dataset.sha256, details)
            try:
                self._executor.enter(run)
            except BaseException as e:
                self._discard(run, str(e))
                raise
            self._last_start = (time.monotonic(), (spec, details), run.id)
            return run.id

    def train_on(self, run_id: str, steps: int = 0, name: str = "") -> str:
        """Queues a run that trains the adapter of a finished one further, and returns its id.

        It has the same data and settings, the state of the finished run's optimizer where that is stored, a
        new schedule and a new adapter; the finished run and its adapter stay as they are.

        Args:
            steps: optimizer steps; 0 takes the number that the finished run suggests.
            name: of the new adapter; "" takes that of the finished run, with the number of steps.

        Raises:
            RunError: the run is not finished, or its adapter is gone. See also `start`.
        """
        run = self.get(run_id)
        parameters = self._resident_base.info.parameters
        spec = run_advice.continue_spec(run, parameters, steps, name)
        return self.start(spec, run.extra.launch)

    def _discard(self, run: Run, reason: str) -> None:
        """Deletes a run that could not enter the queue; where that fails, its status says why it ended."""
        try:
            self._queue.lock(run.id)
        except StudioError:
            if runs.is_alive(self._workspace, run.id):  # another process has queued it meanwhile
                return
        try:
            self._workspace.delete("runs", run.id)
        except (StudioError, OSError):
            logger.exception("the run %s could not be deleted", run.id)
            with contextlib.suppress(StudioError):
                runs.update(self._workspace, run, status=RunStatus.FAILED, error=reason)
        finally:
            self._queue.unlock(run.id)

    def stop(self, run_id: str) -> None:
        """Asks a run to end after its current step and add its adapter to the library.

        A queued run is cancelled instead.

        Raises:
            RunError: the run does not run in this process. Busy: other queued runs need it.
        """
        run = self.get(run_id)
        if run.status is RunStatus.QUEUED:
            try:
                self._queue.cancel(run_id)
                return
            except RunError:  # it has just started, and is stopped like any other running run
                if run_id not in self._queue.locks:
                    raise
        is_ours = run_id in self._queue.locks
        has_processes = run.extra.launch or run.extra.has_unknown_launch
        if run.status.is_alive and has_processes and not is_ours:  # another process launched it
            runs.write_stop_request(self._workspace, run_id, "keep")
            return
        if not run.status.is_alive or not is_ours:
            raise RunError(
                f"The run {run.name!r} is not running here ({run.status.value}).",
                "Only a queued or running run can be stopped.",
            )
        self._executor.request_stop(run_id, "keep")

    def pause(self, run_id: str) -> None:
        """Asks a run to save a checkpoint after its current step and free the model for the next run.

        A run of another process receives the request as a file, which that process polls between its steps.

        Raises:
            RunError: the run is not running.
        """
        run = self.get(run_id)
        if run.status is not RunStatus.RUNNING:
            raise RunError(
                f"The run {run.name!r} is not running ({run.status.value}).",
                "Only a running run can be paused.",
            )
        if run_id not in self._queue.locks:
            runs.write_stop_request(self._workspace, run_id, "pause")
            return
        self._executor.request_stop(run_id, "pause")

    def resume(self, run_id: str) -> None:
        """Queues a run again, from its newest checkpoint that verifies.

        While no base is loaded, or another base than its own, it waits in the queue.

        Raises:
            RunError: the run is alive or finished, or it began on another base. AdapterError, NotFound: its
                parent adapter. Busy: another process holds it.
        """
        run = self.get(run_id)
        if not run.resumable:
            raise RunError(
                f"The run {run.name!r} cannot be resumed ({run.status.value}).",
                "Start a new run with the same settings.",
            )
        resident = self._resident_base.peek()
        began_on = run.base_fingerprint
        if resident is not None and began_on and began_on != resident.base.fingerprint:
            raise RunError(
                f"The run {run.name!r} began on the base {run.base!r}; "
                f"the resident base is {resident.base.name!r}.",
                "Switch back to that base, then resume the run.",
            )
        if run.spec.stack_on:
            self._check_parent(run.spec)
        self._executor.enter(run)

    def requeue(self) -> Sequence[str]:
        """Queues the runs that were still waiting when their process ended, in their order.

        The engine does not call this at startup: a studio that was opened to chat would lose the model to old
        runs.

        Returns:
            ids of the runs.

        Raises:
            StudioError: no run could be queued; a run that could not be queued beside others is logged.
        """
        order = run_order.read(self._workspace)
        waiting = [r.id for r in reversed(self.list()) if r.was_queued and r.id not in order.cancelled]
        ids, errors = [], []
        for run_id in order.sort(waiting):
            try:
                self.resume(run_id)
                ids.append(run_id)
            except StudioError as e:
                logger.warning("the run %s was not queued: %s", run_id, e)
                errors.append(e)
        if errors and not ids:
            raise errors[0]
        return ids

    def join(self, run_id: str, launch: Launch) -> None:
        """Adds the processes of this machine to a run that another machine started, and waits for them.

        Args:
            launch: as the run was started with, except for the rank of this machine.

        Raises:
            RunError: the run does not wait for other machines, or `launch` does not match.
            StudioError: the error of a process.
        """
        run = self.get(run_id)
        started = run.extra.launch or Launch()
        if not run.status.is_alive or started.nnodes < 2:
            raise RunError(
                f"The run {run.name!r} does not wait for another machine ({run.status.value}).",
                "Start it on the first machine with --nnodes, then join it from the others.",
            )
        if (
            replace(launch, node_rank=0) != replace(started, node_rank=0)
            or launch.node_rank == started.node_rank
        ):
            raise RunError(
                f"The run {run.name!r} was started with other numbers of machines and processes.",
                f"Give --nnodes {started.nnodes} --nproc {started.nproc} "
                f"--rdzv-endpoint {started.rdzv_endpoint}, and a --node-rank that is still free.",
            )
        launcher.run_processes(self._workspace, run, lambda seconds: None, lambda: "", launch)


def check_reporters(spec: TrainSpec) -> Sequence[str]:
    """One sentence per logging destination of a spec that is unknown, or whose package is not installed."""
    problems = []
    for name in spec.report_to:
        packages = REPORTERS.get(name)
        if packages is None:
            problems.append(f"The loss can be logged to {', '.join(REPORTERS)}, got {name!r}.")
        elif not any(importlib.util.find_spec(p) for p in packages):
            problems.append(f"To log to {name}, install it first: pip install {packages[0]}.")
    return problems
