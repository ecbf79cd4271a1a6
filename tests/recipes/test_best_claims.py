"""What the recipes of `best/` say, held against the running engine."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import watched
from timm.layers import DropPath

from distcxr.engine.state import Run
from distcxr.recipe.augmentation import RandAugment


class Claim(NamedTuple):
    """What a recipe's header and name say."""

    network: str  # a small one of its family
    px: int
    batch: int
    lr: float
    epochs: int
    layer_decay: float | None
    drop_path: float
    parts: tuple[str, ...]
    is_rand: bool
    undecayed: frozenset[str]  # of more than one dimension


BOTH = ("bce", "asymmetric")
TOKENS, TABLES = frozenset({"cls_token", "pos_embed"}), frozenset({"relative_position_bias_table"})
CLAIMS = {
    "densenet121_320": Claim("test_resnet", 320, 128, 2e-4, 15, None, 0.0, BOTH, False, frozenset()),
    "swin_base_384": Claim("swin_tiny_patch4_window7_224", 384, 64, 1e-4, 12, 0.8, 0.2, BOTH, False, TABLES),
    "vit_small_mae": Claim("test_vit", 224, 1024, 1e-3, 75, 0.55, 0.2, (), True, TOKENS),
    "vit_base_eva_x": Claim("eva_x_tiny_patch16_224", 224, 512, 1e-3, 10, 0.55, 0.2, (), True, TOKENS),
    "rad_dino_518": Claim("test_vit", 518, 64, 2e-4, 10, 0.65, 0.2, (), True, TOKENS),
}
SCORED = ("eval.splits=[test]", "data.max_val_samples=16", "data.max_test_samples=16")
SMALL = ("data.image_size=56", "train.max_steps=1", "train.global_batch_size=4", "augment.normalize=half")


def tiny_of(network: str, size: int) -> tuple[str, ...]:
    return ("model.library=timm", f"model.name={network}", f"data.image_size={size}", *SMALL[1:])


def largest_drop(run: Run) -> float:
    """The largest probability that a block is left out of an image's way."""
    return max((layer.drop_prob for layer in run.setup.module.modules() if isinstance(layer, DropPath)), default=0.0)


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_it_trains_as_its_file_says(name: str, tmp_path: Path, nih: Path) -> None:
    claim, recipe = CLAIMS[name], watched.load(f"best/{name}")
    assert recipe.data.image_size == claim.px and watched.published_batch(f"best/{name}") == claim.batch
    assert recipe.augment.flip == 0 and recipe.data.split == "official" and recipe.eval.best_metric == "auroc"

    side = 64 if "eva" in claim.network or "test" in claim.network else 56
    run = watched.build(f"best/{name}", tmp_path / "run", nih, *tiny_of(claim.network, side), *SCORED)
    (stage,) = run.stages
    assert stage.horizon.total_steps == claim.epochs * len(stage.order) and stage.base_lr == claim.lr
    assert tuple(part.name for part in stage.loss.parts) == claim.parts
    assert stage.augment.operations == (RandAugment(6, 0.5, True, 2) if claim.is_rand else None)
    assert run.ema is not None and run.ema.decay == 0.999
    assert largest_drop(run) == pytest.approx(claim.drop_path)
    scales = sorted({group["lr_scale"] for group in run.training.optimizer.param_groups}, reverse=True)
    decay = claim.layer_decay
    assert scales == [1] if decay is None else scales[:3] == pytest.approx([1, decay, decay**2])
    named = run.setup.module.named_parameters()
    undecayed = {
        id(p) for group in run.training.optimizer.param_groups if not group["weight_decay"] for p in group["params"]
    }
    embeddings = {one.rpartition(".")[2] for one, p in named if p.ndim > 1 and id(p) in undecayed}
    assert embeddings == claim.undecayed
    (update,) = watched.train(run)
    assert update.trained == {name for name, _ in run.setup.module.named_parameters()} == update.stepped
    assert (tmp_path / "run" / "metrics_test.json").is_file()


def test_convnext_trains_at_224_px_first_and_is_validated_at_512(tmp_path: Path, nih: Path) -> None:
    recipe = watched.load("best/convnext_base_512")
    first, second = recipe.train.stages
    assert (first.augment.train_size, second.augment, recipe.data.image_size) == (224, None, 512)
    assert (first.epochs, first.lr, second.epochs, second.lr, second.optimizer) == (6, 1e-4, 6, 5e-5, "carry")
    run = watched.build(
        "best/convnext_base_512", tmp_path / "run", nih, *tiny_of("test_convnext", 64),
        "train.stages.0.augment.train_size=32", "train.stages.0.epochs=1", "train.stages.1.epochs=1",
        "train.global_batch_size=51", "train.max_steps=null", "eval.every=1ep",
    )  # fmt: skip
    seen: list[tuple[bool, int]] = []
    run.setup.module.register_forward_pre_hook(lambda module, given: seen.append((module.training, given[0].shape[-1])))
    updates = watched.train(run)
    assert {side for training, side in seen if not training} == {64}
    assert [side for training, side in seen if training][:2] == [32, 32]
    assert {update.stage for update in updates} == {1, 2} and (True, 64) in seen and (True, 32) in seen
    assert largest_drop(run) == pytest.approx(0.2)


def test_the_ensemble_names_what_its_members_files_train() -> None:
    recipe = watched.load("best/ensemble")
    assert recipe.output is not None and len(recipe.eval.ensemble) == 4
    for run in recipe.eval.ensemble:
        assert watched.load(str(Path(run).relative_to("runs"))).data.split == recipe.data.split
