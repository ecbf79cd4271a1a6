"""One interface: whoever reads, the same recipe gives the same samples with the same pixels.

Every loader x 1, 2 and 4 ranks x (training from its start, training resumed at a global batch, evaluation) is a cell.
Each is compared with Pillow's decoding of the files and with `order`, never with another loader.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from pictures import broken, by_pillow, index_of, kinds
from PIL import Image

from distcxr.data.augment import draw_parameters
from distcxr.data.store.cache_format import cache_folder
from distcxr.data.store.cache_building import build_cache
from distcxr.data.dataset import open_dataset
from distcxr.data.index import SampleIndex
from distcxr.data.loader import Batch, Loader, PixelReader
from distcxr.data.readers.cache_reader import CacheReader
from distcxr.data.readers.choose import choose_reader
from distcxr.data.order import BatchPlan, EvalOrder, TrainOrder, shuffled
from distcxr.data.store.pack_building import build_pack
from distcxr.data.pixels.decode import decode_grey
from distcxr.data.pixels.image_bytes import UnreadableImage, read_file
from distcxr.recipe.augmentation import Augment
from distcxr.recipe.data import Data

SIZE, SEED, EPOCH, GLOBAL_BATCH = 32, 7, 3, 8
LOADERS: dict[str, dict[str, Any]] = {
    "torch": {"loader": "torch", "num_workers": 1},
    "torch in process": {"loader": "torch", "num_workers": 0},
    "dali": {"loader": "dali", "num_workers": 2},
    "cache": {"loader": "cache"},
    "cache, staged": {"loader": "cache", "cache": {"stage_to": "STAGED"}},
    "cache, resident": {"loader": "cache", "cache": {"resident": "device"}},
    "cache, partly resident": {"loader": "cache", "cache": {"resident": "device", "device_gb": 20 * SIZE**2 / 1e9}},
    "pack, torch": {"source": "pack", "loader": "torch", "num_workers": 1},
    "pack, dali": {"source": "pack", "loader": "dali", "num_workers": 2},
    "auto, measured": {"loader": "auto", "num_workers": 1, "cache": {"path": "NOWHERE"}},
    "auto, cached": {"loader": "auto"},
}
ON_GPU = ("torch", "dali", "cache", "cache, resident", "cache, partly resident", "pack, torch", "pack, dali")
GPU_LOADERS = {name: LOADERS[name] for name in ON_GPU}
WORLDS = (1, 2, 4)
WAYS = ("train", "train, resumed", "evaluate")
AUGMENT = Augment(flip=0.5, rotate_deg=5, scale=(0.9, 1.1), brightness=0.1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """51 files: sizes below and above the output's, square or not, every kind of PNG and JPEG, every class of broken
    file."""
    root, rng = tmp_path_factory.mktemp("matrix"), np.random.default_rng(11)
    content: dict[str, bytes | None] = {}
    for number in range(29):
        height, width = [(64, 64), (96, 96), (80, 120), (100, 64), (32, 32), (20, 30), (97, 131)][number % 7]
        Image.fromarray(rng.integers(0, 256, (height, width)).astype(np.uint8)).save(root / f"grey {number}.png")
        content[f"grey {number}.png"] = (root / f"grey {number}.png").read_bytes()
    whole = content["grey 1.png"]
    assert whole is not None
    content |= {f"kind {name}.png": data for name, data in kinds(rng, side=64).items()}
    content |= {f"bad {number}.png": data for number, data in enumerate(broken(whole).values())}
    content["bad, absent.png"] = None
    names = [str(name) for name in rng.permutation(list(content))]
    for name in names:
        if (data := content[name]) is not None:
            (root / name).write_bytes(data)
    index = index_of(root, names)
    (root / "index").write_bytes(pickle.dumps(index))
    expected = [np.zeros((SIZE, SIZE)) if "bad" in name else by_pillow(root / name, SIZE).numpy() for name in names]
    np.save(root / "expected.npy", np.stack(expected).astype(np.uint8))
    build_cache(index, root / "distcxr-cache" / f"{SIZE}px", SIZE, workers=2)
    if importlib.util.find_spec("imagecodecs"):  # the loaders that need no pack can be tested without
        build_pack(index, root / "distcxr-pack", workers=2)
    return root


def decided_by_main(decide: Any) -> Any:
    """As `distcxr.runtime.Runtime` does it."""
    values = [decide() if torch.distributed.get_rank() == 0 else None]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def make(folder: Path, index: SampleIndex, settings: dict[str, Any], plan: BatchPlan, device: str) -> PixelReader:
    places = {"STAGED": str(folder / f"staged {plan.world_size}"), "NOWHERE": str(folder / "nowhere")}
    cache = {key: places.get(str(value), value) for key, value in settings.get("cache", {}).items()}
    return choose_reader(
        Data.model_validate(settings | {"image_size": SIZE, "cache": cache}),
        index,
        max_batch_size=plan.per_device_batch_size,
        device=torch.device(device),
        local_world_size=plan.world_size,
        first_rows=train_rows(index),
        decided_by_main=decided_by_main if plan.world_size > 1 else lambda decide: decide(),
    )


def train_rows(index: SampleIndex) -> NDArray[np.int64]:
    return np.random.default_rng(1).permutation(len(index))[:36].astype(np.int64)


def eval_rows(index: SampleIndex) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(2).permutation(len(index))[:27])  # not a multiple of 2 or 4


def check(folder: Path, index: SampleIndex, reader: PixelReader, plan: BatchPlan, way: str) -> None:
    """One cell on one rank: every batch is the one that this rank has to get."""

    def parameters(epoch: int, positions: NDArray[np.int64]) -> torch.Tensor:
        return draw_parameters(AUGMENT, seed=SEED, epoch=epoch, positions=positions)

    if way == "evaluate":
        rows, num = eval_rows(index), len(eval_rows(index))
        order: Any = EvalOrder(rows, plan)
        start = 0
        mine = np.arange(num * plan.rank // plan.world_size, num * (plan.rank + 1) // plan.world_size)
        expected_ids = rows[mine]
    else:
        rows = train_rows(index)
        order = TrainOrder(rows, SEED, plan)
        start = 0 if way == "train" else 2
        share = GLOBAL_BATCH // plan.world_size
        firsts = [GLOBAL_BATCH * k + plan.rank * share for k in range(start, len(rows) // GLOBAL_BATCH)]
        mine = np.concatenate([np.arange(first, first + share) for first in firsts])
        expected_ids = rows[shuffled(mine, len(rows), seed=SEED, epoch=EPOCH)]
    batches = list(Loader(index, order, reader, parameters).epoch(EPOCH, start))
    assert_batches(folder, index, batches, expected_ids, parameters(EPOCH, mine))


def assert_batches(
    folder: Path, index: SampleIndex, batches: list[Batch], ids: NDArray[np.int64], parameters: torch.Tensor
) -> None:
    expected = np.load(folder / "expected.npy")
    bad = np.array([name.startswith(b"bad") for name in index.path.tolist()])
    pixels = torch.cat([batch.pixels.cpu() for batch in batches])
    assert pixels.dtype == torch.uint8 and pixels.shape == (len(ids), 1, SIZE, SIZE)
    np.testing.assert_array_equal(torch.cat([batch.sample_id for batch in batches]), ids)
    np.testing.assert_array_equal(torch.cat([batch.targets for batch in batches]), index.targets_NC[ids])
    mask = np.where(bad[ids, None], 0, index.mask_NC[ids])
    np.testing.assert_array_equal(torch.cat([batch.mask for batch in batches]), mask)
    assert torch.equal(torch.cat([batch.augment for batch in batches]), parameters)
    difference = np.abs(pixels[:, 0].numpy().astype(int) - expected[ids].astype(int))
    assert difference.max() <= 1, difference.max(axis=(1, 2))  # at the rim, too
    assert difference[bad[ids]].sum() == 0
    named = [entry for batch in batches for entry in batch.unreadable]
    assert named == [(int(row), reason(index, int(row))) for row in ids[bad[ids]]]


def reason(index: SampleIndex, row: int) -> str:
    try:
        decode_grey(read_file(index.files([row])[0])[0])
    except UnreadableImage as error:
        return str(error)
    raise AssertionError("it can be read")


def run_cells(folder: Path, loaders: dict[str, dict[str, Any]], world_size: int, device: str) -> list[str]:
    index: SampleIndex = pickle.loads((folder / "index").read_bytes())
    rank = torch.distributed.get_rank() if world_size > 1 else 0
    share = GLOBAL_BATCH // world_size  # two micro-batches an update
    plan = BatchPlan(GLOBAL_BATCH, share // 2, world_size, rank)
    ran = []
    for name, settings in loaders.items():
        with closing(make(folder, index, settings, plan, device)) as reader:
            assert isinstance(reader, CacheReader) == ("cache" in name)
            for way in WAYS:  # one after the other with one reader, as in a run
                check(folder, index, reader, plan, way)
                ran.append(f"{name} / {way} / {world_size} ranks")
    return ran


@pytest.mark.parametrize(
    "world_size", [pytest.param(n, marks=pytest.mark.world_size(n), id=f"{n}-ranks") for n in WORLDS]
)
def test_every_loader_gives_the_same_batches(world_size: int, folder: Path) -> None:
    assert torch.distributed.get_world_size() == world_size
    ran = run_cells(folder, LOADERS, world_size, "cpu")
    (folder / f"ran-{world_size}-{torch.distributed.get_rank()}").write_text("\n".join(ran))


@pytest.mark.gpu
@pytest.mark.parametrize("loader", GPU_LOADERS)
def test_every_loader_gives_the_same_batches_on_a_gpu(loader: str, folder: Path) -> None:
    for word, package in (("dali", "nvidia.dali"), ("pack", "imagecodecs")):
        if word in loader:
            pytest.importorskip(package)
    assert len(run_cells(folder, {loader: GPU_LOADERS[loader]}, 1, "cuda:0")) == len(WAYS)


@pytest.fixture
def stale(tmp_path: Path) -> Path:
    """A tiny run's data and its decoded cache, of which one source has changed since."""
    data = tiny.phantom(tmp_path)
    recipe = tiny.recipe(tmp_path)
    index = open_dataset(recipe).index
    build_cache(index, cache_folder(recipe.data, data), recipe.data.image_size, workers=1)
    os.utime(index.files([5])[0], ns=(1, 1))
    return tmp_path


@pytest.mark.world_size(2)
def test_a_cache_that_rank_0_refuses_ends_every_rank(stale: Path) -> None:
    """Rank 1 looks at no source file: it has to hear from rank 0, and not wait for it."""
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"1 of 96 images have changed since .*`distcxr cache RECIPE`"):
        tiny.build(stale, "data.loader=cache", f"output={stale / 'run'}")
    assert time.monotonic() - start < 30


def test_no_cell_was_skipped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts what the tests above wrote down when they were done; run this file as a whole."""
    wanted = {f"{name} / {way} / {world} ranks" for name in LOADERS for way in WAYS for world in WORLDS}
    ran: dict[int, set[str]] = {}
    for world in WORLDS:
        reports = [folder / f"ran-{world}-{rank}" for rank in range(world)]
        ran[world] = set.intersection(*(set(report.read_text().split("\n")) for report in reports))
    cells = set.union(*ran.values())
    with capsys.disabled():
        sys.stdout.write(f"\nloader matrix: {len(cells)} cells ran, {len(wanted - cells)} skipped\n")
    assert cells == wanted and len(cells) == 99
