"""PNG writer: bit-exact through PIL, with the filters and chunks that NIH's files have."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from distcxr.phantom.draw import draw_xray
from distcxr.phantom.png_encoder import encode_png

SHAPES = [(1, 1), (1, 9), (9, 1), (7, 5), (64, 33), (300, 257)]


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and body of every chunk, each CRC checked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        found.append((kind, body))
        at += 12 + length
    return found


def filters_of(data: bytes) -> list[int]:
    chunks = chunks_of(data)
    width, height = struct.unpack(">II", chunks[0][1][:8])
    raw = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    assert len(raw) == height * (width + 1)
    return list(raw[:: width + 1])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["noise", "smooth", "flat", "steps"])
def test_pil_reads_back_the_same_pixels(shape: tuple[int, int], kind: str) -> None:
    rows, columns = np.indices(shape)
    image = {
        "noise": np.random.default_rng(0).integers(0, 256, shape),
        "smooth": (rows * 3 + columns * columns) // 5 % 256,
        "flat": np.full(shape, 200),
        "steps": (rows + columns) % 2 * 255,  # differences of +-255 wrap modulo 256
    }[kind].astype(np.uint8)
    read = Image.open(io.BytesIO(encode_png(image)))
    assert read.mode == "L"
    assert np.array_equal(np.asarray(read), image)


def test_each_filter_wins_where_it_fits() -> None:
    rng = np.random.default_rng(0)
    line = rng.integers(0, 256, 64)
    across, down = np.cumsum(rng.integers(1, 4, 64)), np.cumsum(rng.integers(1, 4, 64))
    assert filters_of(encode_png(np.zeros((3, 8), np.uint8))) == [0, 0, 0]
    assert filters_of(encode_png(across[None].astype(np.uint8))) == [1]
    assert filters_of(encode_png(np.stack([line, line]).astype(np.uint8)))[1] == 2
    mean = [line[0] // 2]
    for up in line[1:]:
        mean.append((mean[-1] + up) // 2)
    assert filters_of(encode_png(np.stack([line, mean]).astype(np.uint8)))[1] == 3
    assert 4 in filters_of(encode_png((across[None] // 2 + down[:, None] // 2).astype(np.uint8)))


def test_a_xray_is_written_like_nih_does() -> None:
    data = encode_png(draw_xray(["Mass"], np.random.default_rng(3), 256, "F", "PA"))
    chunks = chunks_of(data)
    bodies = [body for kind, body in chunks if kind == b"IDAT"]
    assert chunks[0] == (b"IHDR", struct.pack(">IIBBBBB", 256, 256, 8, 0, 0, 0, 0))
    assert chunks[-1] == (b"IEND", b"")
    assert bodies[0][:2] == b"\x78\x9c"
    assert len(bodies) > 1 and {len(body) for body in bodies[:-1]} == {8192} and 0 < len(bodies[-1]) <= 8192
    filters = filters_of(data)
    assert sum(kind in (3, 4) for kind in filters) > 0.5 * len(filters)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4), np.uint16), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_other_images_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="convert it first"):
        encode_png(image)
