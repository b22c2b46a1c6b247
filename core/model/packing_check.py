"""Does a model keep the sequences of a packed row apart? Asked of the model itself, not of a list of names.

Knows a resident base and two forwards; knows nothing of data or runs.
"""

from __future__ import annotations

import torch

from core.model.generate import inference_mode_for
from core.model.resident import Resident
from core.spec.mix import Mix

LENGTHS = (9, 7, 6)  # of three made-up sequences in one row
STRIDE = 7919  # a prime: token ids from all over the vocabulary
EXACT, ROUNDED = (
    1e-3,
    5e-2,
)  # of the largest logit: what a forward in fp32 and one in 16 or 4 bits may differ by


def leaks(resident: Resident) -> str:
    """Why packing is no use with this base, or "" where it is sound.

    Two things are measured on the middle sequence of a packed row: that it does not notice when its
    neighbours are exchanged, and that it reads as it does alone.
    """
    base = resident.base
    if base.family.seq2seq:
        return "an encoder-decoder model reads one example a row"
    try:
        first, second = (_packed_logits(resident, shift) for shift in (0, 1))
        alone = _logits(resident, _sequence(1, 0, base.model.config.vocab_size), None)
    except (TypeError, ValueError, RuntimeError) as e:
        return f"the model takes no positions ({type(e).__name__})"
    largest = float(alone.abs().max())
    exact = base.quantization == "none" and next(base.model.parameters()).dtype is torch.float32
    if float((first - second).abs().max()) > EXACT * largest:
        return "the sequences of a row see each other in this model"
    if float((first - alone).abs().max()) > (EXACT if exact else ROUNDED) * largest:
        return "a sequence in a packed row is not read as it is alone in this model"
    return ""


def _packed_logits(resident: Resident, shift: int) -> torch.Tensor:
    """(1, LENGTHS[1], V) of the middle sequence, between neighbours that `shift` decides."""
    size = resident.base.model.config.vocab_size
    parts = [_sequence(i, 0 if i == 1 else shift, size) for i in range(len(LENGTHS))]
    positions = torch.cat([torch.arange(len(p)) for p in parts])
    return _logits(resident, torch.cat(parts), positions)[:, LENGTHS[0] : LENGTHS[0] + LENGTHS[1]]


def _sequence(which: int, shift: int, vocabulary: int) -> torch.Tensor:
    return (torch.arange(LENGTHS[which]) + 31 * which + 101 * shift + 1) * STRIDE % vocabulary


def _logits(resident: Resident, ids: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    device = resident.base.device
    where = {} if positions is None else {"position_ids": positions[None].to(device)}
    with inference_mode_for(resident, resident.rows([Mix()])):
        logits: torch.Tensor = resident.base.model(
            input_ids=ids[None].to(device), use_cache=False, **where
        ).logits
    return logits.float()
