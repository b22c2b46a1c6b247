"""The adapter that a run adds to the library: its weights, its results, and metadata of its origin."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save_file

from core.data.datasets import Dataset
from core.data.training_rows import collect_training_rows
from core.errors import StudioError
from core.model.resident import Resident
from core.store import adapters, runs
from core.store.adapters import Adapter
from core.store.workspace import Workspace
from core.train import checkpoints
from core.train.trainer import StudioTrainer

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets")
MAX_LOSS = 700.0  # exp of a larger loss overflows a float


def add_to_library(
    workspace: Workspace,
    resident: Resident,
    run: runs.Run,
    dataset: Dataset,
    trainer: StudioTrainer,
    seconds: float,
) -> Adapter | None:
    """Adds the trained adapter to the library, and makes it available for mixing without reading its file.

    The best checkpoint is restored first, where the spec keeps the best adapter.

    Args:
        seconds: wall-clock time of this session of the run.

    Returns:
        The adapter on rank 0, None on the other ranks.
    """
    best = trainer.best_checkpoint()
    if best:
        trainer.restore(best)
    tensors, config = resident.export_trainee()
    if not trainer.group.is_main_process:
        return None
    step = checkpoints.step_of(best) if best else int(trainer.state.global_step)
    metadata = adapter_metadata(workspace, resident, run, dataset, trainer, seconds)
    adapter = adapters.add(
        workspace,
        run.adapter,
        run.name,
        lambda path: save_file(tensors, path, metadata={"format": "pt"}),
        config,
        {**metadata, "results": training_results(trainer, step, equals_base(tensors))},
        collect_training_rows(workspace, run.spec).to_files(),
    )
    resident.add_saved_adapter(adapter, config, tensors)
    return adapter


def adapter_metadata(
    workspace: Workspace,
    resident: Resident,
    run: runs.Run,
    dataset: Dataset,
    trainer: StudioTrainer,
    seconds: float,
) -> dict[str, Any]:
    """The provenance of an adapter: base, data, settings, runtime and package versions.

    `trained_with` holds the adapters that were active beside it, with their weights, and `domain_dropout` the
    share of the forward passes in which they were switched off; `core.engine.mix_warnings` compares mixes
    with both.
    """
    base = resident.base
    parent = None
    if run.spec.stack_on:
        adapter = adapters.load(workspace, run.spec.stack_on)
        parent = {"id": adapter.id, "name": adapter.name, "sha256": adapter.sha256}
    return {
        "kind": run.kind,
        "run": run.id,
        "base": {
            "name": base.name,
            "fingerprint": base.fingerprint,
            "family": base.family.model_type,
            "parameters": base.parameters,
            "quantization": base.quantization,
        },
        "dataset": {
            "id": dataset.id,
            "name": dataset.name,
            "sha256": dataset.sha256,
            "split_seed": dataset.seed,
            "splits": dataset.splits,
        },
        "stacked_on": parent,
        **_describe_lineage(workspace, run),
        "trained_with": {parent["id"]: 1.0} if parent else {},
        "domain_dropout": run.spec.domain_dropout if parent else 0.0,
        "hyperparameters": run.spec.to_json(),
        "runtime": {
            "seconds": round(seconds, 2),
            "training_seconds": round(trainer.progress.busy_seconds, 2),
            "tokens": trainer.progress.tokens,
            "device": str(base.device),
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
    }


def _describe_lineage(workspace: Workspace, run: runs.Run) -> dict[str, Any]:
    """The run and the adapter that this run trained further; empty for a run that started from nothing."""
    if not run.spec.continue_from:
        return {}
    try:
        source = runs.load(workspace, run.spec.continue_from)
    except StudioError:  # it was deleted while this run trained
        return {"continued_from": {"run": run.spec.continue_from}}
    return {"continued_from": {"run": source.id, "adapter": source.adapter, "name": source.name}}


def equals_base(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether an adapter has no effect: the product B A of every layer is zero.

    peft starts B at zero, so this is an adapter that was never trained. After a PiSSA or OLoRA start, the two
    halves of the factors then cancel each other (`core.model.lora_init`).

    Args:
        tensors: its state dict, with a B (O, R) for every A (R, I).
    """
    factors = [n for n in tensors if ".lora_B" in n or ".lora_embedding_B" in n]
    return all(
        _has_no_product(tensors[re.sub(r"(\.lora_(?:embedding_)?)B", r"\1A", n)], tensors[n]) for n in factors
    )


def _has_no_product(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether B A is exactly zero: one factor is, or the second half of the rank undoes the first."""
    if not bool(b.any()) or not bool(a.any()):
        return True
    half = len(a) // 2
    return len(a) == 2 * half and torch.equal(a[:half], a[half:]) and torch.equal(b[:, :half], -b[:, half:])


def training_results(trainer: StudioTrainer, kept_step: int, has_no_effect: bool) -> dict[str, Any]:
    """Results of the run and of the adapter that it keeps.

    Args:
        kept_step: the step of the adapter that goes into the library.
        has_no_effect: the adapter equals its base.
    """
    results: dict[str, Any] = {
        "train_loss": trainer.progress.last_loss,
        "steps": trainer.state.global_step,
        "kept_step": kept_step,
    }
    if has_no_effect:
        results["equals_base"] = True
    validations = trainer.progress.early_stopping
    if trainer.validation_sequences:
        loss = validations.best_loss if kept_step == validations.best_step else validations.loss
        results |= {
            "validation_loss": loss,
            "validation_perplexity": math.exp(min(loss, MAX_LOSS)),
            "validation_perplexity_at_start": math.exp(min(validations.start_loss, MAX_LOSS)),
            "best_validation_loss": validations.best_loss,
            "best_step": validations.best_step,
            "last_validation_loss": validations.loss,
            "stopped_early": trainer.progress.ended_early,
        }
    return results
