"""Rows of mixes made active for inference, beside a run that trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from core.model.resident import Resident


@contextlib.contextmanager
def inference_mode_for(resident: Resident, rows: Sequence[dict[str, float]]) -> Iterator[None]:
    """Puts the model in eval and inference mode with these mix rows active, and restores train mode on exit.

    Args:
        rows: one mix per row of the batch, from `Resident.rows`.

    Example:
        >>> with inference_mode_for(resident, resident.rows([Mix(), Mix(weights={"my-adapter": 0.5})])):
        ...     logits = resident.model(input_ids=ids.repeat(2, 1)).logits  # row 0: the base, row 1: the mix
    """
    was_training = _set_eval(resident)
    try:
        with torch.inference_mode(), resident.mixer.activate(rows):
            yield
    finally:
        for module in was_training:
            vars(module)["training"] = True


def _set_eval(resident: Resident) -> list[Any]:
    """Puts the model in eval mode and returns the modules that were in train mode.

    This happens at every token while a run trains, so it goes over a list and writes the flag itself.
    `train()` would walk the module tree through `nn.Module.__setattr__`, which takes as long as one step of a
    small model.
    """
    model = resident.peft or resident.model
    if not model.training:
        return []
    if not resident.trainee_id:  # no run is in training: peft leaves train mode on when it adds an adapter
        model.eval()
        return []
    was_training = [m for m in (model, *resident.mixer.modules) if m.training]
    for module in was_training:
        vars(module)["training"] = False
    return was_training
