"""The gpu loader: waves, fallbacks and memory, with a decoder that stands in for the GPU's."""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import assert_is, ids, kinds, locate, requests
from PIL import Image
from torch import Tensor

from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.png_gpu import Prepared
from distcxr.data.pixels.resize import resize_grey
from distcxr.data.readers.gpu_reader import GpuReader

SIZE = 32


class Decoder:
    """What `PngDecoder` is to a reader: it hands PNGs over as they are and decodes them by the CPU's code.

    Attributes:
        room: images that its memory is enough for.
        refused: contents of files that it can't decode.
        decoded: how many images each call was given.
    """

    where = "decoded by a stand-in"

    def __init__(self, room: int = 10**6) -> None:
        self.room, self.refused = room, set[bytes]()
        self.decoded: list[int] = []
        self.threads = set[str]()
        self.handed_over: list[weakref.ref[Tensor]] = []

    def prepare(self, data: bytes) -> Prepared | None:
        self.threads.add(threading.current_thread().name)
        if not data.startswith(b"\x89PNG") or data[25] != 0 or data[24] != 8:  # grey, of 8 bits
            return None
        bytes_ = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self.handed_over.append(weakref.ref(bytes_))
        return Prepared(bytes_, 0, 0, 0)

    def decode(self, images: Sequence[Prepared], out_BSS: Tensor) -> Tensor:
        if len(images) > self.room:
            raise torch.OutOfMemoryError(f"tried to allocate {len(images)} images")
        self.decoded.append(len(images))
        assert out_BSS.shape == (len(images), SIZE, SIZE) and out_BSS.is_contiguous()
        verdicts = torch.zeros(len(images), dtype=torch.int32)
        for place, image in enumerate(images):
            data = bytes(image.bytes_.numpy())
            if data in self.refused:
                verdicts[place] = 12
                out_BSS[place] = 77
            else:
                out_BSS[place] = torch.from_numpy(np.array(resize_grey(decode_grey(data), SIZE)))
        return verdicts


