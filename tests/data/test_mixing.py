"""Random erasing, mixup and CutMix: what they do to pixels and labels, and that a partner depends on no rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import beta as scipy_beta
from scipy.stats import kstest
from torch.nn.functional import binary_cross_entropy_with_logits

from distcxr.data.augment import COLUMNS, DeviceTransform, columns_of, draw_parameters, identity_parameters
from distcxr.data.augment.mixing import check_pairs
from distcxr.data.batch import Batch
from distcxr.data.order import BatchPlan, TrainOrder
from distcxr.losses import LossFunction
from distcxr.recipe.augmentation import Augment
from distcxr.recipe.loss import Loss

ALL = Augment(
    flip=0.5, rotate_deg=5, crop=24, brightness=0.1, rand_augment="m6-mstd0.5-inc1", erase=0.5, mixup=0.4, cutmix=1,
    mix_prob=0.8, normalize="half",
)  # fmt: skip
MIXED = Augment(mixup=0.4, cutmix=1, mix_prob=0.8, normalize="half")
SIDE, NUM = 32, 48
HALF = (0.5,), (0.5,)


def drawn(spec: Augment, num: int) -> dict[str, np.ndarray]:
    parameters = draw_parameters(spec, seed=0, epoch=0, positions=np.arange(num))
    return dict(zip(columns_of(spec), parameters.numpy().T.astype(np.float64), strict=True))


def batch_of(rows: np.ndarray, parameters: torch.Tensor) -> Batch:
    """Images, labels, most of them known, and metadata that are functions of the row."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (NUM, 1, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    targets, mask = (torch.rand(NUM, 3, generator=generator) < share for share in (0.4, 0.8))
    metadata = torch.rand(NUM, 2, generator=generator)
    return Batch(
        pixels=pixels[rows], targets=targets[rows].byte(), mask=mask[rows].byte(), sample_id=torch.from_numpy(rows),
        augment=parameters, metadata=metadata[rows],
    )  # fmt: skip


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_sample_is_mixed_with_the_same_one_on_any_number_of_ranks(world_size: int) -> None:
    def seen(size: int, ranks: int) -> list[torch.Tensor]:
        parts: list[list[torch.Tensor]] = [[], [], [], []]
        for start in range(2):
            for rank in range(ranks):
                order = TrainOrder(np.arange(NUM), 3, BatchPlan(24, size, world_size=ranks, rank=rank))
                micro_batches = list(order.epoch(1, start))[: order.plan.accumulation]
                for positions, rows in micro_batches:
                    batch = batch_of(rows, draw_parameters(ALL, seed=3, epoch=1, positions=positions))
                    labels = transform.with_mixed_labels(batch)
                    images = transform(batch.pixels, batch.augment)
                    for part, value in zip(parts, (images, labels.targets, labels.mask, labels.metadata), strict=True):
                        part.append(value)
        return [torch.cat(part) for part in parts]

    transform = DeviceTransform(ALL, *HALF)
    whole = seen(24, 1)
    assert all(torch.equal(one, other) for one, other in zip(whole, seen(2, world_size), strict=True))
    assert 0.1 < (whole[1] % 1 > 0).float().mean() < 0.6  # targets that are neither 0 nor 1


def test_pixels_and_labels_are_mixed_alike() -> None:
    parameters = draw_parameters(MIXED, seed=0, epoch=0, positions=np.arange(NUM))
    batch, transform = batch_of(np.arange(NUM), parameters), DeviceTransform(MIXED, *HALF)
    plain = DeviceTransform(Augment(normalize="half"), *HALF)(batch.pixels, identity_parameters(NUM)).double()
    mixed, labels = transform(batch.pixels, parameters), transform.with_mixed_labels(batch)
    of = dict(zip(columns_of(MIXED), parameters.double().T, strict=True))
    kinds = set()
    for at in range(16):
        other, own = at ^ 1, of["mix_own"][at].item()
        image, weights = own * plain[at] + (1 - own) * plain[other], torch.full((SIDE, SIDE), own)
        for y in range(SIDE):
            for x in range(SIDE):
                row, column = (y + 0.5) / SIDE, (x + 0.5) / SIDE
                if (
                    of["mix_top"][at] <= row < of["mix_bottom"][at]
                    and of["mix_left"][at] <= column < of["mix_right"][at]
                ):
                    image[0, y, x], weights[y, x] = plain[other, 0, y, x], 0
        share = weights.double().mean().item()
        assert torch.allclose(mixed[at].double(), image, rtol=0, atol=1e-6)
        expected = share * batch.targets[at].double() + (1 - share) * batch.targets[other].double()
        assert torch.allclose(labels.targets[at].double(), expected, rtol=0, atol=1e-6)
        used = [one for one, weight in ((at, share), (other, 1 - share)) if weight > 0]
        assert torch.equal(labels.mask[at], batch.mask[used].amin(dim=0))
        blend = share * batch.metadata[at].double() + (1 - share) * batch.metadata[other].double()
        assert torch.allclose(labels.metadata[at].double(), blend, rtol=0, atol=1e-6)
        kinds.add("mixup" if own < 1 else "cutmix" if of["mix_bottom"][at] else "none")
    assert kinds == {"mixup", "cutmix", "none"}


