"""The table of ingredients by hand-made figures, and recipes that every variant makes. Nothing is trained."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from ingredients import BASE, NONE_SEEN, VARIANTS, auroc_of, commit_of, compared, table, write_pretext

from distcxr.recipe import load_recipe

SPREAD_OF_A_HUNDREDTH = {0: 0.80, 1: 0.81, 2: 0.805}


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ((0.02, 0.03, 0.025), "better"),
        ((-0.02, -0.03, -0.025), "worse"),
        ((0.05, 0.05, -0.001), NONE_SEEN),
        ((0.009, 0.009, 0.009), NONE_SEEN),
        ((0.05, 0.05), "seeds missing"),
    ],
)
def test_a_difference_has_one_sign_and_exceeds_the_spread_of_seeds(gains: tuple[float, ...], verdict: str) -> None:
    ours = {seed: SPREAD_OF_A_HUNDREDTH[seed] + gain for seed, gain in enumerate(gains)}
    figures = compared(ours, SPREAD_OF_A_HUNDREDTH)
    assert figures["verdict"] == verdict
    assert figures["gains"] == pytest.approx(gains)


def test_the_table_pairs_seeds_and_leaves_out_what_was_not_run() -> None:
    rows = [{"variant": "base", "seed": seed, "auroc": auroc} for seed, auroc in SPREAD_OF_A_HUNDREDTH.items()]
    rows += [{"variant": "mixup", "seed": seed, "auroc": auroc} for seed, auroc in ((2, 0.835), (0, 0.82), (1, 0.85))]
    assert table(rows).splitlines()[2:] == [
        "| quickstart's augmentation, BCE | 0.8050 | | 0.8000, 0.8100, 0.8050 | |",
        "| mixup, alpha .2 | 0.8350 | +0.0300 | +0.0200 to +0.0400 | better |",
    ]


def test_every_variant_is_a_recipe_of_its_own(tmp_path: Path) -> None:
    recipes = []
    for variant in VARIANTS.values():
        recipes.append(load_recipe(Path("recipes/quickstart.yaml"), [*BASE, *variant.overrides]).model_dump_json())
        if variant.pretraining:
            keys = [key.replace("{work}", str(tmp_path)) for key in variant.pretraining]
            load_recipe(Path("recipes/quickstart.yaml"), [*BASE, *keys])
    # The two that are pretrained differ in what they begin with.
    assert len(set(recipes)) == len(VARIANTS) - 1


def test_the_pretext_names_no_finding_and_no_test_image(tmp_path: Path) -> None:
    phantom = tmp_path / "phantom"
    phantom.mkdir()
    (phantom / "train_val_list.txt").write_text("a.png\nb.png\n")
    header = "Image Index,Finding Labels,Patient ID,Patient Gender,View Position"
    people = ["a.png,Effusion,12,M,PA", "b.png,Mass,21,F,AP", "c.png,Hernia,33,F,PA"]
    (phantom / "Data_Entry_2017_v2020.csv").write_text("\n".join([header, *people]) + "\n")
    write_pretext(phantom, tmp_path / "pretext")
    with (tmp_path / "pretext" / "labels.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["image", "patient", "split", "AP", "Male"],
            ["images/a.png", "12", "train", "0", "1"],
            ["images/b.png", "21", "val", "1", "0"],
        ]


def test_a_run_is_read_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "metrics_test.json").write_text('{"macro": {"auroc": 0.75}}')
    assert auroc_of(tmp_path) == 0.75
    (tmp_path / "environment.json").write_text('{"commit": "9277956f"}')
    assert commit_of(tmp_path) == "9277956f"
