"""A KV cache that grows in blocks, for decoding without gradients.

transformers' `DynamicCache` concatenates, and so copies, all keys and values at every decoded token. The
layers here reserve `GROWTH` positions at a time and write new tokens in place.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

GROWTH = 64  # free positions of a new buffer; a layer is copied once per GROWTH decoded tokens


def make_kv_cache(config: Any) -> DynamicCache:
    """Returns an empty KV cache for a model.

    Layers with full attention become `PreallocatedLayer`. Sliding-window layers, and all other kinds, stay as
    transformers makes them.

    Args:
        config: the model's transformers config.
    """
    cache = DynamicCache(config=config)
    cache.layers = [PreallocatedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """The keys and values of one attention layer, (B, heads, T, D) each, in buffers longer than T.

    ```
    buffer   [ k0  k1  k2  ...  k(T-1)  free  free ... ]      up to GROWTH free positions
    keys     [ k0  k1  k2  ...  k(T-1) ]                      a view of the buffer
    ```

    Use it without gradients only: `update` writes into the buffer of which earlier results are views.
    """

    keys: Any
    values: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # "keys" or "values" -> (buffer, view)
        self._buffers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends new tokens.

        Args:
            key_states, value_states: (B, heads, new, D).

        Returns:
            All keys and all values so far, (B, heads, T, D) each.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    def join_rows(self, other: PreallocatedLayer) -> None:
        """Appends the rows of another layer. The shorter keys and values move to the right.

        Args:
            other: a layer of the same model, (B', heads, T', D).
        """
        length = max(self.keys.shape[-2], other.keys.shape[-2])
        self.keys, self.values = (
            torch.cat([torch.nn.functional.pad(t, (0, 0, length - t.shape[-2], 0)) for t in both])
            for both in ((self.keys, other.keys), (self.values, other.values))
        )

    def drop_positions(self, count: int) -> None:
        """Drops the first positions, (B, heads, T, D) -> (B, heads, T - count, D)."""
        self.keys, self.values = self.keys[..., count:, :], self.values[..., count:, :]

    def _append(self, name: str, so_far: Any, new: torch.Tensor) -> torch.Tensor:
        length = so_far.shape[-2] if so_far.numel() else 0
        end = length + new.shape[-2]
        buffer, view = self._buffers.get(name, (new, None))
        # A new buffer is needed for the first tokens, after rows were selected (`so_far` is then a copy), and
        # when the buffer is full.
        if view is not so_far or end > buffer.shape[-2]:
            buffer = new.new_empty((*new.shape[:-2], end + GROWTH, new.shape[-1]))
            if length:
                buffer[..., :length, :] = so_far
        buffer[..., length:end, :] = new
        view = buffer[..., :end, :]
        self._buffers[name] = buffer, view
        return view
