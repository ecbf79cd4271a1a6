"""`PngDecoder` on a GPU: the CPU's pixels bit for bit, verdicts of bad streams, other streams, too little memory."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
import torch
from nih_files import real_xrays
from numpy.typing import NDArray

from distcxr.data.pixels.cuda.module import MAX_SHARED_BYTES, cuda_kernels
from distcxr.data.pixels.cuda.table import resize_on_gpu
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import SIGNATURE
from distcxr.data.pixels.png_gpu import PngDecoder, Prepared
from distcxr.data.pixels.resize import resize_grey
from distcxr.phantom.png_encoder import encode_png

pytestmark = pytest.mark.gpu
WAYS = pytest.mark.parametrize("inflate", ["gpu", "cpu"])
SIZE = 96


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def decoder_of(inflate: Literal["gpu", "cpu"], device: torch.device, size: int = SIZE) -> PngDecoder:
    if inflate == "gpu":
        pytest.importorskip("nvidia.libnvcomp", reason="no nvCOMP: pip install 'distcxr[gpu]'")
    return PngDecoder(size, device, inflate=inflate)


def file_of(stream: bytes, shape: tuple[int, int]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], 8, 0, 0, 0, 0))
    return SIGNATURE + header + chunk(b"IDAT", stream) + chunk(b"IEND", b"")


def rows_of(shape: tuple[int, int], seed: int) -> bytes:
    """Random bytes behind all five filter types, as rows of an image."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (shape[0], shape[1] + 1))
    rows[:, 0] = rng.integers(0, 5, shape[0])
    return rows.astype(np.uint8).tobytes()


def prepared(decoder: PngDecoder, files: list[bytes]) -> list[Prepared]:
    images = [decoder.prepare(file) for file in files]
    assert all(image is not None and image.bytes_.is_pinned() for image in images)
    return [image for image in images if image is not None]


def decode(decoder: PngDecoder, files: list[bytes], device: torch.device) -> tuple[NDArray[np.uint8], list[int]]:
    out_BSS = torch.full((len(files), SIZE, SIZE), 77, dtype=torch.uint8, device=device)
    verdicts_B = decoder.decode(prepared(decoder, files), out_BSS)
    assert verdicts_B.device == device and verdicts_B.dtype == torch.int32
    return out_BSS.cpu().numpy(), verdicts_B.tolist()


def on_cpu(data: bytes) -> NDArray[np.uint8]:
    return resize_grey(decode_grey(data), SIZE)


@WAYS
def test_files_of_all_sizes_are_the_cpus_bit_for_bit(inflate: Literal["gpu", "cpu"], device: torch.device) -> None:
    sides = (1, 2, 31, 32, 33, 64, 65, 100)
    shapes = [(height, width) for height in sides for width in sides]
    shapes += [(1, 3000), (3000, 2), (1024, 1024), (2500, 2048), (3, 30_000), (700, 33)]
    files = [file_of(zlib.compress(rows_of(shape, i)), shape) for i, shape in enumerate(shapes)]
    files.append(file_of(zlib.compress(rows_of((400, 300), 1), 0), (400, 300)))  # stored
    files.append(encode_png(np.indices((500, 400)).sum(0).astype(np.uint8)))
    pixels, verdicts = decode(decoder_of(inflate, device), files, device)
    assert verdicts == [0] * len(files)
    for file, square in zip(files, pixels, strict=True):
        np.testing.assert_array_equal(square, on_cpu(file))


@WAYS
def test_real_xrays_again_and_again(inflate: Literal["gpu", "cpu"], device: torch.device) -> None:
    """The same bytes every time: no race between warps, blocks or streams."""
    decoder = decoder_of(inflate, device)
    files = [file.read_bytes() for file in real_xrays(every=10)]
    files = [file for file in files if decoder.prepare(file) is not None]
    expected = np.stack([on_cpu(file) for file in files])
    for _ in range(20):
        pixels, verdicts = decode(decoder, files * 3, device)
        assert verdicts == [0] * len(pixels)
        np.testing.assert_array_equal(pixels, np.concatenate([expected] * 3))


