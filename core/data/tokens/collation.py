"""Rows to padded batches of tensors.

Letters in shapes: B rows, T tokens of the longest row, S tokens of the longest encoder input.

    rows   input_ids  [5 6 7]  [8 9]         input_ids  5 6 7    attention_mask  1 1 1    labels  x 6 7
           loss_mask  [0 1 1]  [0 1]   ->               8 9 p                    1 1 0            x 9 x

p is the pad token, x the label that cross entropy ignores. `core.data.tokens.packing` draws a packed row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.data.tokens.encoding import IGNORE_INDEX


def collate(rows: Sequence[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Pads rows of `input_ids` and `loss_mask` (0 or 1) on the right.

    A pad token inside a text (GPT-2 pads with eos) still counts, because the loss mask decides, not the id.

    Args:
        rows: from `EncodedSequence.row` or `core.data.packing.build_rows`, all of the same kind.
        pad: id of the pad token.

    Returns:
        Plain rows: input_ids, attention_mask, labels, each (B, T).
        Packed rows (with `seq_lengths`, the tokens of each sequence): input_ids, position_ids, labels, each
            (B, T), and row_lengths (B,), the tokens of each row without padding. Position ids that restart
            tell transformers (`masking_utils`) that a row is packed, so an attention mask is not needed.
            Padding becomes one more sequence of the row, and other sequences do not attend to it.
        Rows with `encoder_ids`: input_ids and attention_mask of the encoder, each (B, S), and
            decoder_input_ids and labels, each (B, T - 1). Labels are shifted by one, as encoder-decoder
            models of transformers expect them.
    """
    if "encoder_ids" in rows[0]:
        decoder = collate([{k: v for k, v in row.items() if k != "encoder_ids"} for row in rows], pad)
        encoder_ids, attention = pad_encoder_inputs([row["encoder_ids"] for row in rows], pad)
        return {
            "input_ids": encoder_ids,
            "attention_mask": attention,
            "decoder_input_ids": decoder["input_ids"][:, :-1],
            "labels": decoder["labels"][:, 1:].contiguous(),
        }
    longest = max(len(row["input_ids"]) for row in rows)
    is_packed = "seq_lengths" in rows[0]
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORE_INDEX, dtype=torch.long)
    positions_or_mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[i, :n] = torch.tensor(row["input_ids"])
        is_trained = torch.tensor(row["loss_mask"], dtype=torch.bool)
        labels[i, :n] = torch.where(is_trained, ids[i, :n], IGNORE_INDEX)
        if is_packed:
            lengths = (*row["seq_lengths"], longest - n)
            positions_or_mask[i] = torch.cat([torch.arange(k) for k in lengths])
        else:
            positions_or_mask[i] = torch.arange(longest) < n
    if is_packed:
        return {
            "input_ids": ids,
            "position_ids": positions_or_mask,
            "labels": labels,
            "row_lengths": torch.tensor([len(row["input_ids"]) for row in rows]),
        }
    return {"input_ids": ids, "attention_mask": positions_or_mask, "labels": labels}


def pad_encoder_inputs(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads encoder inputs on the right.

    Args:
        rows: token ids, one list per row.
        pad: id of the pad token.

    Returns:
        ids and attention mask, each (B, S).
    """
    ids, attention = pad_prompts([row[::-1] for row in rows], pad)
    return ids.flip(1), attention.flip(1)


def pad_prompts(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads prompts on the left, so that all rows of a batch decode from the same column.

    Args:
        rows: token ids, one list per row.
        pad: id of the pad token.

    Returns:
        ids and attention mask, each (B, T).
    """
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    attention = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row)
        attention[i, longest - len(row) :] = 1
    return ids, attention
