"""Compiled loops over a PNG's chunks: CRC-32, and checking and joining the chunks of a plain grey file. No GIL.

Imported inside functions, as kernels.py: importing compiles it, or loads the machine code from numba's disk cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, int64, types, uint8, uint32, uint64
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from distcxr.compiled import compiled
from distcxr.data.pixels.image_bytes import HARMLESS, MAX_PIXELS, MAX_SIDE, SIGNATURE

_BYTES_IN = types.Array(types.uint8, 1, "C", readonly=True)
_BYTES = types.Array(types.uint8, 1, "C")
_INTS = types.Array(types.int64, 1, "C")

_STEP = 16  # bytes of a CRC at once, each by a table of its own
_BLOCK = 64  # bytes at once where the processor multiplies without carries
_REFUSED = -1


def _shifted(crc: int, bits: int) -> int:
    """What a CRC-32 register becomes when so many zero bits follow."""
    for _ in range(bits):
        crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc


_TABLES = np.array(  # uint32 [_STEP, 256]: what a byte adds to the CRC when so many bytes follow it in the step
    [[_shifted(byte, 8 + 8 * follow) for byte in range(256)] for follow in range(_STEP)], dtype=np.uint32
)
# Whether code that numba compiles here may use PCLMULQDQ: an x86 that has it, and NUMBA_CPU_NAME and
# NUMBA_CPU_FEATURES name no other target.
_OTHER_TARGET = bool(config.CPU_NAME or config.CPU_FEATURES)
_CARRYLESS = not _OTHER_TARGET and bool(binding.get_host_cpu_features().get("pclmul", False))
_START = np.frombuffer(SIGNATURE, dtype=np.uint8)
_KINDS = np.array([int.from_bytes(kind) for kind in sorted(HARMLESS)], dtype=np.int64)
_IHDR, _IDAT, _IEND = (int.from_bytes(kind) for kind in (b"IHDR", b"IDAT", b"IEND"))
_PLAIN = np.array([8, 0, 0, 0, 0], dtype=np.uint8)  # 8 bits, grey, the one compression, the one filtering, no interlace


@intrinsic  # type: ignore[untyped-decorator]
def _fold(context: Any, from_: Any, num_blocks: Any, crc: Any, to: Any) -> Any:
    """Fold blocks of 64 bytes into 16 that have the same CRC-32, behind a register of 0.

    Four registers of 128 bits each take every fourth 16 bytes. To move one past n bits is to multiply it by x^n modulo
    the CRC's polynomial: its halves by x^(n+32) and x^(n-32), one carry-less multiplication each.

    Args:
        from_: address of the blocks, at least one.
        crc: register before them.
        to: address of 16 bytes, written. Nothing is where `_CARRYLESS` is false.
    """
    pair, byte, index = ir.VectorType(ir.IntType(64), 2), ir.IntType(8), ir.IntType(64)

    def past(bits: int) -> Any:
        # Registers are mirrored, so 1 is the highest bit, and a product of two comes out one bit too low.
        return ir.Constant(pair, [_shifted(1 << 31, bits + way) << 1 for way in (32, -32)])

    def codegen(target: Any, builder: Any, _: Any, args: Any) -> Any:
        if not _CARRYLESS:
            return target.get_dummy_value()
        multiply = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(pair, [pair, pair, byte]), "llvm.x86.pclmulqdq"
        )

        def load(address: Any, part: int) -> Any:
            source = builder.add(address, ir.Constant(index, 16 * part))
            loaded = builder.load(builder.inttoptr(source, pair.as_pointer()))
            loaded.align = 1
            return loaded

        def moved(register: Any, distance: Any, arriving: Any) -> Any:
            halves = (builder.call(multiply, [register, distance, ir.Constant(byte, half)]) for half in (0x00, 0x11))
            return builder.xor(builder.xor(*halves), arriving)

        zero = ir.Constant(pair, [0, 0])
        start = builder.insert_element(zero, args[2], ir.Constant(ir.IntType(32), 0))
        parts = [load(args[0], part) for part in range(4)]
        parts[0] = builder.xor(parts[0], start)
        before = builder.block
        loop, done = builder.append_basic_block("blocks"), builder.append_basic_block("done")
        head = builder.append_basic_block("head")
        builder.branch(head)

        builder.position_at_end(head)
        number, registers = builder.phi(index), [builder.phi(pair) for _ in range(4)]
        builder.cbranch(builder.icmp_signed("<", number, args[1]), loop, done)

        builder.position_at_end(loop)
        address = builder.add(args[0], builder.mul(number, ir.Constant(index, _BLOCK)))
        following = [moved(register, past(512), load(address, part)) for part, register in enumerate(registers)]
        next_number = builder.add(number, ir.Constant(index, 1))
        builder.branch(head)

        for phi, first, next_ in zip(
            [number, *registers], [ir.Constant(index, 1), *parts], [next_number, *following], strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(next_, loop)
        builder.position_at_end(done)
        folded = registers[0]
        for register in registers[1:]:
            folded = moved(folded, past(128), register)
        builder.store(folded, builder.inttoptr(args[3], pair.as_pointer())).align = 1
        return target.get_dummy_value()

    return types.void(types.uintp, types.intp, types.uint64, types.uintp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def _copy(context: Any, to: Any, from_: Any, num_bytes: Any) -> Any:
    """memcpy; a loop over bytes, as numba copies between arrays that may overlap, takes several times as long."""

    def codegen(target: Any, builder: Any, _: Any, args: Any) -> Any:
        bytes_ = ir.IntType(8).as_pointer()
        to, from_ = (builder.inttoptr(address, bytes_) for address in args[:2])
        cgutils.raw_memcpy(builder, to, from_, args[2], 1)
        return target.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.intp), codegen


@compiled(types.uint32(_BYTES_IN, types.int64, types.int64, types.uint32))
def _crc_by_tables(data: NDArray[np.uint8], start: int, end: int, crc: int) -> int:
    """The register after `data[start:end]`."""
    register: int = uint32(crc)
    at = uint64(start)
    while at + uint64(_STEP) <= uint64(end):
        total = uint32(0)
        for i in range(4):
            total ^= _TABLES[_STEP - 1 - i, uint8(register >> uint32(8 * i)) ^ data[at + uint64(i)]]
        for i in range(4, _STEP):
            total ^= _TABLES[_STEP - 1 - i, data[at + uint64(i)]]
        register = total
        at += uint64(_STEP)
    while at < uint64(end):
        register = _TABLES[0, uint8(register) ^ data[at]] ^ (register >> uint32(8))
        at += uint64(1)
    return register


@compiled(types.int64(_BYTES_IN, types.int64, types.int64))
def crc32(data: NDArray[np.uint8], start: int, end: int) -> int:
    """CRC-32 of `data[start:end]`, as zlib's."""
    register = uint32(0xFFFFFFFF)
    num_blocks = (end - start) // _BLOCK
    if _CARRYLESS and num_blocks > 0:
        folded = np.empty(16, np.uint8)
        _fold(data.ctypes.data + start, num_blocks, uint64(register), folded.ctypes.data)
        register = _crc_by_tables(folded, 0, 16, uint32(0))
        start += _BLOCK * num_blocks
    crc: int = int64(_crc_by_tables(data, start, end, register) ^ uint32(0xFFFFFFFF))
    return crc


