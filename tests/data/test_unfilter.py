"""The compiled decoder of plain grey PNGs: row filters in every order, sizes around its blocks, and hostile bytes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from nih_files import real_xrays
from numpy.typing import NDArray
from PIL import Image

from distcxr.data.pixels import png
from distcxr.data.pixels.decode import load_kernels
from distcxr.data.pixels.image_bytes import SIGNATURE, UnreadableImage
from distcxr.data.pixels.kernels import unfilter
from distcxr.data.pixels.png import decode_png
from distcxr.phantom.png_encoder import encode_png

SIDES = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 64, 65, 97, 200)
ROOT = Path(__file__).parents[2]


def one_by_one(stream: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """The PNG specification, pixel after pixel."""
    rows = np.frombuffer(stream, dtype=np.uint8).reshape(height, width + 1).astype(int)
    image = np.zeros((height + 1, width + 1), dtype=int)  # a zero row above and a zero column to the left
    for y in range(height):
        for x in range(width):
            left, up, corner = image[y + 1, x], image[y, x + 1], image[y, x]
            nearest = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
            guess = (0, left, up, (left + up) // 2, nearest)[rows[y, 0]]
            image[y + 1, x + 1] = (rows[y, x + 1] + guess) % 256
    return image[1:, 1:].astype(np.uint8)


def filtered(height: int, width: int, seed: int, kinds: tuple[int, ...] = (0, 1, 2, 3, 4)) -> bytes:
    """Random bytes behind random filter types: any such stream is some image."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (height, width + 1))
    rows[:, 0] = rng.choice(kinds, height)
    return rows.astype(np.uint8).tobytes()


def undone(stream: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """Into the middle of a larger array; the rest of it has to stay as it is."""
    around = np.full(height * width + 256, 0xA5, dtype=np.uint8)
    image = around[128:-128].reshape(height, width)
    assert unfilter(np.frombuffer(stream, dtype=np.uint8), image) == -1
    assert (around[:128] == 0xA5).all() and (around[-128:] == 0xA5).all()
    return image


def as_png(stream: bytes, height: int, width: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 0, 0, 0, 0])
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(stream)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", range(5))
def test_each_filter_against_the_specification(kind: int) -> None:
    for height, width in ((40, 37), (33, 16), (5, 70)):
        stream = filtered(height, width, seed=kind, kinds=(kind,))
        np.testing.assert_array_equal(undone(stream, height, width), one_by_one(stream, height, width))


def test_mixed_filters_against_the_specification() -> None:
    stream = filtered(70, 45, seed=9)
    np.testing.assert_array_equal(undone(stream, 70, 45), one_by_one(stream, 70, 45))


def test_smooth_rows_tie_as_the_specification_breaks_ties() -> None:
    """Small steps make Paeth's three distances equal again and again, which random bytes hardly do."""
    rng = np.random.default_rng(4)
    rows = rng.choice([0, 1, 255], (64, 61), p=[0.6, 0.2, 0.2]).astype(np.uint8)
    rows[:, 0] = rng.choice([3, 4], 64)
    np.testing.assert_array_equal(undone(rows.tobytes(), 64, 60), one_by_one(rows.tobytes(), 64, 60))


@pytest.mark.parametrize("width", SIDES)
def test_every_size_around_the_blocks_decodes_as_pillow_does(width: int) -> None:
    for height in SIDES:
        stream = filtered(height, width, seed=height * 1000 + width)
        file = as_png(stream, height, width)
        expected = np.asarray(Image.open(io.BytesIO(file)))
        np.testing.assert_array_equal(undone(stream, height, width), expected)
        np.testing.assert_array_equal(decode_png(file), expected)


def test_an_unknown_filter_is_refused_wherever_it_stands() -> None:
    for row in (0, 1, 31, 32, 33, 69):
        stream = bytearray(filtered(70, 20, seed=row))
        stream[row * 21] = 5 + row
        assert unfilter(np.frombuffer(bytes(stream), dtype=np.uint8), np.empty((70, 20), np.uint8)) == row
        with pytest.raises(UnreadableImage):
            decode_png(as_png(bytes(stream), 70, 20))


