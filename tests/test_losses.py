"""Losses: formulas and gradients against float64, exact silence of unknown labels, and the global-batch contract."""

import logging
from typing import Any

import loss_references
import numpy as np
import pytest
import torch
from torch import Tensor

from distcxr.loss_building import build_loss, check_exclusive
from distcxr.losses import LossFunction, binary_logits, loss_logits
from distcxr.recipe.loss import Loss

WEIGHTS = [0.5, 2.0, 7.5, 1.0, 3.0]
SPECS: dict[str, dict[str, Any]] = {
    "bce": {},
    "bce weighted": {"weights": WEIGHTS},
    "bce smoothed": {"weights": WEIGHTS, "label_smoothing": 0.1},
    "focal": {"name": "focal"},
    "focal alpha": {"name": "focal", "alpha": 0.25, "gamma": 2.0},
    "focal below 1": {"name": "focal", "gamma": 0.5},
    "focal weighted and smoothed": {"name": "focal", "gamma": 1.5, "weights": WEIGHTS, "label_smoothing": 0.2},
    "asymmetric": {"name": "asymmetric"},
    "asymmetric unclipped": {"name": "asymmetric", "clip": 0.0, "gamma_pos": 1.0},
    "asymmetric below 1": {"name": "asymmetric", "gamma_neg": 0.5, "gamma_pos": 0.5, "clip": 0.2},
    "asymmetric weighted and smoothed": {"name": "asymmetric", "weights": WEIGHTS, "label_smoothing": 0.1},
    "cross_entropy": {"name": "cross_entropy"},
    "cross_entropy weighted and smoothed": {"name": "cross_entropy", "weights": WEIGHTS, "label_smoothing": 0.1},
}
BCE = LossFunction(Loss())


def _loss(name: str) -> LossFunction:
    nobody = np.zeros((0, 5), dtype=np.uint8)
    return build_loss(Loss(**SPECS[name]), nobody, nobody, list("abcde"))


