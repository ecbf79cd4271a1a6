"""DICOMs in each form that X-rays have, made here, and those that pydicom brings."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicoms import ENCODERS, PLAIN, dicom, rle, table
from numpy.typing import NDArray
from pictures import assert_remark
from pydicom import Dataset, uid
from pydicom.pixels.processing import apply_modality_lut, apply_windowing

from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import UnreadableImage
from distcxr.data.pixels.remarks import remarks
from distcxr.data.sources.image_files import find_images

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # of files that are not as they should be
RNG = np.random.default_rng(0)
SHADES = np.arange(4096, dtype=np.uint16).reshape(64, 64)
BYTES = RNG.integers(0, 256, (40, 30), dtype=np.uint8)
TWELVE = {"BitsStored": 12, "HighBit": 11}
WINDOW = {"WindowCenter": "2048", "WindowWidth": "4096"}
THEIRS = Path(pydicom.__file__).parent / "data" / "test_files"


def grey(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    return np.rint(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("syntax", [*PLAIN, *ENCODERS], ids=lambda syntax: uid.UID(syntax).keyword)
def test_compressed_or_not_the_values_are_the_same(syntax: str) -> None:
    for image in (BYTES, RNG.integers(0, 4096, (33, 41), dtype=np.uint16)):
        if image.itemsize == 2 and syntax == uid.JPEGBaseline8Bit:
            continue
        pixels = decode_grey(dicom(image, syntax, **(TWELVE if image.itemsize == 2 else {})))
        expected = image if image.itemsize == 1 else grey(image, image.min(), image.max())
        assert np.abs(pixels.astype(int) - expected).max() <= (syntax == uid.JPEGBaseline8Bit)


def rescale(slope: float, intercept: float) -> dict[str, str]:
    return {"RescaleSlope": str(slope), "RescaleIntercept": str(intercept)}


@pytest.mark.parametrize(
    ("tags", "low", "high"),
    [
        ({}, 0, 4095),
        (TWELVE, 0, 4095),
        (rescale(-2, 100), 4095, 0),
        (TWELVE | {"WindowCenter": "1000.5", "WindowWidth": "101"}, 950, 1050),
        (TWELVE | {"WindowCenter": ["1000.5", "9"], "WindowWidth": ["101", "2"]}, 950, 1050),
        (TWELVE | {"WindowCenter": "1000", "WindowWidth": "100", "VOILUTFunction": "LINEAR_EXACT"}, 950, 1050),
        (TWELVE | WINDOW | {"WindowWidth": "0"}, 0, 4095),
        (TWELVE | WINDOW | {"VOILUTFunction": "ODD"}, 0, 4095),
        (TWELVE | {"WindowCenter": "1000"}, 0, 4095),
        (TWELVE | rescale(2, -100) | {"WindowCenter": "100.5", "WindowWidth": "201"}, 50, 150),
        (TWELVE | rescale(-1, 0) | {"WindowCenter": "-999.5", "WindowWidth": "101"}, 1050, 950),
        ({"PixelPaddingValue": 0}, 1, 4095),
        ({"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": 4095}, 0, 3999),
    ],
)  # fmt: skip
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_rescale_and_windows(tags: dict[str, Any], low: float, high: float, photometric: str) -> None:
    pixels = decode_grey(dicom(SHADES, PhotometricInterpretation=photometric, **tags))
    expected = grey(SHADES, low, high)
    np.testing.assert_allclose(pixels, 255 - expected if photometric == "MONOCHROME1" else expected, atol=1)


def test_a_sigmoid_is_as_pydicom_has_it() -> None:
    sigmoid = TWELVE | {"WindowCenter": "900", "WindowWidth": "700", "VOILUTFunction": "SIGMOID"}
    pixels = decode_grey(dicom(SHADES, **sigmoid))
    np.testing.assert_allclose(pixels, 255 / (1 + np.exp(-4 * (SHADES - 900.0) / 700)), atol=0.51)


def test_the_window_of_the_values_is_that_of_the_pixels() -> None:
    """Which pydicom computes for each pixel."""
    tags = TWELVE | {"RescaleSlope": "1.7", "RescaleIntercept": "-30", "WindowCenter": "2000", "WindowWidth": "3001.5"}
    data = dicom(SHADES, **tags)
    dataset = pydicom.dcmread(io.BytesIO(data))
    whole = apply_windowing(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    np.testing.assert_array_equal(decode_grey(data), grey(whole, -30, 4095 * 1.7 - 30))


def test_signed_values() -> None:
    signed = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)
    for held in (signed, signed & 0xFFF):  # with and without the sign in the bits that are not used
        for syntax in (PLAIN[0], uid.RLELossless):
            np.testing.assert_array_equal(decode_grey(dicom(held, syntax, **TWELVE)), grey(signed, -2048, 2047))
    window = {"WindowCenter": "0.5", "WindowWidth": "101"}
    np.testing.assert_array_equal(decode_grey(dicom(signed, **TWELVE, **window)), grey(signed, -50, 50))


def test_bits_that_are_not_stored_count_for_nothing() -> None:
    """Overlays were once kept there."""
    marked = SHADES | (np.uint16(1) << 14)
    for syntax in (PLAIN[0], uid.RLELossless):
        np.testing.assert_array_equal(decode_grey(dicom(marked, syntax, **TWELVE)), grey(SHADES, 0, 4095))


@pytest.mark.parametrize(("bits", "top"), [(12, 4095), (16, 4095), (8, 255)])
def test_tables(bits: int, top: int) -> None:
    """The range is that of the entries: some makers claim 16 bits for 12; and 8 bits of 1,000 entries are no 256."""
    entries = np.linspace(0, top, 1000).astype(int)
    for photometric in ("MONOCHROME2", "MONOCHROME1"):
        tags: dict[str, Any] = {**TWELVE, "VOILUTSequence": table(entries, 100, bits)} | WINDOW
        pixels = decode_grey(dicom(SHADES, PhotometricInterpretation=photometric, **tags))
        expected = grey(entries[np.clip(SHADES.astype(int) - 100, 0, 999)], 0, top)
        np.testing.assert_array_equal(pixels, 255 - expected if photometric == "MONOCHROME1" else expected)
    modality = dicom(SHADES, **TWELVE, ModalityLUTSequence=table(entries[::-1], 100, bits))
    np.testing.assert_array_equal(
        decode_grey(modality), grey(entries[::-1][np.clip(SHADES.astype(int) - 100, 0, 999)], 0, top)
    )


def test_a_table_after_a_rescale() -> None:
    tags = {
        **TWELVE,
        "RescaleSlope": "1",
        "RescaleIntercept": "-1024",
        "VOILUTSequence": table(np.arange(4096), -1024, 12),
    }
    np.testing.assert_array_equal(decode_grey(dicom(SHADES, **tags)), grey(SHADES, 0, 4095))


ENVELOPE = bytes.fromhex("3080060b2a864886f70d010910011703") + bytes(200)  # of compressed data, another kind
ENCRYPTED = bytes.fromhex("3082010006092a864886f70d010703") + bytes(200)
WIDE = dicom(BYTES, uid.JPEG2000Lossless, stream=imagecodecs.jpeg2k_encode(BYTES[:, :20], level=0, codecformat="j2k"))
STREAM = imagecodecs.jpeg8_encode(BYTES)
COLOUR = imagecodecs.jpeg8_encode(np.stack([BYTES] * 3, axis=2))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (dicom(BYTES, PixelData=None), r"a DICOM without pixels \(Digital X-Ray Image Storage - For Presentation\)"),
        (dicom(BYTES, PixelData=None, FloatPixelData=b"\0\0\0\0"), "floating-point pixels"),
        (dicom(BYTES, PixelData=None, EncryptedAttributesSequence=[Dataset()]), "its pixels are encrypted"),
        (ENCRYPTED, "encrypted or signed as a whole"),
        (ENVELOPE, "neither a PNG nor a JPEG nor a DICOM"),
        (dicom(BYTES, NumberOfFrames=2), "2 frames: only one image a file is read"),
        (dicom(BYTES, PhotometricInterpretation="RGB", SamplesPerPixel=3), "photometric interpretation is RGB"),
        (dicom(BYTES, PhotometricInterpretation="PALETTE COLOR"), "photometric interpretation is PALETTE COLOR"),
        (dicom(BYTES, PhotometricInterpretation=None), "photometric interpretation is None"),
        (dicom(BYTES, BitsAllocated=32), "32 bits are allocated for a pixel: 8 and 16 are read"),
        (dicom(BYTES, uid.RLELossless, BitsStored=9), "9 of 8 bits are stored"),
        (dicom(BYTES, Rows=None), "Rows is 'None'"),
        (dicom(BYTES, Rows=0), "its size is 30 x 0"),
        (dicom(BYTES, Rows=65000, Columns=65000), "65000 x 65000, more than the 67108864 pixels allowed"),
        (dicom(BYTES, Rows=400), "number of bytes of pixel data is less than expected"),
        (dicom(BYTES)[:-100], r"truncated: the file ends \(at byte \d+\) in its pixels"),
        (dicom(BYTES, uid.JPEG2000Lossless)[:-100], "truncated: the file ends"),
        (dicom(BYTES)[:140], "DICOM"),
        (dicom(BYTES, uid.JPEG2000Lossless, stream=ENCODERS[uid.JPEG2000Lossless](BYTES)[:-90]), "truncated: its JPEG"),
        (dicom(BYTES, uid.JPEGLSLossless, stream=ENCODERS[uid.JPEGLSLossless](BYTES)[:-90]), "truncated"),
        (dicom(BYTES, uid.RLELossless, stream=ENCODERS[uid.RLELossless](BYTES)[:-600]), "corrupt DICOM"),
        (dicom(BYTES, uid.RLELossless, stream=rle(SHADES)), "2 segments of RLE for 1 bytes a pixel"),
        (dicom(BYTES, uid.RLELossless, stream=b"short"), "corrupt DICOM"),
        (WIDE, "30 x 40 pixels by its tags, and 20 x 40 with 1 channels by what is compressed in it"),
        (dicom(BYTES, uid.JPEGBaseline8Bit, stream=COLOUR), "30 x 40 with 3 channels"),
        (dicom(BYTES, uid.JPEGLSLossless, stream=b"no image"), "neither JPEG nor JPEG 2000"),
        (dicom(BYTES, "1.2.840.10008.1.2.4.94", stream=STREAM), "JPIP Referenced, is not read"),
        (dicom(SHADES, **WINDOW, RescaleSlope="1e308", RescaleIntercept="1e308"), "not finite"),
    ],
)  # fmt: skip
def test_what_is_not_read_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImage, match=reason):
        decode_grey(data)


@pytest.mark.parametrize("syntax", ENCODERS, ids=lambda syntax: uid.UID(syntax).keyword)
def test_a_stream_that_claims_other_sizes_is_never_decoded(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb: the tags name 30 x 40 pixels, what is compressed 8,000 x 8,000."""
    if syntax == uid.RLELossless:
        stream = ENCODERS[syntax](np.zeros((400, 400), dtype=np.uint8))
        assert decode_grey(dicom(BYTES, syntax, stream=stream)).shape == BYTES.shape
        return
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.as_array", lambda *_, **__: pytest.fail("decoded"))
    stream = ENCODERS[syntax](np.zeros((200, 300), dtype=np.uint8))
    with pytest.raises(UnreadableImage, match="300 x 200 with 1 channels"):
        decode_grey(dicom(BYTES, syntax, stream=stream))


