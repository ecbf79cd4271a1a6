"""Every kind of PNG, whole and broken, against Pillow or against pixels known from how the file was written."""

from __future__ import annotations

import io
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from nih_files import real_xrays
from numpy.typing import NDArray
from PIL import Image

from distcxr.data.pixels.image_bytes import MAX_PIXELS, SIGNATURE, UnreadableImage, read_file
from distcxr.data.pixels.png import Header, decode_png, is_plain_grey, walk_chunks
from distcxr.phantom.png_encoder import encode_png

HEIGHT, WIDTH = 33, 37  # odd, so that rows of packed bits and Adam7 passes end in the middle of a byte
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def ihdr(width: int, height: int, bit_depth: int, colour_type: int, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, interlace))


def pack(samples_HWK: NDArray[np.int64], bit_depth: int) -> bytes:
    """Rows without a filter, samples packed most significant bit first."""
    rows = []
    for row in samples_HWK:
        bits = ((row.reshape(-1, 1) >> np.arange(bit_depth - 1, -1, -1)) & 1).astype(np.uint8)
        rows.append(b"\0" + np.packbits(bits.reshape(-1)).tobytes())
    return b"".join(rows)


def write(
    samples_HWK: NDArray[np.int64], bit_depth: int, colour_type: int, *, extra: bytes = b"", interlaced: bool = False
) -> bytes:
    height, width = samples_HWK.shape[:2]
    if interlaced:
        passes = (samples_HWK[top::dy, left::dx] for left, top, dx, dy in ADAM7)
        raw = b"".join(pack(part, bit_depth) for part in passes if part.shape[0] and part.shape[1])
    else:
        raw = pack(samples_HWK, bit_depth)
    head = SIGNATURE + ihdr(width, height, bit_depth, colour_type, int(interlaced))
    return head + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def luma(rgb: NDArray[np.int64]) -> NDArray[np.int64]:
    return (rgb[..., 0] * 19595 + rgb[..., 1] * 38470 + rgb[..., 2] * 7471 + 0x8000) >> 16


def kinds() -> dict[str, tuple[bytes, NDArray[np.int64]]]:
    """name -> file and the grey pixels it stands for."""
    rng = np.random.default_rng(0)

    def draw(bits: int, channels: int = 1) -> NDArray[np.int64]:
        return rng.integers(0, 1 << bits, (HEIGHT, WIDTH, channels))

    made: dict[str, tuple[bytes, NDArray[np.int64]]] = {}
    for bits in (1, 2, 4, 8):
        grey = draw(bits)
        made[f"grey{bits}"] = (write(grey, bits, 0), grey[..., 0] * 255 // ((1 << bits) - 1))
        made[f"grey{bits} interlaced"] = (write(grey, bits, 0, interlaced=True), made[f"grey{bits}"][1])
        colours, places = rng.integers(0, 256, (1 << bits, 3)), draw(bits)
        palette = chunk(b"PLTE", colours.astype(np.uint8).tobytes())
        made[f"palette{bits}"] = (write(places, bits, 3, extra=palette), luma(colours)[places[..., 0]])
        see_through = palette + chunk(b"tRNS", bytes(range(1 << bits)))
        made[f"palette{bits} transparent"] = (write(places, bits, 3, extra=see_through), luma(colours)[places[..., 0]])
    for name, colour_type, channels in (("grey", 0, 1), ("RGB", 2, 3), ("LA", 4, 2), ("RGBA", 6, 4)):
        for bits in (8, 16):
            samples = draw(bits, channels)
            high = samples >> (bits - 8)
            expected = luma(high) if channels >= 3 else high[..., 0]
            made[f"{name}{bits}"] = (write(samples, bits, colour_type), expected)
            made[f"{name}{bits} interlaced"] = (write(samples, bits, colour_type, interlaced=True), expected)
    grey = draw(8)
    made["grey8 with a transparent value"] = (write(grey, 8, 0, extra=chunk(b"tRNS", b"\0\7")), grey[..., 0])
    made["grey8 with gamma and text"] = (
        write(grey, 8, 0, extra=chunk(b"gAMA", struct.pack(">I", 100000)) + chunk(b"tEXt", b"a\0b")),
        grey[..., 0],
    )
    made["grey8 with an orientation"] = (
        write(grey, 8, 0, extra=chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")),
        grey[..., 0],
    )
    made["1 x 1"] = (write(grey[:1, :1], 8, 0), grey[:1, :1, 0])
    made["1 row"] = (write(grey[:1], 8, 0, interlaced=True), grey[:1, :, 0])
    return made


KINDS = kinds()


def header_of(data: bytes) -> Header:
    return walk_chunks(memoryview(data))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_decodes_to_its_pixels(kind: str) -> None:
    data, expected = KINDS[kind]
    pixels = decode_png(data)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)
    header = header_of(data)
    assert (header.height, header.width) == expected.shape
    assert header.interlaced == ("interlaced" in kind or kind == "1 row")


def test_plain_grey_is_what_any_decoder_reads_alike() -> None:
    plain = {kind for kind, (data, _) in KINDS.items() if is_plain_grey(header_of(data))}
    assert plain == {"grey8", "grey8 with gamma and text", "1 x 1"}
    assert is_plain_grey(header_of(encode_png(np.arange(12, dtype=np.uint8).reshape(3, 4))))


def test_nih_colour_files_keep_their_grey_exactly() -> None:
    grey = np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2)
    opaque = np.concatenate([grey, np.full((16, 16, 1), 255)], axis=2)
    np.testing.assert_array_equal(decode_png(write(opaque, 8, 6)), grey[..., 0])


