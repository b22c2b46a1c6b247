"""From a run to an adapter in the library: rows to sequences, training, provenance.

Knows datasets, the library and the trainer. Knows nothing of queues, pages or who waits.
"""

from __future__ import annotations

import gc
import importlib.metadata
import logging
import math
import platform
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors.torch import save_file
from transformers import set_seed

from core.data.datasets import Dataset, load_dataset, read_split, verify_dataset
from core.data.encoding import (
    EncodedSequence,
    count_with_special_tokens,
    encode_documents,
    encode_span_corruption,
    encode_task,
    encode_text,
    is_seq2seq,
)
from core.data.replay import add_replay
from core.data.packing import PackingStats, build_rows, split_into_windows
from core.errors import OutOfMemory, RunError, SpecError
from core.model import experts
from core.model.nf4_cpu import unpack_for_backward
from core.model.packing_check import leaks
from core.model.resident import Resident
from core.spec.training import RunStatus, TrainSpec, describe_expert_training
from core.store import adapters, runs
from core.store.workspace import Workspace
from core.train import checkpoints, memory
from core.train.distributed import SINGLE_PROCESS, ProcessGroup
from core.train.optimizer import quiet
from core.train.trainer import TrainerContext, StudioTrainer

logger = logging.getLogger(__name__)

VALIDATION_ROWS = 200  # validation reads at most this many sequences, the same ones every time
LATER = {
    "pause": RunStatus.PAUSED,
    "close": RunStatus.INTERRUPTED,
}  # wishes after which a run waits to be resumed
OPENING_WORDS = 4  # of a validation text, for the adapter in training to go on from
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets")


def train(
    workspace: Workspace,
    resident: Resident,
    run: runs.Run,
    serve: Callable[[float], None],
    stop_asked: Callable[[], str],
    general: Callable[[], Sequence[str]],
    group: ProcessGroup = SINGLE_PROCESS,
) -> runs.Run:
    """Trains a run to its end, from its newest checkpoint where it has one.

    The caller holds the run's claim.

    Args:
        stop_asked: "" to go on, "keep" to end and keep what is learned, "pause" or "close" to save and be resumed later.
        general: gives the texts of ours that are replayed when the spec names no dataset for it.
        group: the processes that train it; every one of them calls this.

    Returns:
        The run as it ended: DONE, STOPPED with what it had learned, or PAUSED or INTERRUPTED with a checkpoint.

    Raises:
        StudioError: it could not start or go on; the caller writes that down.
    """
    log = group.log(workspace, run.id)
    if run.base_fingerprint and run.base_fingerprint != resident.base.fingerprint:
        raise RunError(
            f"The run {run.name!r} began on the base {run.base!r}, and the resident base is {resident.base.name!r}.",
            "Change the base back, then resume it.",
        )
    try:
        if group.is_main_process:
            runs.remove_finished_checkpoints(workspace)
        run = group.change(
            workspace,
            run,
            status=RunStatus.RUNNING,
            error="",
            base=resident.base.name,
            base_fingerprint=resident.base.fingerprint,
        )
        begin = time.monotonic()
        dataset = _pinned(workspace, run)
        if run.spec.experts:
            log.append(
                "note",
                text=describe_expert_training(
                    experts.parameters_per_rank(resident.base.model), run.spec.rank, resident.base.parameters
                ),
            )
        rows, validation, account = sequences(
            workspace, resident, run.spec, dataset, general, lambda text: log.append("note", text=text)
        )
        log.append("data", **account.to_json())
        material = Material(
            rows, validation, sample_prompts(workspace, run.spec), TrainerContext(log, serve, stop_asked, group)
        )
        with unpack_for_backward(resident.base.model):
            run, trainer = _fitted(workspace, resident, run, material)
        stopped = trainer.state.global_step < trainer.state.max_steps and not trainer.ended_early
        if stopped and stop_asked() in LATER:
            return group.change(workspace, run, status=LATER[stop_asked()])
        adapter = _keep(workspace, resident, run, dataset, trainer, seconds=time.monotonic() - begin)
        if adapter:
            log.append("result", adapter=adapter.id, **adapter.results)
        measured = trainer.probed.get("ratio")
        extra = replace(run.extra, memory_ratio=measured) if measured else run.extra
        run = group.change(
            workspace, run, status=RunStatus.STOPPED if stopped else RunStatus.DONE, extra=extra
        )
        if not stopped and group.is_main_process:  # only now: whoever is killed before this can still resume
            shutil.rmtree(runs.checkpoints_folder(workspace, run.id), ignore_errors=True)
        return run
    finally:
        quiet(resident.base.model)
        if not group.sharded:  # a base in pieces serves nobody else, and its process ends now
            resident.remove_trainee()
        if resident.base.model.is_activation_checkpointing:
            resident.base.model.activation_checkpointing_disable()


