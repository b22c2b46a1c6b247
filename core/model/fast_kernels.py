"""Kernels for 8-bit weights on a CPU, compiled once a process by LLVM (llvmlite): no C compiler is needed.

A product reads every weight once, so that one token a step takes the time that memory takes to deliver the
weights. A weight is an int8, with one fp32 scale per `block` of inputs; an activation is an int16, with one
scale per row. An int16 keeps 15 bits of the largest value of a row, so that large single values, which
language models have, cost nothing else its precision (with int8 activations they do; compare LLM.int8(),
Dettmers et al. 2022, arXiv 2208.07339). The sum over a block is exact in int32.

```
y[m, o] = scale[m] · sum_b w_scale[o, b] · sum_{k in block b} q[m, k] · w[o, k]

memory of the weights, so that a processor reads it front to back:
| o0 block 0 | o1 block 0 | o2 block 0 | o3 block 0 | o0 block 1 | ...        LANES outputs side by side
```

The arithmetic of a row does not depend on how many rows there are: tiles of 1, 2, 4 and 8 rows add in the
same order, so a row's result is the same to the bit, whatever its neighbours are.

Letters: M rows, K inputs, O outputs, R ranks.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

LANES = 4  # outputs that lie side by side in packed weights; O is a multiple of it
VECTOR = 8  # fp32 numbers of one vector; narrower processors split it
BLOCKS = (64, 32, 16)  # inputs that share one weight scale; the largest that divides K is used
RANK_BLOCK = 16  # the block of B factors; their ranks are padded to a multiple of it
TILES = {8: 1, 4: 2, 2: 4, 1: 4}  # rows of a tile -> outputs of a tile; 8 sums each fill the registers
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
    missing = -len(weight) % LANES
    blocks = torch.nn.functional.pad(weight.float(), (0, 0, 0, missing)).view(-1, LANES, weight.shape[1])
    blocks = blocks.view(len(blocks), LANES, -1, block).transpose(1, 2)  # (O/4, K/block, 4, block)
    scales = blocks.abs().amax(-1, keepdim=True) / WEIGHT_MAX
    values = (blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)).round_().to(torch.int8)
    return PackedWeight(
        values.contiguous(), scales.contiguous(), len(weight) + missing, weight.shape[1], block
    )


def unpack_weight(packed: PackedWeight) -> torch.Tensor:
    """Returns the (O, K) weight that a packed one stands for; O includes the padding."""
    blocks = packed.values.float() * packed.scales
    return blocks.transpose(1, 2).reshape(packed.outputs, packed.inputs)


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
        self._run = compile_kernels(weight.block).run

    def __call__(self, x: torch.Tensor) -> None:
        """Runs it on an x of the same shape."""
        self._fields[_X] = x.data_ptr()
        self._run(self._address)


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
    """Compiles the kernels for weights with this many inputs per scale.

    Raises:
        ImportError, OSError, RuntimeError: llvmlite is missing or has no code generator for this processor.
    """
    import llvmlite.binding as llvm

    from core.model.fast_code import write_module

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(write_module(block))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, jit=True
    )
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.slp_vectorization = options.loop_vectorization = options.loop_unrolling = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address("run"))
    return Kernels(run, engine)