def _batch(name: str = "bce", rows: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, 5], targets and a mask that is far from even over the rows."""
    generator = torch.Generator().manual_seed(3)
    logits_BC = torch.randn(rows, 5, generator=generator) * 4
    targets_BC = (torch.rand(rows, 5, generator=generator) < 0.3).to(torch.uint8)
    share_known_B = torch.tensor([1.0, 1.0, 0.1, 0.0, 0.9, 0.0, 0.3, 0.5])[:rows, None]
    mask_BC = (torch.rand(rows, 5, generator=generator) < share_known_B).to(torch.uint8)
    if name.startswith("cross_entropy"):
        targets_BC = torch.nn.functional.one_hot(torch.arange(rows) % 5, 5).to(torch.uint8)
        mask_BC[4:6] = 1
    return logits_BC, targets_BC, mask_BC


@pytest.mark.parametrize("name", SPECS)
def test_it_is_the_float64_formula_with_its_gradient(name: str) -> None:
    loss, (logits_BC, targets_BC, mask_BC) = _loss(name), _batch(name)
    exact = logits_BC.double().requires_grad_()
    reference = loss_references.of_labels(Loss(**SPECS[name]), exact, targets_BC, mask_BC)
    (expected_BC,) = torch.autograd.grad(reference, exact)

    found = loss(exact, targets_BC, mask_BC)
    assert found.dtype == torch.float64 and found.shape == ()
    assert found.item() == pytest.approx(reference.item(), rel=1e-12)
    (gradient_BC,) = torch.autograd.grad(found, exact)
    torch.testing.assert_close(gradient_BC, expected_BC, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(lambda logits: loss(logits, targets_BC, mask_BC), exact)

    single = logits_BC.clone().requires_grad_()
    found = loss(single, targets_BC, mask_BC)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(reference.item(), rel=1e-5)
    (gradient_BC,) = torch.autograd.grad(found, single)
    torch.testing.assert_close(gradient_BC.double(), expected_BC, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", SPECS)
def test_unknown_labels_are_silent_whatever_stands_there(name: str) -> None:
    loss, (logits_BC, targets_BC, mask_BC) = _loss(name), _batch(name)
    silent = mask_BC == 0
    if loss.spec.name == "cross_entropy":
        silent = silent.any(dim=1, keepdim=True).expand_as(silent)  # a sample with an unknown label
    num_silent = int(silent.sum())
    assert 3 <= num_silent < silent.numel()
    poisoned, poisoned_targets = logits_BC.clone(), targets_BC.float()
    poisoned[silent] = torch.tensor([float("nan"), float("inf"), -float("inf")]).repeat(40)[:num_silent]
    poisoned_targets[silent] = float("nan")
    poisoned.requires_grad_()
    found = loss(poisoned, poisoned_targets, mask_BC)
    found.backward()
    assert torch.equal(found, loss(logits_BC, targets_BC, mask_BC))
    assert poisoned.grad is not None and torch.isfinite(poisoned.grad).all()
    assert torch.equal(poisoned.grad[silent], torch.zeros(num_silent))
    assert poisoned.grad.any()


@pytest.mark.parametrize("name", SPECS)
def test_no_known_label_and_no_sample_give_zero(name: str) -> None:
    loss = _loss(name)
    logits_BC = torch.randn(2, 5, requires_grad=True)
    found = loss(logits_BC, torch.ones(2, 5), torch.zeros(2, 5))
    found.backward()
    assert found.item() == 0.0 and loss.count(torch.zeros(2, 5)).item() == 0
    assert logits_BC.grad is not None and not logits_BC.grad.any()
    assert loss(torch.zeros(0, 5), torch.zeros(0, 5), torch.zeros(0, 5)).item() == 0.0


@pytest.mark.parametrize("name", SPECS)
def test_huge_logits_have_finite_losses_and_gradients(name: str) -> None:
    loss = _loss(name)
    for dtype in (torch.float32, torch.float64):
        for size in (30.0, 100.0, 1e4):
            logits_BC = (torch.eye(5, dtype=dtype) * 2 - 1) * size
            logits_BC.requires_grad_()
            right = loss(logits_BC, torch.eye(5), torch.ones(5, 5))
            wrong = loss(-logits_BC, torch.eye(5), torch.ones(5, 5))
            gradient_BC = torch.autograd.grad(right + wrong, logits_BC)[0]
            assert torch.isfinite(right) and torch.isfinite(wrong) and wrong > right >= 0
            assert torch.isfinite(gradient_BC).all()


def test_huge_logits_stay_exact() -> None:
    known = torch.ones(1, 2, dtype=torch.bool)
    assert BCE(torch.tensor([[1e4, -1e4]]), torch.tensor([[0, 1]]), known).item() == 2e4
    focal = LossFunction(Loss(name="focal"))
    assert focal(torch.tensor([[1e4, -1e4]]), torch.tensor([[0, 1]]), known).item() == 2e4
    classes = LossFunction(Loss(name="cross_entropy"))
    assert classes(torch.tensor([[1e4, -1e4]]), torch.tensor([[0, 1]]), known).item() == 2e4


def test_focal_without_gamma_is_bce_and_asymmetric_without_all_is_too() -> None:
    batch = _batch()
    for spec in (Loss(name="focal", gamma=0), Loss(name="asymmetric", gamma_neg=0, gamma_pos=0, clip=0)):
        assert LossFunction(spec)(*batch).item() == pytest.approx(BCE(*batch).item(), rel=1e-6)
    half = LossFunction(Loss(name="focal", gamma=0, alpha=0.5))
    assert 2 * half(*batch).item() == pytest.approx(BCE(*batch).item(), rel=1e-6)


def test_smoothing_moves_the_minimum_from_infinity() -> None:
    """With smoothing s the best probability of a positive label is 1 - s/2."""
    logits_BC = torch.full((1, 1), float(np.log(0.95 / 0.05)), dtype=torch.float64, requires_grad=True)
    loss = LossFunction(Loss(label_smoothing=0.1))(logits_BC, torch.ones(1, 1), torch.ones(1, 1))
    assert torch.autograd.grad(loss, logits_BC)[0].abs().item() < 1e-15


@pytest.mark.parametrize("name", SPECS)
def test_half_precision_logits_are_summed_in_float32(name: str) -> None:
    loss, (logits_BC, targets_BC, mask_BC) = _loss(name), _batch(name)
    half = logits_BC.bfloat16()
    assert torch.equal(loss(half, targets_BC, mask_BC), loss(half.float(), targets_BC, mask_BC))


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(AssertionError):
        BCE(torch.zeros(4, 3), torch.zeros(4, 3), torch.ones(4, 1))


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("name", SPECS)
def test_parts_over_the_global_count_give_the_gradient_of_the_whole(name: str, parts: int) -> None:
    """Ranks and micro-batches are the same here: parts, with sums divided by one global count."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 16, generator=generator)
    weight = torch.randn(16, 5, generator=generator)
    loss, (_, targets_BC, mask_BC) = _loss(name), _batch(name)
    counts = [int(loss.count(part)) for part in mask_BC.chunk(4)]
    assert min(counts) == 0 and max(counts) > 1, "the mask has to be skewed"
    known = mask_BC.all(dim=1).sum() if loss.spec.name == "cross_entropy" else mask_BC.sum()

    reference = weight.double().requires_grad_()
    (
        loss_references.of_labels(Loss(**SPECS[name]), images.double() @ reference, targets_BC, mask_BC) / known
    ).backward()

    split = weight.clone().requires_grad_()
    chunks = zip(images.chunk(parts), targets_BC.chunk(parts), mask_BC.chunk(parts), strict=True)
    for some_images, some_targets, some_mask in chunks:
        (loss(some_images @ split, some_targets, some_mask) / sum(counts)).backward()
    assert split.grad is not None and reference.grad is not None
    scale = max(1.0, float(reference.grad.abs().max()))
    assert (split.grad - reference.grad).abs().max() < 2e-6 * scale