def reader_of(decoder: Decoder, wave: int = 8, num_threads: int = 2, prefetch: int = 2) -> GpuReader:
    return GpuReader(
        decoder, locate, SIZE, device=torch.device("cpu"), num_threads=num_threads, wave=wave, prefetch=prefetch  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    written = [folder / f"{number}.png" for number in range(40)]
    for file in written:
        Image.fromarray(rng.integers(0, 256, (40, 50)).astype(np.uint8)).save(file)
    return [str(file) for file in written]


@pytest.mark.parametrize(
    ("batch", "wave", "decoded"),
    [
        (4, 16, [16, 16, 8]),  # whole requests, as many as fit
        (4, 18, [16, 16, 8]),
        (4, 3, [3, 1] * 10),  # a request with more than a wave in parts
        (40, 100, [40]),
        (16, 16, [16, 16, 8]),
    ],
)
def test_waves(files: list[str], batch: int, wave: int, decoded: list[int]) -> None:
    decoder, asked = Decoder(), requests(files, batch)
    with closing(reader_of(decoder, wave)) as reader:
        answers = list(reader.read(asked))
    assert decoder.decoded == decoded
    assert len(answers) == len(asked)
    for answer, request in zip(answers, asked, strict=True):
        assert_is(answer, locate(request), SIZE)
    assert decoder.threads and all(name.startswith("png") for name in decoder.threads)


def test_no_launch_is_for_more_images_than_a_grid_has_blocks(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distcxr.data.readers.gpu_reader._AT_ONCE", 6)
    decoder = Decoder()
    with closing(reader_of(decoder, wave=16)) as reader:
        (answer,) = reader.read(requests(files[:16], 16))
    assert decoder.decoded == [6, 6, 4]
    assert_is(answer, files[:16], SIZE)


def test_short_memory_makes_waves_smaller_and_is_said_once(files: list[str], caplog: pytest.LogCaptureFixture) -> None:
    decoder = Decoder(room=5)
    with closing(reader_of(decoder, wave=16)) as reader, caplog.at_level(logging.WARNING):
        for _ in range(2):
            answers = list(reader.read(requests(files[:32], 8)))
            for answer, request in zip(answers, requests(files[:32], 8), strict=True):
                assert_is(answer, locate(request), SIZE)
    assert max(decoder.decoded) == 4 and sum(decoder.decoded) == 64
    (said,) = [record.getMessage() for record in caplog.records]
    assert "cpu has too little free memory to decode 16 images at once" in said and "data.gpu.wave=8" in said


def test_no_memory_at_all_is_an_error_that_says_what_to_do(files: list[str]) -> None:
    with (
        closing(reader_of(Decoder(room=0))) as reader,
        pytest.raises(RuntimeError, match=r"no memory left .*data\.loader=torch"),
    ):
        next(reader.read(requests(files, 4)))


def test_what_the_gpu_refuses_is_judged_by_the_cpu(
    files: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that only the GPU finds wrong keeps its pixels; one that is wrong gets the reason of all loaders."""
    decoder, cut = Decoder(), bytearray(Path(files[5]).read_bytes())
    spoilt = tmp_path / "spoilt.png"
    at = cut.index(b"IDAT") + 10
    cut[at] ^= 0xFF
    spoilt.write_bytes(cut)
    decoder.refused = {Path(files[2]).read_bytes(), Path(files[9]).read_bytes(), bytes(cut)}
    mixed = [*files[:6], str(spoilt), *files[6:12]]
    with closing(reader_of(decoder, wave=8)) as reader, caplog.at_level(logging.WARNING):
        first, second = reader.read([ids(mixed[:7]), ids(mixed[7:])])
    assert [place for place, _ in first.unreadable] == [6] and "wrong CRC in the IDAT chunk" in first.unreadable[0][1]
    assert first.pixels[6].max() == 0
    assert_is(first._replace(pixels=first.pixels[:6], unreadable=()), mixed[:6], SIZE)
    assert_is(second, mixed[7:], SIZE)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and re.search(r"2\.png can't be decoded on the GPU \(verdict 12\)", said[0])


def test_what_is_no_plain_png_is_decoded_by_the_cpu(files: list[str], tmp_path: Path) -> None:
    decoder, mixed = Decoder(), list(files[:3])
    for name, data in kinds(np.random.default_rng(1)).items():
        (tmp_path / name).write_bytes(data)
        mixed += [str(tmp_path / name), files[len(mixed)]]
    with closing(reader_of(decoder, wave=100)) as reader:
        (answer,) = reader.read([ids(mixed)])
    assert_is(answer, mixed, SIZE)
    assert 0 < sum(decoder.decoded) < len(mixed)


def test_a_wave_without_anything_for_the_gpu(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(kinds(np.random.default_rng(1))["JPEG"])
    asked = [str(tmp_path / "photo.jpg"), str(tmp_path / "absent.png")]
    with closing(reader_of(Decoder())) as reader:
        (answer,) = reader.read([ids(asked)])
    assert [place for place, _ in answer.unreadable] == [1] and "No such file" in answer.unreadable[0][1]
    assert answer.pixels[1].max() == 0
    assert_is(answer._replace(pixels=answer.pixels[:1], unreadable=()), asked[:1], SIZE)


def test_a_launched_wave_lets_go_of_its_bytes(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pinned memory is given out again once the GPU has done what was queued before it was let go."""
    monkeypatch.setattr(Future, "done", lambda _: True)  # the second wave is launched before the first is collected
    decoder = Decoder()
    with closing(reader_of(decoder, wave=8)) as reader, closing(reader.read(requests(files[:16], 8))) as answers:
        next(answers)
        assert decoder.decoded == [8, 8] and len(decoder.handed_over) == 16
        assert all(bytes_() is None for bytes_ in decoder.handed_over)


def test_an_error_of_the_decoder_comes_through_and_leaves_a_clean_start(files: list[str]) -> None:
    decoder = Decoder()
    with closing(reader_of(decoder)) as reader:
        decoder.decode = None  # type: ignore[method-assign, assignment]
        with pytest.raises(TypeError):
            list(reader.read(requests(files, 4)))
        del decoder.decode
        assert_is(next(reader.read(requests(files, 4))), files[:4], SIZE)
