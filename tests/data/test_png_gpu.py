"""Whole files through `PngDecoder`, its kernels and its inflater on a CPU, against what the CPU's decoder gives."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pictures
import pytest
import torch
from host_kernels import Verdict, host_decoder
from nih_files import real_xrays
from numpy.typing import NDArray
from PIL import Image

from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import SIGNATURE, UnreadableImage
from distcxr.data.pixels.png_gpu import PngDecoder
from distcxr.data.pixels.resize import resize_grey
from distcxr.phantom.png_encoder import encode_png

Way = Literal["gpu", "cpu"]
WAYS = pytest.mark.parametrize("inflate", ["gpu", "cpu"])
SIZE = 48


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def file_of(stream: bytes, shape: tuple[int, int]) -> bytes:
    """A grey file with that stream in three IDAT chunks, every CRC right."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], 8, 0, 0, 0, 0))
    third = len(stream) // 3
    bodies = (stream[:third], stream[third : 2 * third], stream[2 * third :])
    return SIGNATURE + header + b"".join(chunk(b"IDAT", body) for body in bodies) + chunk(b"IEND", b"")


def rows_of(shape: tuple[int, int], seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (shape[0], shape[1] + 1))
    rows[:, 0] = rng.integers(0, 5, shape[0])
    return rows.astype(np.uint8).tobytes()


def decode(decoder: PngDecoder, files: list[bytes], size: int) -> tuple[NDArray[np.uint8], list[int]]:
    prepared = [decoder.prepare(file) for file in files]
    out_BSS = torch.full((len(files), size, size), 77, dtype=torch.uint8)
    verdicts_B = decoder.decode([image for image in prepared if image is not None], out_BSS)
    assert verdicts_B.dtype == torch.int32
    return out_BSS.numpy(), verdicts_B.tolist()


def on_cpu(data: bytes, size: int) -> NDArray[np.uint8]:
    return resize_grey(decode_grey(data), size)


@WAYS
@pytest.mark.parametrize("size", [24, 64, 200])
def test_files_of_all_sizes_in_one_call_are_the_cpus_bit_for_bit(inflate: Way, size: int) -> None:
    shapes = [(64, 64), (1, 1), (1, 300), (300, 1), (33, 31), (200, 200), (97, 256), (250, 90)]
    files = [file_of(zlib.compress(rows_of(shape, i)), shape) for i, shape in enumerate(shapes)]
    ramp = np.indices((120, 130)).sum(0).astype(np.uint8)
    files += [encode_png(image) for image in (ramp, np.zeros((70, 70), np.uint8), np.full((64, 65), 255, np.uint8))]
    pixels, verdicts = decode(host_decoder(size, inflate), files, size)
    assert verdicts == [0] * len(files)
    for file, square in zip(files, pixels, strict=True):
        np.testing.assert_array_equal(square, on_cpu(file, size))
        np.testing.assert_array_equal(decode_grey(file), np.asarray(Image.open(io.BytesIO(file))))


@WAYS
@pytest.mark.parametrize("level", [0, 1, 9])
def test_stored_and_hardly_and_strongly_compressed(inflate: Way, level: int) -> None:
    file = file_of(zlib.compress(rows_of((90, 80), 5), level), (90, 80))
    pixels, verdicts = decode(host_decoder(SIZE, inflate), [file], SIZE)
    assert verdicts == [0]
    np.testing.assert_array_equal(pixels[0], on_cpu(file, SIZE))


@WAYS
def test_real_xrays(inflate: Way) -> None:
    """Crops of the X-ray that comes with the repository; with DISTCXR_NIH_ROOT, whole files."""
    whole = [file.read_bytes() for file in real_xrays(every=60)]
    decoder = host_decoder(224, inflate)
    files = [file for file in whole if decoder.prepare(file) is not None]
    image = decode_grey(files[0])
    crops = [encode_png(np.ascontiguousarray(image[top : top + 200, left::3])) for top, left in ((0, 0), (500, 1))]
    pixels, verdicts = decode(decoder, files + crops, 224)
    assert verdicts == [0] * len(pixels)
    for file, square in zip(files + crops, pixels, strict=True):
        np.testing.assert_array_equal(square, on_cpu(file, 224))


SHAPE = (60, 70)
ROWS = rows_of(SHAPE, 1)
STREAM = zlib.compress(ROWS)


def changed(stream: bytes, place: int, bits: int = 0x10) -> bytes:
    place %= len(stream)
    return stream[:place] + bytes([stream[place] ^ bits]) + stream[place + 1 :]