def test_what_is_deflated_has_a_limit() -> None:
    bomb = dicom(np.zeros((6000, 6000), dtype=np.uint8), uid.DeflatedExplicitVRLittleEndian)
    with pytest.raises(UnreadableImage, match="its deflated content has more than"):
        decode_grey(bomb)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydicom.pixels.common.CoderBase.available_plugins", ())
    with pytest.raises(UnreadableImage, match=r"JPEG-LS Lossless .*, which takes pylibjpeg .*'distcxr\[dicom\]'"):
        decode_grey(dicom(BYTES, uid.JPEGLSLossless))
    assert decode_grey(dicom(BYTES)).shape == decode_grey(dicom(BYTES, uid.JPEGBaseline8Bit)).shape
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UnreadableImage, match=r"takes pydicom to read: `pip install 'distcxr\[dicom\]'`"):
        decode_grey(dicom(BYTES))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, None),
        ({"BodyPartExamined": "THORAX", "ViewPosition": "AP", "Modality": "CR"}, None),
        ({"BodyPartExamined": None, "ViewPosition": None, "Modality": None}, None),
        ({"Modality": "MG"}, "modality MG, not a chest X-ray, by its tags"),
        ({"BodyPartExamined": "HAND"}, "body part HAND, not the chest, by its tags"),
        ({"ViewPosition": "LL"}, r"a lateral view \(LL\), by its tags"),
        ({"ViewPosition": "RLO"}, "an oblique view"),
        ({"ViewPosition": "LLD"}, "lying on the side"),
        ({"ViewPosition": None, "ViewCodeSequence": "left lateral"}, r"a lateral view \(LEFT LATERAL\)"),
        ({"ViewPosition": None, "ViewCodeSequence": "postero-anterior"}, None),
        ({"BodyPartExamined": "", "AnatomicRegionSequence": "Hand"}, "body part HAND"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "raw, for processing"),
        ({"PixelAspectRatio": [2, 1]}, "its pixels are 2 high to 1 wide"),
        ({"PixelSpacing": ["0.14", "0.14"]}, None),
        ({"BitsStored": 12, "HighBit": 11}, "no window"),
        (WINDOW | {"BitsStored": 12, "HighBit": 11}, None),
        ({"WindowCenter": ["1", "2"], "WindowWidth": ["3", "4"]}, "2 windows or tables, of which the first is shown"),
    ],
)
def test_remarks_from_tags(tags: dict[str, Any], expected: str | None) -> None:
    for name in ("ViewCodeSequence", "AnatomicRegionSequence"):
        if name in tags:
            item = Dataset()
            item.CodeMeaning = tags[name]
            tags = tags | {name: [item]}
    data = dicom(SHADES if "BitsStored" in tags else BYTES, **tags)
    assert_remark(data, expected)