@compiled(types.int64(_BYTES_IN, types.int64))
def _number(data: NDArray[np.uint8], at: int) -> int:
    """The 32-bit number, most significant byte first, at this byte."""
    number: int = int64(data[at]) << 24 | int64(data[at + 1]) << 16 | int64(data[at + 2]) << 8 | int64(data[at + 3])
    return number


@compiled(types.int64(_BYTES_IN, _BYTES, _INTS))
def join_chunks(data: NDArray[np.uint8], stream: NDArray[np.uint8], shape: NDArray[np.int64]) -> int:
    """Check the chunks of a plain grey PNG, as `walk_chunks` does, and join the bodies of its IDAT chunks.

    Takes 0.04 ms for an NIH X-ray of 445 KB, on an x86 with PCLMULQDQ.

    Args:
        data: uint8 [n], a file.
        stream: uint8 [n], its beginning written.
        shape: int64 [2], written: height and width.

    Returns length of the stream, 0 where the file has none; -1 for any other kind of file and for one that is broken:
    `walk_chunks` finds which.
    """
    size = data.shape[0]
    if size < 8:
        return _REFUSED
    for i in range(8):
        if data[i] != _START[i]:
            return _REFUSED
    at, length, kind, previous, begun = 8, 0, 0, 0, False
    while kind != _IEND:
        if at + 8 > size:
            return _REFUSED
        num_bytes, previous, kind = _number(data, at), kind, _number(data, at + 4)
        body, end = at + 8, at + 8 + num_bytes
        if end + 4 > size or crc32(data, at + 4, end) != _number(data, end):
            return _REFUSED
        if (kind == _IHDR) != (at == 8):
            return _REFUSED
        if kind == _IHDR:
            if num_bytes != 13:
                return _REFUSED
            height, width = _number(data, body + 4), _number(data, body)
            if not 0 < height * width <= MAX_PIXELS:  # 32 bits each: what overflows int64 is negative
                return _REFUSED
            if height > MAX_SIDE or width > MAX_SIDE:
                return _REFUSED
            shape[0], shape[1] = height, width
            for i in range(5):
                if data[body + 8 + i] != _PLAIN[i]:
                    return _REFUSED
        elif kind == _IDAT:
            if begun and previous != _IDAT:
                return _REFUSED
            begun = True
            _copy(stream.ctypes.data + length, data.ctypes.data + body, num_bytes)
            length += num_bytes
        elif kind != _IEND and kind not in _KINDS:
            return _REFUSED
        at = end + 4
    return length
