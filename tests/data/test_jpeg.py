"""JPEG files: the pixels Pillow gives, and a word for each way they break."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pictures import saved
from PIL import Image

from distcxr.data.pixels import jpeg
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import UnreadableImage

COLOUR = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8).repeat(4, 0).repeat(4, 1)
GREY = COLOUR[..., 0]
KINDS = {
    "grey": saved("L", GREY, "JPEG"),
    "RGB": saved("RGB", COLOUR, "JPEG"),
    "RGB, not subsampled": saved("RGB", COLOUR, "JPEG", subsampling=0),
    "progressive": saved("L", GREY, "JPEG", progressive=True),
    "restarts": saved("L", GREY, "JPEG", restart_marker_blocks=3),
    "CMYK": saved("CMYK", COLOUR, "JPEG"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_what_pillow_gives(kind: str) -> None:
    with Image.open(io.BytesIO(KINDS[kind])) as image:
        expected = np.asarray(image.convert("L"))
    pixels = decode_grey(KINDS[kind])
    assert pixels.dtype == np.uint8 and pixels.shape == (160, 224)
    np.testing.assert_array_equal(pixels, expected)


def test_rgb_of_equal_channels_is_nearly_the_grey_it_was() -> None:
    grey = decode_grey(saved("L", GREY, "JPEG", quality=95)).astype(int)
    thrice = decode_grey(saved("RGB", np.stack([GREY] * 3, axis=2), "JPEG", quality=95)).astype(int)
    assert np.abs(grey - thrice).max() <= 2


def test_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    np.testing.assert_array_equal(decode_grey(saved("L", GREY, "JPEG", exif=exif)), decode_grey(KINDS["grey"]))


@pytest.mark.parametrize("kind", ["grey", "RGB", "progressive", "restarts"])
def test_a_file_cut_short_anywhere_is_refused(kind: str) -> None:
    whole = KINDS[kind]
    cuts = [*range(1, 700, 7), *range(700, len(whole), max(1, len(whole) // 150)), len(whole) - 2, len(whole) - 1]
    for cut in cuts:
        with pytest.raises(UnreadableImage):
            decode_grey(whole[:cut])
        if cut > 700:
            with pytest.raises(UnreadableImage):  # a download that reserved its space
                decode_grey(whole[:cut] + bytes(len(whole) - cut))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "zero bytes"),
        (bytes(500), "neither a PNG nor a JPEG"),
        (b"GIF89a" + bytes(50), "neither a PNG nor a JPEG"),
        (b"\xff\xd8\xff", "corrupt JPEG"),
        (b"\xff\xd8\xff" + b"garbage" * 50, "corrupt JPEG: its header makes no sense"),
        (KINDS["grey"][:-2], r"truncated: the file ends \(at byte \d+\) without its end-of-image marker"),
    ],
)
def test_broken_files_have_a_reason(data: bytes, word: str) -> None:
    with pytest.raises(UnreadableImage, match=word):
        decode_grey(data)


def test_what_follows_the_image_does_not_count() -> None:
    np.testing.assert_array_equal(decode_grey(KINDS["grey"] + b"\0" * 100), decode_grey(KINDS["grey"]))


def test_huge_images_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "MAX_PIXELS", 224 * 160 - 1)
    with pytest.raises(UnreadableImage, match="its size is 224 x 160, more than 35839 pixels"):
        decode_grey(KINDS["grey"])