def test_a_tag_that_makes_no_sense_is_no_failure() -> None:
    data = dicom(BYTES, ViewPosition="LL", PixelSpacing=["1", "3"]).replace(b"(\x00\x30\x00DS", b"(\x00\x30\x00GS")
    found = remarks(data, decode_grey(data), 32)
    assert found == ["a lateral view (LL), by its tags", "some of its tags can't be parsed"]


def test_folders_hold_dicoms_by_any_name(tmp_path: Path) -> None:
    data = dicom(BYTES)
    names = ("a.dcm", "b.DICOM", "IM000001", "1.2.840.10008.1")
    for name in (*names, "DICOMDIR", "report.txt"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "notes").write_bytes(b"no image")
    os.mkfifo(tmp_path / "pipe")
    found = find_images([tmp_path])
    assert {Path(file).name for file in found.files} == set(names)
    assert {Path(file).name for file in found.passed_over} == {"DICOMDIR", "notes", "pipe", "report.txt"}


@pytest.mark.parametrize(
    ("name", "shape", "outcome"),
    [
        ("MR_small.dcm", (64, 64), ""), ("MR_small_RLE.dcm", (64, 64), ""), ("MR_small_bigendian.dcm", (64, 64), ""),
        ("MR_small_implicit.dcm", (64, 64), ""), ("MR_small_jp2klossless.dcm", (64, 64), ""),
        ("MR_small_jpeg_ls_lossless.dcm", (64, 64), ""), ("MR_small_padded.dcm", (64, 64), ""),
        ("J2K_pixelrep_mismatch.dcm", (512, 512), ""), ("JPGExtended.dcm", (1024, 256), ""),
        ("JPEGLSNearLossless_08.dcm", (45, 10), ""), ("image_dfl.dcm", (512, 512), ""),
        ("MR_truncated.dcm", None, "truncated"), ("rtplan_truncated.dcm", None, "truncated"),
        ("examples_palette.dcm", None, "PALETTE COLOR"), ("rtdose.dcm", None, "15 frames"),
        ("liver_1frame.dcm", None, "1 bits are allocated"), ("badVR.dcm", None, "NumberOfFrames is '1A'"),
        ("test-SR.dcm", None, r"without pixels \(Comprehensive SR"), ("no_meta.dcm", None, "neither a PNG"),
    ],
)  # fmt: skip
def test_files_of_pydicom(name: str, shape: tuple[int, int] | None, outcome: str) -> None:
    if not (THEIRS / name).is_file():
        pytest.skip(f"this pydicom brings no {name}")
    data = (THEIRS / name).read_bytes()
    if shape is None:
        with pytest.raises(UnreadableImage, match=outcome):
            decode_grey(data)
        return
    pixels = decode_grey(data)
    assert pixels.shape == shape and pixels.max() == 255
    if name.startswith("MR_small"):  # the same image in every form
        np.testing.assert_array_equal(pixels, decode_grey((THEIRS / "MR_small.dcm").read_bytes()))
