"""Stages: what the running engine trains in each, where each begins and ends, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from distcxr.engine.checkpoint import load_weights, open_checkpoint
from distcxr.engine.evaluate import evaluate
from distcxr.engine.fit import begin_next_stage, fit, train_stage, updates
from distcxr.engine.saving import save_last
from distcxr.engine.step import train_step
from distcxr.engine.testing import score_test_split
from distcxr.recipe import RecipeError

STAGES = (
    "train.stages=[{trainable: [layer3, layer4, fc], lr: 1e-4, epochs: 1}, "
    "{name: top, trainable: [layer4, head], lr: 3e-3, epochs: 2, loss: {name: focal}, augment: {flip: 0}, "
    "sampling: {cap_per_label: 20}, schedule: {name: constant, warmup: 0st}}, "
    "{trainable: [fc.weight], epochs: 1, optimizer: carry}]"
)
CHEAP = ("eval.splits=[]", "checkpoint.every=100ep", "train.global_batch_size=8")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run through all of `STAGES`."""
    folder = tmp_path_factory.mktemp("straight")
    tiny.phantom(folder)
    tiny.train(folder, STAGES, *CHEAP, f"output={folder / 'run'}")
    return folder / "run"


def trained(run: tiny.Run) -> set[str]:
    """First parts of the names of what requires a gradient."""
    return {name.split(".")[0] for name, parameter in run.setup.module.named_parameters() if parameter.requires_grad}


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(checkpoint / "model.safetensors"))


