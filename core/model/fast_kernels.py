"""Kernels for 8-bit weights on a CPU, compiled once a process by LLVM (llvmlite): no C compiler is needed.

A product reads every weight once, so that one token a step takes the time that memory takes to deliver the
weights. A weight is an int8, with one fp32 scale per `block` of inputs; an activation is an int16, with one
scale per row. An int16 keeps 15 bits of the largest value of a row, so that large single values, which
language models have, cost nothing else its precision (with int8 activations they do; compare LLM.int8(),
Dettmers et al. 2022, arXiv 2208.07339). The sum over a block is exact in int32.

```
y[m, o] = scale[m] · sum_b w_scale[o, b] · sum_{k in block b} q[m, k] · w[o, k]

memory of the weights, so that a processor reads it front to back:
| o0 k0 k1 | o1 k0 k1 | ... | o15 k0 k1 | o0 k2 k3 | ...        LANES outputs side by side, inputs in pairs
```

Each place of a vector is an output, and an instruction multiplies two inputs and adds the products: no sum
crosses a vector. So the arithmetic of an output depends neither on how many rows there are nor on how wide
the vectors of the processor are: a row's result is the same to the bit, whatever its neighbours are.

Letters: M rows, K inputs, O outputs, R ranks.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

LANES = 16  # outputs that lie side by side in packed weights; O is a multiple of it
VECTOR = 8  # fp32 numbers of one vector where rows are rounded; narrower processors split it
BLOCKS = (64, 32, 16)  # inputs that share one weight scale; the largest that divides K is used
RANK_BLOCK = 16  # the block of B factors; their ranks are padded to a multiple of it
TILES = (8, 4, 2, 1)  # rows of a tile, where a vector holds LANES numbers
NARROW_TILES = (4, 2, 1)  # the same on other processors: more sums do not fit in their registers
MULTIPLY_AND_ADD = ",+fast-dpwssd"  # LLVM's name for: vpdpwssd is worth it
HAS_MULTIPLY_AND_ADD = ("avx512vnni", "avxvnni")
WIDE = "avx512bw"  # the feature of processors whose vectors hold LANES numbers
OUTPUTS_AT_ONCE = 32  # outputs whose weights stay in the first cache while all rows pass
PREFETCH = 2048  # bytes ahead
WEIGHT_MAX, ACTIVATION_MAX = 127.0, 32767.0


@dataclass(frozen=True)
class PackedWeight:
    """A weight matrix in the kernels' layout.

    Attributes:
        values: int8, O x K numbers. scales: fp32, O x K / block.
        outputs, inputs, block: O, K and the inputs per scale.
    """

    values: torch.Tensor
    scales: torch.Tensor
    outputs: int
    inputs: int
    block: int

    @functools.cached_property
    def addresses(self) -> tuple[int, int]:
        """The addresses of values and scales."""
        return self.values.data_ptr(), self.scales.data_ptr()

    @property
    def memory_bytes(self) -> int:
        """Size in memory."""
        return int(self.values.numel() + 4 * self.scales.numel())


def choose_block(inputs: int) -> int:
    """Returns how many of K inputs share a scale, or 0 where no block divides K."""
    return next((block for block in BLOCKS if inputs % block == 0), 0)


def pack_weight(weight: torch.Tensor, block: int = 0) -> PackedWeight:
    """Rounds a weight to int8 and packs it.

    Args:
        weight: (O, K), of any floating-point type.
        block: inputs per scale, a divisor of K; 0 chooses it.
    """
    block = block or choose_block(weight.shape[1])
    inputs, missing = weight.shape[1], -len(weight) % LANES
    blocks = torch.nn.functional.pad(weight.float(), (0, 0, 0, missing)).view(
        -1, LANES, inputs // block, block
    )
    scales = blocks.abs().amax(-1) / WEIGHT_MAX  # (O/16, 16, K/block)
    values = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    values = values.round_().to(torch.int8).unflatten(-1, (-1, 2)).permute(0, 2, 3, 1, 4)
    scales = scales.transpose(1, 2).contiguous()  # (O/16, K/block, 16)
    return PackedWeight(values.contiguous(), scales, len(weight) + missing, inputs, block)


def unpack_weight(packed: PackedWeight) -> torch.Tensor:
    """Returns the (O, K) weight that a packed one stands for; O includes the padding."""
    blocks = packed.values.permute(0, 3, 1, 2, 4).flatten(3) * packed.scales.transpose(1, 2).unsqueeze(-1)
    return blocks.reshape(packed.outputs, packed.inputs)


# The numbers of one call, 64 bits each; `p_` marks addresses. Rows of x, y and s may lie apart (`_stride`, in
# numbers); q, h and hq are scratch for rounded inputs, ranks and rounded ranks, with a scale per row.
CALL_FIELDS = (
    "rows", "outputs", "inputs", "p_x", "x_stride", "p_norm", "epsilon", "p_q", "p_q_scales",
    "p_weight", "p_weight_scales", "p_y", "y_stride", "add",
    "ranks", "p_down", "p_down_scales", "p_s", "s_stride", "p_h",
    "segments", "p_segments", "p_up", "p_up_scales", "p_hq", "p_hq_scales",
)  # fmt: skip
PROJECT_FIELDS = CALL_FIELDS[:14]
ADAPT_FIELDS = ("rows", "inputs", "p_q", "p_q_scales", *CALL_FIELDS[14:], "p_y", "y_stride")


class Call:
    """One call of the kernels: y (+)= W norm(x) + B (s ⊙ (A norm(x))).

    Its arguments lie in memory, so that a repeated call passes a single address.

    Args:
        weight: W. x: (M, K) fp32, its numbers of a row side by side. y: (M, O) fp32, likewise.
        norm_address, epsilon: of the RMS norm; without an address x is used as it is.
        rounded: the addresses of (M, K) int16 and (M,) fp32 scratch.
        add: whether to add to y.
        adapters: values of the fields from "ranks" on, or () without adapters.
    """

    def __init__(
        self,
        weight: PackedWeight,
        x: torch.Tensor,
        y: torch.Tensor,
        norm_address: int,
        epsilon: float,
        rounded: tuple[int, int],
        add: bool,
        adapters: tuple[int, ...] = (),
    ) -> None:
        bits = struct.unpack("<i", struct.pack("<f", epsilon))[0]
        source = x.shape[0], weight.outputs, weight.inputs, x.data_ptr(), x.stride(0), norm_address, bits
        target = y.data_ptr(), y.stride(0), int(add)
        fields = *source, *rounded, *weight.addresses, *target, *adapters
        self._fields = (ctypes.c_int64 * len(CALL_FIELDS))(*fields)
        self._address = ctypes.addressof(self._fields)
        self._kernels = compile_kernels(weight.block)

    def __call__(self, x: torch.Tensor) -> None:
        """Runs it on an x of the same shape."""
        self._fields[_X] = x.data_ptr()
        self._kernels.run(self._address)


_X = CALL_FIELDS.index("p_x")


@dataclass(frozen=True)
class Kernels:
    """The compiled functions for weights of one block size.

    Attributes:
        run: runs the call at an address. engine: owns the machine code.
    """

    run: Callable[[int], None]
    engine: Any


@functools.cache
def compile_kernels(block: int) -> Kernels:
    """Compiles the kernels for weights with this many inputs per scale, for the processor that it runs on.

    Raises:
        ImportError, OSError, RuntimeError: llvmlite is missing or has no code generator for this processor.
    """
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    tiles = TILES if features.get(WIDE) else NARROW_TILES
    # Without this, LLVM uses two instructions where these processors have one that also adds.
    more = MULTIPLY_AND_ADD if any(features.get(name) for name in HAS_MULTIPLY_AND_ADD) else ""
    return compile_for(block, llvm.get_host_cpu_name(), features.flatten() + more, tiles)


def compile_for(block: int, processor: str, features: str, tiles: Sequence[int]) -> Kernels:
    """Compiles the kernels for a processor by LLVM's names; its results are those of any other, to the bit.

    Args:
        block: inputs per scale.
        features: of the processor, as "+avx2,-sse3".
        tiles: rows of a tile, the largest first.
    """
    import llvmlite.binding as llvm

    from core.model.fast_code import write_module

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(write_module(block, tiles))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=processor, features=features, opt=3, jit=True
    )
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.slp_vectorization = options.loop_vectorization = options.loop_unrolling = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address("run"))
    return Kernels(run, engine)
