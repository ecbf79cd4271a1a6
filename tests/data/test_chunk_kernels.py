"""The compiled walk over a PNG's chunks: its CRC against zlib's, its judgement against `walk_chunks`."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from distcxr.data.pixels import chunk_kernels
from distcxr.data.pixels.chunk_kernels import crc32, join_chunks
from distcxr.data.pixels.image_bytes import SIGNATURE, UnreadableImage
from distcxr.data.pixels.png import is_plain_grey, walk_chunks
from distcxr.phantom.png_encoder import encode_png

ROOT = Path(__file__).parents[2]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def ihdr(width: int, height: int, *rest: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *(rest or (8, 0, 0, 0, 0))))


def joined(data: bytes) -> tuple[bytes, tuple[int, int]] | None:
    """Stream, height and width; the buffer behind the stream stays as it is."""
    stream, shape = np.full(len(data) + 8, 0x5A, dtype=np.uint8), np.zeros(2, dtype=np.int64)
    length = join_chunks(np.frombuffer(data, dtype=np.uint8), stream, shape)
    assert (stream[max(length, len(data) * (length < 0)) :] == 0x5A).all()
    return None if length < 0 else (stream[:length].tobytes(), (int(shape[0]), int(shape[1])))


def walked(data: bytes) -> tuple[bytes, tuple[int, int]] | None:
    """The same from `walk_chunks`."""
    try:
        header, bodies = walk_chunks(memoryview(data))
    except UnreadableImage:
        return None
    return (b"".join(bodies), (header.height, header.width)) if is_plain_grey(header) else None


def test_the_crc_is_zlibs_at_every_length_and_position() -> None:
    data = np.random.default_rng(0).integers(0, 256, 9000).astype(np.uint8)
    spans = [(start, start + length) for length in range(300) for start in (0, 1, 7, 16)]
    spans += [(0, 9000), (3, 8999), (0, 8192), (5, 5 + 8196)]
    for start, end in spans:
        assert crc32(data, start, end) == zlib.crc32(data[start:end]), (start, end)


@pytest.mark.slow
def test_the_crc_is_zlibs_where_the_processor_has_no_carryless_product(tmp_path: Path) -> None:
    code = (
        "import zlib, numpy as np; from distcxr.data.pixels import chunk_kernels as k; assert not k._CARRYLESS;"
        "data = np.random.default_rng(0).integers(0, 256, 900).astype(np.uint8);"
        "assert all(k.crc32(data, 3, end) == zlib.crc32(data[3:end]) for end in range(3, 900))"
    )
    environ = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not chunk_kernels._CARRYLESS, reason="this processor has no carry-less product")
def test_the_two_ways_to_a_crc_agree() -> None:
    data = np.random.default_rng(1).integers(0, 256, 5000).astype(np.uint8)
    for end in (64, 100, 4999):
        by_tables = chunk_kernels._crc_by_tables(data, 0, end, np.uint32(0xFFFFFFFF)) ^ 0xFFFFFFFF
        assert by_tables == crc32(data, 0, end)


NOISE = np.random.default_rng(2).integers(0, 256, (170, 150)).astype(np.uint8)
WHOLE = encode_png(NOISE)
IDAT, END = chunk(b"IDAT", zlib.compress(b"\0" * 12)), chunk(b"IEND", b"")
FILES = {
    "several chunks": WHOLE,
    "bytes behind the end": WHOLE + b"more",
    "text and gamma": SIGNATURE + ihdr(3, 3) + chunk(b"gAMA", b"abcd") + chunk(b"tEXt", b"a\0b") + IDAT + END,
    "text behind the pixels": SIGNATURE + ihdr(3, 3) + IDAT + chunk(b"tEXt", b"a\0b") + END,
    "an IEND that is not empty": SIGNATURE + ihdr(3, 3) + IDAT + chunk(b"IEND", b"x"),
    "an empty IDAT first": SIGNATURE + ihdr(3, 3) + chunk(b"IDAT", b"") + IDAT + END,
    "IDAT apart": SIGNATURE + ihdr(3, 3) + chunk(b"IDAT", b"") + chunk(b"tEXt", b"a\0b") + IDAT + END,
    "transparency": SIGNATURE + ihdr(3, 3) + chunk(b"tRNS", b"\0\7") + IDAT + END,
    "an unknown chunk": SIGNATURE + ihdr(3, 3) + chunk(b"abCd", b"") + IDAT + END,
    "no chunk's name": SIGNATURE + ihdr(3, 3) + chunk(b"12Cd", b"") + IDAT + END,
    "two headers": SIGNATURE + ihdr(3, 3) + ihdr(3, 3) + IDAT + END,
    "no header": SIGNATURE + IDAT + END,
    "a short header": SIGNATURE + chunk(b"IHDR", b"abcde") + IDAT + END,
    "a long header": SIGNATURE + chunk(b"IHDR", ihdr(3, 3)[8:21] + b"x") + IDAT + END,
    "an empty header": SIGNATURE + chunk(b"IHDR", b""),
    "16 bits": SIGNATURE + ihdr(3, 3, 16, 0, 0, 0, 0) + IDAT + END,
    "RGB": SIGNATURE + ihdr(3, 3, 8, 2, 0, 0, 0) + IDAT + END,
    "interlaced": SIGNATURE + ihdr(3, 3, 8, 0, 0, 0, 1) + IDAT + END,
    "another filtering": SIGNATURE + ihdr(3, 3, 8, 0, 0, 1, 0) + IDAT + END,
    "no width": SIGNATURE + ihdr(0, 3) + IDAT + END,
    "no height": SIGNATURE + ihdr(3, 0) + IDAT + END,
    "the largest": SIGNATURE + ihdr(8192, 8192) + IDAT + END,
    "too large": SIGNATURE + ihdr(8193, 8192) + IDAT + END,
    "so large that the product overflows": SIGNATURE + ihdr(1 << 31, 1 << 31) + IDAT + END,
    "as large as can be": SIGNATURE + ihdr((1 << 32) - 1, (1 << 32) - 1) + IDAT + END,
    "signature alone": SIGNATURE,
    "nothing": b"",
    "a chunk longer than the file": SIGNATURE + ihdr(3, 3) + b"\xff\xff\xff\xffIDAT" + bytes(100),
    "another file": b"GIF89a" * 9,
}


@pytest.mark.parametrize("kind", FILES)
def test_it_accepts_what_the_slow_walk_finds_plain_and_joins_the_same(kind: str) -> None:
    assert joined(FILES[kind]) == walked(FILES[kind])


def test_some_of_them_are_plain() -> None:
    assert sum(walked(file) is not None for file in FILES.values()) == 7
    assert walked(WHOLE) is not None and WHOLE.count(b"IDAT") > 2


def test_a_file_without_pixels_has_no_stream() -> None:
    assert joined(SIGNATURE + ihdr(3, 3) + END) == (b"", (3, 3))


def test_every_truncation_and_every_flipped_byte_is_refused() -> None:
    for place in [*range(100), *range(100, len(WHOLE), 131)]:
        assert joined(WHOLE[:place]) is None
        broken = bytearray(WHOLE)
        broken[place] ^= 4
        assert joined(bytes(broken)) is None