@pytest.fixture(scope="module")
def whole() -> bytes:
    """A grey file with every row filter and several IDAT chunks."""
    noise = np.random.default_rng(1).integers(0, 256, (150, 150))
    file = encode_png((noise // 8 + np.arange(150) // 2).astype(np.uint8))
    assert file.count(b"IDAT") >= 2
    return file


def test_every_truncation_is_refused(whole: bytes) -> None:
    cuts = [*range(1, 60), *range(60, len(whole) - 20, 211), *range(len(whole) - 20, len(whole))]
    for cut in cuts:
        with pytest.raises(UnreadableImage, match="truncated"):
            decode_png(whole[:cut])


def test_every_flipped_byte_is_refused(whole: bytes) -> None:
    for place in [*range(0, 60), *range(60, len(whole), 307)]:
        broken = bytearray(whole)
        broken[place] ^= 0x10
        with pytest.raises(UnreadableImage):
            decode_png(bytes(broken))


def grey_file(stream: bytes, *, size: int = 4, head: bytes | None = None) -> bytes:
    return SIGNATURE + (head or ihdr(size, size, 8, 0)) + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


ROWS = b"".join(bytes([0, 10, 20, 30, 40 + row]) for row in range(4))
BROKEN: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "zero bytes"),
    "garbage": (b"this is no picture" * 20, "not a PNG"),
    "JPEG": (b"\xff\xd8\xff\xe0\0\x10JFIF", "not a PNG"),
    "signature alone": (SIGNATURE, "truncated: the file ends before its first chunk"),
    "no IEND": (grey_file(zlib.compress(ROWS))[:-12], "truncated: the file ends after an IDAT chunk"),
    "zeros after the header": (SIGNATURE + ihdr(4, 4, 8, 0) + bytes(500), "no chunk begins at byte 33"),
    "no IDAT": (SIGNATURE + ihdr(4, 4, 8, 0) + chunk(b"IEND", b""), "no IDAT"),
    "no IHDR": (SIGNATURE + chunk(b"IDAT", zlib.compress(ROWS)) + chunk(b"IEND", b""), "where IHDR"),
    "two IHDR": (grey_file(zlib.compress(ROWS), head=2 * ihdr(4, 4, 8, 0)), "where IHDR"),
    "IDAT apart": (
        SIGNATURE + ihdr(4, 4, 8, 0) + chunk(b"IDAT", b"a") + chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", b"b"),
        "between its IDAT chunks",
    ),
    "wrong CRC in IDAT": (grey_file(zlib.compress(ROWS))[:-13] + b"\0" + chunk(b"IEND", b""), "wrong CRC in the IDAT"),
    "size 0": (grey_file(b"", head=ihdr(0, 4, 8, 0)), "size is 0 x 4"),
    "too large": (grey_file(b"", head=ihdr(8193, 8192, 8, 0)), "8193 x 8192, more than the 67108864 pixels"),
    "no such depth": (grey_file(b"", head=ihdr(4, 4, 4, 2)), "colour type 2 with 4 bits"),
    "no such interlace": (grey_file(b"", head=ihdr(4, 4, 8, 0, 2)), "interlace method"),
    "short IHDR": (grey_file(b"", head=chunk(b"IHDR", bytes(5))), "IHDR holds 5 bytes"),
    "not deflate": (grey_file(b"not a deflate stream"), "corrupt pixel data"),
    "deflate gone wrong": (grey_file(zlib.compress(ROWS * 40, 1)[:9] + b"\xff" * 9, size=16), "pixel data"),
    "a row missing": (grey_file(zlib.compress(ROWS[:15])), "pixel data"),
    "a byte missing": (grey_file(zlib.compress(ROWS[:-1])), "pixel data"),
    "nothing inflates": (grey_file(zlib.compress(b"")), "pixel data"),
    "wrong Adler-32": (grey_file(zlib.compress(ROWS)[:-4] + b"\0\0\0\0"), "corrupt pixel data"),
    "unknown filter": (grey_file(zlib.compress(b"\5" + ROWS[1:])), "pixel data"),
}


