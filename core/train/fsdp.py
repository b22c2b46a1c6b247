"""A base spread over the processes of a group (FSDP), and whole tensors out of its pieces.

Knows FSDP's settings and how a tensor is cut up and put together; knows nothing of runs. A checkpoint
holds whole tensors, as one process would write them: any number of processes can go on from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor, distribute_tensor

from core.data.collation import collate
from core.data.encoding import EncodedSequence
from core.errors import RunError
from core.model.decoding import shifted_logits
from core.model.resident import OFFSET, TRAINEE, Resident
from core.model.scoring import Score, sum_row_nats

BATCH_ROWS = 8  # validation sequences of one forward, which all processes make together


def arguments(model: Any) -> dict[str, Any]:
    """TrainingArguments that spread a model over the processes, layer by layer.

    The state that Trainer would save is the whole base; we save what is in training ourselves.

    Source: FSDP + QLoRA, answer.ai 2024; `bnb_4bit_quant_storage` is set where the base is loaded.
    """
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "transformer_layer_cls_to_wrap": [layer_class(model)],
            "reshard_after_forward": True,
            "state_dict_type": "SHARDED_STATE_DICT",
            "cpu_ram_efficient_loading": False,  # every process has loaded the frozen base already
        },
    }


def joined(settings: dict[str, Any], together: dict[str, Any]) -> dict[str, Any]:
    """Both sets of arguments; FSDP's own activation checkpointing (non-reentrant too) takes the place of the model's."""
    if "fsdp_config" not in together:
        return {**settings, **together}
    config = {
        **together["fsdp_config"],
        "activation_checkpointing": bool(settings.get("activation_checkpointing")),
    }
    return {
        **settings,
        **together,
        "fsdp_config": config,
        "activation_checkpointing": False,
        "activation_checkpointing_kwargs": None,
    }


def enforce(accelerator: Any, settings: dict[str, Any]) -> None:
    """Makes accelerate spread a model over processes on CPUs too, where it would quietly keep it whole in each."""
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**settings)
    accelerator.state.distributed_type = DistributedType.FSDP


def layer_class(model: Any) -> str:
    """The class of the layers that a model repeats: of its longest list of modules.

    Raises:
        RunError: it has none.
    """
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m)]
    if not lists:
        raise RunError(
            "The base has no list of layers that could be spread over processes.", "Choose --sharding ddp."
        )
    return type(max(lists, key=len)[0]).__name__


def loosen(model: Any) -> None:
    """Gives every parameter memory of its own: FSDP cuts up whole tensors, no views of wider ones."""
    for parameter in model.parameters():
        if not parameter.is_contiguous():
            parameter.data = parameter.data.contiguous()


def whole(value: Any) -> Any:
    """Every piece of a nested value put together, on the CPU; all processes call it, in the same order."""
    if isinstance(value, DTensor):
        return value.full_tensor().to("cpu")
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu")
    if isinstance(value, dict):
        return {k: whole(v) for k, v in value.items()}
    return [whole(v) for v in value] if isinstance(value, list) else value


def here(tensor: torch.Tensor) -> torch.Tensor:
    """The piece of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut(whole_one: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, cut up as another one is; a tensor that is no piece stays whole."""
    if isinstance(like, DTensor) and whole_one.shape == like.shape:
        return distribute_tensor(whole_one.to(like.device, like.dtype), like.device_mesh, like.placements)
    return whole_one.to(like.device)


def refill(
    resident: Resident, tensors: dict[str, torch.Tensor], start: dict[str, torch.Tensor] | None
) -> None:
    """Puts a checkpoint's values into the adapter in training, cut up as it is, and into what it started from."""
    for name, given in ((TRAINEE, tensors), (OFFSET, start or {})):
        here_now = resident.local_state_dict(name) if given else {}
        if {k: tuple(v.shape) for k, v in here_now.items()} != {k: tuple(v.shape) for k, v in given.items()}:
            raise RunError(
                "The checkpoint's tensors are not those of this run.",
                "Start a new run with the same settings.",
            )
        with torch.no_grad():
            for key, tensor in here_now.items():
                tensor.copy_(cut(given[key], tensor))


def restore(optimizer: Any, state: dict[str, Any]) -> None:
    """Gives an optimizer whose parameters are pieces the state that `whole` has put together."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    made: dict[Any, dict[str, Any]] = {}
    for i, entries in state["state"].items():
        p = parameters[int(i)]
        made[i] = {
            k: cut(v, p) if torch.is_tensor(v) and v.shape == p.shape else v for k, v in entries.items()
        }
    optimizer.load_state_dict({**state, "state": made})


def validate(model: Any, sequences: Sequence[EncodedSequence], pad: int, device: torch.device) -> Score:
    """Nats over tokens of sequences, in forwards that all processes make together."""
    score = Score()
    was_training = model.training
    model.eval()
    try:
        order = sorted(range(len(sequences)), key=lambda i: sequences[i].length)
        for start in range(0, len(order), BATCH_ROWS):
            part = order[start : start + BATCH_ROWS]
            batch = {k: v.to(device) for k, v in collate([sequences[i].row for i in part], pad).items()}
            with torch.no_grad():
                nats = sum_row_nats(*shifted_logits(model, batch)).tolist()
            score.rows |= {i: (n, sum(sequences[i].loss_mask[1:])) for i, n in zip(part, nats, strict=True)}
        score.nats = sum(nats for nats, _ in score.rows.values())
        score.tokens = sum(tokens for _, tokens in score.rows.values())
    finally:
        model.train(was_training)
    return score
