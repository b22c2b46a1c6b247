"""The LLVM code of the kernels in `core.model.fast_kernels`, written with vectors of any processor.

`write_module` returns the text of one module. Its public function is `run`; the others are internal to it:
`project` and `adapt` are its two parts, `quantize` rounds rows to int16, `tile_M` multiplies M rows, and
`linear` covers all rows.

Letters as in `fast_kernels`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from core.model.fast_ir import (
    F32,
    FLOATS,
    I8,
    I16,
    I32,
    INTS,
    OUTPUTS,
    PAIRS,
    POINTER,
    SUMS,
    VOID,
    ZEROS,
    Loop,
    N,
    at,
    multiply_pairs,
    number,
    read,
    reduce,
    splat,
)
from core.model.fast_kernels import (
    ACTIVATION_MAX,
    ADAPT_FIELDS,
    CALL_FIELDS,
    LANES,
    OUTPUTS_AT_ONCE,
    PREFETCH,
    PROJECT_FIELDS,
    RANK_BLOCK,
    VECTOR,
)

CHAINS = 8  # sums that a processor adds to at once
STEPS = 4  # pairs of inputs that one pass of the innermost loop multiplies
LINE = 64  # bytes of a cache line
SEGMENT_FIELDS = 5  # of a row of the segment table: first rank, ranks, first output, outputs, offset in B


class Module:
    """One module of LLVM code; each method adds a function to it."""

    def __init__(self, block: int, tiles: Sequence[int]) -> None:
        self.module = ir.Module("fast_kernels")
        self.tiles = tiles
        # Without a triple LLVM takes the processor that it runs on.
        self.fma = self._declare("llvm.fma.v8f32", FLOATS, [FLOATS] * 3)
        self.fma_outputs = self._declare("llvm.fma.v16f32", OUTPUTS, [OUTPUTS] * 3)
        self.abs = self._declare("llvm.fabs.v8f32", FLOATS, [FLOATS])
        self.rint = self._declare("llvm.rint.v8f32", FLOATS, [FLOATS])
        self.sqrt = self._declare("llvm.sqrt.f32", F32, [F32])
        self.prefetch = self._declare("llvm.prefetch.p0", VOID, [POINTER, I32, I32, I32])
        self.quantize_rows = self._quantize()
        self.linear = {size: self._linear(size) for size in {block, RANK_BLOCK}}
        self._run(self._project(block), self._adapt(block))

    def _declare(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        return ir.Function(self.module, ir.FunctionType(result, arguments), name)

    def _start(self, name: str, arguments: Sequence[Any], is_public: bool = False) -> tuple[Any, Any]:
        function = self._declare(name, VOID, arguments)
        if not is_public:
            function.linkage = "internal"
        return function, ir.IRBuilder(function.append_basic_block())

    def _quantize(self) -> Any:
        """`quantize(M, K, x, stride, norm, epsilon, q, scales)`: rows of fp32 to int16, after an RMS norm."""
        function, b = self._start("quantize", [N, N, POINTER, N, POINTER, F32, POINTER, POINTER])
        rows, inputs, x, stride, norm, epsilon, q, scales = function.args
        has_norm = b.icmp_unsigned("!=", b.ptrtoint(norm, N), number(0))
        loop = Loop(b, number(0), rows)
        row = at(b, x, F32, b.mul(loop.index, stride))
        with b.if_else(has_norm) as (then, otherwise):
            with then:
                largest, squares = self._measure(b, row, inputs, norm)
                mean = b.fdiv(squares, b.sitofp(inputs, F32))
                root = b.call(self.sqrt, [b.fadd(mean, epsilon)])
                scaled = b.fdiv(largest, root)
                inverse = _inverse(b, largest)
                self._round(b, row, inputs, norm, inverse, at(b, q, I16, b.mul(loop.index, inputs)))
                with_norm = b.block
            with otherwise:
                plain, _ = self._measure(b, row, inputs, None)
                self._round(
                    b, row, inputs, None, _inverse(b, plain), at(b, q, I16, b.mul(loop.index, inputs))
                )
                without_norm = b.block
        result = b.phi(F32)
        result.add_incoming(scaled, with_norm)
        result.add_incoming(plain, without_norm)
        b.store(b.fdiv(result, ir.Constant(F32, ACTIVATION_MAX)), at(b, scales, F32, loop.index), align=4)
        loop.close()
        b.ret_void()
        return function

    def _measure(self, b: Any, row: Any, inputs: Any, norm: Any) -> tuple[Any, Any]:
        """The largest absolute value of a row times its norm weights, and the sum of its squares."""
        loop = Loop(b, number(0), inputs, VECTOR)
        largest, squares = loop.carry(ZEROS), loop.carry(ZEROS)
        value = read(b, at(b, row, F32, loop.index), FLOATS)
        weighted = value if norm is None else b.fmul(value, read(b, at(b, norm, F32, loop.index), FLOATS))
        size = b.call(self.abs, [weighted])
        larger = b.select(b.fcmp_ordered(">", size, largest), size, largest)
        largest, squares = loop.close(larger, b.call(self.fma, [value, value, squares]))
        return reduce(b, largest, lambda x, y: b.select(b.fcmp_ordered(">", x, y), x, y)), reduce(
            b, squares, b.fadd
        )

    def _round(self, b: Any, row: Any, inputs: Any, norm: Any, inverse: Any, q: Any) -> None:
        factor = splat(b, inverse)
        loop = Loop(b, number(0), inputs, VECTOR)
        value = read(b, at(b, row, F32, loop.index), FLOATS)
        if norm is not None:
            value = b.fmul(value, read(b, at(b, norm, F32, loop.index), FLOATS))
        whole = b.fptosi(b.call(self.rint, [b.fmul(value, factor)]), INTS)
        b.store(b.trunc(whole, ir.VectorType(I16, VECTOR)), at(b, q, I16, loop.index), align=2)
        loop.close()

    def _tile(self, rows: int, block: int) -> Any:
        """`tile(first, end, K, q, scales, w, w_scales, y, stride, add)`: some rows, outputs first to end."""
        function, b = self._start(
            f"tile_{rows}_{block}", [N, N, N, POINTER, POINTER, POINTER, POINTER, POINTER, N, N]
        )
        first, end, inputs, q, scales, w, w_scales, y, stride, add = function.args
        x = [at(b, q, I16, b.mul(number(i), inputs)) for i in range(rows)]
        loop = Loop(b, first, end, LANES)
        w = at(b, w, I8, b.mul(loop.index, inputs))
        w_scales = at(b, w_scales, F32, b.mul(loop.index, b.sdiv(inputs, number(block))))
        inner = Loop(b, number(0), b.sdiv(inputs, number(block)))
        sums = [inner.carry(ir.Constant(OUTPUTS, [ir.Constant(F32, 0.0)] * LANES)) for _ in range(rows)]
        products = self._multiply_block(b, block, inner.index, x, w)
        factors = read(b, at(b, w_scales, F32, b.mul(inner.index, number(LANES))), OUTPUTS)
        results = inner.close(
            *(
                b.call(self.fma_outputs, [b.sitofp(product, OUTPUTS), factors, total])
                for product, total in zip(products, sums, strict=True)
            )
        )
        is_sum = b.icmp_signed("!=", add, number(0))
        for m, result in enumerate(results):
            result = b.fmul(result, splat(b, read(b, at(b, scales, F32, number(m)), F32), OUTPUTS))
            target = at(b, y, F32, b.add(b.mul(number(m), stride), loop.index))
            result = b.select(is_sum, b.fadd(read(b, target, OUTPUTS), result), result)
            b.store(result, target, align=4)
        loop.close()
        b.ret_void()
        return function

    def _multiply_block(self, b: Any, block: int, index: Any, x: Sequence[Any], w: Any) -> list[Any]:
        """The exact products of one block of inputs, LANES int32 numbers for each row."""
        start, w_start = b.mul(index, number(block)), b.mul(index, number(block * LANES))
        for line in range(0, LANES * block, LINE):
            ahead = at(b, w, I8, b.add(w_start, number(line + PREFETCH)))
            b.call(self.prefetch, [ahead, *(ir.Constant(I32, i) for i in (0, 3, 1))])
        chains = min(max(CHAINS // len(x), 1), STEPS)  # sums of a row that do not wait for each other
        loop = Loop(b, number(0), number(block), 2 * STEPS)
        sums = [[loop.carry(ir.Constant(SUMS, [0] * LANES)) for _ in range(chains)] for _ in x]
        for step in range(STEPS):
            k = b.add(loop.index, number(2 * step))
            place = at(b, w, I8, b.add(w_start, b.mul(k, number(LANES))))
            weights = b.sext(read(b, place, ir.VectorType(I8, PAIRS), 1), ir.VectorType(I16, PAIRS))
            for row, totals in zip(x, sums, strict=True):
                pair = splat(b, read(b, at(b, row, I16, b.add(start, k)), I32, 2), SUMS)
                product = multiply_pairs(b, b.bitcast(pair, ir.VectorType(I16, PAIRS)), weights)
                totals[step % chains] = b.add(totals[step % chains], product)
        results = iter(loop.close(*(total for totals in sums for total in totals)))
        return [functools.reduce(b.add, itertools.islice(results, chains)) for _ in x]

    def _linear(self, block: int) -> Any:
        """`linear(M, O, K, q, scales, w, w_scales, y, stride, add)`: all rows, by the largest tiles."""
        tiles = {rows: self._tile(rows, block) for rows in self.tiles}
        function, b = self._start(
            f"linear_{block}", [N, N, N, POINTER, POINTER, POINTER, POINTER, POINTER, N, N]
        )
        rows, outputs, inputs, q, scales, w, w_scales, y, stride, add = function.args
        part = Loop(b, number(0), outputs, OUTPUTS_AT_ONCE)
        end = b.add(part.index, number(OUTPUTS_AT_ONCE))
        end = b.select(b.icmp_signed("<", end, outputs), end, outputs)
        done: Any = number(0)
        for size, tile in tiles.items():
            limit = b.add(done, b.mul(b.sdiv(b.sub(rows, done), number(size)), number(size)))
            loop = Loop(b, done, limit, size)
            m = loop.index
            b.call(
                tile,
                [
                    part.index,
                    end,
                    inputs,
                    at(b, q, I16, b.mul(m, inputs)),
                    at(b, scales, F32, m),
                    w,
                    w_scales,
                    at(b, y, F32, b.mul(m, stride)),
                    stride,
                    add,
                ],
            )
            loop.close()
            done = limit
        part.close()
        b.ret_void()
        return function

    def _project(self, block: int) -> Any:
        """`project`: y (+)= W norm(x); it leaves norm(x), rounded, in q and scales."""
        function, b = self._start(
            "project",
            [N, N, N, POINTER, N, POINTER, F32, POINTER, POINTER, POINTER, POINTER, POINTER, N, N],
        )
        rows, outputs, inputs, x, x_stride, norm, epsilon, q, scales, *rest = function.args
        b.call(self.quantize_rows, [rows, inputs, x, x_stride, norm, epsilon, q, scales])
        b.call(self.linear[block], [rows, outputs, inputs, q, scales, *rest])
        b.ret_void()
        return function

    def _adapt(self, block: int) -> Any:
        """`adapt`: y += B (s ⊙ (A norm(x))), from the rounded norm(x)."""
        p = POINTER
        function, b = self._start("adapt", [N, N, p, p, N, p, p, p, N, p, N, p, p, p, p, p, p, N])
        rows, inputs, q, scales, ranks, a, a_scales, s, s_stride = function.args[:9]
        h, segments, table, w, w_scales, hq, h_scales, y, stride = function.args[9:]
        b.call(self.linear[block], [rows, ranks, inputs, q, scales, a, a_scales, h, ranks, number(0)])
        outer = Loop(b, number(0), rows)
        inner = Loop(b, number(0), ranks, VECTOR)
        target = at(b, h, F32, b.add(b.mul(outer.index, ranks), inner.index))
        weight = at(b, s, F32, b.add(b.mul(outer.index, s_stride), inner.index))
        b.store(b.fmul(read(b, target, FLOATS), read(b, weight, FLOATS)), target, align=4)
        inner.close()
        outer.close()
        loop = Loop(b, number(0), segments)
        entry = at(b, table, N, b.mul(loop.index, number(SEGMENT_FIELDS)))
        first, count, output, outputs, offset = (
            b.load(at(b, entry, N, number(i)), align=8, typ=N) for i in range(SEGMENT_FIELDS)
        )
        none = b.inttoptr(number(0), POINTER)
        arguments = [at(b, h, F32, first), ranks, none, ir.Constant(F32, 0.0), hq, h_scales]
        b.call(self.quantize_rows, [rows, count, *arguments])
        values = at(b, w, I8, offset)
        factors = at(b, w_scales, F32, b.sdiv(offset, number(RANK_BLOCK)))
        b.call(
            self.linear[RANK_BLOCK],
            [rows, outputs, count, hq, h_scales, values, factors, at(b, y, F32, output), stride, number(1)],
        )
        loop.close()
        b.ret_void()
        return function

    def _run(self, project: Any, adapt: Any) -> None:
        """`run(call)`: `project`, then `adapt` where there are ranks; `call` holds `CALL_FIELDS`."""
        function, b = self._start("run", [POINTER], is_public=True)
        (call,) = function.args
        values: dict[str, Any] = {}
        for i, name in enumerate(CALL_FIELDS):
            value = b.load(at(b, call, N, number(i)), align=8, typ=N)
            if name == "epsilon":
                value = b.bitcast(b.trunc(value, I32), F32)
            elif name.startswith("p_"):
                value = b.inttoptr(value, POINTER)
            values[name] = value
        b.call(project, [values[name] for name in PROJECT_FIELDS])
        with b.if_then(b.icmp_signed(">", values["ranks"], number(0))):
            b.call(adapt, [values[name] for name in ADAPT_FIELDS])
        b.ret_void()


def write_module(block: int, tiles: Sequence[int]) -> str:
    """Returns the LLVM code of the kernels for weights with `block` inputs per scale, and tiles of so many
    rows, the largest first."""
    return str(Module(block, tiles).module)


def _inverse(b: Any, largest: Any) -> Any:
    """ACTIVATION_MAX / largest, or 0 for a row of zeros."""
    is_positive = b.fcmp_ordered(">", largest, ir.Constant(F32, 0.0))
    quotient = b.fdiv(ir.Constant(F32, ACTIVATION_MAX), largest)
    return b.select(is_positive, quotient, ir.Constant(F32, 0.0))
