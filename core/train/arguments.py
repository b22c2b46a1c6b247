"""A training spec as transformers and peft take it: TrainingArguments, and the fields of a LoraConfig."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from core.errors import SpecError
from core.model import experts
from core.model.families import expand_groups
from core.model.resident import Resident
from core.spec.training import TrainSpec
from core.train import fsdp, optimizer
from core.train.distributed import COLLECTIVE_TIMEOUT, ProcessGroup

INTERVALS = 10  # validations and checkpoints in a run, where the spec says 0


def training_arguments(
    spec: TrainSpec,
    folder: Path,
    rows: int,
    on_gpu: bool,
    world_size: int = 1,
    distributed: dict[str, Any] | None = None,
) -> TrainingArguments:
    """TrainingArguments of a spec.

    Args:
        folder: where checkpoints go.
        rows: training rows, from which the number of steps follows. It is the same for every micro-batch of
            one effective batch, so a run whose micro-batch became smaller keeps its schedule.
        world_size: number of processes that share the forward passes of a step.
        distributed: what `parallel_arguments` returns.
    """
    total = spec.max_steps or max(1, math.ceil(math.ceil(rows / spec.effective_batch) * spec.epochs))
    interval = max(1, math.ceil(total / INTERVALS))
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": spec.epochs,
        "max_steps": spec.max_steps or -1,
        "per_device_train_batch_size": spec.batch_size,
        "gradient_accumulation_steps": spec.accumulation // world_size,
        "learning_rate": spec.learning_rate,
        "warmup_steps": math.ceil(total * spec.warmup_ratio),  # under the first rules only
        "seed": spec.seed,
        "data_seed": spec.seed,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # the default hides NaN losses behind a perfect-looking curve
        "eval_strategy": "steps",
        "eval_steps": spec.eval_steps or interval,
        "eval_on_start": True,
        "save_strategy": "steps",
        "save_steps": spec.save_steps or interval,
        "save_total_limit": None,  # `core.train.checkpoints` rotates, by step
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": list(spec.report_to),
        **optimizer.optimizer_arguments(spec, "cuda" if on_gpu else "cpu"),
    }
    return TrainingArguments(**fsdp.merge_arguments(settings, distributed or {}))


def parallel_arguments(group: ProcessGroup, model: Any, on_gpu: bool) -> dict[str, Any]:
    """TrainingArguments that matter with several processes only.

    Domain dropout switches the parent adapter off by its scaling, so every weight in training takes part in
    every forward, and DDP need not look for unused parameters.
    """
    if group.world_size == 1:
        return {}
    return {
        **(fsdp.fsdp_arguments(model) if group.sharded else {}),
        "ddp_find_unused_parameters": False,
        "ddp_backend": None if on_gpu else "gloo",
        "ddp_timeout": int(COLLECTIVE_TIMEOUT.total_seconds()),
    }


def lora_config(resident: Resident, spec: TrainSpec) -> dict[str, Any]:
    """Fields of a LoraConfig for this base; target modules by family unless the spec names them.

    Raises:
        SpecError: the spec names a module or a group that the base does not have, or experts on a base
            without any.
    """
    family = resident.base.family
    targets: Any = list(expand_groups(spec.target_modules, family.groups) or family.targets)
    if spec.target_modules:
        leaves = {name.rpartition(".")[2] for name, _ in resident.base.model.named_modules()}
        if unknown := [t for t in targets if t not in leaves]:
            raise SpecError(
                f"The base has no layers called {', '.join(unknown)}.",
                f"Usual for it: {', '.join(family.targets)}.",
            )
    if targets == ["all-linear"]:
        targets = "all-linear"
    return {
        **({"target_parameters": _expert_parameters(resident)} if spec.experts else {}),
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


def _expert_parameters(resident: Resident) -> list[str]:
    """The fused weights of all experts, in peft's `target_parameters` names.

    Raises:
        SpecError: the base has no experts.
    """
    names = experts.target_parameters(resident.base.model)
    if not names:
        raise SpecError(
            f"The base {resident.base.name!r} has no experts.", "Switch off the training of experts."
        )
    return names
