"""A base sharded over the processes of a group (FSDP), and full tensors from its shards.

Checkpoints hold full tensors, as a single process would write them, so that any number of processes can
resume.

For QLoRA, the 4-bit weights are stored in the compute dtype, because FSDP shards floating-point tensors only
(`bnb_4bit_quant_storage`, set where the base is loaded). A forward needs all processes, so they validate
together, and a sharded run draws no samples.

Source: FSDP + QLoRA, answer.ai 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor, distribute_tensor

from core.data.tokens.collation import collate
from core.data.tokens.encoding import EncodedSequence
from core.errors import RunError
from core.model.decoding import shift_logits
from core.model.resident import OFFSET, TRAINEE, Resident
from core.model.scoring import Score, sum_row_nats

BATCH_ROWS = 8  # validation sequences of one forward


def fsdp_arguments(model: Any) -> dict[str, Any]:
    """TrainingArguments that shard a model over the processes, layer by layer.

    Trainer would save the state of the whole base; `core.train.checkpoint_io` saves what is in training.
    """
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": [layer_class(model)],
            "reshard_after_forward": True,
            "state_dict_type": "SHARDED_STATE_DICT",
            "cpu_ram_efficient_loading": False,  # every process has already loaded the frozen base
        },
    }


def merge_arguments(settings: dict[str, Any], distributed: dict[str, Any]) -> dict[str, Any]:
    """Joins two sets of arguments; FSDP's activation checkpointing, if on, replaces the model's own.

    Both kinds are non-reentrant.
    """
    if "fsdp_config" not in distributed:
        return {**settings, **distributed}
    config = {
        **distributed["fsdp_config"],
        "activation_checkpointing": bool(settings.get("activation_checkpointing")),
    }
    return {
        **settings,
        **distributed,
        "fsdp_config": config,
        "activation_checkpointing": False,
        "activation_checkpointing_kwargs": None,
    }


def force_fsdp_plugin(accelerator: Any, settings: dict[str, Any]) -> None:
    """Makes accelerate shard a model on CPUs too, where it would silently keep full copies."""
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**settings)
    accelerator.state.distributed_type = DistributedType.FSDP


def layer_class(model: Any) -> str:
    """The class name of the layers that a model repeats: the elements of its longest ModuleList.

    Raises:
        RunError: the model has no ModuleList.
    """
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    if not lists:
        raise RunError(
            "The base has no list of layers that could be sharded over processes.", "Choose --sharding ddp."
        )
    return type(max(lists, key=len)[0]).__name__


def make_contiguous(model: Any) -> None:
    """Copies every parameter that is a view of a wider tensor: FSDP shards contiguous tensors only."""
    for parameter in model.parameters():
        if not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()


def gather_full(value: Any) -> Any:
    """Replaces every shard in a nested value by its full tensor, on the CPU; a collective."""
    if isinstance(value, DTensor):
        return value.full_tensor().to("cpu")
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu")
    if isinstance(value, dict):
        return {k: gather_full(v) for k, v in value.items()}
    return [gather_full(v) for v in value] if isinstance(value, list) else value


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The shard of a tensor that this process holds; a tensor that is not sharded is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(full: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A full tensor, sharded as `like` is; it stays full if `like` is not sharded."""
    if isinstance(like, DTensor) and full.shape == like.shape:
        return distribute_tensor(full.to(like.device, like.dtype), like.device_mesh, like.placements)
    return full.to(like.device)


def load_full(
    resident: Resident, tensors: dict[str, torch.Tensor], offset: dict[str, torch.Tensor] | None
) -> None:
    """Loads the full tensors of a checkpoint into the shards of the adapter in training and of its offset.

    Raises:
        RunError: names or shapes differ.
    """
    for name, full in ((TRAINEE, tensors), (OFFSET, offset or {})):
        local = resident.local_state_dict(name) if full else {}
        if {k: tuple(v.shape) for k, v in local.items()} != {k: tuple(v.shape) for k, v in full.items()}:
            raise RunError(
                "The tensors of the checkpoint do not match the adapter of this run.",
                "Start a new run with the same settings.",
            )
        with torch.no_grad():
            for key, tensor in local.items():
                tensor.copy_(shard_like(full[key], tensor))


def load_optimizer_state(optimizer: Any, state: dict[str, Any]) -> None:
    """Loads a state of full tensors, as `gather_full` returns it, into an optimizer of sharded parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sharded: dict[Any, dict[str, Any]] = {}
    for i, entries in state["state"].items():
        p = parameters[int(i)]
        sharded[i] = {
            k: shard_like(v, p) if torch.is_tensor(v) and v.shape == p.shape else v
            for k, v in entries.items()
        }
    optimizer.load_state_dict({**state, "state": sharded})


def validate_fsdp(model: Any, sequences: Sequence[EncodedSequence], pad: int, device: torch.device) -> Score:
    """Scores sequences in forwards that all processes make together.

    Returns:
        nats and tokens over all sequences, and of each.
    """
    score = Score()
    was_training = model.training
    model.eval()
    try:
        order = sorted(range(len(sequences)), key=lambda i: sequences[i].length)
        for start in range(0, len(order), BATCH_ROWS):
            part = order[start : start + BATCH_ROWS]
            batch = {k: v.to(device) for k, v in collate([sequences[i].row for i in part], pad).items()}
            with torch.no_grad():
                nats = sum_row_nats(*shift_logits(model, batch)).tolist()
            score.rows |= {i: (n, sum(sequences[i].loss_mask[1:])) for i, n in zip(part, nats, strict=True)}
        score.nats = sum(nats for nats, _ in score.rows.values())
        score.tokens = sum(tokens for _, tokens in score.rows.values())
    finally:
        model.train(was_training)
    return score
