"""Lossless HTJ2K: every image comes back bit for bit, and other data is refused with the reason."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from nih_files import real_xrays

from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.htj2k import START, check_available, decode_htj2k, encode_htj2k
from distcxr.data.pixels.image_bytes import UnreadableImage, read_file

imagecodecs = pytest.importorskip("imagecodecs")

SIZES = [(1, 1), (1, 2), (2, 1), (1, 65), (63, 1), (2, 3), (5, 5), (64, 64), (65, 63), (40, 131), (257, 300)]
NOISE = np.random.default_rng(0).integers(0, 256, (64, 48), dtype=np.uint8)


def contents(height: int, width: int) -> list[np.ndarray]:
    """Noise, the two ends of the scale, a ramp, single bright pixels."""
    rng = np.random.default_rng(height * 1000 + width)
    ramp = np.add.outer(np.arange(height), 2 * np.arange(width)) % 256
    few = (rng.random((height, width)) < 0.01) * 255
    flat = [np.full((height, width), value) for value in (0, 255)]
    return [image.astype(np.uint8) for image in (rng.integers(0, 256, (height, width)), *flat, ramp, few)]


@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_comes_back(size: tuple[int, int]) -> None:
    for image in contents(*size):
        data = encode_htj2k(image)
        assert data.startswith(START)
        for back in (decode_htj2k(data), decode_grey(data)):
            assert back.dtype == np.uint8 and back.shape == size
            np.testing.assert_array_equal(back, image)


def test_a_part_of_an_array_is_encoded_as_it_is_seen() -> None:
    for view in (NOISE[::2, 1::3], NOISE.T, NOISE[:, ::-1]):
        np.testing.assert_array_equal(decode_htj2k(encode_htj2k(view)), view)


def test_real_xrays_come_back() -> None:
    for file in real_xrays(every=40):
        image = decode_grey(read_file(file)[0])
        np.testing.assert_array_equal(decode_htj2k(encode_htj2k(image)), image)


def other(array: np.ndarray, **options: object) -> bytes:
    return bytes(imagecodecs.htj2k_encode(array, **({"reversible": True} | options)))


def claiming(field: int, *values: int) -> bytes:
    """A codestream with these 4-byte values in its header from one of its fields on: width, height, ..."""
    data = bytearray(encode_htj2k(NOISE))
    struct.pack_into(f">{len(values)}I", data, 8 + 4 * field, *values)
    return bytes(data)


REFUSED = {
    "16 bits": (other(NOISE.astype(np.uint16)), "of 16 bits, unsigned"),
    "signed": (other((NOISE // 2).astype(np.int8)), "of 8 bits, signed"),
    "colour": (other(np.dstack([NOISE] * 3)), "3 components"),
    "tiles": (other(NOISE, tile=(32, 32)), "in tiles"),
    "wide": (claiming(0, 2**31), r"2147483648 x 64; 1 to"),
    "many": (claiming(0, 8193, 8193), r"8193 x 8193; 1 to 67108864 pixels"),
    "none": (claiming(0, 0), "0 x 64"),
    "offset": (claiming(2, 1), "with an offset"),
    "small tile": (claiming(4, 1), "in tiles"),
    "body": (encode_htj2k(NOISE)[:150] + b"\xff\xd9", "corrupt HTJ2K"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_none_of_ours_is_refused(name: str) -> None:
    data, why = REFUSED[name]
    with pytest.raises(UnreadableImage, match=why):
        decode_grey(data)


def test_only_codestreams_are_taken_for_one() -> None:
    with pytest.raises(UnreadableImage, match="no HTJ2K codestream"):
        decode_htj2k(b"\x89PNG" + encode_htj2k(NOISE)[4:])


@pytest.mark.parametrize("length", [4, 5, 20, 43, 44, 60, 100, 200, 1000, -2, -1])
def test_truncated(length: int) -> None:
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_grey(encode_htj2k(NOISE)[:length])


def test_a_lossy_stream_is_read() -> None:
    """Not a pack's, but an image all the same."""
    smooth = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)
    back = decode_grey(other(smooth, reversible=False))
    assert back.shape == smooth.shape and np.abs(back.astype(int) - smooth).max() < 16


def test_without_imagecodecs_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode_htj2k(NOISE)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(ValueError, match=r"pip install 'imagecodecs>=2026\.1\.1'"):
        check_available()
    with pytest.raises(UnreadableImage, match=r"HTJ2K, which takes imagecodecs to read: `pip install"):
        decode_grey(data)


def test_a_file_of_it_is_an_image_like_others(tmp_path: Path) -> None:
    (tmp_path / "named.png").write_bytes(encode_htj2k(NOISE))
    np.testing.assert_array_equal(decode_grey(read_file(tmp_path / "named.png")[0]), NOISE)
