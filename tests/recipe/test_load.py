"""Recipes: strict keys, helpful errors, values coerced by their declaration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from distcxr.recipe import Recipe, RecipeError, load_recipe
from distcxr.recipe.keys import json_schema, to_steps
from distcxr.recipe.load import to_yaml

RECIPES = Path(__file__).parents[2] / "recipes"


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def error_of(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load_and_print_themselves(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert load_recipe(write(tmp_path, to_yaml(recipe))) == recipe


def test_exported_schema_is_up_to_date() -> None:
    assert json.loads((RECIPES / "recipe.schema.json").read_text()) == json_schema(), (
        "run: .venv/bin/distcxr schema > recipes/recipe.schema.json"
    )


def test_values_take_their_declared_type(tmp_path: Path) -> None:
    path = write(tmp_path, "optim: {lr: 1e-4, weight_decay: 0}\ntrain: {precision: no, tf32: off, epochs: 3}\n")
    recipe = load_recipe(path, ["schedule.min_lr=1.5e-6", "train.max_steps=12", "data.findings=[Mass, Nodule]"])
    assert recipe.optim.lr == 1e-4 and recipe.schedule.min_lr == 1.5e-6
    assert recipe.train.precision == "no" and recipe.train.tf32 is False
    assert recipe.train.max_steps == 12 and recipe.data.findings == ["Mass", "Nodule"]


def test_base_is_merged_key_by_key(tmp_path: Path) -> None:
    write(tmp_path, "seed: 5\noptim: {name: sgd, lr: 0.1}\n", "base.yaml")
    recipe = load_recipe(write(tmp_path, "base: base.yaml\noptim: {lr: 0.2}\n"))
    assert (recipe.seed, recipe.optim.name, recipe.optim.lr) == (5, "sgd", 0.2)


def test_base_errors(tmp_path: Path) -> None:
    assert "circle" in error_of(write(tmp_path, "base: recipe.yaml\n"))
    message = error_of(write(tmp_path, "base: nowhere.yaml\n"))
    assert "nowhere.yaml" in message and "recipe.yaml" in message
    assert "`base` must be one file name" in error_of(write(tmp_path, "base: [a.yaml]\n"))


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (
            "modle: {}",
            [],
            ["recipe.yaml", "unknown key 'modle'; did you mean 'model'?", "Valid keys of a recipe: output"],
        ),
        ("", ["train.epoch=3"], ["unknown key 'train.epoch'", "(from the override 'train.epoch=3')", "'epochs'"]),
        (
            "data: {loader: torhc}",
            [],
            ["data.loader = 'torhc'", "'auto', 'torch', 'dali', 'gpu' or 'cache'", "did you mean 'torch'?"],
        ),
        ("data: {image_size: large}", [], ["data.image_size = 'large'", "valid integer"]),
        ("train: 5", [], ["train = 5"]),
        ("schedule: {warmup: 10}", [], ["schedule.warmup = 10 is not a duration", "10ep", "500st", "5%"]),
        ("checkpoint: {every: 3 epochs}", [], ["checkpoint.every = '3 epochs' is not a duration"]),
        ("", ["train.max_steps=0"], ["train.max_steps = 0", "greater than or equal to 1"]),
        ("", ["optim.lr=nan"], ["optim.lr"]),
        ("", ["train.on_nan=ignore"], ["train.on_nan = 'ignore'", "'stop' or 'skip'"]),
        ("", ["train.max_skips=-1"], ["train.max_skips = -1", "greater than or equal to 0"]),
        (
            "augment: {normalize: {mean: 0.5, std: 0}}",
            [],
            ["augment.normalize.std = 0: input should be"],
        ),
        ("augment: {normalize: {mean: nan, std: 0.5}}", [], ["augment.normalize.mean = 'nan'"]),
        ("", ["augment.scale=[0.9, inf]"], ["augment.scale.1 = 'inf'"]),
        ("augment: {normalize: {mean: 0.5, sdt: 1}}", [], ["unknown key 'augment.normalize.sdt'; did you mean 'std'?"]),
        ("", ["data.split=lists"], ["data.lists and data.split: lists belong together"]),
        ("", ["data.ratios=[0.5, 0.1, 0.1]"], ["data.ratios must sum to 1"]),
        ("", ["augment.crop=300"], ["augment.crop=300 is larger than the 224 px image"]),
        ("", ["loss={name: partial_auc, beta: 0}"], ["loss.beta = 0", "greater than 0"]),
        ("", ["loss={name: partial_auc, beta: 1.5}"], ["loss.beta = 1.5", "less than or equal to 1"]),
        (
            "",
            ["loss={name: auc_margin, label_smoothing: 0.1}"],
            ["loss.label_smoothing=0.1 does not go with loss.name=auc_margin", "Set loss.label_smoothing=0"],
        ),
        (
            "loss: {weights: prior}",
            [],
            ["loss.weights=prior is of auc_margin and partial_auc, not of bce: use balanced"],
        ),
        ("loss: {name: combined}", [], ["loss.name=combined needs loss.parts: [{name: bce}, {name: asymmetric}]"]),
        (
            "loss: {name: combined, weights: balanced, parts: [{name: bce}]}",
            [],
            ["do not go with loss.name=combined: each of loss.parts has its own"],
        ),
        (
            "loss: {name: combined, parts: [{name: cross_entropy}]}",
            [],
            ["loss.parts.0.name = 'cross_entropy'", "'auc_margin' or 'partial_auc'"],
        ),
        (
            "train: {stages: [{epochs: 1, loss: {name: auc_margin}}], global_batch_size: 1}",
            [],
            ["train.global_batch_size=1 with train.stages.0.loss.name=auc_margin: it ranks the images of a batch"],
        ),
        (
            "loss: {name: auc_margin}\ntrain: {stages: [{epochs: 1, loss: {name: cross_entropy}}]}",
            [],
            ["makes auc_margin and cross_entropy of one run"],
        ),
        ("", ["nonsense"], ["'nonsense' must read key=value"]),
        ("seed: 1\nseed: 2", [], ["the key 'seed' is there twice"]),
        ("a: [1", [], ["is not valid YAML"]),
        ("? [a, b]\n: 3", [], ["is not valid YAML", "a key must be a word"]),
        ("train: {epochs: true}", [], ["epochs can't be true"]),
        ("- 1", [], ["must hold keys and values"]),
        ("seed: !!python/object/apply:os.getpid []", [], ["is not valid YAML"]),
    ],
)
def test_errors_name_key_and_remedy(tmp_path: Path, text: str, overrides: list[str], expected: list[str]) -> None:
    message = error_of(write(tmp_path, text), *overrides)
    for part in expected:
        assert part in message


def float_keys(section: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every key of a recipe that holds a single float, stages' aside."""
    found = []
    for name, field in section.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        sections = [kind for kind in inner if issubclass(kind, BaseModel)]
        found += [key for one in sections for key in float_keys(one, f"{prefix}{name}.")]
        if float in inner or any(get_args(kind)[:1] == (float,) for kind in get_args(field.annotation)):
            found.append(prefix + name)
    return found