@dataclass(frozen=True)
class Material:
    """What a run learns from and is asked, however often it has to begin again."""

    rows: datasets.Dataset
    validation: list[EncodedSequence]
    prompts: list[str]
    context: TrainerContext


def _fitted(
    workspace: Workspace, resident: Resident, run: runs.Run, material: Material
) -> tuple[runs.Run, StudioTrainer]:
    """Trains; as long as memory runs out, again from the last checkpoint with smaller micro-batches of the same effective batch.

    Raises:
        OutOfMemory: one row is too much.
    """
    while True:
        spec = replace(run.spec, **(run.extra.micro_batch or {}))
        trainer, error = _attempt(workspace, resident, run, spec, material)
        if not error:
            return run, trainer
        if material.context.group.world_size > 1:  # the others are in the middle of a step that needs us
            advice = memory.advice(memory.ModelShape.from_base(resident.base), spec)
            what = f"{spec.batch_size} rows at once did not fit the device ({error})."
            raise OutOfMemory(
                what, "Halve the batch size and double the accumulation. " + "; ".join(advice) + "."
            )
        del trainer  # and with it the optimizer's memory
        resident.remove_trainee()
        _free(resident)
        fewer = memory.shrink_micro_batch(spec.batch_size, spec.accumulation)
        if fewer is None:
            advice = memory.advice(memory.ModelShape.from_base(resident.base), spec)
            raise OutOfMemory(
                f"One row of {spec.max_length} tokens did not fit the device ({error}).",
                "What would help most: " + "; ".join(advice) + ".",
            )
        rows, accumulation = fewer
        step = (
            checkpoints.step_of(found)
            if (found := checkpoints.find_newest(runs.checkpoints_folder(workspace, run.id), run.id))
            else 0
        )
        event: runs.BatchReduction = {"batch_size": rows, "accumulation": accumulation, "from_step": step}
        material.context.log.append("memory", what="smaller", error=error, **event)
        material.context.log.append(
            "note",
            text=f"Memory ran out: {rows} instead of {spec.batch_size} rows at once, {accumulation} times a step, the same effective batch.",
        )
        extra = replace(
            run.extra,
            micro_batch={"batch_size": rows, "accumulation": accumulation},
            made_smaller=(*run.extra.made_smaller, event),
        )
        run = runs.update(workspace, run, extra=extra)


def _attempt(
    workspace: Workspace, resident: Resident, run: runs.Run, spec: TrainSpec, material: Material
) -> tuple[StudioTrainer, str]:
    """Trains from the newest checkpoint as far as memory reaches: (the trainer, "" or what said that there is none).

    The error itself stays here, because it holds on to every tensor of the step that failed.
    """
    folder = runs.checkpoints_folder(workspace, run.id)
    checkpoint = checkpoints.find_newest(folder, run.id)
    set_seed(spec.seed)
    resident.add_trainee(run.adapter, lora_config(resident, spec), spec.stack_on, spec.initialisation)
    if resident.has_offset:
        material.context.log.append(
            "note",
            text=f"The adapter starts from {spec.initialisation.upper()}, and is kept as plain LoRA of rank {2 * spec.rank}.",
        )
    trainer = StudioTrainer(
        resident, spec, material.rows, material.validation, folder, run.id, material.context, material.prompts
    )
    if checkpoint:
        material.context.log.append(
            "note",
            text=f"Resumed from step {checkpoints.step_of(checkpoint)}.{_recrewed(checkpoint, material.context.group)}",
        )
    try:
        trainer.take_up(checkpoint)
    except (RuntimeError, MemoryError) as e:
        if not memory.is_out_of_memory(e):
            raise
        return trainer, str(e).splitlines()[0][:300] if str(e) else "out of memory"
    return trainer, ""


def _recrewed(checkpoint: Path, group: ProcessGroup) -> str:
    """What it means that another number of processes goes on from a checkpoint, if so."""
    before = checkpoints.world_size_of(checkpoint)
    if before == group.world_size:
        return ""
    return f" {before} processes wrote it and {group.world_size} go on: the same data and effective batch; only LoRA dropout is drawn anew."


