"""4-bit layers on a CPU: packed for a kernel that has no backward, unpacked while something learns.

The only room that knows how bitsandbytes 0.50 repacks a layer's weights for its bf16 kernel, when, and how that is
undone. Knows no adapter.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse
from bitsandbytes.nn import Linear4bit

WIDE = (None, torch.float32, torch.bfloat16)  # compute types that lose nothing of the kernel's bf16


@contextlib.contextmanager
def unpack_for_backward(model: Any) -> Iterator[None]:
    """While open, gradients flow through 4-bit layers on a CPU too; they are slower meanwhile.

    On its first forward without a gradient, bitsandbytes 0.50 repacks a layer's weights for a bf16
    kernel that has no backward, and never unpacks them for training.
    """
    layers = _packing(model)
    before = [m.support_avx512bf16_for_cpu for m in layers]
    for layer in layers:
        _unpack(layer)
        layer.support_avx512bf16_for_cpu = False
    try:
        yield
    finally:
        for layer, packs in zip(layers, before, strict=True):
            layer.support_avx512bf16_for_cpu = packs


def settle(model: Any) -> None:
    """Packs and unpacks every 4-bit layer once: packing rounds the scales, and whoever trains must find the same base before and after the first answer."""
    with torch.no_grad():
        for layer in _packing(model):
            layer(torch.zeros(1, layer.in_features, dtype=torch.float32))
            _unpack(layer)
            if type(layer) is Linear4bit and _kernel() is not None:
                layer.__class__ = Direct4bit


def _packing(model: Any) -> list[Any]:
    """The layers that bitsandbytes may repack; peft's wrapper has the same class name, but not the attribute."""
    return [
        m
        for m in model.modules()
        if hasattr(m, "support_avx512bf16_for_cpu") and m.weight.device.type == "cpu"
    ]


def _unpack(layer: Any) -> None:
    """Undoes the repacking of one layer, with the scales as they are.

    bitsandbytes' own way back quantises the scales anew, and computes other ones each time: a base that is
    talked to and trained in turn would wander off.
    """
    state = layer.weight.quant_state
    if not getattr(state, "packing_format_for_cpu", False):
        return
    state.original_nested = False
    scales = state.absmax.T.reshape(-1).float()
    layer.weight.data, layer.weight.quant_state = _convert_weight_packed_for_cpu_inverse(
        layer.weight.data, state
    )
    layer.weight.quant_state.absmax = scales


@functools.cache
def _kernel() -> Callable[..., None] | None:
    """bitsandbytes' nf4 kernel: (M, N, K, x, weight, scales, y, block size, strides of x and y). None where there is none, or a better one."""
    from bitsandbytes.backends.cpu import ops
    from bitsandbytes.cextension import lib

    if getattr(ops, "gemm_4bit_forward_kernel", None) is not None:
        return None
    try:
        found = ctypes.CDLL(
            lib._lib._name
        ).gemv_4bit_inference_cpu_nf4_bf16  # a handle of our own, so that bitsandbytes' keeps its types
    except (AttributeError, OSError):
        return None
    found.argtypes, found.restype = [ctypes.c_int64] * 3 + [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3, None
    return found  # type: ignore[no-any-return]


class Direct4bit(Linear4bit):  # type: ignore[misc]
    """The same layer, whose packed product is one call: what bitsandbytes looks up and checks at every call was a third of its time for a few tokens."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, I) -> (…, O), to the bit what bitsandbytes computes."""
        state: Any = getattr(self.weight, "quant_state", None)  # FSDP puts in a parameter that has none
        ready = (
            getattr(state, "packing_format_for_cpu", False)
            and state.quant_type == "nf4"
            and self.compute_dtype in WIDE
        )
        if (
            not ready
            or not self.support_avx512bf16_for_cpu
            or not x.numel()
            or (x.requires_grad and torch.is_grad_enabled())
        ):
            return super().forward(x)  # type: ignore[no-any-return]
        count, width = state.shape
        flat = x.reshape(-1, width).to(torch.bfloat16).contiguous()
        y = torch.empty((len(flat), count), dtype=torch.bfloat16)
        kernel = _kernel()
        assert kernel is not None
        kernel(
            len(flat),
            count,
            width,
            flat.data_ptr(),
            self.weight.data_ptr(),
            state.absmax.data_ptr(),
            y.data_ptr(),
            state.blocksize,
            width,
            count,
        )
        y = y.to(self.compute_dtype or x.dtype)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).view(*x.shape[:-1], count)
