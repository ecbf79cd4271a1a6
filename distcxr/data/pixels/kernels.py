"""Compiled loops over pixels: undoing PNG's row filters, and an antialiased resize. They run without the GIL.

Importing this file imports numba and loads the machine code from numba's disk cache, or compiles it (seconds, once
per machine). So it is imported inside functions, where pixels are first needed, and by `load_kernels` in `decode.py`
before threads or processes start.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import int32, int64, types, uint8, uint64
from numba.extending import intrinsic
from numpy.typing import NDArray

from distcxr.compiled import compiled

_LANES = 32  # rows unfiltered at once: one AVX2 register of bytes; 16 and 64 are slower
_BLOCK = 16  # side of the blocks that are transposed in registers

_BYTE, _INT, _INDEX = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_PIXELS_HW = types.Array(types.uint8, 2, "C")
_PIXELS_HW_IN = types.Array(types.uint8, 2, "C", readonly=True)
_BYTES_IN = types.Array(types.uint8, 1, "C", readonly=True)
_INTS = types.Array(types.int64, 1, "C", readonly=True)
_WEIGHTS = types.Array(types.int64, 2, "C", readonly=True)


@intrinsic  # type: ignore[untyped-decorator]
def _transpose(context: Any, from_: Any, from_step: Any, to: Any, to_step: Any) -> Any:
    """Copy a block of bytes transposed: byte j of line i of `from_` goes to byte i of line j of `to`.

    Lines are `_BLOCK` bytes and start `step` bytes apart: with a step one shorter than a row, the block leans.
    """
    vector = ir.VectorType(_BYTE, _BLOCK)
    halves = [list(range(_BLOCK // 2)), list(range(_BLOCK // 2, _BLOCK))]
    zips = [
        ir.Constant(ir.VectorType(_INT, _BLOCK), [lane for i in half for lane in (i, _BLOCK + i)]) for half in halves
    ]

    def codegen(target: Any, builder: Any, _: Any, args: Any) -> Any:
        def line(address: Any, number: int, step: Any) -> Any:
            offset = builder.mul(step, ir.Constant(_INDEX, number))
            return builder.inttoptr(builder.add(address, offset), vector.as_pointer())

        lines = []
        for number in range(_BLOCK):
            lines.append(builder.load(line(args[0], number, args[1])))
            lines[-1].align = 1
        for _round in range(_BLOCK.bit_length() - 1):  # each zips the upper half of the lines with the lower
            pairs = list(zip(lines[: _BLOCK // 2], lines[_BLOCK // 2 :], strict=True))
            lines = [builder.shuffle_vector(upper, lower, order) for upper, lower in pairs for order in zips]
        for number, bytes_ in enumerate(lines):
            builder.store(bytes_, line(args[2], number, args[3])).align = 1
        return target.get_dummy_value()

    return types.void(types.uintp, types.intp, types.uintp, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _unfilter_lanes(context: Any, filtered: Any, above: Any, chosen: Any, pixels: Any, num_steps: Any) -> Any:
    """Undo the filters of `_LANES` rows side by side, as numba can't write it: in registers from step to step.

    Row k trails row k-1 by one pixel. So at step t row k is at column t-k, and its three neighbours are known:

        corner = what row k-1 was given two steps ago      above   . . c b .
        up     = what row k-1 was given one step ago       row k   . . a x
        left   = what row k was given one step ago

    Args:
        filtered: address of uint8 [num_steps, lanes], zero where a row has not begun.
        above: address of uint8 [num_steps], the row above the first.
        chosen: address of uint8 [5, lanes], 255 where the row has that filter type.
        pixels: address of uint8 [num_steps, lanes], written.
    """
    vector = ir.VectorType(_BYTE, _LANES)
    shift_in = ir.Constant(ir.VectorType(_INT, _LANES), list(range(_LANES - 1, 2 * _LANES - 1)))

    def codegen(target: Any, builder: Any, _: Any, args: Any) -> Any:
        def number(value: int) -> Any:
            return ir.Constant(_INDEX, value)

        def splat(value: int) -> Any:
            return ir.Constant(vector, [value] * _LANES)

        def at(address: Any, offset: Any, kind: Any = vector) -> Any:
            return builder.inttoptr(builder.add(address, offset), kind.as_pointer())

        def load(address: Any, offset: Any) -> Any:
            loaded = builder.load(at(address, offset))
            loaded.align = 1
            return loaded

        def at_most(first: Any, second: Any) -> Any:
            return builder.icmp_unsigned("<=", first, second)

        def distance(first: Any, second: Any) -> Any:
            less = builder.icmp_unsigned("<", first, second)
            return builder.select(less, builder.sub(second, first), builder.sub(first, second))

        is_type = [load(args[2], number(kind * _LANES)) for kind in range(5)]
        before = builder.block
        loop, done = builder.append_basic_block("steps"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed(">", args[4], number(0)), loop, done)

        builder.position_at_end(loop)
        step, left, corner = builder.phi(_INDEX), builder.phi(vector), builder.phi(vector)
        entering = builder.load(at(args[1], step, _BYTE))
        entering = builder.insert_element(ir.Constant(vector, ir.Undefined), entering, ir.Constant(_INT, _LANES - 1))
        up = builder.shuffle_vector(entering, left, shift_in)

        mean = builder.add(builder.and_(left, up), builder.lshr(builder.xor(left, up), splat(1)))  # without a carry
        # Paeth's guess is left + up - corner, so its distances to the three follow from two differences.
        to_left, to_up = distance(up, corner), distance(left, corner)
        rising = [builder.icmp_unsigned("<", neighbour, corner) for neighbour in (left, up)]
        one_way = builder.icmp_unsigned("==", *rising)  # then the corner is the farthest, and never the nearest alone
        to_corner = builder.select(one_way, splat(255), distance(to_left, to_up))
        nearest = builder.select(at_most(to_up, to_corner), up, corner)
        left_wins = builder.and_(at_most(to_left, to_up), at_most(to_left, to_corner))
        paeth = builder.select(left_wins, left, nearest)

        guess = builder.and_(left, is_type[1])
        for kind, value in ((2, up), (3, mean), (4, paeth)):
            guess = builder.or_(guess, builder.and_(value, is_type[kind]))
        offset = builder.mul(step, number(_LANES))
        row_pixels = builder.add(load(args[0], offset), guess)
        builder.store(row_pixels, at(args[3], offset)).align = 1

        following = builder.add(step, number(1))
        for value, first, next_ in ((step, number(0), following), (left, splat(0), row_pixels), (corner, splat(0), up)):
            value.add_incoming(first, before)
            value.add_incoming(next_, loop)
        builder.cbranch(builder.icmp_signed("<", following, args[4]), loop, done)
        builder.position_at_end(done)
        return target.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.uintp, types.uintp, types.intp), codegen


@compiled(types.int64(_BYTES_IN, _PIXELS_HW))
def unfilter(stream: NDArray[np.uint8], image: NDArray[np.uint8]) -> int:
    """Undo the row filters of an 8-bit grey PNG, not interlaced.

    Takes 0.45 ms for a 1024 x 1024 X-ray, 0.21 of it in `_unfilter_lanes`, the rest in two transpositions.

    Args:
        stream: uint8 [H * (1 + W)], the inflated rows, each behind its filter type.
        image: uint8 [H, W], written.

    Returns -1, or the number of the first row with an unknown filter type; `image` is then undefined.
    """
    height, width = image.shape
    row_bytes = width + 1
    assert stream.shape[0] == height * row_bytes
    filtered = np.zeros((width + _LANES, _LANES), np.uint8)
    pixels = np.empty((width + _LANES, _LANES), np.uint8)
    above = np.zeros(width + _LANES, np.uint8)
    chosen = np.empty((5, _LANES), np.uint8)
    from_, to = stream.ctypes.data, image.ctypes.data
    for first in range(0, height, _LANES):
        lanes = min(_LANES, height - first)
        chosen[:] = 0
        for lane in range(lanes):
            kind = stream[(first + lane) * row_bytes]
            if kind > 4:
                return first + lane
            chosen[kind, lane] = 255
        # Blocks lean with the rows: `column` is where the block's top row starts, its row i starts i before that.
        for top in range(0, lanes, _BLOCK):
            row = first + top
            for column in range(0, width + _BLOCK, _BLOCK):
                if column >= _BLOCK - 1 and column + _BLOCK <= width and top + _BLOCK <= lanes:
                    cell = filtered.ctypes.data + (column + top) * _LANES + top
                    _transpose(from_ + row * row_bytes + 1 + column, row_bytes - 1, cell, _LANES)
                else:
                    for i in range(min(_BLOCK, lanes - top)):
                        for x in range(max(0, column - i), min(width, column - i + _BLOCK)):
                            filtered[x + top + i, top + i] = stream[(row + i) * row_bytes + 1 + x]
        _unfilter_lanes(
            filtered.ctypes.data, above.ctypes.data, chosen.ctypes.data, pixels.ctypes.data, width + lanes - 1
        )
        for top in range(0, lanes, _BLOCK):
            row = first + top
            for column in range(0, width + _BLOCK, _BLOCK):
                if column >= _BLOCK - 1 and column + _BLOCK <= width and top + _BLOCK <= lanes:
                    cell = pixels.ctypes.data + (column + top) * _LANES + top
                    _transpose(cell, _LANES, to + row * width + column, width - 1)
                else:
                    for i in range(min(_BLOCK, lanes - top)):
                        for x in range(max(0, column - i), min(width, column - i + _BLOCK)):
                            image[row + i, x] = pixels[x + top + i, top + i]
        above[:width] = image[first + lanes - 1]
    return -1


WEIGHT_BITS = 22  # 8 bits of pixel and these stay inside int32


@compiled(types.void(_PIXELS_HW_IN, _INTS, _INTS, _WEIGHTS, _INTS, _INTS, _WEIGHTS, _PIXELS_HW))
def resize(
    image: NDArray[np.uint8],
    row_start: NDArray[np.int64],
    row_count: NDArray[np.int64],
    row_weight: NDArray[np.int64],
    column_start: NDArray[np.int64],
    column_count: NDArray[np.int64],
    column_weight: NDArray[np.int64],
    resized: NDArray[np.uint8],
) -> None:
    """Weighted sums over rows, then over columns, rounded once at the end.

    Rows first: their sums run along memory and vectorise, and leave 224 of 1024 rows for the sums over columns.
    Takes 0.24 ms from 1024 x 1024 to 224 x 224.

    Args:
        image: uint8 [H, W].
        row_start, row_count: int64 [h], the source rows of each output row.
        row_weight: int64 [h, taps], in units of 2**-WEIGHT_BITS; each row's sum is 1.
        column_start, column_count, column_weight: the same for output columns, [w] and [w, taps].
        resized: uint8 [h, w], written.
    """
    width = image.shape[1]
    sums = np.empty(width, np.int32)
    for i in range(resized.shape[0]):
        line, weight = image[row_start[i]], int32(row_weight[i, 0])
        for x in range(width):
            sums[x] = int32(weight * line[x])
        for tap in range(1, row_count[i]):
            line, weight = image[row_start[i] + tap], int32(row_weight[i, tap])
            for x in range(width):
                sums[x] = int32(sums[x] + int32(weight * line[x]))
        for j in range(resized.shape[1]):
            total = int64(1) << (2 * WEIGHT_BITS - 1)
            first = uint64(column_start[j])  # an unsigned index needs no test for counting from the end
            for tap in range(uint64(column_count[j])):
                total += column_weight[j, tap] * int64(sums[first + tap])
            resized[i, j] = uint8(total >> (2 * WEIGHT_BITS))
