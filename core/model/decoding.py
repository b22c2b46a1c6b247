"""How a base reads and takes a step: one stack that does both, or an encoder that reads and a decoder that writes.

Knows forwards and their caches; knows nothing of mixes, which are engaged around every call.
Letters: B rows, T tokens, S tokens of the encoder, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import EncoderDecoderCache

from core.data.encoding import pad_left, pad_right
from core.model.kv_cache import cache_of


class Causal:
    """One stack: prompts are padded on the left, answers follow them.

    Attributes:
        history: (B, T) what was read and written so far; only a repetition penalty asks for it.
    """

    def __init__(self, base: Any, prompts: Sequence[Sequence[int]], room: int) -> None:
        self._model, self._device = base.model, base.device
        self._prompts, attention = pad_left(prompts, base.tokenizer.pad_token_id)
        self._length = self._prompts.shape[1]
        self._positions = (attention.cumsum(-1) - 1).clamp(min=0).to(self._device)
        # Without padding there is no mask to build at every step, and none to ask the device about.
        self._padded = not bool(attention.all())
        self._attention = torch.nn.functional.pad(attention, (0, room), value=1).to(self._device)
        self._fed = self._prompts.to(self._device)
        self._cache: Any = cache_of(self._model.config)
        self.history = self._fed

    def again(self, rows: Sequence[int], written: Sequence[Sequence[int]]) -> None:
        """Reads prompts and answers so far anew at the next step, because the mix that made the cache is no longer theirs.

        Args:
            rows: places of the rows that are left, among the prompts. written: their answers so far, equally long.
        """
        so_far = torch.tensor(list(written), dtype=torch.long).view(len(rows), -1).to(self._device)
        self._fed = torch.cat([self._prompts[list(rows)].to(self._device), so_far], dim=1)
        self._positions = (self._attention[:, : self._length].cumsum(-1) - 1).clamp(min=0)
        self._cache = cache_of(self._model.config)

    def step(self) -> torch.Tensor:
        """(B, V) logits of the next token."""
        out = self._model(
            input_ids=self._fed,
            attention_mask=self._attention[:, : self._length] if self._padded else None,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[:, -1].float()  # type: ignore[no-any-return]

    def take(self, picked: torch.Tensor) -> None:
        """Goes on with one token a row, (B,)."""
        self._fed, self._positions, self._length = (
            picked.unsqueeze(1),
            self._positions[:, -1:] + 1,
            self._length + 1,
        )

    def keep(self, rows: torch.Tensor) -> None:
        """Lets all other rows go."""
        self._cache.batch_select_indices(rows)
        self._fed, self._positions, self._attention = (
            self._fed[rows],
            self._positions[rows],
            self._attention[rows],
        )
        self._padded = self._padded and not bool(self._attention.all())


class EncoderDecoder:
    """An encoder reads each prompt once under its row's mix; a decoder writes from its start token on. As `Causal`."""

    def __init__(self, base: Any, prompts: Sequence[Sequence[int]], room: int) -> None:
        self._model, self._device = base.model, base.device
        self._read, self._seen = (t.to(self._device) for t in pad_right(prompts, base.tokenizer.pad_token_id))
        self._start = torch.full(
            (len(prompts), 1), base.tokenizer.writes_from, dtype=torch.long, device=self._device
        )
        self._fed = self.history = self._start
        self._states: Any = None  # (B, S, hidden) of the encoder
        self._cache: Any = None

    def again(self, rows: Sequence[int], written: Sequence[Sequence[int]]) -> None:
        so_far = torch.tensor(list(written), dtype=torch.long).view(len(rows), -1).to(self._device)
        self._fed = torch.cat([self._start[: len(rows)], so_far], dim=1)
        self._states = None

    def step(self) -> torch.Tensor:
        if self._states is None:
            self._states = self._model.get_encoder()(
                input_ids=self._read, attention_mask=self._seen
            ).last_hidden_state
            self._cache = EncoderDecoderCache(cache_of(self._model.config), cache_of(self._model.config))
        out = self._model(
            encoder_outputs=(self._states,),
            attention_mask=self._seen,
            decoder_input_ids=self._fed,
            past_key_values=self._cache,
            use_cache=True,
        )
        return out.logits[:, -1].float()  # type: ignore[no-any-return]

    def take(self, picked: torch.Tensor) -> None:
        self._fed = picked.unsqueeze(1)

    def keep(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._fed, self._states, self._read, self._seen = (
            self._fed[rows],
            self._states[rows],
            self._read[rows],
            self._seen[rows],
        )


def stepper(base: Any, prompts: Sequence[Sequence[int]], room: int) -> Causal | EncoderDecoder:
    """The way this base takes steps.

    Args:
        prompts: token ids, one list a row. room: the longest answer, in tokens.
    """
    return (EncoderDecoder if base.family.seq2seq else Causal)(base, prompts, room)


def predicted(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """One forward of a collated batch: logits (B, T, V), and the labels (B, T) that each position predicts."""
    given = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**given, use_cache=False).logits
    return (
        (logits, batch["labels"])
        if "decoder_input_ids" in batch
        else (logits[:, :-1], batch["labels"][:, 1:])
    )


def continued(base: Any, prompt: Sequence[int], ids: Sequence[int], rows: int) -> torch.Tensor:
    """Logits of an answer's tokens after a prompt, (B, len(ids), V), the same text in every row."""
    if base.family.seq2seq:
        read = torch.tensor([list(prompt)], device=base.device).expand(rows, -1)
        written = torch.tensor([[base.tokenizer.writes_from, *ids[:-1]]], device=base.device).expand(rows, -1)
        return base.model(input_ids=read, decoder_input_ids=written, use_cache=False).logits  # type: ignore[no-any-return]
    tokens = torch.tensor([[*prompt, *ids]], device=base.device).expand(rows, -1)
    return base.model(input_ids=tokens, use_cache=False, logits_to_keep=len(ids) + 1).logits[:, :-1]  # type: ignore[no-any-return]


def listened(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Logits at every position of a text, (B, T, V); an encoder and its decoder are both given the text."""
    both = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    return model(input_ids=tokens, **both, use_cache=False).logits  # type: ignore[no-any-return]