@pytest.mark.parametrize("flaw", BROKEN)
def test_a_broken_file_is_refused_with_the_reason(flaw: str) -> None:
    data, reason = BROKEN[flaw]
    with pytest.raises(UnreadableImage, match=reason):
        decode_png(data)


FLAWED: dict[str, bytes] = {
    "too many rows": zlib.compress(ROWS + ROWS),
    "no Adler-32": zlib.compress(ROWS)[:-4],
    "bytes after the stream": zlib.compress(ROWS) + b"more",
}


@pytest.mark.parametrize("flaw", FLAWED)
def test_a_flaw_behind_whole_pixels_is_forgiven(flaw: str) -> None:
    data = grey_file(FLAWED[flaw])
    np.testing.assert_array_equal(decode_png(data)[:, 3], [40, 41, 42, 43])


def test_a_bomb_is_never_inflated() -> None:
    bomb = grey_file(zlib.compress(bytes(200_000_000), 9), size=64)
    tracemalloc.start()
    assert not decode_png(bomb).any()  # its first rows are the image
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(bomb) * 2 + 1_000_000


def test_the_largest_size_allowed_stays_below_pillows_warning() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None and MAX_PIXELS < Image.MAX_IMAGE_PIXELS


def test_pillows_truncation_switch_is_of_no_use_here(whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(UnreadableImage):
        decode_png(whole[:-100])


def test_no_warning_for_a_palette_with_transparency() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_png(KINDS["palette8 transparent"][0])


def test_read_file_names_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="can't be read: No such file"):
        read_file(tmp_path / "absent.png")
    with pytest.raises(UnreadableImage, match="can't be read: Is a directory"):
        read_file(str(tmp_path))
    (tmp_path / "a").write_bytes(b"abc")
    data, state = read_file(tmp_path / "a")
    assert data == b"abc" and state.st_size == 3


def test_header_of_a_real_kind() -> None:
    assert header_of(KINDS["RGBA8"][0]) == Header(WIDTH, HEIGHT, 8, 6, False)


def test_real_xrays_are_whole_and_decode_as_pillow_does() -> None:
    for file in real_xrays(every=12):
        data, _ = read_file(file)
        np.testing.assert_array_equal(decode_png(data), np.asarray(Image.open(io.BytesIO(data)).convert("L")))