def _free(resident: Resident) -> None:
    """Gives memory back that nobody holds any more."""
    gc.collect()
    if resident.base.device.type == "cuda":
        torch.cuda.empty_cache()


def _pinned(workspace: Workspace, run: runs.Run) -> Dataset:
    """The run's dataset, unchanged since the run was asked for: positions in it are counted, not stored.

    Raises:
        RunError: its fingerprint has changed.
    """
    dataset = load_dataset(workspace, run.spec.dataset)
    verify_dataset(workspace, dataset.id)
    if run.dataset_sha256 and dataset.sha256 != run.dataset_sha256:
        raise RunError(
            f"The dataset {dataset.name!r} changed since this run began.", "Start a new run on it."
        )
    return dataset


def lora_config(resident: Resident, spec: TrainSpec) -> dict[str, Any]:
    """Fields of a LoraConfig for this base; target modules by family unless the spec names them.

    Raises:
        SpecError: a named module that the base does not have.
    """
    family = resident.base.family
    targets: Any = list(spec.target_modules or family.targets)
    if spec.target_modules:
        leaves = {name.rpartition(".")[2] for name, _ in resident.base.model.named_modules()}
        if unknown := [t for t in targets if t not in leaves]:
            raise SpecError(
                f"The base has no layers called {', '.join(unknown)}.",
                f"Usual for it: {', '.join(family.targets)}.",
            )
    if targets == ["all-linear"]:
        targets = "all-linear"
    on_experts = {"target_parameters": _experts(resident, spec)} if spec.experts else {}
    return {
        **on_experts,
        "task_type": family.task_type,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": spec.dropout,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": family.fan_in_fan_out,
        "use_rslora": spec.use_rslora,
        "use_dora": spec.use_dora,
    }


def _experts(resident: Resident, spec: TrainSpec) -> list[str]:
    """The fused weights of all experts, as peft names what it trains.

    Raises:
        SpecError: the base has none.
    """
    if not (found := experts.target_parameters(resident.base.model)):
        raise SpecError(
            f"The base {resident.base.name!r} has no experts.", "Switch off the training of experts."
        )
    return found


def sequences(
    workspace: Workspace,
    resident: Resident,
    spec: TrainSpec,
    dataset: Dataset,
    general: Callable[[], Sequence[str]],
    note: Callable[[str], None] = lambda text: None,
) -> tuple[datasets.Dataset, list[EncodedSequence], PackingStats]:
    """(training rows for `collate`, validation sequences, what the rows hold) of a spec.

    Raises:
        SpecError: the dataset's kind is not the run's, or max_length is beyond the base's context.
    """
    if dataset.kind != spec.kind:
        raise SpecError(
            f"{dataset.name!r} is a {dataset.kind} dataset.",
            f"A {spec.kind} run needs a {spec.kind} dataset.",
        )
    if spec.max_length > resident.base.context:
        raise SpecError(
            f"Max length is {spec.max_length}, and the base reads {resident.base.context} tokens.",
            f"Choose at most {resident.base.context}.",
        )
    tokenizer, ends = resident.base.tokenizer, resident.base.eos_ids
    train_rows = read_split(workspace, dataset.id, "train")
    held = read_split(workspace, dataset.id, "val")
    held = random.Random(spec.seed).sample(held, min(len(held), VALIDATION_ROWS))
    if spec.kind == "domain":
        texts = [r["text"] for r in train_rows]
        documents = add_replay(
            list(encode_documents(tokenizer, texts)),
            _replayable(workspace, tokenizer, spec, general) if spec.replay_share else [],
            spec.replay_share,
            spec.seed,
        )
        if is_seq2seq(tokenizer):
            parts = encode_span_corruption(tokenizer, documents, spec.max_length, spec.seed)
        else:
            parts = [split_into_windows(tokenizer.eos_token_id, ids, spec.max_length, spec.overlap) for ids in documents]
        learned = [e for part in parts for e in part]
        cut_up = sum(len(part) for part in parts if len(part) > 1)
        validation = [e for r in held for e in encode_text(tokenizer, r["text"], spec.max_length)][
            :VALIDATION_ROWS
        ]
    else:
        texts = [m["content"] for r in train_rows for m in r["messages"]]
        learned, cut_up = (
            [encode_task(tokenizer, r["messages"], spec.max_length, ends) for r in train_rows],
            0,
        )
        validation = [encode_task(tokenizer, r["messages"], spec.max_length, ends) for r in held]
    if forged := count_with_special_tokens(tokenizer, texts):
        note(f"{forged} texts contain the tokenizer's special tokens; they are read as plain characters.")
    packed = spec.packing
    if packed and (why := leaks(resident)):
        packed = False
        note(f"Sequences are padded, not packed: {why}.")
    random.Random(spec.seed).shuffle(learned)  # which sequences share a row
    rows, account = build_rows(learned, spec.max_length, packed)
    return datasets.Dataset.from_list(rows), validation, replace(account, windows=cut_up)


