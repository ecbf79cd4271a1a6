"""`GpuReader` on a GPU: pixels, order and reasons of the CPU, on whichever stream they are taken."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from pictures import broken, kinds, locate, requests
from torch import Tensor

from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import UnreadableImage
from distcxr.data.pixels.png_gpu import PngDecoder
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.readers.gpu_reader import GpuReader
from distcxr.phantom.png_encoder import encode_png

pytestmark = pytest.mark.gpu
SIZE = 48


def on_cpu(file: str) -> tuple[Tensor, str | None]:
    """Pixels and reason that a reader has to give, as `decode_grey` has the last word."""
    try:
        return torch.from_numpy(np.array(resize_grey(decode_grey(Path(file).read_bytes()), SIZE))), None
    except UnreadableImage as error:
        return torch.zeros(SIZE, SIZE, dtype=torch.uint8), str(error)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Grey PNGs, other pictures and broken files, mixed."""
    rng = np.random.default_rng(0)
    contents = [encode_png(rng.integers(0, 256, (90 + i, 400 - i)).astype(np.uint8)) for i in range(60)]
    contents += [*kinds(rng).values(), *broken(contents[0]).values()]
    written = []
    for number in rng.permutation(len(contents)).tolist():
        file = tmp_path / f"{number}.png"
        file.write_bytes(contents[number])
        written.append(str(file))
    return written


@pytest.mark.parametrize("wave", [1, 10, 64])
@pytest.mark.parametrize("inflate", ["gpu", "cpu"])
def test_files_of_every_sort_in_order_on_any_stream(
    inflate: Literal["gpu", "cpu"], wave: int, files: list[str]
) -> None:
    """Copies are queued at once and looked at in the end, so nothing but the reader's event makes them wait."""
    if inflate == "gpu":
        pytest.importorskip("nvidia.libnvcomp", reason="no nvCOMP: pip install 'distcxr[gpu]'")
    device = torch.device("cuda", torch.cuda.current_device())
    decoder, asked = PngDecoder(SIZE, device, inflate=inflate), requests(files, 7)
    expected = [on_cpu(file) for file in files]
    with closing(GpuReader(decoder, locate, SIZE, device=device, num_threads=4, wave=wave)) as reader:
        for stream in (torch.cuda.default_stream(device), torch.cuda.Stream(device)):
            with torch.cuda.stream(stream):
                taken, unreadable = [], []
                for answer, request in zip(reader.read(asked), asked, strict=True):
                    taken.append(answer.pixels.clone())
                    unreadable += [(locate(request)[place], reason) for place, reason in answer.unreadable]
                    del answer
                pixels = torch.cat(taken)[:, 0].cpu()
            assert unreadable == [(file, reason) for file, (_, reason) in zip(files, expected, strict=True) if reason]
            assert torch.equal(pixels, torch.stack([image for image, _ in expected]))


def test_an_early_end_and_another_read(files: list[str]) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    good = [file for file in files if on_cpu(file)[1] is None]
    decoder = PngDecoder(SIZE, device, inflate="cpu")
    with closing(GpuReader(decoder, locate, SIZE, device=device, num_threads=2, wave=8)) as reader:
        for used in range(3):
            with closing(reader.read(requests(good, 4))) as answers:
                for _ in range(used):
                    next(answers)
        pixels = torch.cat([answer.pixels[:, 0].cpu() for answer in reader.read(requests(good, 4))])
    assert torch.equal(pixels, torch.stack([on_cpu(file)[0] for file in good]))