IN_LISTS = ("train.stages.", "data.members.", "loss.parts.")


@pytest.mark.parametrize("key", [key for key in float_keys() if not key.startswith(IN_LISTS)])
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, key: str) -> None:
    """Infinite clip norms, a standard deviation that is NaN, and every other key with a float."""
    for value in ("nan", "inf", "-inf", "1e999"):
        assert f"{key} = " in error_of(write(tmp_path, ""), f"{key}={value}")


def test_the_keys_with_floats_are_found() -> None:
    assert {"train.clip_norm", "optim.lr", "train.ema", "augment.flip", "loss.alpha"} <= set(float_keys())


@pytest.mark.parametrize("value", ["0", "-1", "0.0", ".inf"])
def test_a_clip_norm_clips(tmp_path: Path, value: str) -> None:
    assert "train.clip_norm = " in error_of(write(tmp_path, ""), f"train.clip_norm={value}")


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert "gone.yaml" in error_of(tmp_path / "gone.yaml")


def test_a_recipe_of_ours_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("densenet121") == load_recipe(RECIPES / "densenet121.yaml")
    assert load_recipe("transfer/nih_from_nothing") == load_recipe(RECIPES / "transfer" / "nih_from_nothing.yaml")
    own = load_recipe(write(tmp_path, "base: study/resnet34\nseed: 7\n"))
    assert (own.seed, own.model.name) == (7, load_recipe(RECIPES / "study" / "resnet34.yaml").model.name)
    (tmp_path / "densenet121").mkdir()
    assert load_recipe("densenet121").model.name == "densenet121", "a folder is not a recipe"
    (tmp_path / "densenet121").rmdir()
    write(tmp_path, "seed: 5\n", "densenet121")
    assert load_recipe("densenet121").seed == 5, "a file comes before a name"


