"""nf4 layers of bitsandbytes on a CPU: weights packed for inference, unpacked for backward passes.

The facts below are about bitsandbytes 0.50 on CPUs with AVX512-BF16, where its bf16 kernel is used. GPUs,
other CPUs and unquantized bases are not affected.

*Gradients.* At its first forward without gradients, bitsandbytes repacks a layer's weights for a kernel that
has no backward, and it never unpacks them for training. After any answer, gradients through that layer would
be wrong without an error. So every backward pass runs inside `unpack_for_backward`.

*The same base every time.* Packing rounds the quantization scales. `round_trip` packs and unpacks every layer
once, right after loading, so that training finds the same base before and after the first answer. Unpacking
in `_unpack` keeps the scales, where bitsandbytes would quantize them again, with other values each time.

*Speed.* For a few tokens, a third of a packed layer's time is what bitsandbytes looks up and checks per call.
`Direct4bit` calls the kernel itself and gives the same numbers to the bit.

Letters: I inputs, O outputs of a layer.
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

KERNEL_DTYPES = (None, torch.float32, torch.bfloat16)  # compute types that represent bf16 results exactly


@contextlib.contextmanager
def unpack_for_backward(model: Any) -> Iterator[None]:
    """Keeps the 4-bit layers on a CPU unpacked while open, so that gradients flow through them.

    Forwards are slower meanwhile. Weights can also be read inside (`dequantize_module_weight`), which gives
    wrong values for a packed layer. On exit bitsandbytes may pack the layers again at their next forward.

    Args:
        model: any module; a model without 4-bit layers on a CPU is left alone.

    Example:
        >>> with unpack_for_backward(model):
        ...     model(input_ids=ids, labels=ids).loss.backward()
    """
    layers = _packable_layers(model)
    before = [m.support_avx512bf16_for_cpu for m in layers]
    for layer in layers:
        _unpack(layer)
        layer.support_avx512bf16_for_cpu = False
    try:
        yield
    finally:
        for layer, is_supported in zip(layers, before, strict=True):
            layer.support_avx512bf16_for_cpu = is_supported


def round_trip(model: Any) -> None:
    """Packs and unpacks every 4-bit layer once, and swaps in `Direct4bit` where the kernel exists.

    Packing rounds the scales. After one round trip, further ones change nothing.
    """
    with torch.no_grad():
        for layer in _packable_layers(model):
            layer(torch.zeros(1, layer.in_features, dtype=torch.float32))
            _unpack(layer)
            if type(layer) is Linear4bit and _kernel() is not None:
                layer.__class__ = Direct4bit


def _packable_layers(model: Any) -> list[Any]:
    """The layers that bitsandbytes may pack; peft's wrapper of the same name lacks the attribute."""
    return [
        m
        for m in model.modules()
        if hasattr(m, "support_avx512bf16_for_cpu") and m.weight.device.type == "cpu"
    ]


def _unpack(layer: Any) -> None:
    """Undoes the packing of one layer and keeps its scales.

    bitsandbytes' own way back quantizes the scales again, to other values each time, so a base that
    alternates between inference and training would drift.
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
    """Returns bitsandbytes' nf4 kernel for the CPU, or None where it is absent or a newer kernel replaces it.

    Its arguments: M, N, K, x, weight, scales, y, block size, stride of x, stride of y.
    """
    from bitsandbytes.backends.cpu import ops
    from bitsandbytes.cextension import lib

    if getattr(ops, "gemm_4bit_forward_kernel", None) is not None:
        return None
    try:
        # A library handle of our own, so that the argument types of bitsandbytes' handle stay as they are.
        kernel = ctypes.CDLL(lib._lib._name).gemv_4bit_inference_cpu_nf4_bf16
    except (AttributeError, OSError):
        return None
    kernel.argtypes, kernel.restype = (
        [ctypes.c_int64] * 3 + [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3,
        None,
    )
    return kernel  # type: ignore[no-any-return]


class Direct4bit(Linear4bit):  # type: ignore[misc]
    """A `Linear4bit` whose packed product is one kernel call.

    It falls back to bitsandbytes where the layer is not packed, the kernel does not apply, or a gradient is
    needed.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, I) -> (…, O); the result equals that of bitsandbytes to the bit."""
        state: Any = getattr(self.weight, "quant_state", None)  # FSDP puts in a parameter without one
        is_packed = (
            getattr(state, "packing_format_for_cpu", False)
            and state.quant_type == "nf4"
            and self.compute_dtype in KERNEL_DTYPES
        )
        if (
            not is_packed
            or not self.support_avx512bf16_for_cpu
            or not x.numel()
            or (x.requires_grad and torch.is_grad_enabled())
        ):
            return super().forward(x)  # type: ignore[no-any-return]
        outputs, inputs = state.shape
        flat = x.reshape(-1, inputs).to(torch.bfloat16).contiguous()
        y = torch.empty((len(flat), outputs), dtype=torch.bfloat16)
        kernel = _kernel()
        assert kernel is not None
        kernel(
            len(flat),
            outputs,
            inputs,
            flat.data_ptr(),
            self.weight.data_ptr(),
            state.absmax.data_ptr(),
            y.data_ptr(),
            state.blocksize,
            inputs,
            outputs,
        )
        y = y.to(self.compute_dtype or x.dtype)
        if self.bias is not None:
            y += self.bias
        return y.to(x.dtype).view(*x.shape[:-1], outputs)
