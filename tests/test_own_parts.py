"""Users' own parts: the examples of docs/own_parts.md train, resume and predict; what breaks a contract is named."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from accelerate.state import AcceleratorState
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

import distcxr
from distcxr import own_parts
from distcxr.cli import main
from distcxr.cli.options import recipe_of
from distcxr.data.dataset import open_dataset
from distcxr.data.pixels.own_reader import grey_reader
from distcxr.data.readers.torch_reader import TorchReader
from distcxr.engine.build import build_run
from distcxr.engine.checkpoint import CheckpointError, open_checkpoint
from distcxr.engine.compatible import as_trained, check_recipe
from distcxr.engine.fit import fit
from distcxr.engine.main import run
from distcxr.engine.opening import build_network
from distcxr.engine.own_functions import check_functions, with_same_sources, with_sources
from distcxr.engine.testing import score_test_split
from distcxr.explain.gradcam import gradcam
from distcxr.jobs.grid import Planned
from distcxr.own_parts import ALLOW_VARIABLE, PartError, blamed, open_parts
from distcxr.recipe import Recipe, RecipeError, load_recipe
from distcxr.runfolder.manifest import read_meta, write_meta

PAGE = (Path(__file__).parents[1] / "docs" / "own_parts.md").read_text()
MODULES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
SETTINGS = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
KINDS = {"model.name", "loss.function", "augment.function", "data.function", "data.reader"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory: the page's modules, synthetic X-rays, and a recipe with all the page's parts."""
    folder, before = tmp_path_factory.mktemp("own"), (Path.cwd(), list(sys.path))
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    tiny.phantom(folder)
    tiny.recipe(folder)
    own: dict[str, Any] = {"base": "tiny.yaml"}
    for settings in SETTINGS[1:]:  # the first is of an example without its module
        for section, keys in settings.items():
            own[section] = own.get(section, {}) | keys
    (folder / "own.yaml").write_text(yaml.safe_dump(own))
    os.chdir(folder)
    yield folder
    os.chdir(before[0])
    sys.path[:] = before[1]


def own_recipe(*overrides: str) -> Recipe:
    shared = ("data.root=phantom", "train.epochs=2", "eval.tta=[]", "model.weights=none")
    return load_recipe("own.yaml", [*shared, *overrides])


def train(*overrides: str) -> None:
    recipe = own_recipe(*overrides)
    run = build_run(recipe, "own", tiny.runtime(recipe), Console(quiet=True))
    fit(run)
    run.setup.close()


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    train("output=run")
    return place / "run"


def test_the_page_has_every_kind(place: Path) -> None:
    assert own_recipe().own_functions().keys() == KINDS == own_parts.CONTRACTS.keys()
    assert len(MODULES) == len(SETTINGS) - 1 == len(KINDS)


def test_a_run_records_the_sources(trained: Path) -> None:
    kept = load_recipe(trained / "recipe.yaml")
    modules = {key: name.partition(":")[0] for key, name in kept.own_functions().items()}
    digests = {key: hashlib.sha256(Path(f"{name}.py").read_bytes()).hexdigest() for key, name in modules.items()}
    assert kept.sources == digests == open_checkpoint(trained).recipe.sources


