"""A sequence of token ids with its loss mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core.data.tokens.truncation import Cut


@dataclass(frozen=True)
class EncodedSequence:
    """Token ids of one sequence and which of them are trained on and scored.

    Attributes:
        ids: T token ids. With an encoder-decoder base these are the decoder's, from its start token on.
        loss_mask: T values, 1 where the token is trained on and scored, else 0.
        cut: tokens that were cut off to respect the max length, by kind.
        truncated: their sum.
        encoder_ids: S token ids that the encoder reads; empty for a decoder-only base.
    """

    ids: list[int]
    loss_mask: list[int]
    cut: Cut = Cut()
    encoder_ids: list[int] = field(default_factory=list)
    truncated: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "truncated", self.cut.total)

    @property
    def row(self) -> dict[str, list[int]]:
        """The sequence as a row for `core.data.collation.collate`."""
        row = {"input_ids": self.ids, "loss_mask": self.loss_mask}
        if self.encoder_ids:
            row["encoder_ids"] = self.encoder_ids
        return row

    @property
    def length(self) -> int:
        """Tokens that one forward pass reads, T + S."""
        return len(self.ids) + len(self.encoder_ids)


def is_seq2seq(tokenizer: Any) -> bool:
    """Whether the base has an encoder and a decoder; `load_base` marks its tokenizer with the start token."""
    return getattr(tokenizer, "decoder_start_token_id", None) is not None
