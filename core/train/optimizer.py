"""What takes the steps of a run: its optimizer, its schedule, and what a device can do of it.

Knows a spec and transformers' words for these things. Knows no data, no runs and no models but their
trainable parameters.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from transformers import Trainer, TrainingArguments

from core.errors import SpecError
from core.spec.training import TrainSpec

FUSED = ("cuda", "cpu", "mps")  # where torch has AdamW in one kernel
NAMES = {
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
}
LEAST_RATE = 0.1  # of the learning rate, where a schedule ends above zero
BLOCK = 4096  # numbers that bitsandbytes keeps in 8 bits at the earliest


def settings(spec: TrainSpec, device: str) -> dict[str, Any]:
    """The fields of TrainingArguments that decide how steps are taken.

    Args:
        device: its type, "cpu" or "cuda".

    Raises:
        SpecError: the optimizer does not run on this device.
    """
    name = NAMES.get(spec.optimizer) or ("adamw_torch_fused" if device in FUSED else "adamw_torch")
    if "8bit" in name:
        _try(name, device)
    checkpointing = spec.uses_gradient_checkpointing(device == "cuda")
    return {
        "optim": name,
        "weight_decay": spec.weight_decay,
        "lr_scheduler_type": spec.schedule if spec.schedule != "constant" else "constant_with_warmup",
        "lr_scheduler_kwargs": {"min_lr_rate": LEAST_RATE} if spec.schedule == "cosine_with_min_lr" else None,
        "neftune_noise_alpha": spec.neftune_alpha or None,
        "activation_checkpointing": checkpointing,
        # the reentrant way needs inputs with gradients, which a frozen base has none of
        "activation_checkpointing_kwargs": {"use_reentrant": False} if checkpointing else None,
    }


def _try(name: str, device: str) -> None:
    """Takes one step with a throw-away tensor: whether bitsandbytes has a kernel here, only a step tells."""
    try:
        import bitsandbytes

        kind = bitsandbytes.optim.PagedAdamW8bit if name.startswith("paged") else bitsandbytes.optim.AdamW8bit
        tensor = torch.nn.Parameter(torch.zeros(2 * BLOCK, device=device))
        tensor.grad = torch.ones_like(tensor)
        kind([tensor], lr=1e-3).step()
        if not bool((tensor < 0).all()):
            raise RuntimeError("its step moved nothing")
    except Exception as e:
        why = str(e).split("\n")[0][:200]
        raise SpecError(
            f"The optimizer {name!r} does not run on this {device} ({why}).", 'Choose "adamw" or "adafactor".'
        ) from e


def loraplus(args: TrainingArguments, model: Any, ratio: float) -> Any:
    """An optimizer under which B learns `ratio` times as fast as A.

    Source: LoRA+, Hayou et al. 2024, arXiv 2402.12354.
    """
    kind, more = Trainer.get_optimizer_cls_and_kwargs(args, model)
    more = {k: v for k, v in more.items() if k in inspect.signature(kind.__init__).parameters and k != "lr"}
    return create_loraplus_optimizer(
        model,
        kind,
        lr=args.learning_rate,
        loraplus_lr_ratio=ratio,
        loraplus_weight_decay=args.weight_decay,
        **more,
    )


def quiet(model: Any) -> None:
    """Takes NEFTune's noise off the embeddings, which a run that ended in an error leaves there, on a base that is shared."""
    embeddings = model.get_input_embeddings()
    if not hasattr(embeddings, "neftune_noise_alpha"):
        return
    for handle, hook in list(embeddings._forward_hooks.items()):
        if hook.__module__.endswith("neftune"):
            del embeddings._forward_hooks[handle]
    del embeddings.neftune_noise_alpha
