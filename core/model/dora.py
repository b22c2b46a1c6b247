"""DoRA in a mix: the change of one adapter as a row gain of the base's output beside a low-rank product.

DoRA (Liu et al. 2024, arXiv 2402.09353) gives every row of W + s B A a trained length m. Its change of a
layer, as peft computes it for one active adapter, is

```
m / |W + s B A| · (W + s B A) x - W x   =   (g - 1) ⊙ (W x)  +  s (g ⊙ B) (A x)        g = m / |W + s B A|
```

Both terms are linear in x, so the change can be weighted like any other: a mix adds `weight` times it. At
weight 1, alone, that is peft's own forward. At other weights, and beside other adapters, the change is scaled
and added as a whole, with g as it was trained; the norm is not taken again of the mix. So 0 is the base,
changes add up, and a tilt and the gradient of a weight are those of every adapter.

The second term is plain LoRA with g folded into B, and lies in rank space with all others
(`core.model.rank_space`). The first costs one multiply-add over a layer's output for all adapters together.

Letters: B rows, T tokens, I inputs, O outputs of a layer, R rank, J adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight

from core.errors import AdapterError
from core.model.nf4_cpu import unpack_for_backward
from core.model.rank_space import ActiveMix
from core.store.adapter_weights import MAGNITUDE

BLOCK_ROWS = 1024  # of a weight whose norms are computed at once
PREFIX = "base_model.model."  # of every key in peft's file format


@dataclass(eq=False)
class RowGain:
    """What the DoRA adapters of one layer add to the output of the base's own layer.

    Attributes:
        values: g - 1 of each adapter, (J, O).
        columns: the index, in the mixer, of the `RankColumns` with one column per adapter.
        bias: (O,) of the base layer, which is not scaled; or None.
    """

    values: torch.Tensor
    columns: int
    bias: torch.Tensor | None

    def add(self, y: torch.Tensor, mix: ActiveMix, depth: int) -> torch.Tensor:
        """Computes y + (weights · (g - 1)) ⊙ (y - bias).

        Args:
            y: (…, O) the base layer's output; its first dimension is a multiple of the mix's rows. It is
                written in place where neither a gradient nor rounding forbids it.
            depth: the index of the layer's depth in the mixer.

        Returns:
            (…, O)
        """
        weights = mix.rows[self.columns][depth]  # (B, 1, J)
        if weights is None:
            return y
        gain = weights.to(self.values.dtype) @ self.values  # (B, 1, O)
        by_row = y.reshape(mix.count, -1, y.shape[-1])
        own = by_row if self.bias is None else by_row - self.bias
        if y.dtype is not gain.dtype or y.requires_grad or gain.requires_grad or not y.is_contiguous():
            return (by_row + own * gain).view(y.shape)
        by_row.addcmul_(own, gain)
        return y


def split_magnitudes(
    tensors: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Splits the tensors of a file into (factors under their keys, path of a layer -> its magnitude m)."""
    end = f".{MAGNITUDE}"
    magnitudes = {k.removesuffix(end).removeprefix(PREFIX): v for k, v in tensors.items() if k.endswith(end)}
    return {k: v for k, v in tensors.items() if not k.endswith(end)}, magnitudes


def fold_gains(model: Any, name: str, magnitudes: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Multiplies g into the factors B of an adapter that is loaded as plain LoRA.

    The norms are those of the resident weights, as in peft's forward: of a quantized base, its own.

    Args:
        model: with the adapter's layers.
        name: peft's name of the adapter.
        magnitudes: path of a layer -> m, (O,).

    Returns:
        path of a layer -> g - 1, (O,).

    Raises:
        AdapterError: a magnitude does not fit its layer, or a gain is not finite.
    """
    gains = {}
    with torch.no_grad(), unpack_for_backward(model):
        for path, magnitude in magnitudes.items():
            layer = model.get_submodule(path)
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            if magnitude.shape != b.shape[:1]:
                raise AdapterError(
                    f"The magnitude of {path!r} has {len(magnitude)} numbers; its layer has {len(b)} rows.",
                    "Choose an adapter that was trained on this base.",
                )
            norms = _measure_rows(read_weight(layer), a, b * float(layer.scaling[name]))
            gain = magnitude.to(norms) / norms
            if not bool(torch.isfinite(gain).all()):
                raise AdapterError(
                    f"The DoRA adapter {name!r} divides by a norm of 0 in {path!r}.",
                    "Choose an adapter that was trained on this base.",
                )
            b.mul_(gain[:, None].to(b))
            gains[path] = gain - 1
    return gains


def _measure_rows(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(O,) the length of every row of W + B A, in blocks of rows."""
    parts = [
        torch.addmm(weight[i : i + BLOCK_ROWS], b[i : i + BLOCK_ROWS].to(weight), a.to(weight)).norm(dim=1)
        for i in range(0, len(weight), BLOCK_ROWS)
    ]
    return torch.cat(parts)


def read_weight(layer: Any) -> torch.Tensor:
    """(O, I) weight of the base layer under a LoRA layer, in fp32; call it inside `unpack_for_backward`."""
    module = layer.get_base_layer()
    is_quantized = hasattr(module.weight, "quant_state") or hasattr(module.weight, "SCB")
    weight = dequantize_module_weight(module) if is_quantized else module.weight
    return (weight.t() if getattr(layer, "fan_in_fan_out", False) else weight).detach().float()