def test_a_mean_per_part_is_another_number() -> None:
    """What the contract is for: the mean of per-rank means is not the global mean."""
    logits_BC, targets_BC, mask_BC = _batch()
    whole = BCE(logits_BC, targets_BC, mask_BC) / mask_BC.sum()
    chunks = list(zip(logits_BC.chunk(4), targets_BC.chunk(4), mask_BC.chunk(4), strict=True))
    means = [BCE(*chunk) / chunk[2].sum().clamp(min=1) for chunk in chunks]
    assert abs(torch.stack(means).mean() - whole) > 1e-2


@pytest.mark.parametrize("name", SPECS)
def test_it_repeats_bit_for_bit(name: str) -> None:
    assert torch.equal(_loss(name)(*_batch(name)), _loss(name)(*_batch(name)))


TARGETS = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]], dtype=np.uint8)
KNOWN = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 1], [0, 1, 1]], dtype=np.uint8)


def test_balanced_weights_are_negatives_over_positives_of_the_known_labels(caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="distcxr"):
        loss = build_loss(Loss(weights="balanced"), TARGETS, KNOWN, ["Mass", "Nodule", "Hernia"])
    assert loss.weights_C is not None and loss.weights_C.tolist() == [1.0, 3.0, 1.0]
    assert "Hernia has no positive training label, its weight is 1" in caplog.text
    assert "loss weights: Mass 1, Nodule 3, Hernia 1" in caplog.text
    # In sum, positive and negative labels then weigh the same.
    total = loss(torch.zeros(5, 3), torch.from_numpy(TARGETS), torch.from_numpy(KNOWN))
    assert total.item() == pytest.approx(np.log(2) * (2 * 2 + 2 * 3 + 5), rel=1e-6)


