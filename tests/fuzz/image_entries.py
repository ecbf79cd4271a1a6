"""PNG, JPEG, HTJ2K and DICOM files, and the compiled loops under them.

Checksums are made right after the bytes were spoilt, so that what they protect is reached.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from random import Random

import numpy as np
from dicoms import ENCODERS, PLAIN, dicom, table
from fuzz.guarded import FITS, before_a_wall, behind_a_wall
from fuzz.harness import Entry
from fuzz.mutations import NUMBERS, of, spoil_bytes
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import JPEGBaseline8Bit

from distcxr.data.pixels.decode import decode_grey, load_kernels
from distcxr.data.pixels.htj2k import START, encode_htj2k
from distcxr.data.pixels.image_bytes import HARMLESS, SIGNATURE, UnreadableImage
from distcxr.data.pixels.png import decode_png, inflate_rows
from distcxr.data.pixels.remarks import remarks
from distcxr.data.pixels.resize import resize_grey
from distcxr.phantom.png_encoder import encode_png

_CHUNKS = (b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"gAMA", b"cHRM", b"sRGB", b"bKGD", b"pHYs", b"tIME",
           b"eXIf", b"acTL", b"fcTL", b"fdAT", b"IHDR", b"IDAT", b"IEND", b"sBIT", b"aaaa", b"CgBI")  # fmt: skip
_SIDES = (1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 100, 255, 256, 257)
Chunk = tuple[bytes, bytes]


def _noise(height: int, width: int, channels: int = 1) -> NDArray[np.uint8]:
    smooth = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[..., None]
    noise = np.random.default_rng(height * 1000 + width).integers(0, 40, (height, width, channels))
    image = (smooth + noise).astype(np.uint8)
    return image[..., 0] if channels == 1 else image


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


# PNG


@functools.cache
def png_seeds() -> tuple[bytes, ...]:
    load_kernels()
    grey, wide = Image.fromarray(_noise(40, 50)), Image.fromarray(_noise(33, 65))
    colour = Image.fromarray(_noise(20, 30, 3))
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (20, 30)).astype(np.uint16))
    images = [grey, wide, Image.fromarray(_noise(64, 64)), colour, colour.convert("RGBA"), colour.convert("P"),
              grey.convert("1"), grey.convert("LA"), deep]  # fmt: skip
    return (encode_png(_noise(32, 48)), *(_saved(image, "PNG") for image in images))


def chunks_of(data: bytes) -> list[Chunk]:
    """Kinds and bodies of a PNG, as far as it is one."""
    found, at = [], len(SIGNATURE)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def joined(chunks: Sequence[Chunk], rng: Random) -> bytes:
    """A PNG of these chunks. Rarely one has a wrong checksum or length."""
    parts = [SIGNATURE]
    for kind, body in chunks:
        length, crc = len(body), zlib.crc32(kind + body)
        if rng.random() < 0.01:
            length = rng.choice((*NUMBERS[:20], length + 1, max(0, length - 1))) & 0xFFFFFFFF
        if rng.random() < 0.01:
            crc ^= 1 << rng.randrange(32)
        parts.append(struct.pack(">I", length) + kind + body + struct.pack(">I", crc))
    return b"".join(parts)


def spoil_png(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    if rng.random() < 0.1:
        return spoil_bytes(data, rng, seeds)
    chunks = grey_chunks(rng) if rng.random() < 0.3 else chunks_of(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(chunks)) if chunks else 0
        kind = rng.randrange(10)
        if not chunks or kind == 0:
            chunks.insert(at, (rng.choice(_CHUNKS), rng.randbytes(rng.choice((0, 1, 6, 13, 40)))))
        elif kind == 1:
            chunks[at] = (chunks[at][0], spoil_bytes(chunks[at][1], rng))
        elif kind == 2:
            chunks[at] = (rng.choice((*_CHUNKS, rng.randbytes(4))), chunks[at][1])
        elif kind == 3:
            other = rng.randrange(len(chunks))
            chunks[at], chunks[other] = chunks[other], chunks[at]
        elif kind == 4:
            chunks.insert(at, chunks[at])
        elif kind == 5:
            del chunks[at]
        elif kind == 6:  # an IDAT in two, or a bomb in a chunk that holds text
            name, body = chunks[at]
            cut = rng.randrange(len(body) + 1)
            chunks[at : at + 1] = [(name, body[:cut]), (name, body[cut:])]
        elif kind == 7:
            chunks.insert(at, _packed(rng))
        else:
            chunks = _header(chunks, rng) if kind == 8 else _rows(chunks, rng)
    return joined(chunks, rng)


def grey_chunks(rng: Random) -> list[Chunk]:
    """A plain grey PNG of any size with rows of any filters: what the compiled loops take."""
    height, width = rng.choice((*_SIDES, rng.randint(1, 300))), rng.choice((*_SIDES, rng.randint(1, 300)))
    most = rng.choice((4, 4, 4, 5, 255))
    rows = b"".join(bytes([rng.randint(0, most)]) + rng.randbytes(width) for _ in range(height))
    stream = zlib.compress(rows, rng.choice((0, 1, 9)))
    cuts = sorted(rng.randrange(len(stream)) for _ in range(rng.choice((0, 0, 1, 5))))
    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    extras = [(rng.choice(sorted(HARMLESS)), rng.randbytes(rng.choice((0, 9, 300)))) for _ in range(rng.choice((0, 2)))]
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return [(b"IHDR", head), *extras, *((b"IDAT", piece) for piece in pieces), (b"IEND", b"")]


def _header(chunks: list[Chunk], rng: Random) -> list[Chunk]:
    """Another size, depth, colour type or interlacing than the rows have."""
    kind, body = chunks[0]
    head = bytearray(body.ljust(13, b"\0"))
    place = rng.choice(("width", "height", "both", "kind"))
    sizes = (*_SIDES, 0, 8191, 8192, 65535, 65536, 1 << 20, 1 << 26, (1 << 31) - 1, (1 << 32) - 1)
    if place in ("width", "both"):
        head[0:4] = rng.choice(sizes).to_bytes(4)
    if place in ("height", "both"):
        head[4:8] = rng.choice(sizes).to_bytes(4)
    if place == "kind":
        head[8:13] = bytes(rng.choice(values) for values in ((1, 2, 4, 8, 16), (0, 2, 3, 4, 6), (0,), (0,), (0, 1)))
    return [(kind, bytes(head)), *chunks[1:]]


def _rows(chunks: list[Chunk], rng: Random) -> list[Chunk]:
    """The inflated rows changed, and deflated again."""
    stream = b"".join(body for kind, body in chunks if kind == b"IDAT")
    try:
        rows = zlib.decompressobj().decompress(stream, 1 << 20)
    except zlib.error:
        return chunks
    rows = spoil_bytes(rows, rng) if rng.random() < 0.8 else rows * rng.choice((2, 50))
    packed = zlib.compress(rows, rng.choice((0, 1, 9)))
    if rng.random() < 0.1:
        packed = packed[:-4] + rng.randbytes(4)  # another Adler-32
    at = next((number for number, (kind, _) in enumerate(chunks) if kind == b"IDAT"), len(chunks))
    others = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    return [*others[:at], (b"IDAT", packed), *others[at:]]


@functools.cache
def _bomb() -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()  # 256 MB in 255 KB


def _packed(rng: Random) -> Chunk:
    """A chunk with a compressed text or profile; it may be a bomb."""
    body = _bomb() if rng.random() < 0.05 else zlib.compress(rng.randbytes(20))
    return rng.choice(((b"zTXt", b"key\0\0" + body), (b"iTXt", b"key\0\1\0\0\0" + body), (b"iCCP", b"name\0\0" + body),
                       (b"IDAT", body)))  # fmt: skip


def run_png(data: bytes) -> None:
    """Any bytes that begin like a PNG; what the fast path returns is what Pillow decodes."""
    image = resize_grey(checked(decode_png(data)), 24)
    assert image.shape == (24, 24)


def checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    assert image.dtype == np.uint8 and image.ndim == 2 and image.size
    return image


def run_kernels(data: bytes) -> None:
    """The compiled loops alone, their arrays beside memory that can't be touched."""
    from distcxr.data.pixels.chunk_kernels import crc32, join_chunks
    from distcxr.data.pixels.kernels import unfilter

    for wall in (before_a_wall, behind_a_wall):
        file, stream, shape = wall("file", data), wall("stream", len(data)), np.empty(2, dtype=np.int64)
        start = len(data) // 3
        assert crc32(file, start, len(data)) == zlib.crc32(data[start:])
        num_bytes = join_chunks(file, stream, shape)
        assert num_bytes <= len(data)
        if num_bytes <= 0:
            continue
        height, width = shape.tolist()
        needed = height * (1 + width)
        if needed > FITS:
            continue
        rows = inflate_rows(stream[:num_bytes], needed)
        if rows is None:
            continue
        image = wall("image", height * width).reshape(height, width)
        if unfilter(wall("rows", rows), image) < 0:
            with suppress(ValueError, OSError):  # Pillow checks the content of chunks that change no pixel
                by_pillow = np.array(Image.open(io.BytesIO(data), formats=("PNG",)))
                assert np.array_equal(image, by_pillow), "not Pillow's pixels"


