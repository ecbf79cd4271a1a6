"""The product's own readers, made as a training run makes them, and the index that they need."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import SampleIndex
from loader_bench.cases import Task

if TYPE_CHECKING:
    from distcxr.data.loader import PixelReader
    from distcxr.data.readers.make import Kind
    from distcxr.data.store.pack_format import Pack

_NUM_FINDINGS = 14


def make_reader(kind: Kind, task: Task, index: SampleIndex, pack: Pack | None = None, **data: Any) -> PixelReader:
    """What a rank reads with, `task.threads` workers or threads at work.

    Args:
        pack: with `data.source=pack`; the reader closes it.
        data: more of a recipe's `data` section.
    """
    from distcxr.data.readers.make import PackReader, Rank
    from distcxr.recipe.data import Data

    source = "png" if pack is None else "pack"
    spec = {"image_size": task.image_size, "num_workers": task.threads, "source": source, **data}
    rank = Rank(
        Data.model_validate(spec), index, task.batch_size, device_of(task), budget=task.threads,
        first_rows=np.arange(len(index)), pack=pack,
    )  # fmt: skip
    reader = rank.make(kind)
    return reader if pack is None else PackReader(reader, pack)


def device_of(task: Task) -> Any:
    """The rank's GPU, or the CPU."""
    import torch

    return torch.device("cpu") if task.gpu is None else torch.device("cuda", task.gpu)


def file_index(files: Sequence[str]) -> SampleIndex:
    """The benchmark's own files, without labels; their paths are absolute."""
    return make_index(Path("/"), np.array(sorted({_name(file) for file in files})))


def rows_of(index: SampleIndex, files: Sequence[str]) -> NDArray[np.int64]:
    """Rows of a `file_index`, in the order of `files`."""
    row_of = {path: row for row, path in enumerate(index.path.tolist())}
    return np.array([row_of[_name(file)] for file in files], dtype=np.int64)


def make_index(root: Path, path: NDArray[np.bytes_]) -> SampleIndex:
    """An index of these paths, each with one positive label."""
    num = len(path)
    empty = np.full(num, "")
    return SampleIndex(
        root=root, findings=tuple(f"finding {number}" for number in range(_NUM_FINDINGS)), path=path,
        patient_id=np.arange(num), targets_NC=np.eye(_NUM_FINDINGS, dtype=np.uint8)[np.arange(num) % _NUM_FINDINGS],
        mask_NC=np.ones((num, _NUM_FINDINGS), dtype=np.uint8), age=np.full(num, np.nan, dtype=np.float32),
        sex=empty, view=empty, split=empty, label_hash="", skipped=np.zeros(0, dtype="S1"),
    )  # fmt: skip


def _name(file: str) -> bytes:
    return os.fsencode(file).lstrip(b"/")
