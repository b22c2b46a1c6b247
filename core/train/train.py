"""From a run to an adapter in the library: rows to sequences, training, provenance.

Knows datasets, the library and the trainer. Knows nothing of queues, pages or who waits.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import datasets
import torch
from safetensors.torch import save_file
from transformers import set_seed

from core import library
from core.data.batches import Encoded, count_forged, encode_documents, encode_gaps, encode_task, encode_text, reads_apart, replayed
from core.data.datasets import Dataset, load_dataset, read_split, verify_dataset
from core.data.packing import Account, arranged, windows
from core.errors import RunError, SpecError
from core.events import read_since
from core.model import experts
from core.model.apart import mingled
from core.model.base import differentiable
from core.model.resident import Resident
from core.spec import RunStatus, TrainSpec, experts_said
from core.train import checkpoints, runs
from core.train.steps import quiet
from core.train.trainer import Hooks, StudioTrainer
from core.workspace import Workspace

logger = logging.getLogger(__name__)

VALIDATION_ROWS = 200  # validation reads at most this many sequences, the same ones every time
OPENING_WORDS = 4  # of a validation text, for the adapter in training to go on from
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets")


def train(
    workspace: Workspace,
    resident: Resident,
    run: runs.Run,
    serve: Callable[[float], None],
    stop_asked: Callable[[], str],
    general: Callable[[], Sequence[str]],
) -> runs.Run:
    """Trains a run to its end, from its newest checkpoint where it has one.

    The caller holds the run's claim.

    Args:
        stop_asked: "" to go on, "keep" to end and keep what is learned, "close" to save and be resumed later.
        general: gives the texts of ours that are replayed when the spec names no dataset for it.

    Returns:
        The run as it ended: DONE, or STOPPED with what it had learned.

    Raises:
        StudioError: it could not start or go on; the caller writes that down.
    """
    log = runs.log(workspace, run.id)
    if run.base_fingerprint and run.base_fingerprint != resident.base.fingerprint:
        raise RunError(f"The run {run.name!r} began on the base {run.base!r}, and the resident base is {resident.base.name!r}.", "Change the base back, then resume it.")
    try:
        run = runs.change(workspace, run, status=RunStatus.RUNNING, error="", base=resident.base.name, base_fingerprint=resident.base.fingerprint)
        begin = time.monotonic()
        dataset = _pinned(workspace, run)
        if run.spec.experts:
            log.append("note", text=experts_said(experts.weights_a_rank(resident.base.model), run.spec.rank, resident.base.parameters))
        rows, validation, account = sequences(workspace, resident, run.spec, dataset, general, lambda text: log.append("note", text=text))
        log.append("data", **account.to_json())
        folder = runs.checkpoints_folder(workspace, run.id)
        checkpoint = checkpoints.newest(folder, run.id)
        set_seed(run.spec.seed)
        resident.begin_trainee(run.adapter, lora_config(resident, run.spec), run.spec.stack_on, run.spec.initialisation)
        if resident.anchored:
            log.append("note", text=f"The adapter starts from {run.spec.initialisation.upper()}, and is kept as plain LoRA of rank {2 * run.spec.rank}.")
        trainer = StudioTrainer(resident, run.spec, rows, validation, folder, run.id, Hooks(log, serve, stop_asked), sample_prompts(workspace, run.spec))
        if checkpoint:
            log.append("note", text=f"Resumed from step {checkpoints.step_of(checkpoint)}.")
        with differentiable(resident.base.model):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        stopped = trainer.state.global_step < trainer.state.max_steps
        if stopped and stop_asked() == "close":
            return runs.change(workspace, run, status=RunStatus.INTERRUPTED)
        adapter = _keep(workspace, resident, run, dataset, trainer, seconds=time.monotonic() - begin)
        log.append("result", adapter=adapter.id, **adapter.results)
        if not stopped:
            shutil.rmtree(folder, ignore_errors=True)
        return runs.change(workspace, run, status=RunStatus.STOPPED if stopped else RunStatus.DONE)
    finally:
        quiet(resident.base.model)
        resident.end_trainee()
        if resident.base.model.is_activation_checkpointing:
            resident.base.model.activation_checkpointing_disable()


def _pinned(workspace: Workspace, run: runs.Run) -> Dataset:
    """The run's dataset, unchanged since the run was asked for: positions in it are counted, not stored.

    Raises:
        RunError: its fingerprint has changed.
    """
    dataset = load_dataset(workspace, run.spec.dataset)
    verify_dataset(workspace, dataset.id)
    if run.dataset_sha256 and dataset.sha256 != run.dataset_sha256:
        raise RunError(f"The dataset {dataset.name!r} changed since this run began.", "Start a new run on it.")
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
            raise SpecError(f"The base has no layers called {', '.join(unknown)}.", f"Usual for it: {', '.join(family.targets)}.")
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
    if not (found := experts.targets(resident.base.model)):
        raise SpecError(f"The base {resident.base.name!r} has no experts.", "Switch off the training of experts.")
    return found


def sequences(
    workspace: Workspace,
    resident: Resident,
    spec: TrainSpec,
    dataset: Dataset,
    general: Callable[[], Sequence[str]],
    note: Callable[[str], None] = lambda text: None,
) -> tuple[datasets.Dataset, list[Encoded], Account]:
    """(training rows for `collate`, validation sequences, what the rows hold) of a spec.

    Raises:
        SpecError: the dataset's kind is not the run's, or max_length is beyond the base's context.
    """
    if dataset.kind != spec.kind:
        raise SpecError(f"{dataset.name!r} is a {dataset.kind} dataset.", f"A {spec.kind} run needs a {spec.kind} dataset.")
    if spec.max_length > resident.base.context:
        raise SpecError(f"Max length is {spec.max_length}, and the base reads {resident.base.context} tokens.", f"Choose at most {resident.base.context}.")
    tokenizer, ends = resident.base.tokenizer, resident.base.eos_ids
    train_rows = read_split(workspace, dataset.id, "train")
    held = read_split(workspace, dataset.id, "val")
    held = random.Random(spec.seed).sample(held, min(len(held), VALIDATION_ROWS))
    if spec.kind == "domain":
        texts = [r["text"] for r in train_rows]
        documents = replayed(
            list(encode_documents(tokenizer, texts)),
            _replayable(workspace, tokenizer, spec, general) if spec.replay_share else [],
            spec.replay_share,
            spec.seed,
        )
        if reads_apart(tokenizer):
            parts = encode_gaps(tokenizer, documents, spec.max_length, spec.seed)
        else:
            parts = [windows(tokenizer.eos_token_id, ids, spec.max_length, spec.overlap) for ids in documents]
        learned = [e for part in parts for e in part]
        cut_up = sum(len(part) for part in parts if len(part) > 1)
        validation = [e for r in held for e in encode_text(tokenizer, r["text"], spec.max_length)][:VALIDATION_ROWS]
    else:
        texts = [m["content"] for r in train_rows for m in r["messages"]]
        learned, cut_up = [encode_task(tokenizer, r["messages"], spec.max_length, ends) for r in train_rows], 0
        random.Random(spec.seed).shuffle(learned)  # which examples share a row
        validation = [encode_task(tokenizer, r["messages"], spec.max_length, ends) for r in held]
    if forged := count_forged(tokenizer, texts):
        note(f"{forged} texts contain the tokenizer's special tokens; they are read as plain characters.")
    packed = spec.packing
    if packed and (why := mingled(resident)):
        packed = False
        note(f"Sequences are padded, not packed: {why}.")
    rows, account = arranged(learned, spec.max_length, packed)
    return datasets.Dataset.from_list(rows), validation, replace(account, windows=cut_up)


def sample_prompts(workspace: Workspace, spec: TrainSpec) -> list[str]:
    """The spec's own prompts, or one from the validation split: a question, or the first words of a text."""
    if spec.sample_prompts:
        return list(spec.sample_prompts)
    row = read_split(workspace, spec.dataset, "val", limit=1)[0]
    return [row["messages"][-2]["content"] if spec.kind == "task" else " ".join(row["text"].split()[:OPENING_WORDS])]