# JPEG


@functools.cache
def jpeg_seeds() -> tuple[bytes, ...]:
    grey, colour = Image.fromarray(_noise(40, 50)), Image.fromarray(_noise(48, 33, 3))
    options: tuple[dict[str, object], ...] = ({}, {"progressive": True}, {"quality": 100, "subsampling": 0})
    made = [_saved(image, "JPEG", **option) for image in (grey, colour) for option in options]
    made.append(_saved(colour.convert("CMYK"), "JPEG"))
    made.append(_saved(colour, "JPEG", restart_marker_blocks=2, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"))
    return tuple(made)


def segments_of(data: bytes) -> list[bytes]:
    """A JPEG in its marker segments, coded pixels each with the segment before them."""
    found, at = [], 0
    while at < len(data):
        following = at + 2
        while following + 1 < len(data) and not (data[following] == 0xFF and data[following + 1] not in (0, 0xFF)):
            following += 1
        if following + 1 >= len(data):
            following = len(data)
        found.append(data[at:following])
        at = following
    return found


def spoil_jpeg(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    if rng.random() < 0.2:
        return spoil_bytes(data, rng, seeds)
    parts = segments_of(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(parts))
        kind = rng.randrange(8)
        if kind <= 2:
            parts[at] = parts[at][:2] + spoil_bytes(parts[at][2:], rng)
        elif kind == 3:
            parts.insert(at, parts[at])
        elif kind == 4 and len(parts) > 1:
            del parts[at]
        elif kind == 5:
            parts.insert(at, rng.choice(segments_of(rng.choice(seeds))))
        elif kind == 6:
            parts = [_frame(part, rng) for part in parts]
        else:
            parts[at] = parts[at] * rng.choice((2, 20, 300))
    return b"".join(parts) + (b"\xff\xd9" if rng.random() < 0.5 else b"")


def _frame(part: bytes, rng: Random) -> bytes:
    """Another size, precision, number or sampling of components, or another process, in the frame's header."""
    if len(part) < 11 or part[1] not in (0xC0, 0xC1, 0xC2):
        return part
    held = bytearray(part)
    held[5:7] = rng.choice((0, 1, 17, 300, 4096, 8192, 65500, 65535)).to_bytes(2)
    held[7:9] = rng.choice((0, 1, 17, 300, 4096, 8192, 65500, 65535)).to_bytes(2)
    if rng.random() < 0.3:
        held[rng.choice((1, 4, 9, *range(10, len(held))))] = rng.choice(
            (0, 1, 2, 4, 0x11, 0x22, 0x44, 0xC3, 0xC9, 0xFF)
        )
    return bytes(held)


def run_jpeg(data: bytes) -> None:
    checked(decode_grey(b"\xff\xd8\xff" + data[3:]))


# HTJ2K


@functools.cache
def htj2k_seeds() -> tuple[bytes, ...]:
    return tuple(encode_htj2k(_noise(*side)) for side in ((1, 2), (40, 50), (64, 64), (33, 100)))


def spoil_htj2k(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """Mostly behind the sizes, which are checked before OpenJPH sees anything."""
    kept = rng.choice((0, len(START), 43, 43, 43, 60, 100))
    end = b"\xff\xd9" if rng.random() < 0.9 else b""
    spoilt = data[:kept] + spoil_bytes(data[kept : len(data) - 2], rng, seeds) + end
    if rng.random() < 0.1:
        side = rng.choice((1, 63, 65, 4096, 8192)).to_bytes(4), rng.choice((1, 63, 65, 4096, 8192)).to_bytes(4)
        both = b"".join(side)
        spoilt = spoilt[:8] + both + spoilt[16:24] + both + spoilt[32:]
    return spoilt


def run_htj2k(data: bytes) -> None:
    checked(decode_grey(START + data[len(START) :]))


# DICOM


@functools.cache
def dicom_seeds() -> tuple[bytes, ...]:
    deep = np.random.default_rng(0).integers(0, 4096, (40, 50), dtype=np.uint16)
    window = {"BitsStored": 12, "HighBit": 11, "WindowCenter": "2000", "WindowWidth": "3000", "RescaleSlope": "1.5",
              "RescaleIntercept": "-10"}  # fmt: skip
    return (
        dicom(_noise(40, 50)), dicom(deep, **window, VOILUTFunction="SIGMOID"),
        dicom(deep, VOILUTSequence=table(np.arange(0, 4096, 4), 100, 12), PhotometricInterpretation="MONOCHROME1"),
        dicom(deep.view(np.int16), PLAIN[1], **window, PixelPaddingValue=7, ViewPosition="LL"),
        *(dicom(_noise(40, 50), syntax) for syntax in ENCODERS), dicom(_noise(40, 50), PLAIN[3]),
    )  # fmt: skip


@functools.cache
def _streams() -> list[tuple[str, NDArray[np.generic], bytes]]:
    deep = np.random.default_rng(0).integers(0, 4096, (40, 50), dtype=np.uint16)
    images = [(syntax, image) for syntax in ENCODERS for image in (_noise(40, 50), deep)]
    return [
        (syntax, image, ENCODERS[syntax](image))
        for syntax, image in images
        if (syntax, image.itemsize) != (JPEGBaseline8Bit, 2)
    ]


def spoil_dicom(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """The file; or what is compressed in it, so that its tags are right."""
    if rng.random() < 0.5:
        return spoil_bytes(data, rng, seeds)
    syntax, image, stream = rng.choice(_streams())
    return dicom(image, syntax, stream=spoil_bytes(stream, rng) or b"x")


def run_dicom(data: bytes) -> None:
    data = data[:128] + b"DICM" + data[132:]
    image = decode_grey(data)
    checked(image)
    remarks(data, image, 32)


def run_any(data: bytes) -> None:
    checked(decode_grey(data))


ENTRIES = (
    Entry("png", png_seeds, of(spoil_png), run_png, (UnreadableImage,), share=2.0),
    Entry("kernels", png_seeds, of(spoil_png), run_kernels, (), share=3.0),
    Entry("jpeg", jpeg_seeds, of(spoil_jpeg), run_jpeg, (UnreadableImage,), share=0.7),
    Entry("htj2k", htj2k_seeds, of(spoil_htj2k), run_htj2k, (UnreadableImage,)),
    Entry("dicom", dicom_seeds, of(spoil_dicom), run_dicom, (UnreadableImage,)),
    Entry(
        "any-image", lambda: (*png_seeds()[:3], *jpeg_seeds()[:3], *htj2k_seeds()[:2]), of(spoil_bytes), run_any,
        (UnreadableImage,),
    ),
)  # fmt: skip
