"""kernels.cu, the source that NVRTC compiles, run on a CPU against libpng and `resize_grey`; and that it compiles."""

from __future__ import annotations

import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from host_kernels import HostKernels, Verdict
from numpy.typing import NDArray
from PIL import Image

from distcxr.data.pixels.cuda import table as tables
from distcxr.data.pixels.cuda.module import MAX_SHARED_BYTES, SOURCE, compile_for
from distcxr.data.pixels.cuda.table import (
    _RESIZE_THREADS,
    NO_ADLER,
    TILE_BYTES,
    Field,
    resize_on_gpu,
    resize_table,
    upload,
)
from distcxr.data.pixels.image_bytes import SIGNATURE
from distcxr.data.pixels.png_gpu import MAX_WARPS
from distcxr.data.pixels.resize import resize_grey

SIDES = (1, 2, 31, 32, 33, 63, 64, 65, 100)
SHAPES = [(height, width) for height in SIDES for width in SIDES]
LONG = [(1024, 5), (5, 1024), (70, 1023), (1023, 33), (1, 3000), (3000, 2)]
GUARD = 64


@pytest.fixture(scope="module", params=[False, True], ids=["ascending", "descending"])
def host(request: pytest.FixtureRequest) -> HostKernels:
    return HostKernels(descending=request.param)


def filtered(shape: tuple[int, int], seed: int, kinds: tuple[int, ...] = (0, 1, 2, 3, 4)) -> bytes:
    """Random bytes, and small steps on every other row, behind random filter types: any such stream is some image."""
    height, width = shape
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (height, width + 1))
    rows[::2] = rng.choice([0, 1, 255], rows[::2].shape)  # Paeth's distances tie again and again
    rows[:, 0] = rng.choice(kinds, height)
    return rows.astype(np.uint8).tobytes()


def by_libpng(stream: bytes, shape: tuple[int, int]) -> NDArray[np.uint8]:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", shape[1], shape[0], 8, 0, 0, 0, 0))
    file = SIGNATURE + header + chunk(b"IDAT", zlib.compress(stream, 1)) + chunk(b"IEND", b"")
    return np.array(Image.open(io.BytesIO(file)))


