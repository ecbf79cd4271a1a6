"""`resnet50_staged.yaml`: which layers train, at which rate, how long and on which images, in the running engine."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import watched

CLAIMED = [  # layers, learning rate, epochs
    ({"layer2", "layer3", "layer4", "fc"}, 1e-5, 2),
    ({"layer3", "layer4", "fc"}, 3e-4, 1),
    ({"layer4", "fc"}, 1e-3, 3),
    ({"fc"}, 1e-3, 2),
]
CAP = 12
# timm's test_resnet has ResNet-50's layers by name, and is small enough to be trained through all eight epochs.
OVERRIDES = (
    "model.library=timm", "model.name=test_resnet",
    f"data.sampling.cap_per_label={CAP}", "data.image_size=32", "train.global_batch_size=16",
    "data.max_val_samples=12", "logging.every=100st",
)  # fmt: skip


def parts(names: frozenset[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory, nih: Path) -> tuple[Path, list[watched.Update], dict[str, bool]]:
    """The run folder, what every update held, and which tensors changed over the whole run."""
    folder = tmp_path_factory.mktemp("staged") / "run"
    run = watched.build("resnet50_staged", folder, nih, *OVERRIDES)
    before = {name: tensor.clone() for name, tensor in run.setup.module.state_dict().items()}
    updates = watched.train(run)
    changed = {name: not torch.equal(tensor, before[name]) for name, tensor in run.setup.module.state_dict().items()}
    return folder, updates, changed


def test_each_stage_trains_its_layers_at_its_rate_for_its_epochs(
    staged: tuple[Path, list[watched.Update], dict[str, bool]],
) -> None:
    folder, updates, changed = staged
    stages = [list(group) for _, group in groupby(updates, key=lambda update: update.stage)]
    assert len(stages) == len(CLAIMED)
    for held, (layers, lr, epochs) in zip(stages, CLAIMED, strict=True):
        for update in held:
            assert parts(update.trained) == layers and update.stepped == update.trained
            assert update.lr == {lr}
        assert len({update.epoch for update in held}) == epochs
    rows = tiny.rows(folder / "history.csv")
    assert [int(row["stage"]) for row in rows] == [1, 1, 2, 3, 3, 3, 4, 4]
    assert (folder / "checkpoints" / "stage-4").is_dir()
    weights = [name for name in changed if name.endswith(("weight", "bias"))]
    assert {name.partition(".")[0] for name in weights if changed[name]} == CLAIMED[0][0]


def test_frozen_layers_go_on_measuring_as_in_the_original(
    staged: tuple[Path, list[watched.Update], dict[str, bool]],
) -> None:
    _, updates, changed = staged
    assert all("layer1.0.bn1" in update.measuring for update in updates)
    assert changed["layer1.0.bn1.running_mean"] and not changed["layer1.0.bn1.weight"]


def test_every_stage_samples_its_own_capped_images_and_keeps_each_hernia(tmp_path: Path, nih: Path) -> None:
    run = watched.build("resnet50_staged", tmp_path / "run", nih, *OVERRIDES)
    run.setup.close()
    index, train = run.setup.index, run.setup.splits.train
    assert list(index.findings)[-1] == "No Finding" and len(index.findings) == 15
    num_L = index.targets_NC[train].sum(axis=0)
    assert num_L.max() > CAP > num_L.min()  # the cap does something, and not to all
    hernia = {int(row) for row in train if index.targets_NC[row, index.findings.index("Hernia")]}
    drawn = [set(np.asarray(stage.order.rows).tolist()) for stage in run.stages]
    for rows in drawn:
        assert rows < set(train.tolist()) and hernia <= rows
        kept_L = index.targets_NC[sorted(rows)].sum(axis=0)
        assert np.array_equal(kept_L[num_L <= CAP], num_L[num_L <= CAP])
        assert kept_L[index.findings.index("No Finding")] == CAP
    assert all(a != b for place, a in enumerate(drawn) for b in drawn[:place])


def test_a_run_can_begin_again_at_a_stage(
    staged: tuple[Path, list[watched.Update], dict[str, bool]], tmp_path: Path, nih: Path
) -> None:
    folder, updates, _ = staged
    left = folder / "checkpoints" / "stage-2"
    run = watched.build("resnet50_staged", tmp_path / "again", nih, *OVERRIDES, "train.stage=3", f"train.resume={left}")
    assert watched.train(run) == [update for update in updates if update.stage >= 3]
    first, second = (tiny.rows(run_folder / "steps.csv") for run_folder in (folder, tmp_path / "again"))
    assert [row["loss"] for row in second] == [row["loss"] for row in first if int(row["step"]) > 12]


def test_its_own_network_batch_and_loss(tmp_path: Path, nih: Path) -> None:
    assert watched.published_batch("resnet50_staged") == 128
    run = watched.build("resnet50_staged", tmp_path / "run", nih, "data.image_size=32", "train.global_batch_size=2")
    run.setup.close()
    assert [len(stage.parameters) for stage in run.stages] == [128, 89, 32, 2]
    assert [group["weight_decay"] for group in run.training.optimizer.param_groups] == [0, 0]
