"""The resize against Pillow's bilinear, and against what any averaging filter has to do."""

from __future__ import annotations

import io

import numpy as np
import pytest
from nih_files import real_xrays
from numpy.typing import NDArray
from PIL import Image

from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import read_file
from distcxr.data.pixels.resize import resize_grey, resize_rim

SHAPES = [
    (64, 64), (100, 60), (20, 20), (1, 1), (1, 300), (257, 1), (47, 49), (96, 48), (1000, 31), (31, 1000), (2048, 64),
]  # fmt: skip
CONTENT = ("noise", "checkerboard", "one bright pixel", "edges")


def image(content: str, shape: tuple[int, int]) -> NDArray[np.uint8]:
    rows, columns = np.indices(shape)
    if content == "noise":
        return np.random.default_rng(2).integers(0, 256, shape).astype(np.uint8)
    if content == "checkerboard":
        return ((rows + columns) % 2 * 255).astype(np.uint8)
    if content == "edges":
        return np.where((columns // 7 + rows // 5) % 2, 255, 0).astype(np.uint8)
    lit = np.zeros(shape, dtype=np.uint8)
    lit[shape[0] // 2, shape[1] // 2] = 255
    return lit


def by_pillow(source: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(source).resize((size, size), Image.Resampling.BILINEAR))


def difference(source: NDArray[np.uint8], size: int) -> int:
    resized = resize_grey(source, size)
    assert resized.dtype == np.uint8 and resized.shape == (size, size)
    return int(np.abs(resized.astype(int) - by_pillow(source, size).astype(int)).max())


@pytest.mark.parametrize("content", CONTENT)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_within_one_grey_level_of_pillow_rim_included(shape: tuple[int, int], content: str) -> None:
    for size in (1, 8, 48, 130):
        assert difference(image(content, shape), size) <= 1


def test_real_xrays_at_every_usual_size() -> None:
    for file in real_xrays(every=40):
        pixels = decode_grey(read_file(file)[0])
        for size in (64, 224, 256, 299, 320, 384, 512):
            assert difference(pixels, size) <= 1


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_flat_images_stay_flat(value: int) -> None:
    for shape in SHAPES:
        assert (resize_grey(np.full(shape, value, dtype=np.uint8), 37) == value).all()


def test_the_right_size_is_left_as_it_is() -> None:
    source = image("noise", (48, 48))
    assert resize_grey(source, 48) is source


def test_any_layout_of_the_array_will_do() -> None:
    """Read-only, reversed, transposed and cut-out arrays give what their copies give."""
    source = image("noise", (101, 90))
    frozen = source.copy()
    frozen.flags.writeable = False
    for view in (frozen, source[::-1], source.T, source[3:70, 5:80]):
        np.testing.assert_array_equal(resize_grey(view, 40), resize_grey(view.copy(), 40))


def test_mirror_images_resize_alike() -> None:
    """No half-pixel shift: flipping and resizing commute."""
    source = image("noise", (96, 96))
    np.testing.assert_array_equal(resize_grey(source[:, ::-1], 30), resize_grey(source, 30)[:, ::-1])
    np.testing.assert_array_equal(resize_grey(source[::-1], 30), resize_grey(source, 30)[::-1])


@pytest.mark.parametrize("shape", [(64, 64), (100, 60), (20, 20), (1, 1), (257, 31)], ids=str)
def test_the_rim_alone_is_the_rim_of_the_whole(shape: tuple[int, int]) -> None:
    source = image("noise", shape)
    for size in (1, 2, 24, 48):
        whole = resize_grey(source, size)
        np.testing.assert_array_equal(
            resize_rim(source, size), np.stack([whole[0], whole[-1], whole[:, 0], whole[:, -1]])
        )


def test_a_decoded_file_is_resized_as_pillow_would_read_it() -> None:
    stream = io.BytesIO()
    Image.fromarray(image("noise", (70, 50))).save(stream, "PNG")
    assert difference(decode_grey(stream.getvalue()), 20) <= 1