@pytest.mark.parametrize("loss", [Loss(), Loss(name="focal", alpha=0.25), Loss(name="asymmetric")])
def test_the_loss_is_that_of_both_labels_by_their_shares(loss: Loss) -> None:
    spec = Augment(mixup=1)
    parameters = draw_parameters(spec, seed=0, epoch=0, positions=np.arange(NUM))
    batch = batch_of(np.arange(NUM), parameters)
    labels = DeviceTransform(spec, *HALF).with_mixed_labels(batch)
    logits = torch.randn(NUM, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    function = LossFunction(loss)
    swapped = batch.targets.view(-1, 2, 3).flip(1).view(NUM, 3)
    both = batch.mask * batch.mask.view(-1, 2, 3).flip(1).view(NUM, 3)
    own = parameters[:, columns_of(spec).index("mix_own")].double().numpy()
    expected = 0.0
    for at in range(NUM):
        one = slice(at, at + 1)
        for targets, share in ((batch.targets, own[at]), (swapped, 1 - own[at])):
            if loss.name == "bce":
                each = binary_cross_entropy_with_logits(logits[one], targets[one].double(), reduction="none")
                expected += share * (each * both[one]).sum().item()
            else:
                expected += share * function(logits[one], targets[one], both[one]).item()
    assert function(logits, labels.targets, labels.mask).item() == pytest.approx(expected, rel=1e-6)
    assert function.count(labels.mask) == both.sum() < batch.mask.sum()


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 8.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    own = drawn(Augment(mixup=alpha), 20_000)["mix_own"][::2]
    assert np.mean(own < 1e-6) == pytest.approx(scipy_beta.cdf(1e-6, alpha, alpha), abs=0.02)
    if alpha > 0.01:  # no p-value: of alpha 0.2, float32 rounds 1.7 % to 1
        assert kstest(own, scipy_beta(alpha, alpha).cdf).statistic < 0.02


def test_how_often_and_where() -> None:
    of = drawn(Augment(mixup=0.4, cutmix=1, mix_prob=0.8, mix_switch=0.25), 20_000)
    cut, averaged = of["mix_bottom"] > of["mix_top"], of["mix_own"] < 1
    assert cut.mean() == pytest.approx(0.2, abs=0.02) and averaged.mean() == pytest.approx(0.6, abs=0.02)
    assert not (cut & averaged).any()
    area = (of["mix_bottom"] - of["mix_top"]) * (of["mix_right"] - of["mix_left"])
    rng = np.random.default_rng(0)
    own, y, x = rng.beta(1, 1, 20_000), rng.random(20_000), rng.random(20_000)
    half = np.sqrt(1 - own) / 2
    plain = np.prod([np.clip(at + half, 0, 1) - np.clip(at - half, 0, 1) for at in (y, x)], axis=0)
    assert area[cut].mean() == pytest.approx(plain.mean(), abs=0.02)
    assert drawn(Augment(cutmix=1), 2000)["mix_own"].min() == 1


def test_an_erased_rectangle_has_the_share_and_shape_that_timm_draws() -> None:
    of = drawn(Augment(erase=0.25), 20_000)
    height, width = of["erase_bottom"] - of["erase_top"], of["erase_right"] - of["erase_left"]
    erased = height > 0
    assert erased.mean() == pytest.approx(0.25, abs=0.01)
    area, aspect = (height * width)[erased], (height / np.where(erased, width, 1))[erased]
    assert 0.02 - 1e-6 <= area.min() < 0.025 and 0.31 < area.max() <= 1 / 3 + 1e-6
    assert 0.3 - 1e-3 <= aspect.min() < 0.32 and 3.1 < aspect.max() <= 1 / 0.3 + 1e-2
    assert min(of["erase_top"].min(), of["erase_left"].min()) >= 0
    assert max(of["erase_bottom"].max(), of["erase_right"].max()) <= 1

    spec = Augment(erase=1, erase_area=(0.1, 0.1))
    pixels = torch.full((64, 1, SIDE, SIDE), 200, dtype=torch.uint8)
    out = DeviceTransform(spec, (0.5, 0.4, 0.3), (0.2,) * 3)(
        pixels, draw_parameters(spec, seed=0, epoch=0, positions=np.arange(64))
    )
    shares = (out == 0).double().mean(dim=(1, 2, 3))
    assert (shares - 0.1).abs().max() < 0.03 and ((out == 0) == (out[:, :1] == 0)).all()


def test_without_its_own_parameters_nothing_is_mixed_or_erased() -> None:
    """As in evaluation, and in the batch that is made up for the warm-up."""
    batch = batch_of(np.arange(3), identity_parameters(3))
    transform = DeviceTransform(ALL.model_copy(update={"rotate_deg": 0, "brightness": 0}), *HALF)
    plain = DeviceTransform(Augment(crop=24, normalize="half"), *HALF)
    assert torch.equal(transform(batch.pixels, batch.augment), plain(batch.pixels, batch.augment))
    assert transform.with_mixed_labels(batch) is batch
    assert columns_of(plain.spec) == COLUMNS


def test_an_odd_number_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"augment.cutmix=1 .* holds 3, .*train.per_device_batch_size to an even one"):
        check_pairs(Augment(cutmix=1), BatchPlan(12, 3))
    check_pairs(Augment(), BatchPlan(12, 3))
    check_pairs(Augment(cutmix=1), BatchPlan(12, 2))
