"""Cases of the pack: its images read on the CPU, and building it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

from distcxr.data.index import SampleIndex
from distcxr.data.pixels.image_bytes import Part
from distcxr.data.store.pack_format import Pack, open_pack
from loader_bench.cases import Task
from loader_bench.product import file_index, rows_of

FOLDER = "pack"
_open: list[Pack] = []  # for the life of the process: parts are read through the files that it holds open


def make_pack(work: Path, sources: tuple[str, ...]) -> None:
    """The pack of the benchmark's files, in the work folder, once for all cases that read it."""
    from distcxr.data.store.pack_building import build_pack

    build_pack(file_index(sources), work / FOLDER, workers=len(os.sched_getaffinity(0)))


def open_for(task: Task) -> tuple[Pack, SampleIndex]:
    """The pack, open for an index of the task's files."""
    assert task.work is not None
    index = file_index(task.files)
    return open_pack(task.work / FOLDER, index), index


def parts(task: Task) -> tuple[Part, ...]:
    """Where the images of the task's files are in the pack, in the order of the files."""
    pack, index = open_for(task)
    _open.append(pack)
    return tuple(pack.parts(rows_of(index, task.files)))


def build(task: Task) -> Generator[int]:
    """`distcxr pack` over the files, from nothing, with this many threads; one batch is one pack."""
    from distcxr.data.store.pack_building import build_pack

    index = file_index(task.files)
    assert task.work is not None
    while True:
        with tempfile.TemporaryDirectory(dir=task.work) as place:
            built = build_pack(index, Path(place), workers=task.threads)
        yield built.num_made