def unfilter(
    host: HostKernels, streams: list[bytes], shapes: list[tuple[int, int]], warps: int = 16, **given: list[int]
) -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Pixels and verdicts of inflated rows; what lies around them has to stay as it is."""
    sizes = [len(stream) for stream in streams]
    memory = torch.full((sum(sizes) + GUARD * (len(sizes) + 1),), 0x5A, dtype=torch.uint8)
    starts = [GUARD + sum(sizes[:i]) + GUARD * i for i in range(len(sizes))]
    for stream, start in zip(streams, starts, strict=True):
        memory[start : start + len(stream)] = torch.frombuffer(bytearray(stream), dtype=torch.uint8)
    table = upload(
        {
            Field.HEIGHT: [height for height, _ in shapes],
            Field.WIDTH: [width for _, width in shapes],
            Field.ROWS: [memory.data_ptr() + start for start in starts],
            Field.ROWS_BYTES: sizes,
            Field.ADLER: given.get("adler") or [zlib.adler32(stream) for stream in streams],
        },
        1,
        torch.device("cpu"),
    )
    verdicts = torch.full((len(streams),), 77, dtype=torch.int32)
    statuses = torch.tensor(given.get("statuses", [0] * len(streams)), dtype=torch.int32)
    actual = torch.tensor(given.get("actual", sizes), dtype=torch.int64)
    arguments = (table.address(), len(streams), statuses.data_ptr(), actual.data_ptr(), verdicts.data_ptr())
    host.launch("unfilter", (len(streams), 1), 32 * warps, warps * TILE_BYTES, arguments)
    images = []
    for start, size, (height, width) in zip(starts, sizes, shapes, strict=True):
        assert (memory[start - GUARD : start] == 0x5A).all() and (memory[start + size :][:GUARD] == 0x5A).all()
        images.append(memory[start : start + size].numpy().reshape(height, 1 + width)[:, 1:])
    return images, verdicts.tolist()


@pytest.mark.parametrize("kinds", [(0,), (1,), (2,), (3,), (4,), (0, 1, 2, 3, 4)], ids=str)
def test_each_filter_at_every_size_around_a_tile(host: HostKernels, kinds: tuple[int, ...]) -> None:
    streams = [filtered(shape, seed, kinds) for seed, shape in enumerate(SHAPES)]
    images, verdicts = unfilter(host, streams, SHAPES)
    assert verdicts == [0] * len(SHAPES)
    for image, stream, shape in zip(images, streams, SHAPES, strict=True):
        np.testing.assert_array_equal(image, by_libpng(stream, shape), err_msg=str(shape))


@pytest.mark.parametrize("warps", [1, 2, 3, 16, 32])
def test_any_number_of_warps_and_long_images(host: HostKernels, warps: int) -> None:
    """More groups of rows than warps, more tiles than a round of warps, and fewer of both."""
    shapes = [*LONG, (300, 300), (33, 1), (65, 65)]
    streams = [filtered(shape, seed) for seed, shape in enumerate(shapes)]
    images, verdicts = unfilter(host, streams, shapes, warps)
    assert verdicts == [0] * len(shapes)
    for image, stream, shape in zip(images, streams, shapes, strict=True):
        np.testing.assert_array_equal(image, by_libpng(stream, shape), err_msg=str(shape))


def test_a_bad_image_has_its_verdict_and_its_neighbours_their_pixels(host: HostKernels) -> None:
    shapes = [(40, 50), (70, 33), (64, 64), (9, 100), (100, 9), (33, 33)]
    streams = [filtered(shape, seed) for seed, shape in enumerate(shapes)]
    rows = bytearray(streams[1])
    rows[69 * 34] = 5  # the last row's filter type
    streams[1] = bytes(rows)
    rows = bytearray(streams[4])
    rows[10 * 5] = 255
    streams[4] = bytes(rows)
    sizes, adlers = [len(stream) for stream in streams], [zlib.adler32(stream) for stream in streams]
    actual = [*sizes[:2], sizes[2] - 1, *sizes[3:]]
    images, verdicts = unfilter(
        host, streams, shapes, statuses=[0, 0, 0, 12, 0, 0], actual=actual, adler=[adlers[0] ^ 1, *adlers[1:]]
    )
    bad = [Verdict.WRONG_ADLER, Verdict.UNKNOWN_FILTER, Verdict.WRONG_LENGTH, 12, Verdict.UNKNOWN_FILTER]
    assert verdicts == [*bad, Verdict.GOOD]
    np.testing.assert_array_equal(images[5], by_libpng(streams[5], shapes[5]))


def test_adler_sees_every_byte_and_its_position(host: HostKernels) -> None:
    shape, stream = (37, 70), filtered((37, 70), 3)
    rng = np.random.default_rng(0)
    flipped = []
    for place in [0, 1, 70, 71, len(stream) - 1, *rng.integers(0, len(stream), 20)]:
        changed = bytearray(stream)
        changed[place] ^= 1 if place % 71 else 0
        other = int(place) - 1 if place % 71 > 1 else int(place) + 2
        changed[place], changed[other] = changed[other], changed[place]
        flipped.append(bytes(changed))
    flipped = [changed for changed in flipped if changed != stream]
    assert len(flipped) > 15
    verdicts = unfilter(host, flipped, [shape] * len(flipped), adler=[zlib.adler32(stream)] * len(flipped))[1]
    assert set(verdicts) <= {Verdict.WRONG_ADLER, Verdict.UNKNOWN_FILTER}
    high = bytes([0] + [255] * 3000) * 40  # sums that need the modulo
    assert unfilter(host, [high, high], [(40, 3000)] * 2, adler=[zlib.adler32(high), NO_ADLER])[1] == [0, 0]


@pytest.mark.parametrize("size", [1, 8, 48, 100, 300])
def test_the_resize_is_resize_grey_bit_for_bit(host: HostKernels, size: int) -> None:
    shapes = [(64, 64), (100, 60), (20, 20), (1, 1), (1, 300), (257, 1), (47, 49), (100, 31), (31, 400), (size, size)]
    rng = np.random.default_rng(size)
    images = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
    images += [np.full((70, 90), 255, dtype=np.uint8), np.indices((90, 90)).sum(0).astype(np.uint8)]
    resized_BSS = resize_on_gpu([torch.from_numpy(image) for image in images], size, host)
    assert resized_BSS.dtype == torch.uint8
    for image, resized in zip(images, resized_BSS.numpy(), strict=True):
        np.testing.assert_array_equal(resized, resize_grey(image, size), err_msg=str(image.shape))


def test_rows_that_lie_apart_are_resized_as_their_copy() -> None:
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (90, 120)).astype(np.uint8))
    part = image[3:80, 17:101]
    np.testing.assert_array_equal(resize_on_gpu([part], 40, HostKernels())[0], resize_grey(part.numpy().copy(), 40))


def test_images_wider_than_shared_memory_are_taken_in_strips(host: HostKernels) -> None:
    rng = np.random.default_rng(2)
    wide = rng.integers(0, 256, (3, 2 * (MAX_SHARED_BYTES // 4) + 999)).astype(np.uint8)
    narrow = rng.integers(0, 256, (40, 333)).astype(np.uint8)
    resized_BSS = resize_on_gpu([torch.from_numpy(wide), torch.from_numpy(narrow)], 5, host)
    np.testing.assert_array_equal(resized_BSS[0], resize_grey(wide, 5))
    np.testing.assert_array_equal(resized_BSS[1], resize_grey(narrow, 5))
    many = torch.empty((1, 300, 300), dtype=torch.uint8)  # more output pixels a row than threads, strips of 40
    image = torch.from_numpy(narrow)
    fields = {Field.HEIGHT: [40], Field.WIDTH: [333], Field.PIXELS: [image.data_ptr()], Field.PITCH: [333]}
    resize_table(upload(fields, 300, torch.device("cpu")), 40, many, host)
    np.testing.assert_array_equal(many[0], resize_grey(narrow, 300))


def test_the_table_is_the_kernels() -> None:
    """kernels.cu can't import table.py: the two define the same."""
    source = SOURCE.read_text()
    (fields,) = re.findall(r"enum \{\s*(STREAM,[^}]*)\}", source)
    assert [name.strip() for name in fields.split(",")] == [field.name for field in Field]
    assert [*Field] == list(range(len(Field)))
    (verdicts,) = re.findall(r"enum \{ (GOOD[^}]*) \}", source)
    assert verdicts == ", ".join(f"{verdict.name} = {verdict.value}" for verdict in Verdict)
    assert f"#define TILE_PITCH {tables.TILE_BYTES // 33} " in source and tables.TILE_BYTES % 33 == 0
    from distcxr.data.pixels.kernels import WEIGHT_BITS

    assert f"#define WEIGHT_BITS {WEIGHT_BITS} " in source