def _replayable(workspace: Workspace, tokenizer: Any, spec: TrainSpec, general: Callable[[], Sequence[str]]) -> list[list[int]]:
    if spec.replay_dataset:
        texts = [r["text"] for r in read_split(workspace, spec.replay_dataset, "train")]
        return list(encode_documents(tokenizer, texts))
    return list(encode_documents(tokenizer, general(), own=True))


def _keep(workspace: Workspace, resident: Resident, run: runs.Run, dataset: Dataset, trainer: StudioTrainer, seconds: float) -> library.Adapter:
    """Puts the trained adapter into the library with where it comes from."""
    tensors, config = resident.finished()
    validation = _validations(workspace, run.id)
    results: dict[str, Any] = {"train_loss": trainer.last_loss, "steps": trainer.state.global_step}
    if validation:
        results |= {
            "validation_loss": validation[-1]["loss"],
            "validation_perplexity": validation[-1]["perplexity"],
            "validation_perplexity_at_start": validation[0]["perplexity"],
            "best_validation_loss": min(v["loss"] for v in validation if isinstance(v["loss"], float)),
        }
    below = None
    if run.spec.stack_on:
        parent = library.load(workspace, run.spec.stack_on)
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
        "dataset": {"id": dataset.id, "name": dataset.name, "sha256": dataset.sha256, "split_seed": dataset.seed, "splits": dataset.splits},
        "stacked_on": below,
        "trained_with": {below["id"]: 1.0} if below else {},  # the adapters that were active beside it, and their weights
        "domain_dropout": run.spec.domain_dropout if below else 0.0,  # the share of the forward passes in which they were not
        "hyperparameters": run.spec.to_json(),
        "runtime": {
            "seconds": round(seconds, 2),
            "training_seconds": round(trainer.busy, 2),
            "tokens": trainer.tokens,
            "device": str(resident.base.device),
            "platform": platform.platform(),
        },
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        "results": results,
    }
    return library.add(
        workspace,
        run.adapter,
        run.name,
        lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        config,
        metadata,
    )


def _validations(workspace: Workspace, run_id: str) -> list[dict[str, Any]]:
    found, cursor = [], 0
    while True:
        events, later = read_since(runs.events_path(workspace, run_id), cursor)
        found += [e for e in events if e.get("kind") == "validation"]
        if later == cursor:
            return found
        cursor = later


def explain(error: Exception) -> Exception:
    """Foreign errors of training that have a meaning for the user."""
    if isinstance(error, torch.OutOfMemoryError):
        return RunError("The device ran out of memory.", "Halve the batch size and double the gradient accumulation, or shorten max length.")
    return error
