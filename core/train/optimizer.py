"""The optimizer of a run, as transformers and bitsandbytes name it. `core.train.schedule` has the rates."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import Trainer, TrainingArguments

from core.errors import SpecError
from core.spec.training import TrainSpec
from core.train.schedule import MIN_RATE

FUSED_DEVICES = ("cuda", "cpu", "mps")  # where torch has a fused AdamW
OPTIMIZER_NAMES = {
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
}
MIN_8BIT_SIZE = 4096  # bitsandbytes keeps the state of smaller tensors in 32 bits


def optimizer_arguments(spec: TrainSpec, device: str) -> dict[str, Any]:
    """The fields of TrainingArguments that decide optimizer, schedule and gradient checkpointing.

    Args:
        device: type of the device, "cpu" or "cuda".

    Raises:
        SpecError: the optimizer does not run on this device.
    """
    fused = "adamw_torch_fused" if device in FUSED_DEVICES else "adamw_torch"
    name = OPTIMIZER_NAMES.get(spec.optimizer) or fused
    if "8bit" in name:
        _check_8bit_kernel(name, device)
    checkpointing = spec.has_gradient_checkpointing(device == "cuda")
    return {
        "optim": name,
        "weight_decay": spec.weight_decay,
        "lr_scheduler_type": spec.schedule if spec.schedule != "constant" else "constant_with_warmup",
        "lr_scheduler_kwargs": {"min_lr_rate": MIN_RATE} if spec.schedule == "cosine_with_min_lr" else None,
        "neftune_noise_alpha": spec.neftune_alpha or None,
        "activation_checkpointing": checkpointing,
        # Reentrant checkpointing needs inputs with gradients, and the inputs of a frozen base have none.
        "activation_checkpointing_kwargs": {"use_reentrant": False} if checkpointing else None,
    }


def _check_8bit_kernel(name: str, device: str) -> None:
    """Takes one step on a dummy tensor: bitsandbytes does not report whether it has a kernel for a device.

    Raises:
        SpecError: the step failed or changed nothing.
    """
    try:
        import bitsandbytes

        kind = bitsandbytes.optim.PagedAdamW8bit if name.startswith("paged") else bitsandbytes.optim.AdamW8bit
        tensor = torch.nn.Parameter(torch.zeros(2 * MIN_8BIT_SIZE, device=device))
        tensor.grad = torch.ones_like(tensor)
        kind([tensor], lr=1e-3).step()
        if not bool((tensor < 0).all()):
            raise RuntimeError("its step changed nothing")
    except Exception as e:
        reason = str(e).split("\n")[0][:200]
        raise SpecError(
            f"The optimizer {name!r} does not run on this {device} ({reason}).",
            'Choose "adamw" or "adafactor".',
        ) from e


def create_loraplus(args: TrainingArguments, model: Any, ratio: float) -> Any:
    """Creates an optimizer whose learning rate for B is `ratio` times the one for A.

    Source: LoRA+, Hayou et al. 2024, arXiv 2402.12354.
    """
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    accepted = inspect.signature(kind.__init__).parameters
    options = {k: v for k, v in options.items() if k in accepted and k != "lr"}
    return create_loraplus_optimizer(
        model,
        kind,
        lr=args.learning_rate,
        loraplus_lr_ratio=ratio,
        loraplus_weight_decay=args.weight_decay,
        **options,
    )


def remove_neftune_hook(model: Any) -> None:
    """Removes NEFTune's hook from the embeddings of the shared base, where a failed run leaves it."""
    embeddings = model.get_input_embeddings()
    if not hasattr(embeddings, "neftune_noise_alpha"):
        return
    for handle, hook in list(embeddings._forward_hooks.items()):
        if hook.__module__.endswith("neftune"):
            del embeddings._forward_hooks[handle]
    del embeddings.neftune_noise_alpha
