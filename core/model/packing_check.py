"""Checks whether a base keeps the sequences of a packed row apart.

The check runs the model, because a list of architectures would go out of date. Rows are packed in
`core.data.tokens.packing`.
"""

from __future__ import annotations

import torch

from core.model.generate import inference_mode_for
from core.model.resident import Resident
from core.spec.mix import Mix

LENGTHS = (9, 7, 6)  # tokens of the three probe sequences in a row
STRIDE = 7919  # a prime, so that the probe's token ids come from the whole vocabulary
# The largest allowed difference, as a share of the largest logit.
TOLERANCE_FP32 = 1e-3
TOLERANCE_ROUNDED = 5e-2  # 16-bit weights, 8 bits or 4 bits


def leaks(resident: Resident) -> str:
    """Returns why packing is not safe with this base, or "" where it is.

    A packed row has no attention mask. Its positions restart with every sequence, and transformers builds the
    block mask from them:

    ```
    positions   0 1 2 3 4 5 6 7 8 | 0 1 2 3 4 5 6 | 0 1 2 3 4 5
    tokens      first             | middle        | last
    ```

    Packing is safe if the logits of the middle sequence do not change when both neighbours are replaced, and
    if they equal those of the same sequence alone.
    """
    base = resident.base
    if base.family.seq2seq:
        return "an encoder-decoder model reads one example per row"
    try:
        first, second = (_logits_in_row(resident, shift) for shift in (0, 1))
        alone = _logits(resident, _sequence(1, 0, base.model.config.vocab_size), None)
    except (TypeError, ValueError, RuntimeError) as e:
        return f"the model does not accept position ids ({type(e).__name__})"
    largest = float(alone.abs().max())
    is_fp32 = base.quantization == "none" and next(base.model.parameters()).dtype is torch.float32
    if float((first - second).abs().max()) > TOLERANCE_FP32 * largest:
        return "the sequences of a packed row attend to each other in this model"
    if float((first - alone).abs().max()) > (TOLERANCE_FP32 if is_fp32 else TOLERANCE_ROUNDED) * largest:
        return "a sequence has different logits in a packed row and alone in this model"
    return ""


def _logits_in_row(resident: Resident, shift: int) -> torch.Tensor:
    """(1, LENGTHS[1], V) logits of the middle sequence, between neighbours that depend on `shift`."""
    size = resident.base.model.config.vocab_size
    parts = [_sequence(i, 0 if i == 1 else shift, size) for i in range(len(LENGTHS))]
    positions = torch.cat([torch.arange(len(p)) for p in parts])
    return _logits(resident, torch.cat(parts), positions)[:, LENGTHS[0] : LENGTHS[0] + LENGTHS[1]]


def _sequence(index: int, shift: int, vocabulary: int) -> torch.Tensor:
    """(LENGTHS[index],) token ids of a probe sequence."""
    return (torch.arange(LENGTHS[index]) + 31 * index + 101 * shift + 1) * STRIDE % vocabulary


def _logits(resident: Resident, ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """(1, T, V) logits of one row of the base, without an adapter."""
    device = resident.base.device
    extra = {} if positions is None else {"position_ids": positions[None].to(device)}
    with inference_mode_for(resident, resident.rows([Mix()])):
        logits: torch.Tensor = resident.base.model(
            input_ids=ids[None].to(device), use_cache=False, **extra
        ).logits
    return logits.float()