@pytest.fixture
def refused_by_the_fast_path(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every file that Pillow has to decode."""
    calls: list[int] = []
    inner: Callable[..., NDArray[np.uint8]] = png._decode_by_pillow

    def counting(data: bytes, *rest: object) -> NDArray[np.uint8]:
        calls.append(len(data))
        return inner(data, *rest)

    monkeypatch.setattr(png, "_decode_by_pillow", counting)
    return calls


def test_plain_grey_never_needs_pillow_and_colour_does(refused_by_the_fast_path: list[int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 40)).astype(np.uint8)
    np.testing.assert_array_equal(decode_png(encode_png(image)), image)
    assert refused_by_the_fast_path == []
    stream = io.BytesIO()
    Image.fromarray(image).convert("RGBA").save(stream, "PNG")
    np.testing.assert_array_equal(decode_png(stream.getvalue()), image)
    assert len(refused_by_the_fast_path) == 1


def test_real_xrays_decode_bit_for_bit(refused_by_the_fast_path: list[int]) -> None:
    files = real_xrays(every=1)
    for file in files:
        data = file.read_bytes()
        np.testing.assert_array_equal(decode_png(data), np.asarray(Image.open(io.BytesIO(data)).convert("L")))
    assert len(refused_by_the_fast_path) <= max(1, 0.03 * len(files))  # the RGBA ones


def test_fuzzed_streams_give_pillows_pixels_or_a_reason() -> None:
    """Damage inside the compressed stream, with right CRCs: never a crash, never pixels that Pillow would not give."""
    rng = np.random.default_rng(1)
    image = np.cumsum(rng.integers(-2, 3, (60, 70)), axis=1).astype(np.uint8)
    whole = encode_png(image)
    start = whole.index(b"IDAT")
    length = int.from_bytes(whole[start - 4 : start])
    read = refused = 0
    for _ in range(1500):
        body = bytearray(whole[start + 4 : start + 4 + length])
        for _ in range(rng.integers(1, 4)):
            action, place = rng.integers(3), int(rng.integers(len(body)))
            if action == 0:
                body[place] ^= 1 << int(rng.integers(8))
            elif action == 1:
                del body[place : place + int(rng.integers(1, 30))]
            else:
                body[place:place] = rng.bytes(int(rng.integers(1, 30)))
        kind_and_body = b"IDAT" + bytes(body)
        chunk = len(body).to_bytes(4) + kind_and_body + zlib.crc32(kind_and_body).to_bytes(4)
        data = whole[: start - 4] + chunk + whole[start + 8 + length :]
        try:
            pixels = decode_png(data)
        except UnreadableImage:
            refused += 1
            continue
        read += 1
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(data))))
    assert refused > 1000


def test_threads_share_the_decoder() -> None:
    files = [encode_png(np.random.default_rng(n).integers(0, 256, (90, 80 + n)).astype(np.uint8)) for n in range(16)]
    alone = [decode_png(file) for file in files]
    with ThreadPoolExecutor(4) as pool:
        for image, expected in zip(pool.map(decode_png, files * 20), alone * 20, strict=True):
            np.testing.assert_array_equal(image, expected)


def test_decoding_borrows_no_new_memory_for_each_image(tmp_path: Path) -> None:
    """Pages given back to the system and borrowed again cost 700 faults an X-ray, which was a third of its time."""
    image = np.cumsum(np.random.default_rng(0).integers(-2, 3, (1024, 1024)), axis=1).astype(np.uint8)
    (tmp_path / "large.png").write_bytes(encode_png(image))
    code = (
        "import sys, resource; from concurrent.futures import ThreadPoolExecutor;"
        "from distcxr.data.pixels.decode import decode_grey, load_kernels;"
        "from distcxr.data.pixels.image_bytes import read_file; load_kernels();"
        "data, _ = read_file(sys.argv[1]); pool = ThreadPoolExecutor(1);"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt;"
        "decode = lambda _: decode_grey(data).sum();"
        "list(pool.map(decode, range(10))); [decode(0) for _ in range(10)]; before = faults();"
        "list(pool.map(decode, range(20))); [decode(0) for _ in range(20)]; print((faults() - before) / 40)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "large.png")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 50


@pytest.mark.slow
def test_kernels_compile_where_no_cache_can_be_written(tmp_path: Path) -> None:
    """A read-only installation and no home: slower start, same pixels, no error."""
    copy = tmp_path / "site"
    code = (
        "import shutil, sys; shutil.copytree('distcxr', sys.argv[1] + '/distcxr',"
        " ignore=shutil.ignore_patterns('__pycache__'))"
    )
    subprocess.run([sys.executable, "-c", code, str(copy)], cwd=ROOT, check=True)
    (copy / "distcxr/data/pixels/__pycache__").touch()  # a file: nothing can be written there, not even by root
    decode = (
        "import numpy as np; from distcxr.phantom.png_encoder import encode_png;"
        "from distcxr.data.pixels.decode import decode_grey, load_kernels; import distcxr; load_kernels();"
        "image = np.arange(4000, dtype=np.uint8).reshape(50, 80);"
        "assert (decode_grey(encode_png(image)) == image).all(); print(distcxr.__file__)"
    )
    environ = {"PATH": os.environ["PATH"], "HOME": "/dev/null", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", decode], cwd=copy, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(copy / "distcxr" / "__init__.py")


def test_warm_up_may_be_called_again() -> None:
    load_kernels()
    load_kernels()
