"""A cache of keys and values with room to grow.

Knows transformers' cache layers. Knows no model and no mix.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens that a layer can take in before it is copied again


def cache_of(config: Any) -> DynamicCache:
    """An empty cache for a model. Layers with a window, and other kinds, stay as transformers makes them."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, (B, heads, T, D) each. transformers' own copies all of them at every token; this one every `ROOM` tokens.

    Without gradients only: what was given out before is a view of what is written to.
    """

    keys: Any
    values: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._rooms: dict[
            str, tuple[torch.Tensor, torch.Tensor]
        ] = {}  # the room, and the part of it that is filled

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes in (B, heads, new, D) and gives back all of it."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._longer("keys", self.keys, key_states)
        self.values = self._longer("values", self.values, value_states)
        return self.keys, self.values

    def _longer(self, name: str, so_far: Any, new: torch.Tensor) -> torch.Tensor:
        have = so_far.shape[-2] if so_far.numel() else 0
        end = have + new.shape[-2]
        room, filled = self._rooms.get(name, (new, None))
        if filled is not so_far or end > room.shape[-2]:  # the first of it, rows have left, or it is full
            room = new.new_empty((*new.shape[:-2], end + ROOM, new.shape[-1]))
            if have:
                room[..., :have, :] = so_far
        room[..., have:end, :] = new
        filled = room[..., :end, :]
        self._rooms[name] = room, filled
        return filled
