"""`train.deterministic`: same recipe, same numbers twice, whoever reads; what can't be is a sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from saved import tensors

from distcxr.data.dataset import open_dataset
from distcxr.data.store.cache_building import build_cache
from distcxr.determinism import set_deterministic
from distcxr.engine import main as engine_main
from distcxr.exit_codes import USER
from distcxr.recipe import Recipe
from distcxr.recipe.load import RecipeError

LOADERS = {"torch": 1, "dali": 2, "cache": None}
SHORT = ("train.max_steps=2", "eval.every=9st", "eval.splits=[]", "train.per_device_batch_size=8", "eval.pictures=0")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    set_deterministic(False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("twice")
    tiny.phantom(root)
    index = open_dataset(tiny.recipe(root)).index
    build_cache(index, root / "phantom" / "distcxr-cache" / "32px", 32, workers=1)
    return root


@pytest.mark.parametrize("loader", LOADERS)
def test_the_same_recipe_gives_the_same_numbers_twice(folder: Path, tmp_path: Path, loader: str) -> None:
    workers = f"data.num_workers={LOADERS[loader] or 'null'}"
    for name in ("one", "two"):
        tiny.train(
            folder, *SHORT, "train.deterministic=true", "model.drop_rate=0.3", f"data.loader={loader}", workers,
            f"output={tmp_path / name}",
        )  # fmt: skip
        assert torch.are_deterministic_algorithms_enabled()
    one, two = (tensors(tmp_path / name / "checkpoints" / "last-00000002") for name in ("one", "two"))
    assert one.keys() == two.keys() and len(one) > 100
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_it_is_set_before_the_device_is_used_and_taken_back(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def state() -> tuple[bool, bool, bool]:
        cudnn = torch.backends.cudnn
        return torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark

    tiny.runtime(tiny.recipe(folder, "train.deterministic=true"))
    assert state() == (True, True, False) and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    tiny.runtime(tiny.recipe(folder))
    assert state() == (False, False, True)


def test_an_operation_without_a_deterministic_kernel_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def train(*_: object) -> None:
        pooled, at = torch.nn.functional.max_pool2d(torch.rand(1, 1, 4, 4), 2, return_indices=True)
        torch.nn.functional.max_unpool2d(pooled, at, 2)

    monkeypatch.setattr(engine_main, "train", train)
    monkeypatch.setattr(engine_main, "start_logging", lambda console: None)
    monkeypatch.setattr(engine_main, "start_runtime", tiny.runtime)
    recipe: Recipe = tiny.recipe(folder, "train.deterministic=true")
    assert engine_main.run(recipe, "tiny", []) == USER
    message = "train.deterministic=true: max_unpooling2d_forward_out has no deterministic kernel on this device. Set"
    assert message in caplog.text and "Traceback" not in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.loader=auto"], r"data\.loader=auto: it takes .* Set data\.loader to torch, dali, cache or gpu"),
        (["train.autotune=true"], r"train\.autotune=true: it takes .* Set train\.compile instead"),
    ],
)
def test_what_chooses_by_measured_time_is_refused(folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        tiny.recipe(folder, "train.deterministic=true", *overrides)