def test_each_stage_holds_what_the_recipe_says(
    straight: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tiny.build(straight.parent, STAGES, *CHEAP, f"output={tmp_path / 'run'}")
    num_train = len(run.setup.splits.train)
    assert trained(run) == {"layer3", "layer4", "fc"} and run.lr == pytest.approx(1e-4 / 2)
    assert run.training.loss.spec.name == "bce" and run.training.transform.spec.flip == 0.5
    assert len(run.training.loader.order.rows) == num_train and run.horizon.total_steps == num_train // 8
    assert "stage 1 of 3: " in caplog.text and "lr 0.0001, loss bce" in caplog.text

    begin_next_stage(run)
    assert trained(run) == {"layer4", "fc"} and run.lr == 3e-3
    assert run.training.loss.spec.name == "focal" and run.setup.loss.spec.name == "bce"
    assert run.training.transform.spec.flip == 0 and run.training.transform.spec.rotate_deg == 5  # inherited
    capped = len(run.training.loader.order.rows)
    assert capped < num_train and run.horizon.total_steps == 2 * (capped // 8)
    assert "stage 2 of 3 (top): " in caplog.text
    held = {id(p) for group in run.training.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in run.setup.module.parameters() if p.requires_grad}

    begin_next_stage(run)
    assert [name for name, p in run.setup.module.named_parameters() if p.requires_grad] == ["fc.weight"]
    assert run.stage.base_lr == run.setup.recipe.optim.lr == 1e-3


def test_each_stage_changes_and_mixes_images_as_it_says(straight: Path, tmp_path: Path) -> None:
    """Of the recipe's RandAugment, a stage at half the size with mixup, one with CutMix and erasing, one of neither."""
    run = tiny.build(
        straight.parent, "augment={flip: 0, rand_augment: m9, normalize: half}", *CHEAP, f"output={tmp_path / 'run'}",
        "train.stages=[{epochs: 1, augment: {train_size: 16, mixup: 1}}, {epochs: 1, optimizer: carry, "
        "augment: {rand_augment: null, cutmix: 1, erase: 1}}, {epochs: 1, augment: {rand_augment: null}}]",
    )  # fmt: skip
    sides, mixed, operating, plain, erased = [], [], [], [], []
    for number in range(3):
        if number:
            begin_next_stage(run)
        (batch,) = next(updates(run))
        transform = run.training.transform
        images, untouched = transform(batch.pixels, batch.augment), batch.pixels.float() / 255 * 2 - 1
        sides.append(images.shape[-1])
        mixed.append(bool((transform.with_mixed_labels(batch).targets % 1 > 0).any()))
        operating.append(transform.spec.operations is not None)
        plain.append(images.shape == untouched.shape and torch.allclose(images, untouched, atol=1e-6))
        erased.append(bool(((images == 0).flatten(1).sum(1) > 9).all()))
    assert (sides, mixed, operating) == ([16, 32, 32], [True, True, False], [True, False, False])
    assert (plain, erased) == ([False, False, True], [False, True, False])


def test_only_what_a_stage_trains_changes(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    tiny.train(tmp_path, STAGES, *CHEAP, f"output={tmp_path / 'run'}", "model.name=test_vit", "data.image_size=32",
               "train.stages.0.trainable=[blocks.1, head]", "train.stages.1.trainable=[patch_embed]",
               "train.stages.2.trainable=[head]")  # fmt: skip
    first, second, third = (weights(tmp_path / "run" / "checkpoints" / f"stage-{n}") for n in (1, 2, 3))

    def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
        return {".".join(name.split(".")[:2]) for name in before if not torch.equal(before[name], after[name])}

    assert changed(first, second) == {"patch_embed.proj"}
    assert changed(second, third) == {"head.weight", "head.bias"}


def test_the_run_goes_through_all_stages(straight: Path) -> None:
    folder = straight
    history = tiny.rows(folder / "history.csv")
    assert [(row["epoch"], row["stage"]) for row in history] == [("0", "1"), ("1", "2"), ("2", "2"), ("3", "3")]
    steps = tiny.rows(folder / "steps.csv")
    assert [int(row["step"]) for row in steps] == list(range(1, len(steps) + 1)) and history[-1]["step"] == str(
        len(steps)
    )
    second = [row for row in steps if row["epoch"] in ("1", "2")]
    assert {float(row["lr"]) for row in second} == {3e-3}
    ends = [open_checkpoint(folder / "checkpoints" / f"stage-{number}") for number in (1, 2, 3)]
    assert [(end.meta["state"]["stage"], end.meta["state"]["ended"]) for end in ends] == [
        (1, False),
        (2, False),
        (3, True),
    ]
    assert [str(end.step) for end in ends] == [history[0]["step"], history[2]["step"], history[3]["step"]]


def test_an_ordinary_run_has_one_stage(finished: Path) -> None:
    assert {row["stage"] for row in tiny.rows(finished / "history.csv")} == {"1"}
    assert not list((finished / "checkpoints").glob("stage-*"))


@pytest.mark.parametrize("frozen_bn", ["eval", "train"])
def test_frozen_batchnorm(tmp_path: Path, frozen_bn: str) -> None:
    """Statistics of layers that are frozen stay, or do not; validation in between changes nothing about it."""
    tiny.phantom(tmp_path)
    run = tiny.build(
        tmp_path, "train.trainable=[layer4, fc]", f"train.frozen_bn={frozen_bn}", *CHEAP, f"output={tmp_path / 'run'}",
        "eval.every=2st",
    )  # fmt: skip
    before = {name: buffer.clone() for name, buffer in run.setup.module.named_buffers()}
    train_stage(run)
    assert len(run.state.validations) > 2
    changed = {
        name.split(".")[0] for name, buffer in run.setup.module.named_buffers() if not torch.equal(buffer, before[name])
    }
    assert changed == ({"layer4"} if frozen_bn == "eval" else {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"})


def test_carry_keeps_the_moments_of_what_was_trained(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, STAGES, *CHEAP, "train.stages.2.trainable=[fc]", "train.stages.2.optimizer=carry",
                     "train.stages.1.trainable=[fc.weight]", f"output={tmp_path / 'run'}")  # fmt: skip
    weight, bias = run.setup.module.get_parameter("fc.weight"), run.setup.module.get_parameter("fc.bias")
    train_stage(run)
    begin_next_stage(run)
    assert not run.training.optimizer.state  # new
    train_stage(run)
    moment = run.training.optimizer.state[weight]["exp_avg"].clone()
    begin_next_stage(run)
    assert torch.equal(run.training.optimizer.state[weight]["exp_avg"], moment)
    assert bias not in run.training.optimizer.state


def test_a_stage_begins_where_the_one_before_ended(straight: Path, tmp_path: Path) -> None:
    """`train.stage=3` resumes from `stage-2` as the straight run did, and its own keys may be others."""
    tiny.phantom(tmp_path)
    again = tmp_path / "again"
    (again / "checkpoints").mkdir(parents=True)
    for name in ("stage-2", "best"):
        shutil.copytree(straight / "checkpoints" / name, again / "checkpoints" / name)
    tiny.train(tmp_path, STAGES, *CHEAP, f"output={again}", "train.stage=3")
    ends = [weights(folder / "checkpoints" / "stage-3") for folder in (straight, again)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])

    # A crash in stage 3: the same command resumes.
    assert tiny.build(tmp_path, STAGES, *CHEAP, f"output={again}", "train.stage=3").state.ended
    shutil.rmtree(again)
    (again / "checkpoints").mkdir(parents=True)
    shutil.copytree(straight / "checkpoints" / "stage-2", again / "checkpoints" / "stage-2")
    hotter = (STAGES, "train.stages.2.lr=0.1", *CHEAP, f"output={again}")
    with pytest.raises(
        ValueError, match=r"made by another recipe:\n  - train.stages.2.lr: None in the checkpoint, 0.1"
    ):
        tiny.build(tmp_path, *hotter, f"train.resume={again / 'checkpoints' / 'stage-2'}")
    run = tiny.build(tmp_path, *hotter, "train.stage=3")
    fit(run)
    assert run.stage.base_lr == 0.1 and run.state.ended
    with pytest.raises(ValueError, match=r"holds newer checkpoints than stage-2 .*: they would be lost"):
        tiny.build(tmp_path, *hotter, "train.stage=3", "train.resume=never")


@pytest.mark.parametrize(("left", "asked"), [("stage-3", 2), ("stage-2", 2), ("stage-1", 3)])
def test_any_checkpoint_begins_any_stage(straight: Path, tmp_path: Path, left: str, asked: int) -> None:
    """With its weights and history; the stage that begins and those after it may have other keys."""
    tiny.phantom(tmp_path)
    path, output = straight / "checkpoints" / left, tmp_path / "branch"
    theirs = open_checkpoint(path)
    new = (f"train.stages.{asked - 1}.lr=7e-3", "train.stages.2.optimizer=new", f"train.stage={asked}")
    run = tiny.build(tmp_path, STAGES, *CHEAP, *new, f"train.resume={path}", f"output={output}")
    assert (run.stage.number, run.state.stage_step, run.state.batch) == (asked, theirs.step, 0)
    assert run.state.history == theirs.meta["state"]["history"] and not run.state.validations
    assert run.stage.base_lr == 7e-3 and not run.training.optimizer.state and not run.state.ended
    begun = run.setup.module.state_dict()
    assert all(torch.equal(begun[name], value) for name, value in weights(path).items())
    if left == "stage-2":  # begun again, as after it
        return
    fit(run)
    stages = [row["stage"] for row in tiny.rows(output / "history.csv")]
    assert stages == {"stage-1": ["1", "3"], "stage-3": ["1", "2", "2", "3", "2", "2", "3"]}[left] and run.state.ended
    assert tiny.rows(output / "steps.csv")[0]["step"] == str(theirs.step + 1)
    again = tiny.build(tmp_path, STAGES, *CHEAP, *new, f"output={output}")  # the same command after a crash, say
    assert again.state.ended and again.state.step == run.state.step


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("train.stage=2", "train.resume={run}/checkpoints/stage-3", "output={run}"), "give another output=FOLDER"),
        (("train.stage=3", "train.resume={run}/checkpoints/stage-1"), r"stages.2.optimizer=carry .* optimizer=new"),
        (("train.resume={run}/checkpoints/stage-2", "train.stage=2", "train.stages.0.lr=1"), r"train.stages.0.lr: 0.0"),
        (("train.stage=2", "train.resume={other}"), r"last-0+19 is at the end of it: give its stage-2"),
    ],
    ids=["in the run itself", "carry", "a stage before", "the end without its name"],
)
def test_beginnings_that_can_not_be_are_refused(
    straight: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    tiny.phantom(tmp_path)
    end = open_checkpoint(straight / "checkpoints" / "stage-2")
    other = tmp_path / f"last-{end.step:08d}"
    shutil.copytree(end.path, other)
    given = [override.format(run=straight, other=other) for override in overrides]
    with pytest.raises(ValueError, match=message):
        tiny.build(tmp_path, STAGES, *CHEAP, f"output={tmp_path / 'branch'}", *given)


def test_a_stage_without_the_one_before_begins_with_the_recipes_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, STAGES, *CHEAP, f"output={tmp_path / 'run'}", "train.stage=2")
    assert "so stage 2 begins with model.weights=none" in caplog.text
    assert (run.state.step, run.stage.number) == (0, 2) and trained(run) == {"layer4", "fc"}
    fit(run)
    assert {row["stage"] for row in tiny.rows(tmp_path / "run" / "history.csv")} == {"2", "3"}


def test_a_stage_is_not_begun_over_one_that_has_not_ended(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    common = (STAGES, *CHEAP, f"output={tmp_path / 'run'}")
    tiny.train(tmp_path, *common, "train.max_steps=2")
    with pytest.raises(ValueError, match=r"train.stage=2, but the run to resume is at step 2, in stage 1: leave out"):
        tiny.build(tmp_path, *common, "train.stage=2")
    assert (tmp_path / "run" / "checkpoints" / "last-00000002").exists()


def test_early_stop_ends_the_stage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In mid-epoch, too: the next stage begins an epoch of its own; after the last the run is over."""
    tiny.phantom(tmp_path)
    common = (
        *CHEAP, f"output={tmp_path / 'run'}", "eval.every=2st", "train.early_stop={patience: 1, min_delta: 1}",
        "train.stages=[{epochs: 3}, {epochs: 2}]",
    )  # fmt: skip
    tiny.train(tmp_path, *common)
    assert "train.early_stop ends stage 1 of 2: no better auroc in 1 validations" in caplog.text
    history = tiny.rows(tmp_path / "run" / "history.csv")
    assert [(row["epoch"], row["stage"], row["step"]) for row in history] == [("0", "1", "4"), ("1", "2", "8")]
    again = tiny.build(tmp_path, *common)
    assert again.state.ended and again.state.step == 8 and len(again.state.validations) == 2


@pytest.mark.parametrize("metric", ["auroc", "loss"])
def test_plateau_lowers_the_rate(tmp_path: Path, metric: str, caplog: pytest.LogCaptureFixture) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(
        tmp_path, *CHEAP, f"output={tmp_path / 'run'}", "eval.every=1st", f"eval.best_metric={metric}",
        "schedule={name: plateau, patience: 0, factor: 0.5}", "optim={name: sgd, lr: 30, momentum: 0}",
    )  # fmt: skip
    fit(run)
    scores = [-math.inf if score is None else score for score in run.state.validations]
    worse = [place > 0 and score <= max(scores[:place]) for place, score in enumerate(scores)]
    rates = [float(row["lr"]) for row in tiny.rows(tmp_path / "run" / "steps.csv")]
    assert any(worse[:-1]) and len(worse) == len(rates)
    assert caplog.text.count("the plateau lowers lr to") == sum(worse[:-1])
    assert rates == [30 * 0.5 ** sum(worse[:step]) for step in range(len(rates))]
    assert run.state.best_score == max(scores) and (metric == "loss") == (max(scores) < 0)


def test_layer_decay_reaches_the_optimizer(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, *CHEAP, f"output={tmp_path / 'run'}", "optim.layer_decay=0.5", "schedule.warmup=0st",
                     "train.max_steps=1")  # fmt: skip
    fit(run)
    rate_of = {id(p): group["lr"] for group in run.training.optimizer.param_groups for p in group["params"]}
    rates = {name.split(".")[0]: rate_of[id(p)] for name, p in run.setup.module.named_parameters()}
    assert [rates[name] for name in ("fc", "layer4", "layer3", "layer2", "layer1", "conv1")] == [
        1e-3 * 0.5**depth for depth in range(6)
    ]
    assert float(tiny.rows(tmp_path / "run" / "history.csv")[0]["lr"]) == 1e-3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("train.stages.1.trainable=[layr4]",), r"trainable of stage 2 of 3 \(top\): 'layr4' names no .*layer4"),
        (("train.stages.1.trainable=[layer]",), r"'layer' names no parameter of the network; did you mean"),
        (("train.stages=[]", "train.trainable=[xyz]"), r"train.trainable: 'xyz' names no .*it has conv1, .*head"),
        (("train.stages.0.schedule={warmup: 99st}",), r"stage 1 of 3: schedule.warmup is 99 steps, of \d+ in all"),
        (("train.stages.0.schedule={min_lr: 1}",), r"stage 1 of 3: schedule.min_lr=1"),
        (("train.stages.1.loss={weights: [1, 2]}",), r"stage 2 of 3 .top.: loss.weights holds 2 .*are 14"),
        (
            ("model.name=test_vit", "train.stages=[{epochs: 1, augment: {train_size: 32}}]"),
            r"train_size=32 of stage 1 of 1: this network takes images of one size only",
        ),
        (
            ("train.stages.1.augment={cutmix: 1}", "train.per_device_batch_size=1"),
            r"stage 2 of 3 \(top\): augment.cutmix=1 mixes pairs of images on one device, which holds 1, an odd",
        ),
        (("train.stages.1.sampling={cap_per_label: 1}",), r"stage 2 of 3 .*cap_per_label=1 leaves 9 of 59 "),
    ],
)  # fmt: skip
def test_stages_that_can_not_be_are_refused_at_the_start(
    straight: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.build(straight.parent, STAGES, *overrides, f"output={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stage=4", "train.stage=4: train.stages are 1, 2 top, 3"),
        ("train.stages.0.trainable=[]", "train.stages.0.trainable is empty, so nothing would be trained"),
        (
            "train.stages.1.augment.crop=16",
            "train.stages.1.augment.crop differs from augment.crop: a stage can't change",
        ),
        (
            "train.stages.1.augment.normalize=imagenet",
            "train.stages.1.augment.normalize differs from augment.normalize",
        ),
        ("train.stages.1.augment.train_size=999", "train.stages.1.augment.train_size=999 is larger than the"),
        (
            "train.stages.1={augment: {mixup: 1}, epochs: 1, loss: {name: auc_margin}}",
            "train.stages.1.augment.mixup does not go with train.stages.1.loss.name=auc_margin",
        ),
        ("train.stages.1.epoch=3", "unknown key 'train.stages.1.epoch'"),
        ("train.stages.3.lr=1", "train.stages has no entry 3; its entries are 0 to 2"),
    ],
)
def test_bad_stages_in_a_recipe(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        tiny.recipe(tmp_path, STAGES, override)
    assert message in str(caught.value)


def test_ema_is_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    tiny.phantom(tmp_path)
    common = ("train.ema=0.9", "train.epochs=2", "eval.splits=[val]", f"output={tmp_path / 'run'}")
    run = tiny.build(tmp_path, *common)
    average = {name: value.detach().clone() for name, value in run.setup.module.named_parameters()}
    for step, micro_batches in enumerate(updates(run)):
        train_step(run, micro_batches)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in run.setup.module.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * value.detach()
        run.state.advance(run.horizon.steps_per_epoch)
    save_last(run)
    (saved,) = (tmp_path / "run" / "checkpoints").glob("last-*")
    for name, value in weights(saved).items():
        assert name not in average or torch.allclose(value, average[name], atol=1e-6), name
    now = dict(load_file(saved / "trained.safetensors"))
    assert all(torch.equal(now[name], value) for name, value in run.setup.module.state_dict().items())
    assert not torch.equal(now["fc.weight"], weights(saved)["fc.weight"])

    tiny.train(tmp_path, *common)
    folder = tmp_path / "run"
    best = open_checkpoint(folder).step
    (row,) = [row for row in tiny.rows(folder / "history.csv") if row["step"] == str(best)]
    metrics = json.loads((folder / "metrics_val.json").read_text())
    assert metrics["macro"]["auroc"] == pytest.approx(float(row["val_auroc"]), abs=1e-12)
    # Whoever knows nothing of averages loads `best` and gets the same.
    tested = tiny.recipe(tmp_path, "train.ema=0.9", "train.epochs=2", f"output={tmp_path / 'test'}")
    scores = score_test_split(tested, [folder], tiny.runtime(tested))
    run = tiny.build(tmp_path, *common)
    load_weights(open_checkpoint(folder), run.setup.module)
    assert evaluate(run.setup, "test").report.macro_auroc == scores.report.macro_auroc