@pytest.mark.parametrize("capability", [75, 80, 86, 89, 90, 100, 120, 999])
def test_nvrtc_compiles_for_every_gpu_and_has_nothing_to_say(capability: int) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="no NVRTC, which torch's CUDA builds bring")
    try:
        image, architecture, log = compile_for(capability)
    except ValueError as error:  # this CUDA knows no GPU as old, or there is no NVRTC
        pytest.skip(str(error))
    assert log == ""
    if capability == 999:  # a GPU of the future: PTX for its driver
        assert architecture.startswith("compute_") and b".visible .entry unfilter" in image
    else:
        assert architecture == f"sm_{capability}" or capability > 90
        assert image.startswith(b"\x7fELF") == architecture.startswith("sm_") and b"unfilter" in image


@pytest.mark.parametrize("capability", [75, 80, 86, 89, 90, 100, 120])
def test_a_block_finds_registers_for_all_its_threads(capability: int) -> None:
    """Else a launch fails: kernels.cu does not set how many threads there will be."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="no NVRTC, which torch's CUDA builds bring")
    status, program = nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), b"kernels.cu", 0, [], [])
    options = [f"--gpu-architecture=sm_{capability}".encode(), b"--std=c++17", b"--ptxas-options=-v"]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status) != 0:
        pytest.skip(f"this NVRTC knows no GPU of capability {capability}")
    log = bytes(nvrtc.nvrtcGetProgramLogSize(program)[1])
    nvrtc.nvrtcGetProgramLog(program, log)
    found = re.findall(r"entry function '(\w+)'.*?Used (\d+) registers", log.decode(), re.DOTALL)
    threads = {"unfilter": 32 * MAX_WARPS, "resize": _RESIZE_THREADS}
    assert {kernel for kernel, _ in found} == threads.keys()
    for kernel, registers in found:
        assert -(-int(registers) // 8) * 8 * threads[kernel] <= 65_536, kernel  # given out by the eight


def test_a_gpu_too_old_is_named() -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="no NVRTC, which torch's CUDA builds bring")
    with pytest.raises(ValueError, match=r"no compiler for GPUs of capability 1\.3.*requirements/cuda12\.txt"):
        compile_for(13)


def test_a_source_that_does_not_compile_is_named_with_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="no NVRTC, which torch's CUDA builds bring")
    broken = tmp_path / "broken.cu"
    broken.write_text('extern "C" __global__ void unfilter() { nonsense; }')
    monkeypatch.setattr("distcxr.data.pixels.cuda.module.SOURCE", broken)
    with pytest.raises(ValueError, match=r"(?s)can't be compiled for sm_80: broken\.cu\(1\).*nonsense.*on the CPU"):
        compile_for.__wrapped__(80)
    broken.write_text('extern "C" __global__ void unfilter() { int unused; }')
    assert "unused" in compile_for.__wrapped__(80).log