def sample_prompts(workspace: Workspace, spec: TrainSpec) -> list[str]:
    """The spec's own prompts, or one from the validation split: a question, or the first words of a text."""
    if spec.sample_prompts:
        return list(spec.sample_prompts)
    row = read_split(workspace, spec.dataset, "val", limit=1)[0]
    return [
        row["messages"][-2]["content"]
        if spec.kind == "task"
        else " ".join(row["text"].split()[:OPENING_WORDS])
    ]


def _replayable(
    workspace: Workspace, tokenizer: Any, spec: TrainSpec, general: Callable[[], Sequence[str]]
) -> list[list[int]]:
    if spec.replay_dataset:
        texts = [r["text"] for r in read_split(workspace, spec.replay_dataset, "train")]
        return list(encode_documents(tokenizer, texts))
    return list(encode_documents(tokenizer, general(), allow_special_tokens=True))


def _keep(
    workspace: Workspace,
    resident: Resident,
    run: runs.Run,
    dataset: Dataset,
    trainer: StudioTrainer,
    seconds: float,
) -> adapters.Adapter | None:
    """Puts the trained adapter into the library with where it comes from; None in a process that does not lead."""
    best = trainer.best_checkpoint()
    if best:
        trainer.restore(best)
    tensors, config = resident.export_trainee()
    if not trainer.group.is_main_process:
        return None
    results = _results(trainer, checkpoints.step_of(best) if best else int(trainer.state.global_step))
    below = None
    if run.spec.stack_on:
        parent = adapters.load(workspace, run.spec.stack_on)
        below = {"id": parent.id, "name": parent.name, "sha256": parent.sha256}
    metadata = {
        "kind": run.kind,
        "run": run.id,
        "base": {
            "name": resident.base.name,
            "fingerprint": resident.base.fingerprint,
            "family": resident.base.family.model_type,
            "parameters": resident.base.parameters,
            "quantization": resident.base.quantization,
        },
        "dataset": {
            "id": dataset.id,
            "name": dataset.name,
            "sha256": dataset.sha256,
            "split_seed": dataset.seed,
            "splits": dataset.splits,
        },
        "stacked_on": below,
        "trained_with": {below["id"]: 1.0}
        if below
        else {},  # the adapters that were active beside it, and their weights
        "domain_dropout": run.spec.domain_dropout
        if below
        else 0.0,  # the share of the forward passes in which they were not
        "hyperparameters": run.spec.to_json(),
        "runtime": {
            "seconds": round(seconds, 2),
            "training_seconds": round(trainer.busy, 2),
            "tokens": trainer.tokens,
            "device": str(resident.base.device),
            "processes": trainer.group.world_size,
            "platform": platform.platform(),
            "batch_size": trainer.spec.batch_size,
            "accumulation": trainer.spec.accumulation,
            "made_smaller": list(run.extra.made_smaller),
        },
        "versions": {
            "python": platform.python_version(),
            **{p: importlib.metadata.version(p) for p in PACKAGES},
        },
        "results": results,
    }
    adapter = adapters.add(
        workspace,
        run.adapter,
        run.name,
        lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        config,
        metadata,
    )
    resident.add_saved(adapter, config, tensors)
    return adapter


def _results(trainer: StudioTrainer, kept: int) -> dict[str, Any]:
    """Figures of the adapter that is kept, of step `kept`, and of the run."""
    results: dict[str, Any] = {
        "train_loss": trainer.last_loss,
        "steps": trainer.state.global_step,
        "kept_step": kept,
    }
    track = trainer.track
    if trainer.validation:
        loss = track.best_loss if kept == track.best_step else track.loss
        results |= {
            "validation_loss": loss,
            "validation_perplexity": math.exp(min(loss, 700.0)),
            "validation_perplexity_at_start": math.exp(min(track.start_loss, 700.0)),
            "best_validation_loss": track.best_loss,
            "best_step": track.best_step,
            "last_validation_loss": track.loss,
            "stopped_early": trainer.ended_early,
        }
    return results