def test_a_resumed_run_is_the_same_bit_for_bit(trained: Path) -> None:
    train("output=resumed", "train.max_steps=6")  # in the middle of the second epoch
    train("output=resumed")
    last = sorted((trained / "checkpoints").glob("last-*"))[-1]
    ours, theirs = (
        load_file(folder / "model.safetensors") for folder in (last, Path("resumed/checkpoints") / last.name)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.world_size(2)
def test_two_ranks_train_alike(trained: Path) -> None:
    os.chdir(trained.parent)
    train("output=two_ranks", "train.max_steps=4", "eval.splits=[]")
    torch.distributed.barrier()
    alone, together = (
        [float(row["loss"]) for row in tiny.rows(Path(run) / "steps.csv")] for run in ("run", "two_ranks")
    )
    assert len(together) == 4
    assert alone[:4] == pytest.approx(together, rel=1e-5)
    recipe, rank = own_recipe("loss.function=of_node:loss"), torch.distributed.get_rank()
    node = trained.parent / f"node{rank}"
    node.mkdir()
    (node / "of_node.py").write_text(f"def loss(logits, targets):\n    return logits * {rank}\n")
    os.chdir(node)
    with pytest.raises(
        ValueError, match=r"loss.function=of_node:loss: the source on rank 1's node is not that of rank 0's"
    ):
        with_same_sources(recipe, tiny.runtime(recipe))


def test_predict_reads_as_test_did(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tiny.rows(trained / "predictions_test.csv")
    with pytest.warns(UserWarning, match="not calibrated|threshold"):
        predictor = distcxr.load("run", device="cpu")
    found = predictor.predict([f"phantom/images/{row['file']}" for row in rows])
    expected = [float(row[f"logit:{name}"]) for row in rows for name in predictor.findings]
    assert np.array_equal(found["logit"], np.float32(expected))


def test_another_recipe_s_test_reads_as_the_run_did(trained: Path) -> None:
    """Alone it is refused; in an ensemble each run's images are read as its own."""
    plain = own_recipe("data.reader=null", "output=plain")
    with pytest.raises(ValueError, match=r"- data\.reader: '\w+:read' in the checkpoint, None in the recipe"):
        score_test_split(plain, [trained], tiny.runtime(plain))
    checkpoint = open_checkpoint(trained)
    both = as_trained(plain, checkpoint)
    assert both.data.reader == checkpoint.recipe.data.reader and both.data.loader == "torch"
    assert both.sources["data.reader"] == checkpoint.recipe.sources["data.reader"]
    with pytest.raises(ValueError, match=r"own data\.reader=\w+:read, and here is data\.source=npz"):
        as_trained(plain.model_copy(update={"data": plain.data.model_copy(update={"source": "npz"})}), checkpoint)


def test_workers_find_a_reader_and_its_mistakes_are_named(place: Path) -> None:
    Path("odd_reader.py").write_text(
        "import numpy as np\n"
        "read = lambda file: np.zeros(2, int) if 'shape' in file else 1 + file if 'bug' in file else "
        "np.load('x') if 'bad' in file else np.full((9, 9), 7, np.uint8)\n"
    )
    recipe = own_recipe("data.reader=odd_reader:read")
    open_parts(recipe.own_functions(), {}, only="data.reader")

    def read(*files: str) -> Any:
        reader.locate = lambda rows: [files[row] for row in rows]
        return next(iter(reader.read([np.arange(len(files))])))

    reader = _Located(recipe)
    try:
        pixels, unreadable = read("good", "bad")
        assert pixels[0].unique().tolist() == [7]
        assert "odd_reader:read can't read it" in unreadable[0][1]
        with pytest.raises(TypeError) as raised:
            read("bug")
        assert "data.reader=odd_reader:read" in blamed(raised.value)
        assert "odd_reader.py" in str(raised.value)
        with pytest.raises(PartError, match=r"returned int64 \[2\] for shape; it is called as function\(file\)"):
            read("shape")
    finally:
        reader.close()


class _Located(TorchReader):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__(self._files, 8, num_workers=1, pin_memory=False, read_grey=grey_reader(recipe.data))

    def _files(self, rows: Any) -> Any:
        return self.locate(rows)

    locate: Any


BODIES = {
    "model.name": "def {name}(num_classes, in_chans, image_size): {body}",
    "loss.function": "def {name}(logits, targets): {body}",
    "augment.function": "def {name}(images, random): {body}",
    "data.function": "def {name}(root): {body}",
    "data.reader": "def {name}(file): {body}",
}
BROKEN = [
    ("model.name", "return 3", "returned int; it is called as"),
    ("model.name", "return nn.Flatten()", r"makes torch.float32 \[2, 1024\] of 2 images, for 2 findings"),
    ("model.name", "return nn.Sequential(nn.Flatten(), nn.LazyLinear(2), nn.LSTM(2, 2))", "network that makes tuple"),
    ("model.name", "return nn.Sequential(nn.Flatten(), nn.Linear(1024, 2).requires_grad_(False))", "nothing to train"),
    (
        "model.name",
        "m = nn.Sequential(nn.Flatten(), nn.Linear(1024, 2)); m[1].spare = nn.Linear(2, 2); return m",
        "2 parameters that no logit depends on, 1.spare.weight",
    ),
    ("loss.function", "return F.mse_loss(logits, targets)", r"returned torch.float32 \[\] for logits \[2, 2\]"),
    ("loss.function", "return 0.5", "returned float"),
    ("loss.function", "return targets * 2", "without a gradient"),
    ("loss.function", "return -logits.log()", "not finite"),
    ("loss.function", "return logits - logits.mean(0)", "depend on other images"),
    ("augment.function", "return images[:, :, 1:]", r"returned torch.float32 \[2, 1, 31, 32\]"),
    ("augment.function", "return images.byte()", "returned torch.uint8"),
    ("augment.function", "return None", "returned NoneType"),
    ("augment.function", "return images + torch.rand_like(images)", "take all chance from `random`"),
    ("augment.function", "return images - images.mean()", "depends on others of the batch"),
    ("augment.function", "return images / 0", "not finite"),
    ("data.function", "return [1]", "returned list"),
    ("data.function", "import pandas as pd; return pd.DataFrame({'image': []})", "without rows"),
    (
        "data.function",
        "import pandas as pd; return pd.DataFrame({'image': ['a.png'], 'patient': [1], 'Mass': [1], 'Effusion': [7]})",
        r"table of broken:part_\d+, line 1, column Effusion: label '7' is not 0, 1, -1",
    ),
    ("data.reader", "raise ValueError('no header')", "can read none of 8 images: .*no header"),
    ("data.reader", "return [[1]]", "returned list for .*png"),
]  # fmt: skip


@pytest.fixture(scope="module")
def broken(place: Path) -> None:
    lines = ["import torch", "import torch.nn.functional as F", "from torch import nn", "number = 3"]
    lines += [BODIES[key].format(name=f"part_{n}", body=body) for n, (key, body, _) in enumerate(BROKEN)]
    (place / "broken.py").write_text("\n".join([*lines, "def fails(logits, targets):", "    return 1 / 0", ""]))


@pytest.mark.parametrize("number", range(len(BROKEN)), ids=[f"{key}-{n}" for n, (key, *_) in enumerate(BROKEN)])
def test_a_broken_contract_is_named(place: Path, broken: None, number: int) -> None:
    key, _, message = BROKEN[number]
    recipe = with_sources(own_recipe(f"{key}=broken:part_{number}"))
    with pytest.raises(ValueError, match=message) as raised:
        check_functions(recipe, open_dataset(recipe))
    assert f"{key}=broken:part_{number}" in str(raised.value) or "table of broken" in str(raised.value)
    assert not blamed(raised.value)


def test_a_run_with_a_broken_part_leaves_no_folder(place: Path, broken: None) -> None:
    recipe = own_recipe("model.name=broken:part_0", "output=not_begun")
    with pytest.raises(PartError, match="returned int"):
        build_run(recipe, "own", tiny.runtime(recipe), Console(quiet=True))
    assert not Path("not_begun").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent:loss", "no module 'absent' in the working directory"),
        ("torch.absent:loss", "no module 'torch.absent'"),
        ("sys:exit", "'sys' has no source file"),
        ("broken:absent", r"broken.py has no 'absent'; it has .*part_0"),
        ("broken:number", "is int, which can't be called"),
        ("broken:part_5", "can't be called so: .*image_size=224"),
        ("torch.nn:Linear", "is written in torch.nn.modules.linear: name torch.nn.modules.linear:Linear"),
        ("csv:reader", r"'csv' is already .*: rename .*csv.py"),
    ],
)
def test_what_can_not_be_loaded(place: Path, broken: None, name: str, message: str) -> None:
    key = "model.name" if name == "broken:part_5" else "loss.function"
    if name == "csv:reader":
        (place / "csv.py").write_text("")
    try:
        with pytest.raises(PartError, match=message) as raised:
            with_sources(own_recipe(f"{key}={name}"))
    finally:
        (place / "csv.py").unlink(missing_ok=True)
    assert str(raised.value).startswith(f"{key}={name}")


