"""Decoders: prefill a batch of prompts, then decode one token per row and step, with a KV cache.

A base is either one causal stack or an encoder with a decoder. Both decoders have the methods `step`,
`append`, `select_rows`, `join` and `reset`, and the attribute `history`. Mixes belong to
`core.model.generate`, which activates them around every call. The functions below run one forward without a
cache, for losses and analyses.

Letters: B rows, T tokens, S tokens that an encoder reads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import EncoderDecoderCache

from core.data.tokens.collation import pad_encoder_inputs, pad_prompts
from core.model.kv_cache import PreallocatedLayer, make_kv_cache


class CausalDecoder:
    """Decodes with one causal stack: prompts are padded on the left, answers follow them.

    ```
    pad pad p0 p1 | a0 a1 ...        row 0      the first `step` reads the prompts (prefill),
    p0  p1  p2 p3 | a0 a1 ...        row 1      every later `step` reads the last token
    ```

    Attributes:
        history: (B, T) the padded prompts; with an encoder, (B, 1), the decoder's start token. A repetition
            penalty applies to these tokens and to the answer, which `generate` appends to its own copy.
        precision: "" is the base's own precision.
    """

    precision = ""

    def __init__(self, base: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        self._model, self._device = base.model, base.device
        self._prompts, attention = pad_prompts(prompts, base.tokenizer.pad_token_id)
        self._length = self._prompts.shape[1]
        self._positions = (attention.cumsum(-1) - 1).clamp(min=0).to(self._device)
        # Without padding no mask is built, and no step waits for the device to inspect one.
        self._padded = not bool(attention.all())
        self._attention = torch.nn.functional.pad(attention, (0, max_new_tokens), value=1).to(self._device)
        self._input_ids = self._prompts.to(self._device)
        self._cache: Any = make_kv_cache(self._model.config)
        self.history = self._input_ids

    def reset(self, rows: Sequence[int], answers: Sequence[Sequence[int]]) -> None:
        """Drops the KV cache, so that the next step prefills prompts and answers again.

        This is needed when a mix changes, because keys and values are valid only under the mix that they were
        computed under.

        Args:
            rows: the indices, among the prompts, of the rows that are still decoded.
            answers: their token ids so far, equally many in every row.
        """
        so_far = torch.tensor(list(answers), dtype=torch.long).view(len(rows), -1).to(self._device)
        self._input_ids = torch.cat([self._prompts[list(rows)].to(self._device), so_far], dim=1)
        self._positions = (self._attention[:, : self._length].cumsum(-1) - 1).clamp(min=0)
        self._cache = make_kv_cache(self._model.config)

    def step(self) -> torch.Tensor:
        """Runs one forward (prefill, or one token per row).

        Returns:
            (B, V) logits of the next token.
        """
        return self._forward(1)[:, -1].float()

    def _forward(self, keep: int) -> torch.Tensor:
        """The logits of the last `keep` positions."""
        return self._model(  # type: ignore[no-any-return]
            input_ids=self._input_ids,
            attention_mask=self._attention[:, : self._length] if self._padded else None,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits

    def prefill_with_evidence(self, limit: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The first step, which also returns how likely the prompts are.

        Args:
            limit: tokens at the end of each prompt that count.

        Returns:
            (B, V) logits of the next token; and per row the log-likelihoods, in nats, of its last tokens, at
            most `limit` of them and without the first token of the prompt.
        """
        keep = min(limit + 1, self._length)
        logits = self._forward(keep)
        targets = self._input_ids[:, -keep + 1 :] if keep > 1 else self._input_ids[:, :0]
        counts = (self._attention[:, : self._length].sum(-1) - 1).clamp(max=keep - 1).tolist()
        likelihoods = [
            token_log_likelihoods(of_row[keep - 1 - n : keep - 1], row[len(row) - n :])
            for of_row, row, n in zip(logits, targets, counts, strict=True)
        ]
        return logits[:, -1].float(), likelihoods

    def append(self, tokens: torch.Tensor) -> None:
        """Appends one token to every row; the next step reads it.

        Args:
            tokens: (B,) token ids.
        """
        self._input_ids = tokens.unsqueeze(1)
        self._positions = self._positions[:, -1:] + 1
        self._length += 1

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keeps these rows of the batch and drops all others.

        Args:
            rows: indices into the current batch.
        """
        self._cache.batch_select_indices(rows)
        self._input_ids = self._input_ids[rows]
        self._positions = self._positions[rows]
        self._attention = self._attention[rows]
        self._padded = self._padded and not bool(self._attention.all())

    def join(self, other: Any) -> bool:
        """Appends the rows of another decoder to this batch. `reset` may not follow.

        ```
        p0 p1 p2 a0 a1 a2 |          rows of this decoder
        pad pad  p0 p1 p2 a0 |       rows of the other one: their keys and values move to the right, and keep
                                     the positions that they were computed at
        ```

        Args:
            other: a decoder of the same base. Both have appended the tokens that their next step reads.

        Returns:
            False where their KV caches cannot be joined: of another kind, or with a window or a state of a
            fixed size. Then nothing has changed.
        """
        if not isinstance(other, CausalDecoder) or not (_can_pad(self._cache) and _can_pad(other._cache)):
            return False
        self._drop_positions()
        other._drop_positions()
        length = max(self._length, other._length)
        room = max(d._attention.shape[1] - d._length for d in (self, other))
        attention = []
        for decoder in (self, other):
            past = decoder._attention[:, : decoder._length]
            attention.append(torch.nn.functional.pad(past, (length - decoder._length, 0)))
        for layer, added in zip(self._cache.layers, other._cache.layers, strict=True):
            layer.join_rows(added)
        self._attention = torch.nn.functional.pad(torch.cat(attention), (0, room), value=1)
        self._input_ids = torch.cat([self._input_ids, other._input_ids])
        self._positions = torch.cat([self._positions[:, -1:], other._positions[:, -1:]])
        self._length = length
        self._padded = not bool(self._attention.all())
        return True

    def _drop_positions(self) -> None:
        """Drops the positions at the beginning that are padding in every row."""
        first = int(self._attention[:, : self._length].any(dim=0).int().argmax())
        if first:
            self._attention = self._attention[:, first:]
            self._length -= first
            for layer in self._cache.layers:
                layer.drop_positions(first)


def _can_pad(cache: Any) -> bool:
    return all(isinstance(layer, PreallocatedLayer) and layer.is_initialized for layer in cache.layers)


class EncoderDecoder:
    """Decodes with an encoder and a decoder; the methods are those of `CausalDecoder`.

    The encoder reads each prompt once, under its row's mix. The decoder begins at its start token. A reset
    runs the encoder again, because its states belong to the mix that they were computed under.
    """

    precision = ""

    def __init__(self, base: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        self._model, self._device = base.model, base.device
        self._encoder_ids, self._encoder_mask = (
            t.to(self._device) for t in pad_encoder_inputs(prompts, base.tokenizer.pad_token_id)
        )
        self._start = torch.full(
            (len(prompts), 1), base.tokenizer.decoder_start_token_id, dtype=torch.long, device=self._device
        )
        self._input_ids = self.history = self._start
        self._encoder_states: Any = None  # (B, S, hidden)
        self._cache: Any = None

    def reset(self, rows: Sequence[int], answers: Sequence[Sequence[int]]) -> None:
        so_far = torch.tensor(list(answers), dtype=torch.long).view(len(rows), -1).to(self._device)
        self._input_ids = torch.cat([self._start[: len(rows)], so_far], dim=1)
        self._encoder_states = None

    def step(self) -> torch.Tensor:
        if self._encoder_states is None:
            encoder, config = self._model.get_encoder(), self._model.config
            out = encoder(input_ids=self._encoder_ids, attention_mask=self._encoder_mask)
            self._encoder_states = out.last_hidden_state
            self._cache = EncoderDecoderCache(make_kv_cache(config), make_kv_cache(config))
        out = self._model(
            encoder_outputs=(self._encoder_states,),
            attention_mask=self._encoder_mask,
            decoder_input_ids=self._input_ids,
            past_key_values=self._cache,
            use_cache=True,
        )
        return out.logits[:, -1].float()  # type: ignore[no-any-return]

    def append(self, tokens: torch.Tensor) -> None:
        self._input_ids = tokens.unsqueeze(1)

    def select_rows(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._input_ids = self._input_ids[rows]
        self._encoder_states = self._encoder_states[rows]
        self._encoder_ids = self._encoder_ids[rows]
        self._encoder_mask = self._encoder_mask[rows]

    def join(self, other: Any) -> bool:
        """Joins nothing: both the encoder's and the decoder's states would need padding."""
        return False


def make_decoder(
    base: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> CausalDecoder | EncoderDecoder:
    """Returns the decoder that fits the base's architecture, in the base's own precision.

    Args:
        base: a `core.model.base.Base`.
        prompts: token ids, one list per row.
        max_new_tokens: the longest answer of any row.
    """
    return (EncoderDecoder if base.family.seq2seq else CausalDecoder)(base, prompts, max_new_tokens)


def token_log_likelihoods(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The log-likelihood of each token, in nats, fp32.

    Args:
        logits: (T, V) that predict the tokens. tokens: (T,).

    Returns:
        (T,) on the CPU.
    """
    if not len(tokens):
        return torch.zeros(0)
    return -torch.nn.functional.cross_entropy(logits.float(), tokens, reduction="none").cpu()