BAD = {
    "a flipped bit in the codes": changed(STREAM, 10),
    "a flipped bit in the pixels": changed(STREAM, len(STREAM) // 2),
    "a flipped bit in stored pixels": changed(zlib.compress(ROWS, 0), 500),
    "the wrong Adler-32": changed(STREAM, -1),
    "no Adler-32": STREAM[:-4],
    "half a stream": STREAM[: len(STREAM) // 2],
    "a row too few": zlib.compress(ROWS[:-71]),
    "a byte too many": zlib.compress(ROWS + b"\0"),
    "another image behind it": zlib.compress(ROWS + ROWS),
    "bytes behind the stream": STREAM + b"more",
    "filter type 7": zlib.compress(ROWS[: 71 * 30] + b"\7" + ROWS[71 * 30 + 1 :]),
    "a reserved block type": STREAM[:2] + b"\7" + STREAM[3:],
}
ODD = {
    "not zlib's method": bytes([0x77, 31 - 256 * 0x77 % 31]) + STREAM[2:],
    "a dictionary": bytes([0x78, 32 + 31 - (256 * 0x78 + 32) % 31]) + STREAM[2:],
    "a wrong check of zlib's header": changed(STREAM, 1, 1),
    "a window too large": bytes([0x88, 31 - 256 * 0x88 % 31]) + STREAM[2:],
    "an empty stream": b"",
    "six bytes": STREAM[:6],
}


@pytest.mark.parametrize("flaw", BAD)
def test_a_bad_stream_has_a_verdict_and_harms_no_neighbour(flaw: str) -> None:
    good = [file_of(zlib.compress(rows_of(shape, 9)), shape) for shape in ((50, 60), (100, 33))]
    pixels, verdicts = decode(host_decoder(SIZE), [good[0], file_of(BAD[flaw], SHAPE), good[1]], SIZE)
    assert verdicts[0] == verdicts[2] == 0 and verdicts[1] != 0
    if flaw == "filter type 7":
        assert verdicts[1] == Verdict.UNKNOWN_FILTER
    for file, square in zip(good, (pixels[0], pixels[2]), strict=True):
        np.testing.assert_array_equal(square, on_cpu(file, SIZE))


@pytest.mark.parametrize("flaw", BAD)
def test_a_bad_stream_is_not_for_the_gpu_where_the_cpu_inflates(flaw: str) -> None:
    decoder = host_decoder(SIZE, "cpu")
    prepared = decoder.prepare(file_of(BAD[flaw], SHAPE))
    if flaw == "filter type 7":  # its stream is whole
        assert prepared is not None
        assert decoder.decode([prepared], torch.empty((1, SIZE, SIZE), dtype=torch.uint8)).tolist() == [-2]
    elif flaw == "bytes behind the stream":  # which decode_grey forgives, too
        assert prepared is not None
    else:
        assert prepared is None


def test_the_odd_streams_are_odd_in_one_way() -> None:
    """zlib's own check of its header holds, but where that is the flaw."""
    for flaw, stream in ODD.items():
        if len(stream) > 6 and flaw != "a wrong check of zlib's header":
            assert (256 * stream[0] + stream[1]) % 31 == 0, flaw
    assert ODD["a dictionary"][1] & 32


@WAYS
@pytest.mark.parametrize("flaw", ODD)
def test_an_odd_stream_is_left_to_the_cpu(flaw: str, inflate: Way) -> None:
    assert host_decoder(SIZE, inflate).prepare(file_of(ODD[flaw], SHAPE)) is None


@WAYS
def test_other_kinds_of_file_are_left_to_the_cpu(inflate: Way) -> None:
    decoder = host_decoder(SIZE, inflate)
    for kind, file in pictures.kinds(np.random.default_rng(0)).items():
        assert (decoder.prepare(file) is not None) == (kind in ("L", "uncompressed")), kind
    for junk in (b"", b"no picture at all", SIGNATURE[:3]):
        assert decoder.prepare(junk) is None


@WAYS
def test_broken_chunks_raise_what_decode_grey_raises(inflate: Way) -> None:
    decoder, whole = host_decoder(SIZE, inflate), file_of(STREAM, SHAPE)
    tries = [whole[:cut] for cut in [*range(9, 80), *range(80, len(whole), 397)]]
    tries += [changed(whole, place) for place in [*range(8, 60), *range(60, len(whole), 397)]]
    tries.append(whole[:33] + chunk(b"IDAT", b"") + chunk(b"tEXt", b"a\0b") + whole[33:])
    for file in tries:
        with pytest.raises(UnreadableImage) as expected:
            decode_grey(file)
        with pytest.raises(UnreadableImage) as raised:
            decoder.prepare(file)
        assert str(raised.value) == str(expected.value)


def test_many_threads_prepare_at_once() -> None:
    decoder = host_decoder(SIZE)
    files = [file_of(zlib.compress(rows_of((64 + i, 70), i)), (64 + i, 70)) for i in range(12)]
    alone = [decoder.prepare(file) for file in files]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(alone * 20, pool.map(decoder.prepare, files * 20), strict=True):
            assert one is not None and other is not None
            assert one[1:] == other[1:] and torch.equal(one.bytes_, other.bytes_)


def test_what_is_prepared_is_the_stream_alone() -> None:
    prepared = host_decoder(SIZE).prepare(file_of(STREAM, SHAPE))
    assert prepared is not None
    assert zlib.decompress(prepared.bytes_.numpy().tobytes(), wbits=-15) == ROWS
    assert prepared[1:] == (zlib.adler32(ROWS), *SHAPE)
    prepared = host_decoder(SIZE, "cpu").prepare(file_of(STREAM, SHAPE))
    assert prepared is not None and prepared.bytes_.numpy().tobytes() == ROWS


def test_where_names_what_inflates_and_what_resizes() -> None:
    assert host_decoder(SIZE).where == "inflated by zlib on the CPU, row filters and resize on the CPU"
    assert host_decoder(SIZE, "cpu").where == "inflated by ISA-L on the CPU, row filters and resize on the CPU"