def test_a_name_that_is_no_name(place: Path) -> None:
    for key in KINDS:
        with pytest.raises(RecipeError, match=rf"{re.escape(key)} = 'mine'.* is not module:function: write mine:loss"):
            own_recipe(f"{key}=mine")


def test_an_error_in_a_part_keeps_its_traceback(
    place: Path, broken: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early, by a sweep that starts nothing; the last line names the key."""
    open_parts({"augment.function": "broken:part_11", "data.function": "broken:part_16"}, {})  # of the same file
    words = ["sweep", "own.yaml", "data.root=phantom", "loss.function=broken:fails", "--dry-run", "--processes", "1"]
    monkeypatch.setattr("sys.argv", ["distcxr", *words])
    assert main() == 2
    text = capsys.readouterr().err
    assert 'broken.py", line' in text and "return 1 / 0" in text
    assert re.search(r"error: ZeroDivisionError; .*loss.function=broken:fails \(.*broken.py, line \d+\)$", text.strip())


def test_an_error_while_training_keeps_its_traceback(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Even a ValueError, which elsewhere is a sentence without one."""
    Path("later.py").write_text(
        "calls = []\n\n\ndef loss(logits, targets):\n    calls.append(1)\n    if len(calls) > 4:\n"
        "        raise ValueError('mine')\n    return (logits - targets) ** 2\n"
    )
    recipe = own_recipe("loss.function=later:loss", "output=later")
    tiny.runtime(recipe)  # that a process starts a second one is for tests alone
    AcceleratorState._reset_state(reset_partial_state=False)
    monkeypatch.setattr("distcxr.engine.main.start_logging", lambda console: None)
    assert run(recipe, "own", []) == 2
    assert "raise ValueError('mine')" in caplog.text
    assert "error: ValueError: mine; the error is in your own part loss.function=later:loss (" in caplog.text


def test_a_mistake_on_import_is_named(place: Path) -> None:
    Path("no_import.py").write_text("import numpy\nimport not_installed\n")
    with pytest.raises(ModuleNotFoundError) as raised:
        with_sources(own_recipe("loss.function=no_import:loss"))
    assert re.search(r"loss.function=no_import:loss \(.*no_import.py, line 2\)", blamed(raised.value))
    Path("no_syntax.py").write_text("def loss(:\n")
    with pytest.raises(PartError, match=r"loss.function=no_syntax:loss: .*no_syntax.py, line 1: "):
        with_sources(own_recipe("loss.function=no_syntax:loss"))


def test_a_changed_source_is_not_resumed(trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    checkpoint, recipe = open_checkpoint(trained), with_sources(own_recipe())
    check_recipe(checkpoint, recipe)
    changed = recipe.model_copy(update={"sources": recipe.sources | {"loss.function": "0" * 64}})
    with pytest.raises(
        CheckpointError, match=r"loss.function=my_loss:loss: .*my_loss.py .*SHA-256 \w{12} in the run, 0"
    ):
        check_recipe(checkpoint, changed)
    with pytest.raises(PartError, match="is not the source that the run was made with"):
        open_parts(recipe.own_functions(), changed.sources)
    monkeypatch.setenv(ALLOW_VARIABLE, "allow")
    assert open_parts(recipe.own_functions(), changed.sources) == recipe.sources
    check_recipe(checkpoint, changed)
    assert "run of two sources" in caplog.text


def test_code_that_a_run_names_is_run_only_if_it_is_the_run_s(trained: Path, tmp_path: Path) -> None:
    """A run of somebody else's may name any module of this machine, such as a setup.py."""
    theirs = tmp_path / "theirs"
    shutil.copytree(trained, theirs)
    Path("innocent.py").write_text("raise SystemExit('this was imported')\n")
    _rewrite(theirs, "innocent:main", {"model.name": "1" * 64})
    with pytest.raises(PartError, match=r"innocent.py is not the source that the run was made with .*DISTCXR_CHANGED"):
        distcxr.load(theirs, device="cpu")
    _rewrite(theirs, "innocent:main", {})
    with pytest.raises(PartError, match=r"names model.name=innocent:main, data.* without the SHA-256"):
        distcxr.load(theirs, device="cpu")


def test_code_in_a_run_folder_is_not_run(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (trained / "from_the_run.py").write_text(text := "raise SystemExit('this was imported')\n")
    named, recorded = (
        {"model.name": value} for value in ("from_the_run:main", hashlib.sha256(text.encode()).hexdigest())
    )
    monkeypatch.chdir(trained)
    with pytest.raises(PartError, match="no module 'from_the_run' outside of this run folder"):
        open_parts(named, recorded)
    monkeypatch.syspath_prepend(trained)  # as `python -m distcxr.cli` does
    with pytest.raises(PartError, match="what a run folder brings along is never run"):
        open_parts(named, recorded)


def test_a_run_in_the_working_directory_itself_resumes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "beside_it.py").write_text("def loss(logits, targets):\n    return logits\n")
    recipe = own_recipe("loss.function=beside_it:loss")
    monkeypatch.chdir(tmp_path)
    recipe = with_sources(recipe)
    assert recipe.sources == with_sources(recipe).sources


def test_a_run_s_recipe_without_sources_is_not_taken(trained: Path, tmp_path: Path) -> None:
    kept = tmp_path / "run" / "recipe.yaml"
    shutil.copytree(trained, kept.parent)
    checkpoint = kept.parent / "checkpoints" / "best"
    assert recipe_of(checkpoint, ["seed=1"]) == (kept, ["seed=1"])
    values = yaml.safe_load(kept.read_text())
    kept.write_text(yaml.safe_dump({**values, "sources": {}}))
    with pytest.raises(PartError, match=r"recipe.yaml names model.name=my_network:network, .* without the SHA-256"):
        recipe_of(checkpoint, [])


def test_stages_have_parts_of_their_own(place: Path, broken: None) -> None:
    recipe = own_recipe("train.stages=[{epochs: 1}, {epochs: 1, loss: {function: broken:part_6}}]")
    assert recipe.own_functions()["loss.function"] == "my_loss:loss"
    recipe = with_sources(recipe)
    with pytest.raises(PartError, match=r"train.stages.1.loss.function=broken:part_6 returned float"):
        check_functions(recipe, open_dataset(recipe))


def test_a_sweep_runs_again_what_has_another_source(place: Path) -> None:
    source = place / "swept.py"
    planned = Planned("a", Path("own.yaml"), (), {}, own_recipe("loss.function=swept:loss", "output=swept"))
    source.write_text("def loss(logits, targets):\n    return logits\n")
    before = planned.identity()
    assert before == planned.identity()
    source.write_text("def loss(logits, targets):\n    return -logits\n")
    assert before != planned.identity()


def test_lazy_layers_have_their_shapes_every_time(place: Path) -> None:
    Path("lazy.py").write_text(
        "from torch import nn\n\n\ndef network(num_classes, in_chans, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.LazyBatchNorm1d(), nn.LazyLinear(num_classes))\n"
    )
    recipe, findings = with_sources(own_recipe("model.name=lazy:network")), ["Effusion", "Mass"]
    for _ in range(2):
        torch.manual_seed(0)
        module = build_network(recipe, findings)
        assert [tuple(value.shape) for value in module.parameters()] == [(1024,), (1024,), (2, 1024), (2,)]
        assert module[1].num_batches_tracked == 0  # type: ignore[index]
        assert not module[1].running_mean.any()  # type: ignore[index]


class Halves(nn.Module):
    """As the page has it of networks that want heat maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.conv(images)

    def forward_head(self, map_BKHW: Tensor) -> Tensor:
        return self.last(map_BKHW.mean((2, 3)))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def test_a_network_in_two_halves_has_heat_maps() -> None:
    assert gradcam(Halves().eval(), torch.rand(3, 1, 16, 16), [1]).shape == (3, 1, 16, 16)


def _rewrite(run: Path, name: str, sources: dict[str, str]) -> None:
    for folder in run.glob("checkpoints/*"):
        meta = read_meta(folder)
        meta["recipe"]["model"]["name"], meta["recipe"]["data"]["reader"] = name, None
        meta["recipe"]["sources"] = {**dict.fromkeys(KINDS, "2" * 64), **sources} if sources else {}
        write_meta(folder, meta)