def shift_logits(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs one forward of a collated batch and aligns its logits with its labels.

    A causal model predicts token t + 1 at position t, so its logits and labels are shifted by one. A decoder
    with an encoder reads inputs that are shifted already.

    Returns:
        Logits (B, P, V) and labels (B, P), the token that each position predicts. P is T - 1 for a causal
        model, and all positions of a decoder with an encoder.
    """
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**inputs, use_cache=False).logits
    if "decoder_input_ids" in batch:
        return logits, batch["labels"]
    return logits[:, :-1], batch["labels"][:, 1:]


def answer_logits(base: Any, prompt: Sequence[int], answer: Sequence[int], rows: int) -> torch.Tensor:
    """Runs one forward of a prompt with its answer, the same text in every row.

    Returns:
        (rows, len(answer), V): the logits that predict each token of the answer.
    """
    if base.family.seq2seq:
        encoder_ids = torch.tensor([list(prompt)], device=base.device).expand(rows, -1)
        start = base.tokenizer.decoder_start_token_id
        decoder_ids = torch.tensor([[start, *answer[:-1]]], device=base.device).expand(rows, -1)
        return base.model(  # type: ignore[no-any-return]
            input_ids=encoder_ids, decoder_input_ids=decoder_ids, use_cache=False
        ).logits
    tokens = torch.tensor([[*prompt, *answer]], device=base.device).expand(rows, -1)
    logits = base.model(input_ids=tokens, use_cache=False, logits_to_keep=len(answer) + 1).logits
    return logits[:, :-1]  # type: ignore[no-any-return]


def all_logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Runs one forward of a text and returns the logits at every position, (B, T, V).

    An encoder-decoder model gets the text on both sides.

    Args:
        tokens: (B, T) token ids.
    """
    both = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    return model(input_ids=tokens, **both, use_cache=False).logits  # type: ignore[no-any-return]