@pytest.mark.parametrize("named", ["densnet121", "recipes/densenet121.yaml", "densenet121.yml"])
def test_a_name_that_is_not_there_is_compared_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    error = error_of(Path(named))
    assert named in error and "did you mean densenet121? Recipes that come with distcxr: base, " in error
    assert "study/resnet101" in error and "launch/" not in error


def test_identity_ignores_what_does_not_change_the_result() -> None:
    recipe = Recipe()
    free = {"output": "x", "train": {"max_steps": 3, "resume": "never"}, "data": {"loader": "dali", "num_workers": 2}}
    assert Recipe.model_validate(free).identity() == recipe.identity()
    for changed in ({"seed": 1}, {"optim": {"lr": 2e-4}}, {"train": {"epochs": 11}}, {"data": {"image_size": 256}}):
        assert Recipe.model_validate(changed).identity() != recipe.identity()


def test_durations() -> None:
    def resolve(duration: str) -> int:
        return to_steps(duration, steps_per_epoch=40, epochs=5)

    assert [resolve(text) for text in ("2ep", "0.5ep", "7st", "5%", "100%")] == [80, 20, 7, 10, 200]


STAGES = """
loss: {name: focal, gamma: 1}
augment: {flip: 0.5}
data: {sampling: {cap_per_label: 100}}
train: {stages: [{trainable: [fc], epochs: 2, loss: {alpha: 0.25}}, {epochs: 1, sampling: {balance: class}}]}
"""


def test_a_stage_completes_its_sections_from_the_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, STAGES), ["train.stages.1.lr=1e-5", "train.stages.1.loss.gamma=3"])
    first, second = recipe.train.stages
    assert first.loss is not None and second.loss is not None and second.sampling is not None
    assert (first.loss.name, first.loss.gamma, first.loss.alpha) == ("focal", 1, 0.25)
    assert (second.loss.name, second.loss.gamma, second.loss.alpha) == ("focal", 3, None)
    assert (second.sampling.cap_per_label, second.sampling.balance, second.lr) == (100, "class", 1e-5)
    assert first.augment is None and first.lr is None
    assert load_recipe(write(tmp_path, to_yaml(recipe), "again.yaml")) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stages.2.lr=1", "'train.stages.2.lr=1': train.stages has no entry 2; its entries are 0 to 1"),
        ("train.stages.first.lr=1", "train.stages has no entry first; its entries are 0 to 1"),
        ("data.findings.0=Mass", "data.findings has no entry 0; the recipe has none there"),
        ("train.stages.0.lr=0", "train.stages.0.lr = 0 (from the override 'train.stages.0.lr=0')"),
        ("train.stages.0.epochs=null", "train.stages.0.epochs = None"),
        ("train.stages.0.loss.gama=1", "unknown key 'train.stages.0.loss.gama'"),
    ],
)
def test_overrides_of_a_stage(tmp_path: Path, override: str, message: str) -> None:
    assert message in error_of(write(tmp_path, STAGES), override)


def test_a_mistake_that_a_stage_inherits_is_reported_once(tmp_path: Path) -> None:
    message = error_of(write(tmp_path, STAGES), "loss.gama=2")
    assert message.count("gama") == 2  # the key and the override it came from


def test_a_contradiction_that_a_stage_inherits_is_reported_once(tmp_path: Path) -> None:
    assert error_of(write(tmp_path, STAGES), "loss.alpha=0.5", "loss.weights=balanced").count("both weigh") == 1
