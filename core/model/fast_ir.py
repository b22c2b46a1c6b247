"""Parts of LLVM code for `core.model.fast_code`: types, loops, operations on vectors of VECTOR numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from core.model.fast_kernels import LANES, VECTOR

I8, I16, I32, N = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32, POINTER, VOID = ir.FloatType(), ir.PointerType(), ir.VoidType()
FLOATS = ir.VectorType(F32, VECTOR)
INTS = ir.VectorType(I32, VECTOR)
ZEROS = ir.Constant(FLOATS, [ir.Constant(F32, 0.0)] * VECTOR)
PAIRS = 2 * LANES  # int16 products that one addition of neighbours makes into LANES int32 numbers
OUTPUTS = ir.VectorType(F32, LANES)
SUMS = ir.VectorType(I32, LANES)


def number(value: int) -> Any:
    """A 64-bit constant."""
    return ir.Constant(N, value)


def _indices(numbers: Sequence[int]) -> Any:
    return ir.Constant(ir.VectorType(I32, len(numbers)), [ir.Constant(I32, i) for i in numbers])


class Loop:
    """`for index in range(start, end, step)`, with values that are carried from one pass to the next.

    Example:
        >>> loop = Loop(builder, number(0), end)
        >>> total = loop.carry(zero)
        >>> (total,) = loop.close(builder.add(total, loop.index))
    """

    def __init__(self, builder: Any, start: Any, end: Any, step: int = 1) -> None:
        self._builder, self._end, self._step = builder, end, step
        self._before = builder.block
        self._body = builder.append_basic_block()
        self._after = builder.append_basic_block()
        builder.cbranch(builder.icmp_signed("<", start, end), self._body, self._after)
        builder.position_at_end(self._body)
        self.index = self._phi(start)
        self._carried: list[tuple[Any, Any]] = []

    def _phi(self, initial: Any) -> Any:
        phi = self._builder.phi(initial.type)
        phi.add_incoming(initial, self._before)
        return phi

    def carry(self, initial: Any) -> Any:
        """Declares a carried value; call it before other code of the body."""
        phi = self._phi(initial)
        self._carried.append((phi, initial))
        return phi

    def close(self, *values: Any) -> list[Any]:
        """Ends the body; `values` are the carried values of the next pass. Returns them after the loop."""
        builder, last = self._builder, self._builder.block
        following = builder.add(self.index, number(self._step))
        self.index.add_incoming(following, last)
        for (phi, _), value in zip(self._carried, values, strict=True):
            phi.add_incoming(value, last)
        builder.cbranch(builder.icmp_signed("<", following, self._end), self._body, self._after)
        builder.position_at_end(self._after)
        results = []
        for (_, initial), value in zip(self._carried, values, strict=True):
            result = builder.phi(initial.type)
            result.add_incoming(initial, self._before)
            result.add_incoming(value, last)
            results.append(result)
        return results


def at(b: Any, pointer: Any, kind: Any, index: Any) -> Any:
    """The address of element `index`."""
    return b.gep(pointer, [index], source_etype=kind)


def read(b: Any, pointer: Any, kind: Any, align: int = 4) -> Any:
    """Loads a value from an address that is a multiple of `align` bytes."""
    return b.load(pointer, align=align, typ=kind)


def splat(b: Any, scalar: Any, kind: Any = FLOATS) -> Any:
    """A vector of a type with the same number in every place."""
    undefined = ir.Constant(kind, ir.Undefined)
    vector = b.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return b.shuffle_vector(vector, undefined, _indices([0] * kind.count))


def reduce(b: Any, vector: Any, combine: Any) -> Any:
    """Combines all numbers of a vector, halves first."""
    count = VECTOR
    while count > 1:
        count //= 2
        undefined = ir.Constant(vector.type, ir.Undefined)
        low = b.shuffle_vector(vector, undefined, _indices(range(count)))
        high = b.shuffle_vector(vector, undefined, _indices(range(count, 2 * count)))
        vector = combine(low, high)
    return b.extract_element(vector, ir.Constant(I32, 0))


def multiply_pairs(b: Any, x: Any, w: Any) -> Any:
    """Multiplies int16 numbers and adds neighbours: LANES int32 sums. x86 has one instruction for it."""
    wide = ir.VectorType(I32, PAIRS)
    product = b.mul(b.sext(x, wide), b.sext(w, wide))
    undefined = ir.Constant(wide, ir.Undefined)
    even = b.shuffle_vector(product, undefined, _indices(range(0, PAIRS, 2)))
    odd = b.shuffle_vector(product, undefined, _indices(range(1, PAIRS, 2)))
    return b.add(even, odd)
