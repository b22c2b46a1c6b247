"""Decoding on a CPU from 8-bit weights: `PackedDecoder` has the methods of `CausalDecoder`.

One token of a small model takes the time that memory needs for the weights, plus what Python and the
dispatcher cost per operation. So the weights are packed in 8 bits (`core.model.fast_kernels`), and a layer is
about a dozen calls.

*No padding.* Every row has its own positions from 0, and prompts of several rows lie one behind the other in
a flat batch of tokens. A row's answer does not depend on its neighbours, to the bit.

```
prefill    x: [ row 0: t0 t1 t2 | row 1: t0 t1 t2 t3 t4 ]     (N, H), attention row by row
decode     x: [ row 0: t3       | row 1: t5             ]     (B, H), attention of all rows at once where
                                                              they have equally many tokens
```

Letters: B rows, N tokens of a forward, T tokens of a row, H hidden size, D head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad, rms_norm, scaled_dot_product_attention, silu

from core.data.tokens.collation import pad_prompts
from core.model.decoding import CausalDecoder, token_log_likelihoods
from core.model.fast_adapters import GroupAdapters, share_plan
from core.model.fast_kernels import Call
from core.model.fast_layers import PackedBase, PackedGroup, PackedLayer, Scratch
from core.model.mixing import Mixer

GROWTH = 128  # free positions of a new KV cache
PREFILL_TOKENS = 512  # rows are prefilled together up to this many tokens
PRECISION = "int8"  # as the stamp of an answer names it


class PackedDecoder:
    """Decodes with the packed weights of a plain decoder.

    Attributes:
        history: (B, T) the prompts, padded on the left; as in `CausalDecoder`.
    """

    def __init__(
        self,
        base: Any,
        packed: PackedBase,
        mixer: Mixer,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
    ) -> None:
        self._base, self._packed, self._mixer = base, packed, mixer
        self._max_new_tokens = max_new_tokens
        self._plan = share_plan(packed, mixer)
        self._prompts = [list(prompt) for prompt in prompts]
        self.history, _ = pad_prompts(prompts, base.tokenizer.pad_token_id)
        self._next = [list(prompt) for prompt in self._prompts]  # the tokens that the next step reads
        self._lengths = [0] * len(prompts)  # of the KV cache, per row
        self._cache = torch.empty(0)  # (layers, 2, B, key heads, capacity, D)
        self._angles = torch.empty(2, 0, packed.head_size)
        self._scratch = Scratch(packed, 0)
        self._calls: dict[tuple[int, int], Call] = {}  # of a decoding step, by layer and group
        self._rows = list(range(len(prompts)))  # the rows that are still decoded, with their answers so far
        self._answers: list[list[int]] = [[] for _ in prompts]
        self._exact: CausalDecoder | None = None

    @property
    def precision(self) -> str:
        """The precision that answers; "" is the base's own."""
        return "" if self._exact else PRECISION

    def _needs_exact(self) -> bool:
        """Whether the base's own forward has to go on: an adapter or a mix cannot be computed here."""
        return self._mixer.active_mix is None or bool(self._plan.describe_obstacle())

    def reset(self, rows: Sequence[int], answers: Sequence[Sequence[int]]) -> None:
        """Drops the KV cache, as `CausalDecoder.reset`."""
        if self._exact:
            self._exact.reset(rows, answers)
            return
        self._rows, self._answers = list(rows), [list(answer) for answer in answers]
        self._calls.clear()
        self._next = [[*self._prompts[row], *answer] for row, answer in zip(rows, answers, strict=True)]
        self._lengths = [0] * len(rows)
        self._cache = torch.empty(0)

    def append(self, tokens: torch.Tensor) -> None:
        """Appends one token to every row; the next step reads it."""
        if self._exact:
            self._exact.append(tokens)
            return
        for answer, token in zip(self._answers, tokens.tolist(), strict=True):
            answer.append(token)
        self._next = [[token] for token in tokens.tolist()]

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keeps these rows of the batch and drops all others."""
        self._calls.clear()
        if self._exact:
            self._exact.select_rows(rows)
            return
        kept = rows.tolist()
        self._rows = [self._rows[row] for row in kept]
        self._answers = [self._answers[row] for row in kept]
        self._cache = self._cache.index_select(2, rows)
        self._next = [self._next[row] for row in kept]
        self._lengths = [self._lengths[row] for row in kept]

    def join(self, other: Any) -> bool:
        """Appends the rows of another decoder, as `CausalDecoder.join`; no row moves: none has padding."""
        if not isinstance(other, PackedDecoder):
            return False
        if self._exact and other._exact:
            return self._exact.join(other._exact)
        if self._exact or other._exact or not (self._cache.numel() and other._cache.numel()):
            return False
        self._calls.clear()
        capacity = max(self._cache.shape[-2], other._cache.shape[-2])
        self._cache = torch.cat(
            [pad(cache, (0, 0, 0, capacity - cache.shape[-2])) for cache in (self._cache, other._cache)],
            dim=2,
        )
        self._prompts = [d._prompts[row] for d in (self, other) for row in d._rows]
        self._rows = list(range(len(self._prompts)))
        self._answers += other._answers
        self._next += other._next
        self._lengths += other._lengths
        self._max_new_tokens = max(self._max_new_tokens, other._max_new_tokens)
        return True

    def step(self) -> torch.Tensor:
        """Runs one forward (prefill, or one token per row).

        Returns:
            (B, V) logits of the next token.
        """
        if exact := self._find_exact():
            return exact.step()
        return self._compute(every_position=False)

    def _find_exact(self) -> CausalDecoder | None:
        """The decoder in the base's own precision, from where it is needed on."""
        if self._exact is None and self._needs_exact():
            if len(set(map(len, self._answers))) < 2:
                self._exact = CausalDecoder(self._base, self._prompts, self._max_new_tokens)
                self._exact.reset(self._rows, self._answers)
            else:  # after a join, the answers so far differ in length
                so_far = [
                    [*self._prompts[row], *answer]
                    for row, answer in zip(self._rows, self._answers, strict=True)
                ]
                self._exact = CausalDecoder(self._base, so_far, self._max_new_tokens)
        return self._exact

    def prefill_with_evidence(self, limit: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The first step with the likelihood of the prompts, as `CausalDecoder.prefill_with_evidence`."""
        if exact := self._find_exact():
            return exact.prefill_with_evidence(limit)
        news = [list(new) for new in self._next]
        last: list[torch.Tensor] = []
        likelihoods: list[torch.Tensor] = []

        def read(rows: range, logits: torch.Tensor) -> None:
            end = 0
            for row in rows:
                begin, end = end, end + len(news[row])
                first = max(begin, end - 1 - limit)
                ids = torch.tensor(news[row][first - begin + 1 :], dtype=torch.long)
                likelihoods.append(token_log_likelihoods(logits[first : end - 1], ids))
                last.append(logits[end - 1].clone())

        self._compute(every_position=True, read=read)
        return torch.stack(last), likelihoods

    def all_logits(self) -> torch.Tensor:
        """Prefills one prompt and returns the logits at all of its positions, (T, V)."""
        return self._compute(every_position=True)

    def _compute(
        self, every_position: bool, read: Callable[[range, torch.Tensor], None] | None = None
    ) -> torch.Tensor:
        """The logits of the new tokens; with `read`, each part is given to it and dropped."""
        if self._plan.update():
            self._calls.clear()
        self._reserve(max(n + len(new) for n, new in zip(self._lengths, self._next, strict=True)))
        logits = []
        for rows in self._chunks():
            part = self._forward(rows, every_position)
            if read:
                read(rows, part)
            else:
                logits.append(part)
        if read:
            return torch.empty(0)
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def _chunks(self) -> list[range]:
        """Consecutive rows that are computed together."""
        chunks, first, tokens = [], 0, 0
        for row, new in enumerate(self._next):
            if tokens and tokens + len(new) > PREFILL_TOKENS:
                chunks.append(range(first, row))
                first, tokens = row, 0
            tokens += len(new)
        return [*chunks, range(first, len(self._next))]

    def _reserve(self, length: int) -> None:
        """Makes room for this many positions per row."""
        packed, rows = self._packed, len(self._next)
        if self._cache.numel() == 0 or self._cache.shape[-2] < length:
            before = self._cache
            self._cache = torch.empty(
                len(packed.layers), 2, rows, packed.key_heads, length + GROWTH, packed.head_size
            )
            if before.numel():
                self._cache[..., : before.shape[-2], :] = before
        if self._angles.shape[1] < length:
            positions = torch.arange(length + GROWTH).unsqueeze(0)
            cos, sin = packed.rotary(packed.token_vectors[:1], positions)  # (1, T, D)
            half = packed.head_size // 2
            # The rotated vector is (x1 cos - x2 sin, x2 cos + x1 sin): with the halves swapped, one product.
            self._angles = torch.stack([cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)])

    def _forward(self, rows: range, every_position: bool) -> torch.Tensor:
        """Computes the new tokens of these rows and returns the logits, (rows, V) or (N, V)."""
        packed = self._packed
        news = [self._next[row] for row in rows]
        counts = [len(new) for new in news]
        tokens = sum(counts)
        if self._scratch.tokens != tokens:
            self._scratch = Scratch(packed, tokens)
            self._calls.clear()
        scratch = self._scratch
        ids = torch.tensor([token for new in news for token in new])
        torch.index_select(packed.token_vectors, 0, ids, out=scratch.x)
        spans = [(self._lengths[row], count) for row, count in zip(rows, counts, strict=True)]
        positions = torch.cat([torch.arange(past, past + count) for past, count in spans])
        cos, sin = self._angles[:, positions].unsqueeze(2)  # (N, 1, D)
        token_rows = None  # every row has one token
        if tokens > len(rows) or len(rows) < len(self._next):
            token_rows = torch.repeat_interleave(torch.tensor(rows), torch.tensor(counts))
        for i, layer in enumerate(packed.layers):
            heads = self._project((i, 0), layer.query_key_value, scratch.x, scratch.heads, token_rows)
            queries = self._rotate(layer, heads, cos, sin, self._cache[i], rows, spans)
            attended = self._attend(queries, self._cache[i], rows, spans)
            self._project((i, 1), layer.output, attended, scratch.x, token_rows, add=True)
            gates = self._project((i, 2), layer.gate_up, scratch.x, scratch.gates, token_rows)
            gate, up = gates.chunk(2, dim=-1)
            inner = torch.mul(silu(gate), up, out=scratch.inner)
            self._project((i, 3), layer.down, inner, scratch.x, token_rows, add=True)
        for row, count in zip(rows, counts, strict=True):
            self._lengths[row] += count
        last = scratch.x
        if tokens > len(rows) and not every_position:
            last = scratch.x[torch.tensor(counts).cumsum(0) - 1]
        logits = torch.empty(len(last), packed.head.outputs)
        norm, epsilon = packed.norm.data_ptr(), packed.epsilon
        Call(packed.head, last, logits, norm, epsilon, scratch.rounded, add=False)(last)
        return logits[:, : packed.vocabulary]

    def _project(
        self,
        key: tuple[int, int],
        group: PackedGroup,
        x: torch.Tensor,
        y: torch.Tensor,
        token_rows: torch.Tensor | None,
        add: bool = False,
    ) -> torch.Tensor:
        """Computes y (+)= W norm(x) + bias + the adapters' part, and returns y, (N, O).

        Args:
            key: the indices of layer and group.
        """
        adapters = self._plan.groups[key[0]][key[1]]
        if group.bias is not None:
            if add:
                y += group.bias
            else:
                y[:] = group.bias
        if adapters is not None and adapters.live:
            before = x.clone()  # y may be x
        call = self._calls.get(key)
        if call is None or token_rows is not None:
            call = self._make_call(group, x, y, adapters, token_rows, add or group.bias is not None)
            if token_rows is None:
                self._calls[key] = call
        call(x)
        if adapters is not None and adapters.live:
            if group.norm is not None:
                before = rms_norm(before, before.shape[-1:], group.norm, self._packed.epsilon)
            for live, rows in adapters.live:
                block = live.block
                inner = torch.mm(before, block.down.a[:, block.start : block.end])
                inner *= _by_token(rows, token_rows)
                end = live.start + block.b.shape[1]
                y[:, live.start : end] += torch.mm(inner, block.b)
        return y

    def _make_call(
        self,
        group: PackedGroup,
        x: torch.Tensor,
        y: torch.Tensor,
        adapters: GroupAdapters | None,
        token_rows: torch.Tensor | None,
        add: bool,
    ) -> Call:
        fields: tuple[int, ...] = ()
        if adapters is not None and adapters.packed is not None and adapters.rows is not None:
            packed, rows = adapters.packed, _by_token(adapters.rows, token_rows)
            adapters.by_token = rows  # keeps it in memory
            ranks, rounded = self._scratch.reserve_ranks(packed.ranks)
            stride = 0 if rows.shape[0] == 1 else rows.stride(0)
            fields = (
                *packed.down_addresses,
                rows.data_ptr(),
                stride,
                ranks,
                *packed.up_addresses,
                *rounded,
            )
        epsilon, rounded_x = self._packed.epsilon, self._scratch.rounded
        return Call(group.weight, x, y, group.norm_address, epsilon, rounded_x, add, fields)

    def _rotate(
        self,
        layer: PackedLayer,
        heads: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: torch.Tensor,
        rows: range,
        spans: Sequence[tuple[int, int]],
    ) -> torch.Tensor:
        """Rotates queries and keys, writes keys and values into the cache, returns queries (N, heads, D)."""
        packed = self._packed
        n, k, size = packed.heads, packed.key_heads, packed.head_size
        by_head = heads.view(len(heads), n + 2 * k, size)
        turning = by_head[:, : n + k]
        if layer.query_norm is not None and layer.key_norm is not None:
            turning = torch.cat(
                [
                    rms_norm(turning[:, :n], (size,), layer.query_norm, packed.epsilon),
                    rms_norm(turning[:, n:], (size,), layer.key_norm, packed.epsilon),
                ],
                dim=1,
            )
        turned = torch.addcmul(turning * cos, turning.roll(size // 2, -1), sin)
        keys, values = turned[:, n:], by_head[:, n + k :]
        if _are_equal_steps(spans):
            position = spans[0][0]
            cache[0, rows.start : rows.stop, :, position] = keys
            cache[1, rows.start : rows.stop, :, position] = values
            return turned[:, :n]
        first = 0
        for row, (past, count) in zip(rows, spans, strict=True):
            part = slice(first, first + count)
            cache[0, row, :, past : past + count] = keys[part].transpose(0, 1)
            cache[1, row, :, past : past + count] = values[part].transpose(0, 1)
            first += count
        return turned[:, :n]

    def _attend(
        self, queries: torch.Tensor, cache: torch.Tensor, rows: range, spans: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        """Attention of the new tokens, (N, heads · D)."""
        packed = self._packed
        tokens, heads, size = queries.shape
        share = heads // packed.key_heads
        if _are_equal_steps(spans):
            # The query heads of one key head attend like several queries of it.
            end = spans[0][0] + 1
            keys, values = cache[:, rows.start : rows.stop, :, :end]
            grouped = queries.reshape(tokens, packed.key_heads, share, size)
            out = scaled_dot_product_attention(grouped, keys, values, scale=packed.scaling)
            return out.reshape(tokens, heads * size)
        parts, first = [], 0
        for row, (past, count) in zip(rows, spans, strict=True):
            keys, values = cache[:, row : row + 1, :, : past + count]
            if count == 1:
                one = queries[first : first + 1].reshape(1, packed.key_heads, share, size)
                out = scaled_dot_product_attention(one, keys, values, scale=packed.scaling)
                parts.append(out.reshape(1, heads * size))
            else:
                many = queries[first : first + count].transpose(0, 1).unsqueeze(0)
                out = scaled_dot_product_attention(
                    many, keys, values, is_causal=True, scale=packed.scaling, enable_gqa=share > 1
                )
                parts.append(out[0].transpose(0, 1).reshape(count, heads * size))
            first += count
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _are_equal_steps(spans: Sequence[tuple[int, int]]) -> bool:
    """Whether every row reads one token at the same position, so that one attention covers all rows."""
    return all(span == (spans[0][0], 1) for span in spans)


def _by_token(rows: torch.Tensor, token_rows: torch.Tensor | None) -> torch.Tensor:
    """s of every row, (B, R) or (1, R) -> of every token, (N, R) or (1, R)."""
    return rows if len(rows) == 1 or token_rows is None else rows[token_rows]
