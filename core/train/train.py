"""From a run to an adapter in the library: `train` is what the engine, and every process of a launch, calls.

Encoding is in `sequences`, the loop in `trainer`, retries after running out of memory in `oom_retry`, and
what the library records in `provenance`.

A run is alive while its process holds a lock on `owner.lock`, which the operating system releases when the
process dies. A run whose status says that it is running and whose lock is free was interrupted, and can be
resumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from core.data.datasets import Dataset, load_dataset, verify_dataset
from core.errors import RunError
from core.model import experts
from core.model.nf4_cpu import unpack_for_backward
from core.model.resident import Resident
from core.spec.recommendation import floor_of
from core.spec.training import EQUALS_BASE, STILL_LEARNING, RunStatus, describe_expert_training
from core.store import runs
from core.store.workspace import Workspace
from core.train import comparison, provenance
from core.train.context import TrainerContext
from core.train.convergence import Convergence, judge_convergence
from core.train.distributed import SINGLE_PROCESS, ProcessGroup
from core.train.oom_retry import TrainingInputs, train_with_retries
from core.train.optimizer import remove_neftune_hook
from core.train.sequences import build_sequences, sample_prompts
from core.train.threads import StartBackground, ThreadControl
from core.train.trainer import StudioTrainer

# The status of a run that a stop request leaves to be resumed; "keep" ends a run instead. After a slice
# (`core.train.slices`), the next process continues it at once.
RESUMABLE_STATUS = {"pause": RunStatus.PAUSED, "close": RunStatus.INTERRUPTED, "slice": RunStatus.RUNNING}


def train(
    workspace: Workspace,
    resident: Resident,
    run: runs.Run,
    yield_to_requests: Callable[[float], None],
    poll_stop: Callable[[], str],
    general_texts: Callable[[], Sequence[str]],
    group: ProcessGroup = SINGLE_PROCESS,
    background: StartBackground | None = None,
) -> runs.Run:
    """Trains a run to its end, from its newest checkpoint if it has one. The caller holds the run's lock.

    Args:
        yield_to_requests: serves waiting requests on the model, for at most the given number of seconds.
        poll_stop: "" to go on, "keep" to end and add the adapter to the library, "pause" or "close" to save a
            checkpoint and resume later, "slice" to save a checkpoint from which the next slice continues.
        general_texts: returns the built-in texts that are replayed when the spec names no replay dataset.
        group: the processes that train the run; each of them calls this function.
        background: starts a job on a thread of its own (`core.train.threads.PassiveWait`).

    Returns:
        The run as it ended: DONE; STOPPED, with its adapter in the library; PAUSED or INTERRUPTED, with a
        checkpoint; or RUNNING, with a checkpoint, after a slice.

    Raises:
        StudioError: the run could not start or continue; the caller records the error.
    """
    base = resident.base
    log = group.open_log(workspace, run.id)
    threads = None
    if base.device.type == "cpu" and group.world_size == 1:
        threads = ThreadControl(lambda fields: log.append("machine", **fields), background=background)
    if run.base_fingerprint and run.base_fingerprint != base.fingerprint:
        raise RunError(
            f"The run {run.name!r} began on the base {run.base!r}, and the resident base is {base.name!r}.",
            "Switch back to that base, then resume the run.",
        )
    try:
        if group.is_main_process:
            runs.remove_finished_checkpoints(workspace)
        run = group.update_run(
            workspace,
            run,
            status=RunStatus.RUNNING,
            error="",
            base=base.name,
            base_fingerprint=base.fingerprint,
        )
        begin = time.monotonic()
        dataset = _load_unchanged_dataset(workspace, run)

        def note(text: str) -> None:
            log.append("note", text=text)

        if run.spec.experts:
            parameters = experts.parameters_per_rank(base.model)
            note(describe_expert_training(parameters, run.spec.rank, base.parameters))
        sequences = build_sequences(workspace, resident, run.spec, dataset, general_texts, note)
        log.append("data", **sequences.stats.to_json())
        context = TrainerContext(log, yield_to_requests, poll_stop, group, threads)
        prompts = sample_prompts(workspace, run.spec)
        inputs = TrainingInputs(sequences.rows, sequences.validation, prompts, context)
        with unpack_for_backward(base.model):
            run, trainer = train_with_retries(workspace, resident, run, inputs)
        stopped = trainer.state.global_step < trainer.state.max_steps and not trainer.progress.ended_early
        if stopped and (request := poll_stop()) in RESUMABLE_STATUS:
            status = RESUMABLE_STATUS[request]
            return run if status is run.status else group.update_run(workspace, run, status=status)
        seconds = time.monotonic() - begin
        adapter = provenance.add_to_library(workspace, resident, run, dataset, trainer, seconds)
        equals_base = bool(adapter and adapter.results.get("equals_base"))
        if adapter:
            log.append("result", adapter=adapter.id, **adapter.results)
        if equals_base:
            note(f"The adapter equals the base: {_describe_steps(trainer)}. {EQUALS_BASE[1]}")
        ratio = trainer.memory_ratio or run.extra.memory_ratio
        status = RunStatus.STOPPED if stopped else RunStatus.DONE
        convergence = Convergence() if stopped or equals_base else _judge_end(workspace, run, resident)
        if convergence.still_learning:
            note(f"{STILL_LEARNING[1]} {STILL_LEARNING[2].format(steps=convergence.more_steps)}")
        extra = replace(
            run.extra,
            memory_ratio=ratio,
            equals_base=equals_base,
            still_learning=convergence.still_learning,
            train_on_steps=convergence.more_steps or None,
        )
        run = group.update_run(workspace, run, status=status, extra=extra)
        if not stopped and group.is_main_process:
            # After the status, never before: a run that is killed in between must still be able to resume.
            runs.retire_checkpoints(workspace, run)
        return run
    finally:
        if threads:
            threads.restore()
        _restore_base(resident, group)


def _judge_end(workspace: Workspace, run: runs.Run, resident: Resident) -> Convergence:
    """Whether a run that completed its steps was still learning, from the validations in its log."""
    validations = comparison.load_validations(workspace, run.id)
    floor = 0 if run.spec.continue_from else floor_of(resident.base.parameters).steps
    return judge_convergence(validations, run.spec, floor)


def _describe_steps(trainer: StudioTrainer) -> str:
    """How long a run trained, and how fast, as part of a sentence."""
    steps = int(trainer.state.global_step)
    plural = "" if steps == 1 else "s"
    return f"{steps} step{plural} at a learning rate of {trainer.spec.learning_rate:g} had no effect on it"


def _restore_base(resident: Resident, group: ProcessGroup) -> None:
    """Leaves the resident base as it was before the run."""
    remove_neftune_hook(resident.base.model)
    if not group.sharded:  # the process of a sharded base ends now
        resident.remove_trainee()
    if resident.base.model.is_activation_checkpointing:
        resident.base.model.activation_checkpointing_disable()


def _load_unchanged_dataset(workspace: Workspace, run: runs.Run) -> Dataset:
    """The run's dataset. A resumed run finds its position by counting rows, so the rows must be the same.

    Raises:
        RunError: the dataset has changed since the run was created.
    """
    dataset = load_dataset(workspace, run.spec.dataset)
    verify_dataset(workspace, dataset.id)
    if run.dataset_sha256 and dataset.sha256 != run.dataset_sha256:
        raise RunError(
            f"The dataset {dataset.name!r} changed since this run began.", "Start a new run on it."
        )
    return dataset
