"""Trains a run, and retries with smaller micro-batches of the same effective batch when memory runs out.

When a step does not fit the device, everything that the attempt allocated is released, and the run continues
from its last checkpoint with about half the micro-batch and more accumulation steps. The number of optimizer
steps follows from the effective batch alone, so the learning-rate schedule stays.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import torch
from transformers import set_seed

from core.data.tokens.encoding import EncodedSequence
from core.data.tokens.token_table import TableRows
from core.errors import OutOfMemory
from core.model.resident import Resident
from core.spec.training import TrainSpec
from core.store import runs
from core.store.workspace import Workspace
from core.train import checkpoints, memory
from core.train.arguments import lora_config
from core.train.context import TrainerContext
from core.train.continuation import find_start
from core.train.distributed import ProcessGroup
from core.train.trainer import StudioTrainer


@dataclass(frozen=True)
class TrainingInputs:
    """What every attempt at a run starts from.

    Attributes:
        rows: training rows.
        validation: sequences that are scored at every validation.
        prompts: sample prompts that the adapter answers at every validation.
    """

    rows: datasets.Dataset | TableRows
    validation: list[EncodedSequence]
    prompts: list[str]
    context: TrainerContext


def train_with_retries(
    workspace: Workspace, resident: Resident, run: runs.Run, inputs: TrainingInputs
) -> tuple[runs.Run, StudioTrainer]:
    """Trains until the run ends or stops; after running out of memory, again with a smaller micro-batch.

    Returns:
        The run, with every reduction of its micro-batch in `extra`, and the trainer of the last attempt.

    Raises:
        OutOfMemory: a single row does not fit, or several processes train, which cannot retry on their own.
    """
    while True:
        batch = run.extra.micro_batch
        spec = replace(run.spec, **batch) if batch else run.spec
        trainer, error = _attempt(workspace, resident, run, spec, inputs)
        if not error:
            return run, trainer
        if inputs.context.group.world_size > 1:  # the other ranks are inside a step that needs this one
            raise OutOfMemory(
                f"{spec.batch_size} rows at once did not fit the device ({error}).",
                f"Halve the batch size and double the accumulation. {_advice(resident, spec)}.",
            )
        del trainer  # releases the memory of the optimizer
        resident.remove_trainee()
        _free_memory(resident)
        smaller = memory.shrink_micro_batch(spec.batch_size, spec.accumulation)
        if smaller is None:
            raise OutOfMemory(
                f"One row of {spec.max_length} tokens did not fit the device ({error}).",
                f"What would help most: {_advice(resident, spec)}.",
            )
        run = _record_smaller_batch(workspace, run, spec, smaller, error, inputs.context)


def _attempt(
    workspace: Workspace, resident: Resident, run: runs.Run, spec: TrainSpec, inputs: TrainingInputs
) -> tuple[StudioTrainer, str]:
    """Trains from the newest checkpoint until the run ends or memory runs out.

    The exception does not leave this function, because its traceback keeps every tensor of the failed step
    alive.

    Returns:
        The trainer, and the message of the out-of-memory error, "" if there was none.
    """
    folder = runs.checkpoints_folder(workspace, run.id)
    checkpoint = checkpoints.find_newest(folder, run.id)
    log = inputs.context.log
    set_seed(spec.seed)
    resident.add_trainee(run.adapter, lora_config(resident, spec), spec.stack_on, spec.initialisation)
    if resident.has_offset:
        start = spec.initialisation.upper()
        log.append(
            "note",
            text=f"The adapter starts from {start} and is saved as a plain LoRA of rank {2 * spec.rank}.",
        )
    trainer = StudioTrainer(
        resident, spec, inputs.rows, inputs.validation, folder, run.id, inputs.context, inputs.prompts
    )
    if checkpoint:
        text = f"Resumed from step {checkpoints.step_of(checkpoint)}."
        log.append("note", text=text + _world_size_note(checkpoint, inputs.context.group))
    elif source := find_start(workspace, spec):
        source.check_base(resident)  # it may have been queued before this base was loaded
        trainer.start_from(source)
        log.append("note", text=source.describe())
    try:
        trainer.train_from(checkpoint)
    except (RuntimeError, MemoryError) as e:
        if not memory.is_out_of_memory(e):
            raise
        return trainer, str(e).splitlines()[0][:300] if str(e) else "out of memory"
    return trainer, ""


def _world_size_note(checkpoint: Path, group: ProcessGroup) -> str:
    """What changes when a run resumes with another number of processes, or ""."""
    before = checkpoints.world_size_of(checkpoint)
    if before == group.world_size:
        return ""
    return (
        f" The world size was {before} and is now {group.world_size}: data and effective batch stay the "
        "same; only LoRA dropout is drawn differently."
    )


def _record_smaller_batch(
    workspace: Workspace,
    run: runs.Run,
    spec: TrainSpec,
    smaller: tuple[int, int],
    error: str,
    context: TrainerContext,
) -> runs.Run:
    """Writes a smaller micro-batch (rows, accumulation) into the run and its log; returns the run."""
    rows, accumulation = smaller
    checkpoint = checkpoints.find_newest(runs.checkpoints_folder(workspace, run.id), run.id)
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    event: runs.BatchReduction = {"batch_size": rows, "accumulation": accumulation, "from_step": step}
    context.log.append("memory", what="smaller", error=error, **event)
    context.log.append(
        "note",
        text=f"Out of memory: the micro-batch is now {rows} rows instead of {spec.batch_size}, "
        f"accumulated {accumulation} times; the effective batch stays {rows * accumulation}.",
    )
    extra = replace(
        run.extra,
        micro_batch={"batch_size": rows, "accumulation": accumulation},
        made_smaller=(*run.extra.made_smaller, event),
    )
    return runs.update(workspace, run, extra=extra)


def _advice(resident: Resident, spec: TrainSpec) -> str:
    return "; ".join(memory.advice(memory.ModelShape.from_base(resident.base), spec))


def _free_memory(resident: Resident) -> None:
    """Returns memory without references to the device."""
    gc.collect()
    if resident.base.device.type == "cuda":
        torch.cuda.empty_cache()
