"""The patch of peft's LoRA layers: a forward in rank space while a mix is active, otherwise peft's own.

`patch_layer` replaces a layer's class by a subclass with one more base class. Training, which has no active
mix, runs peft's forward unchanged. This works for Linear, Conv1D, Linear4bit and 8-bit layers alike; peft's
own extension point, the LoraVariant registry, is private, and Linear4bit bypasses it.

An adapter that has no form in a mix is refused with the reason: layers by `unmixable_reason`, settings by
`UNMIXABLE` in `core.store.adapter_config`. A DoRA adapter of the library is loaded as plain LoRA with a row
gain beside it (`core.model.dora`), so that its layers are peft's plain ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora.layer import Conv1d, MultiheadAttention, ParamWrapper, _ConvNd
from torch.nn.utils import parametrize

from core.model import experts
from core.model.dora import RowGain
from core.model.rank_space import LoraBlock

# peft's layers whose forward is the base layer's output plus a product of two factors.
MIXABLE_LAYERS = ("Linear", "Linear4bit", "Linear8bitLt")


def unmixable_reason(layer: Any, ignored: str = "") -> str:
    """Returns why a peft layer has no form in rank space, or "".

    Args:
        ignored: peft's name of an adapter that is left to peft's own forward.
    """
    kind = next(c for c in type(layer).__mro__ if not issubclass(c, (_MixedForward, _ExpertsForward)))
    if getattr(layer, "lora_embedding_A", None):
        return "it is trained on the embedding, which looks vectors up and has no product"
    if isinstance(layer, (_ConvNd, Conv1d, MultiheadAttention)):
        return f"it is trained on a {type(layer.get_base_layer()).__name__}"
    if variants := [v for name, v in getattr(layer, "lora_variant", {}).items() if name != ignored]:
        return f"it is {type(variants[0]).__name__}, not a plain sum"
    if any(getattr(layer, "lora_bias", {}).values()):
        return "it trains biases"
    if isinstance(layer, ParamWrapper):
        return experts.unmixable_reason(layer)
    if not layer.r or kind.__name__ in MIXABLE_LAYERS:  # peft leaves its wrapper after the last adapter
        return ""
    return f"its layers are of the kind {kind.__name__}"


def patch_layer(layer: Any) -> None:
    """Gives a peft layer the forward in rank space. Patching a layer twice changes nothing."""
    if isinstance(layer, (_MixedForward, _ExpertsForward)):
        return
    kind = type(layer)
    if isinstance(layer, ParamWrapper):  # keeps its name, by which peft recognises that it can add an adapter
        layer.__class__ = type(kind.__name__, (_ExpertsForward, kind), {"__module__": kind.__module__})
    else:
        layer.__class__ = type(
            f"Mixed{kind.__name__}", (_MixedForward, kind), {"__module__": kind.__module__}
        )


class _MixedForward:
    """The forward of a linear LoRA layer: the base layer plus all blocks while a mix is active.

    Attributes:
        mixer: the mixer, by a reference that is not a submodule.
        depth: the index of the layer's depth in the mixer.
        blocks: the adapters of this layer.
        row_gain: what its DoRA adapters add beside their blocks, or None.
    """

    mixer: experts.MixerReference
    depth: int
    blocks: list[LoraBlock]
    row_gain: RowGain | None
    base_layer: Any

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x (B, T, I) -> (B, T, O).

        Also (k·B, T, I) and (B·T, I), where each row of the mix applies to k or T consecutive rows of x.
        """
        mix = self.mixer.mixer.active_mix
        if mix is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc, no-any-return]
        y = self.base_layer(x, *args, **kwargs)
        dtype = y.dtype
        if self.row_gain is not None:
            y = self.row_gain.add(y, mix, self.depth)
        for block in self.blocks:
            y = block.add(y, x, mix, self.depth)
        return y if y.dtype is dtype else y.to(dtype)  # type: ignore[no-any-return]


class _ExpertsForward:
    """The forward of peft's wrapper of an experts parameter: while a mix is active, only the base layer.

    The adapters are then added inside the experts function (`core.model.experts`). The other two methods
    correct peft 0.21 for weights that are quantized as a parametrization.
    """

    mixer: experts.MixerReference
    base_layer: Any

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.mixer.mixer.active_mix is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return self.base_layer(x, *args, **kwargs)

    @contextlib.contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        """Makes the delta of quantized weights visible in peft's own forward.

        While peft adds the delta, torch dequantizes the weight and caches it without the delta if another
        parameter of the module is cached already. So the cached weight is dropped.
        """
        with super()._activate_lora(active_adapters):  # type: ignore[misc]
            key = id(self.get_base_layer()), self.parameter_name  # type: ignore[attr-defined]
            parametrize._cache.pop(key, None)
            yield

    def _remove_parametrizations(self) -> None:
        """Removes the delta after peft's own forward.

        Where the weight is quantized, and so parametrised already, peft 0.21 does not remove the delta of a
        single adapter, and deltas would accumulate.
        """
        parts = self.get_base_layer().parametrizations[self.parameter_name]  # type: ignore[attr-defined]
        if len(parts) > 1:
            del parts[-1]
        else:
            super()._remove_parametrizations()  # type: ignore[misc]
