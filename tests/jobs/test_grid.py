"""Which runs a sweep has: their names, their commands, and what is refused before the first starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny

from distcxr.jobs.check import check_runs
from distcxr.jobs.grid import Planned, folder_of, plan, split_values
from distcxr.recipe import load_recipe


def write(folder: Path, name: str, text: str = "model: {name: resnet18, weights: none}\n") -> Path:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1e-4,3e-4", ["1e-4", "3e-4"]),
        ("[flip,zoom]", ["[flip,zoom]"]),
        ("[flip],[]", ["[flip]", "[]"]),
        ("{mean: 0.5, std: 0.25}, half", ["{mean: 0.5, std: 0.25}", "half"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ('["x,]",y],z', ['["x,]",y]', "z"]),
        ("it's,b", ["it's", "b"]),
        ("", [""]),
    ],
)
def test_commas_divide_values_but_not_lists(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_the_grid_is_recipes_times_values(tmp_path: Path) -> None:
    recipes = [write(tmp_path, "a"), write(tmp_path, "b")]
    runs = plan(recipes, ["optim.lr=1e-4,3e-4", "data.root=/x", "seed=0,1"], tmp_path / "out")
    assert [run.name for run in runs[:5]] == [
        "a__optim.lr=1e-4__seed=0", "a__optim.lr=1e-4__seed=1", "a__optim.lr=3e-4__seed=0", "a__optim.lr=3e-4__seed=1",
        "b__optim.lr=1e-4__seed=0",
    ]  # fmt: skip
    assert len(runs) == 8
    for run in runs:  # the command of each gives the recipe that was checked
        assert load_recipe(run.recipe_path, run.overrides) == run.recipe
        assert run.folder == tmp_path / "out" / run.name and str(run.recipe.data.root) == "/x"
    assert (runs[2].recipe.optim.lr, runs[2].recipe.seed) == (3e-4, 0)
    assert runs[2].values == {"optim.lr": "3e-4", "seed": "0"}


def test_names_are_safe_and_stay_apart(tmp_path: Path) -> None:
    recipes = [write(tmp_path / "one", "same"), write(tmp_path / "two", "same")]
    names = [run.name for run in plan(recipes, ["eval.tta=[flip],[zoom],[flip,zoom]"], tmp_path)]
    assert len(set(names)) == 6 and {name.split("__")[0] for name in names} == {"one-same", "two-same"}
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.=,-") for name in names)


def test_the_same_command_finds_the_same_folder(tmp_path: Path) -> None:
    recipe = write(tmp_path, "a")
    folder, words = folder_of([recipe], ["seed=0,1"])
    assert words == ["seed=0,1"] and folder.parent == Path("runs/sweeps")
    assert folder_of([recipe], words)[0] == folder != folder_of([recipe], ["seed=0,2"])[0]
    assert folder_of([recipe], ["output=here", *words]) == (Path("here"), words)
    with pytest.raises(ValueError, match="the key output is named twice"):
        folder_of([recipe], ["output=here", "output=there"])


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["seed=0,0"], "the value of seed 0 is named twice"),
        (["seed=0", "seed=1"], "seed is given twice: write seed=a,b"),
        (["seed=0,,1"], "a value between commas is missing"),
        (["a:output=x"], "output=FOLDER, for all recipes"),
        (["seed"], "must read key=value"),
    ],
)
def test_mistakes_in_the_command(tmp_path: Path, assignments: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan([write(tmp_path, "a")], assignments, tmp_path)
    with pytest.raises(ValueError, match=r"recipe .* is named twice"):
        plan([write(tmp_path, "a"), write(tmp_path, "a")], [], tmp_path)


def test_every_wrong_recipe_is_named_once(tmp_path: Path) -> None:
    recipes = [write(tmp_path, "good"), write(tmp_path, "bad", "model: {names: x}\n")]
    with pytest.raises(ValueError) as caught:
        plan(recipes, ["optim.lr=1,zero", "seed=0,1"], tmp_path)
    said = str(caught.value)
    assert said.startswith("nothing was started:\n")
    assert said.count("did you mean 'name'?") == 1 and said.count("optim.lr = 'zero'") == 2


CHAIN = {
    "1_nih": "output: runs/nih\nmodel: {name: resnet18, weights: none}\n",
    "2_from_nih": "model: {name: resnet18, weights: runs/nih/checkpoints/best, new_head: true}\n",
    "3_alone": "model: {name: resnet18, weights: imagenet}\n",
}


def chain(folder: Path, *assignments: str) -> list[Planned]:
    return plan([write(folder, name, text) for name, text in CHAIN.items()], assignments, folder / "out")


def test_a_recipe_that_starts_from_anothers_output_starts_from_its_run_of_the_sweep(tmp_path: Path) -> None:
    runs = {run.name: run for run in chain(tmp_path, "seed=0,1")}
    follower = runs["2_from_nih__seed=1"]
    assert follower.after == "1_nih__seed=1"
    assert follower.recipe.model.weights == str(tmp_path / "out" / "1_nih__seed=1" / "checkpoints" / "best")
    assert load_recipe(follower.recipe_path, follower.overrides) == follower.recipe
    assert [run.after for run in runs.values() if "2_" not in run.name] == [None] * 4


def test_a_chain_has_a_data_root_for_each_half(tmp_path: Path) -> None:
    """And the rest of the command for all: one command runs `recipes/transfer/*`."""
    given = ("1_nih:data.root=/nih", "[23]_*:data.root=/heart", "seed=0,1", "optim.lr=1e-3", "3*:optim.lr=2e-3")
    runs = {run.name: run for run in chain(tmp_path, *given)}
    assert [str(run.recipe.data.root) for run in runs.values()] == ["/nih"] * 2 + ["/heart"] * 4
    assert [run.recipe.optim.lr for run in runs.values()] == [1e-3] * 4 + [2e-3] * 2
    follower = runs["2_from_nih__seed=1"]
    assert follower.after == "1_nih__seed=1"
    assert load_recipe(follower.recipe_path, follower.overrides) == follower.recipe
    with pytest.raises(ValueError, match=r"no recipe here is called 'nih'; they are 1_nih, 2_from_nih, 3_alone"):
        chain(tmp_path, "nih:data.root=/nih")
    with pytest.raises(ValueError, match=r"'1_nih:seed=0,1': a key for some of the recipes has one value"):
        chain(tmp_path, "1_nih:seed=0,1")
    with pytest.raises(ValueError, match=r"seed has several values for all recipes and one for some"):
        chain(tmp_path, "1_nih:seed=2", "seed=0,1")


def test_the_transfer_recipes_are_one_command(tmp_path: Path) -> None:
    recipes = sorted((Path(__file__).parents[2] / "recipes" / "transfer").glob("*.yaml"))
    runs = plan(recipes, ["nih_*:data.root=/nih", "heart_*:data.root=/heart"], tmp_path)
    assert {run.name: run.after for run in runs if run.after} == {
        "heart_from_nothing_nih": "nih_from_nothing", "heart_from_imagenet_nih": "nih_from_imagenet",
    }  # fmt: skip
    assert {run.name.split("_")[0]: str(run.recipe.data.root) for run in runs} == {"nih": "/nih", "heart": "/heart"}


def test_runs_that_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    a, b = (
        write(tmp_path, name, f"output: {tmp_path / name}\nmodel: {{weights: {tmp_path / other}}}\n")
        for name, other in (("a", "b"), ("b", "a"))
    )
    with pytest.raises(ValueError, match=r"begin with each other's weights .*: a -> b -> a"):
        plan([a, b], [], tmp_path / "out")


def test_a_run_is_told_apart_by_its_recipe_but_not_by_its_folder(tmp_path: Path) -> None:
    recipe = write(tmp_path, "a")
    one, other = (plan([recipe], [], tmp_path / folder)[0] for folder in ("x", "y"))
    assert one.identity() == other.identity()
    assert one.identity() != plan([recipe], ["train.max_steps=3"], tmp_path)[0].identity()


def test_a_network_that_can_not_be_built_without_numbers_is_built_with_them(tmp_path: Path) -> None:
    tiny.phantom(tmp_path, images=48, size=32)
    recipe = write(tmp_path, "regnet", "model: {name: regnet_y_400mf, weights: none}\n")
    given = [f"data.root={tmp_path / 'phantom'}", "data.val_fraction=0.25", "train.global_batch_size=4"]
    (run,) = plan([recipe], given, tmp_path)
    assert 3e6 < check_runs([run])["regnet"] < 5e6


def test_stages_are_looked_at_before_the_first_run(tmp_path: Path) -> None:
    tiny.phantom(tmp_path, images=48, size=32)
    given = [f"data.root={tmp_path / 'phantom'}", "data.val_fraction=0.25", "train.global_batch_size=4"]
    stages = "train: {{stages: [{{epochs: 1, trainable: [{}]}}, {{epochs: 1, schedule: {{warmup: {}st}}}}]}}\n"
    network = "model: {name: resnet18, weights: none}\n"
    recipes = [
        write(tmp_path, name, network + stages.format(*values))
        for name, values in {"good": ("layer4", 0), "typo": ("layer5", 0), "long": ("layer4", 9999)}.items()
    ]
    with pytest.raises(ValueError) as caught:
        check_runs(plan(recipes, given, tmp_path))
    said = str(caught.value)
    assert "typo: trainable of stage 1 of 2: 'layer5' names no parameter" in said and "good" not in said
    assert "long: stage 2 of 2: schedule.warmup is 9999 steps" in said
    with pytest.raises(ValueError, match=r"good\.yaml.*\n.*train.stage=3: train.stages are 1, 2"):
        plan(recipes[:1], [*given, "train.stage=1,3"], tmp_path)


def test_data_networks_weights_and_trackers_are_looked_at_before_the_first_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("wandb", "peft", "nvidia.dali", "imagecodecs", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, package, None)
    network = "model: {name: resnet18, weights: none"
    recipes = [
        write(tmp_path, "typo", "model: {name: resnet19, weights: none}\n"),
        write(tmp_path, "lost", "model: {name: resnet18, weights: nowhere.safetensors}\n"),
        write(tmp_path, "other", "model: {name: resnet18, weights: rad_dino}\n"),
        write(tmp_path, "told", f"{network}}}\nlogging: {{trackers: [wandb]}}\n"),
        write(tmp_path, "lora", f"{network}, lora: {{}}}}\n"),
        write(tmp_path, "dali", f"{network}}}\ndata: {{loader: dali}}\n"),
        write(tmp_path, "cuda", f"{network}}}\ndata: {{loader: gpu}}\n"),
        write(tmp_path, "pack", f"{network}}}\ndata: {{source: pack}}\n"),
    ]
    with pytest.raises(ValueError) as caught:
        check_runs(plan(recipes, [f"data.root={tmp_path / 'none'}"], tmp_path))
    said = str(caught.value)
    assert said.count("none is not a folder") == 4  # one `data` section, one complaint
    for part in (
        "typo: model.name=resnet19",
        "resnet18",
        "lost: model.weights=nowhere",
        "told: logging.trackers",
        "lora: model.lora needs peft: pip install 'distcxr[lora]'",
        "dali: DALI does not work here (No module named 'nvidia.dali')",
        "cuda: the CUDA kernels can't be compiled",
        "pack: a pack needs imagecodecs",
        "other: model.weights=rad_dino is of",
    ):
        assert part in said