def test_a_bad_stream_has_a_verdict_and_harms_no_neighbour(device: torch.device) -> None:
    """Damage that nvCOMP's contract covers or that only the rows show; wild streams it leaves undefined."""
    decoder, shape, rows = decoder_of("gpu", device), (60, 70), rows_of((60, 70), 1)
    stream = zlib.compress(rows)
    good = [file_of(zlib.compress(rows_of(one, 9)), one) for one in ((50, 60), (100, 33))]
    bad = {
        "the wrong Adler-32": stream[:-1] + bytes([stream[-1] ^ 1]),
        "a row too few": zlib.compress(rows[:-71]),
        "another image behind it": zlib.compress(rows + rows),
        "a pixel changed": zlib.compress(rows[:500] + bytes([rows[500] ^ 1]) + rows[501:])[:-4] + stream[-4:],
        "filter type 7": zlib.compress(rows[: 71 * 30] + b"\7" + rows[71 * 30 + 1 :]),
    }
    for flaw, broken in bad.items():
        pixels, verdicts = decode(decoder, [good[0], file_of(broken, shape), good[1]], device)
        assert verdicts[0] == verdicts[2] == 0 and verdicts[1] != 0, flaw
        for file, square in zip(good, (pixels[0], pixels[2]), strict=True):
            np.testing.assert_array_equal(square, on_cpu(file), err_msg=flaw)


@WAYS
def test_waves_on_two_streams_at_once(inflate: Literal["gpu", "cpu"], device: torch.device) -> None:
    decoder = decoder_of(inflate, device)
    waves = [
        [file_of(zlib.compress(rows_of((300 + i, 400), i)), (300 + i, 400)) for i in range(first, first + 8)]
        for first in range(0, 48, 8)
    ]
    streams = [torch.cuda.Stream(device) for _ in range(2)]
    outs, verdicts = [], []
    for number, wave in enumerate(waves):
        with torch.cuda.stream(streams[number % 2]):
            outs.append(torch.empty((len(wave), SIZE, SIZE), dtype=torch.uint8, device=device))
            verdicts.append(decoder.decode(prepared(decoder, wave), outs[-1]))
    torch.cuda.synchronize(device)
    for wave, out_BSS, verdicts_B in zip(waves, outs, verdicts, strict=True):
        assert not verdicts_B.any()
        np.testing.assert_array_equal(out_BSS.cpu().numpy(), np.stack([on_cpu(file) for file in wave]))


def test_the_resize_alone_wide_images_too(device: torch.device) -> None:
    rng = np.random.default_rng(0)
    shapes = [(1024, 1024), (SIZE, SIZE), (3, 2 * (MAX_SHARED_BYTES // 4) + 7), (1, 1), (50, 2000)]
    images = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
    on_device = [torch.from_numpy(image).to(device) for image in images]
    resized_BSS = resize_on_gpu(on_device, SIZE, cuda_kernels(device))
    for image, resized in zip(images, resized_BSS.cpu().numpy(), strict=True):
        np.testing.assert_array_equal(resized, resize_grey(image, SIZE), err_msg=str(image.shape))


@pytest.fixture
def little_memory(device: torch.device) -> Iterator[None]:
    """PyTorch may take 32 MB more than it holds."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + (32 << 20)) / total, device)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.usefixtures("little_memory")
def test_too_little_memory_is_torchs_error_and_fewer_images_fit(device: torch.device) -> None:
    decoder = decoder_of("cpu", device)
    file = file_of(zlib.compress(rows_of((1024, 1024), 0), 1), (1024, 1024))
    images = prepared(decoder, [file] * 64)
    with pytest.raises(torch.OutOfMemoryError):
        decoder.decode(images, torch.empty((64, SIZE, SIZE), dtype=torch.uint8, device=device))
    out_BSS = torch.empty((4, SIZE, SIZE), dtype=torch.uint8, device=device)
    assert decoder.decode(images[:4], out_BSS).tolist() == [0, 0, 0, 0]
    np.testing.assert_array_equal(out_BSS[3].cpu().numpy(), on_cpu(file))


def test_a_thread_that_never_called_cuda_may_decode(device: torch.device) -> None:
    from concurrent.futures import ThreadPoolExecutor

    decoder = decoder_of("cpu", device)
    file = encode_png(np.indices((100, 90)).sum(0).astype(np.uint8))
    with ThreadPoolExecutor(1) as pool:
        pixels, verdicts = pool.submit(decode, decoder, [file], device).result()
    assert verdicts == [0]
    np.testing.assert_array_equal(pixels[0], on_cpu(file))


def test_it_names_the_gpu(device: torch.device) -> None:
    assert f"resize on {device} (" in decoder_of("cpu", device).where
    assert decoder_of("gpu", device).where.startswith("inflated by nvCOMP 5.")
