"""Masked binary cross-entropy: formula, exact silence of unknown labels, and the global-batch contract."""

import numpy as np
import pytest
import torch
from torch import Tensor

from distcxr.losses import LOSSES, masked_bce_sum


def _batch(rows: int = 8, findings: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, C], targets and a mask that is far from even over the rows."""
    generator = torch.Generator().manual_seed(3)
    logits_BC = torch.randn(rows, findings, generator=generator) * 4
    targets_BC = (torch.rand(rows, findings, generator=generator) < 0.3).to(torch.uint8)
    share_known_B = torch.tensor([1.0, 1.0, 0.1, 0.0, 0.9, 0.0, 0.3, 0.5])[:rows, None]
    mask_BC = (torch.rand(rows, findings, generator=generator) < share_known_B).to(torch.uint8)
    return logits_BC, targets_BC, mask_BC


def test_it_is_the_float64_formula_summed_over_known_labels() -> None:
    logits_BC, targets_BC, mask_BC = _batch()
    logits, targets, known = logits_BC.double().numpy(), targets_BC.numpy(), mask_BC.numpy() == 1
    probs = 1 / (1 + np.exp(-logits))
    reference = -(targets * np.log(probs) + (1 - targets) * np.log1p(-probs))[known].sum()
    loss = masked_bce_sum(logits_BC, targets_BC, mask_BC)
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference, rel=1e-6)
    exact = masked_bce_sum(logits_BC.double(), targets_BC, mask_BC)
    assert exact.dtype == torch.float64 and exact.item() == pytest.approx(reference, rel=1e-13)


def test_the_gradient_is_probability_minus_target_where_known() -> None:
    logits_BC, targets_BC, mask_BC = _batch()
    logits_BC.requires_grad_()
    masked_bce_sum(logits_BC, targets_BC, mask_BC).backward()
    expected = (torch.sigmoid(logits_BC.detach()) - targets_BC) * mask_BC
    torch.testing.assert_close(logits_BC.grad, expected, rtol=0, atol=1e-6)


def test_unknown_labels_are_silent_whatever_stands_there() -> None:
    logits_BC, targets_BC, mask_BC = _batch()
    poisoned, poisoned_targets = logits_BC.clone(), targets_BC.float()
    num_unknown = int((mask_BC == 0).sum())
    assert num_unknown >= 3
    poisoned[mask_BC == 0] = torch.tensor([float("nan"), float("inf"), -float("inf")]).repeat(40)[:num_unknown]
    poisoned_targets[mask_BC == 0] = float("nan")
    poisoned.requires_grad_()
    loss = masked_bce_sum(poisoned, poisoned_targets, mask_BC)
    loss.backward()
    assert torch.equal(loss, masked_bce_sum(logits_BC, targets_BC, mask_BC))
    assert poisoned.grad is not None
    assert torch.equal(poisoned.grad[mask_BC == 0], torch.zeros(num_unknown))
    assert torch.isfinite(poisoned.grad).all()


def test_no_known_label_gives_zero_and_a_zero_gradient() -> None:
    logits_BC = torch.randn(2, 3, requires_grad=True)
    loss = masked_bce_sum(logits_BC, torch.ones(2, 3), torch.zeros(2, 3))
    loss.backward()
    assert loss.item() == 0.0
    assert logits_BC.grad is not None and not logits_BC.grad.any()


def test_an_empty_batch_is_zero() -> None:
    assert masked_bce_sum(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0, 3)).item() == 0.0


def test_huge_logits_stay_exact() -> None:
    loss = masked_bce_sum(torch.tensor([[1e4, -1e4]]), torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))
    assert loss.item() == 2e4


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits_BC, targets_BC, mask_BC = _batch()
    half = logits_BC.bfloat16()
    assert torch.equal(masked_bce_sum(half, targets_BC, mask_BC), masked_bce_sum(half.float(), targets_BC, mask_BC))


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(AssertionError):
        masked_bce_sum(torch.zeros(4, 3), torch.zeros(4, 3), torch.ones(4, 1))


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_over_the_global_count_give_the_gradient_of_the_whole(parts: int) -> None:
    """Ranks and micro-batches are the same here: parts whose sums are divided by one global count."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 16, generator=generator)
    weight = torch.randn(16, 5, generator=generator)
    _, targets_BC, mask_BC = _batch()
    known = int(mask_BC.sum())
    counts = [int(part.sum()) for part in mask_BC.chunk(4)]
    assert min(counts) == 0 and max(counts) == 10, "the mask has to be skewed"

    reference = weight.double().requires_grad_()
    logits = images.double() @ reference
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets_BC.double(), reduction="none")
    loss[mask_BC == 1].mean().backward()

    split = weight.clone().requires_grad_()
    chunks = zip(images.chunk(parts), targets_BC.chunk(parts), mask_BC.chunk(parts), strict=True)
    for some_images, some_targets, some_mask in chunks:
        (LOSSES["bce"](some_images @ split, some_targets, some_mask) / known).backward()
    assert split.grad is not None and reference.grad is not None
    assert (split.grad - reference.grad).abs().max() < 1e-6


def test_a_mean_per_part_is_another_number() -> None:
    """What the contract is for: the mean of per-rank means is not the global mean."""
    logits_BC, targets_BC, mask_BC = _batch()
    whole = masked_bce_sum(logits_BC, targets_BC, mask_BC) / mask_BC.sum()
    chunks = list(zip(logits_BC.chunk(4), targets_BC.chunk(4), mask_BC.chunk(4), strict=True))
    means = [masked_bce_sum(*chunk) / chunk[2].sum().clamp(min=1) for chunk in chunks]
    assert abs(torch.stack(means).mean() - whole) > 1e-2


def test_it_repeats_bit_for_bit() -> None:
    assert torch.equal(masked_bce_sum(*_batch()), masked_bce_sum(*_batch()))