def test_balanced_classes_weigh_the_same_and_one_on_average(caplog: Any) -> None:
    targets = np.eye(3, dtype=np.uint8)[[0, 0, 0, 1, 1, 2, 2]]
    mask = np.ones_like(targets)
    mask[-1, 0] = 0  # so this sample does not count
    loss = build_loss(Loss(name="cross_entropy", weights="balanced"), targets, mask, ["a", "b", "c"])
    assert loss.weights_C is not None
    assert loss.weights_C.tolist() == pytest.approx([6 / 9, 6 / 6, 6 / 3])
    total = loss(torch.zeros(7, 3), torch.from_numpy(targets), torch.from_numpy(mask))
    assert total.item() == pytest.approx(6 * np.log(3), rel=1e-6) and loss.count(torch.from_numpy(mask)).item() == 6
    lacking = build_loss(Loss(name="cross_entropy", weights="balanced"), targets[:5], mask[:5], ["a", "b", "c"])
    assert lacking.weights_C is not None and lacking.weights_C[2] == 1 and "c has no positive" in caplog.text


def test_another_number_of_weights_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss.weights holds 2 numbers, but there are 3 findings \(Mass, N, H\)"):
        build_loss(Loss(weights=[1.0, 2.0]), TARGETS, KNOWN, ["Mass", "N", "H"])


def test_classes_that_do_not_exclude_each_other_are_refused() -> None:
    files = [f"{number}.png" for number in range(5)]
    check_exclusive("train", ["a", "b", "c"], TARGETS[:3], KNOWN[:3], files)
    check_exclusive("train", ["a", "b", "c"], TARGETS, KNOWN, files)  # the others are not wholly known
    several = TARGETS.copy()
    several[1, 0] = 1
    message = (
        r"of 5 images of val 1 show none of a, b, c and 1 show several, such as 1.png, 3.png: .* data.where, or use bce"
    )
    with pytest.raises(ValueError, match=message):
        check_exclusive("val", ["a", "b", "c"], several, np.ones_like(several), files)
    with pytest.raises(ValueError, match=r"needs two findings or more, not Mass alone: use bce"):
        check_exclusive("train", ["Mass"], TARGETS[:, :1], KNOWN[:, :1], files)


def test_sigmoid_of_binary_logits_is_the_softmax() -> None:
    logits_BC = _batch()[0].double()
    found = binary_logits("cross_entropy", logits_BC)
    torch.testing.assert_close(torch.sigmoid(found), torch.softmax(logits_BC, dim=1), rtol=1e-13, atol=0)
    assert binary_logits("focal", logits_BC) is logits_BC
    two = binary_logits("cross_entropy", logits_BC[:, :2])
    assert torch.equal(two[:, 0], logits_BC[:, 0] - logits_BC[:, 1]) and torch.equal(two[:, 0], -two[:, 1])
    huge = binary_logits("cross_entropy", torch.tensor([[1e4, 0.0, -1e4], [3.0, 3.0, 3.0]]))
    assert torch.isfinite(huge).all() and huge[0].tolist() == [1e4, -1e4, -2e4]
    assert torch.allclose(huge[1], torch.tensor(-np.log(2)).float())
    assert binary_logits("cross_entropy", logits_BC.bfloat16()).dtype == torch.float32


def test_the_loss_of_binary_logits_is_that_of_the_network_s() -> None:
    logits_BC, targets_BC, mask_BC = _batch("cross_entropy")
    loss = _loss("cross_entropy")
    exact = logits_BC.double()
    back = loss_logits("cross_entropy", binary_logits("cross_entropy", exact))
    expected = loss(exact, targets_BC, mask_BC).item()
    assert loss(back, targets_BC, mask_BC).item() == pytest.approx(expected, rel=1e-13)
    torch.testing.assert_close(back, torch.log_softmax(exact, dim=1), rtol=1e-12, atol=1e-13)
    assert loss_logits("bce", logits_BC) is logits_BC
