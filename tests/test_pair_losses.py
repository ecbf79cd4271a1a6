"""Losses of pairs: against the papers' formulas in float64, masked, weighted, and without a pair."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import loss_references
import numpy as np
import pytest
import torch
from torch import Tensor

from distcxr.loss_building import build_loss, check_weights
from distcxr.losses import LossFunction
from distcxr.pair_losses import auc_margin, partial_auc, share_of_pairs
from distcxr.recipe.loss import Loss, check_whole_labels

SPECS: dict[str, dict[str, Any]] = {
    "auc_margin": {"name": "auc_margin"},
    "auc_margin, small": {"name": "auc_margin", "margin": 0.3},
    "partial_auc": {"name": "partial_auc"},
    "partial_auc, small": {"name": "partial_auc", "margin": 0.3, "beta": 0.37},
    "partial_auc, below one negative": {"name": "partial_auc", "beta": 0.01},
    "partial_auc, all": {"name": "partial_auc", "beta": 1.0},
}


def batch(rows: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, 6], targets, mask; finding 1 has a single positive, 3 no positive, 4 no negative, 5 nothing known."""
    generator = torch.Generator().manual_seed(5)
    logits_BC = torch.randn(rows, 6, generator=generator) * 2
    targets_BC = (torch.rand(rows, 6, generator=generator) < 0.3).to(torch.uint8)
    mask_BC = (torch.rand(rows, 6, generator=generator) < 0.8).to(torch.uint8)
    targets_BC[:, 1], targets_BC[:, 3], targets_BC[:, 4], mask_BC[:, 5] = 0, 0, 1, 0
    targets_BC[7, 1] = mask_BC[7, 1] = 1
    logits_BC[:, 0] += 5 * targets_BC[:, 0]  # nearly separated, so that the small margin is met
    return logits_BC, targets_BC, mask_BC


@pytest.mark.parametrize("name", SPECS)
def test_it_is_the_papers_formula_with_its_gradient(name: str) -> None:
    logits_BC, targets_BC, mask_BC = batch()
    loss, exact = LossFunction(Loss(**SPECS[name])), logits_BC.double().requires_grad_()
    reference = loss_references.of_pairs(Loss(**SPECS[name]), exact, targets_BC, mask_BC)
    (expected_BC,) = torch.autograd.grad(reference, exact)
    known = mask_BC.sum()
    found = loss(exact, targets_BC, mask_BC) / known
    (gradient_BC,) = torch.autograd.grad(found, exact)
    assert found.item() == pytest.approx(reference.item(), rel=1e-12)
    torch.testing.assert_close(gradient_BC, expected_BC, rtol=1e-9, atol=1e-13)
    assert gradient_BC.any() and not gradient_BC[:, 3:].any() and not gradient_BC[mask_BC == 0].any()
    single = logits_BC.clone().requires_grad_()
    found = loss(single, targets_BC, mask_BC) / known
    found.backward()  # type: ignore[no-untyped-call]
    assert found.dtype == torch.float32
    assert single.grad is not None and (single.grad.double() - expected_BC).abs().max() < 1e-8


def test_the_margin_loss_is_the_saddle_point_of_the_min_max_problem() -> None:
    logits_BC, targets_BC, _ = batch()
    for column, margin in ((0, 0.3), (2, 1.0)):
        scores, positive = torch.sigmoid(logits_BC[:, column].double()), targets_BC[:, column] == 1
        found = auc_margin(scores[:, None], positive[:, None], ~positive[:, None], margin).item()
        a, b = scores[positive].mean(), scores[~positive].mean()
        alpha = torch.clamp(margin + b - a, min=0)
        assert (alpha == 0) == (column == 0), "one of the findings has to be separated by the margin"
        assert loss_references.min_max(scores, positive, margin, a, b, alpha).item() == pytest.approx(found, rel=1e-12)
        for d, e in itertools.product((-0.01, 0, 0.01), repeat=2):
            assert loss_references.min_max(scores, positive, margin, a + d, b + e, alpha) >= found - 1e-12
        for d in (0.01, -0.01):
            other = torch.clamp(alpha + d, min=0)
            assert loss_references.min_max(scores, positive, margin, a, b, other) <= found + 1e-12
        pairs = (margin - scores[positive][:, None] + scores[~positive][None]) ** 2
        assert (pairs.mean().item() == pytest.approx(found, rel=1e-12)) == (column == 2)


def test_of_the_whole_area_the_partial_loss_is_the_squared_hinge_of_all_pairs() -> None:
    scores = torch.rand(50, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    positive = torch.arange(50)[:, None] % 3 == 0
    pairs = torch.clamp(0.4 - scores[positive][:, None] + scores[~positive][None], min=0) ** 2
    assert partial_auc(scores, positive, ~positive, 0.4, 1.0).item() == pytest.approx(pairs.mean().item(), rel=1e-13)


def test_of_tied_negatives_the_first_of_the_global_batch_count() -> None:
    """Any of them is a gradient of the loss; it has to be the same one on any number of ranks."""
    scores = torch.tensor([[0.5], [0.5], [0.5], [0.5], [0.9]], dtype=torch.float64, requires_grad=True)
    positive = torch.tensor([[False]] * 4 + [[True]])
    loss = partial_auc(scores, positive, ~positive, 1.0, 0.5).sum()
    assert loss.item() == pytest.approx(0.6**2)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient[:, 0].tolist() == pytest.approx([0.6, 0.6, 0, 0, -1.2])


@pytest.mark.parametrize("name", ["auc_margin", "partial_auc"])
def test_unknown_labels_fractions_and_batches_without_a_pair(name: str) -> None:
    loss, (logits_BC, targets_BC, mask_BC) = LossFunction(Loss(name=name)), batch()
    poisoned = torch.where(mask_BC == 0, torch.nan, logits_BC).requires_grad_()
    found = loss(poisoned, targets_BC, mask_BC)
    found.backward()
    assert torch.equal(found, loss(logits_BC, targets_BC, mask_BC))
    assert poisoned.grad is not None and not poisoned.grad[mask_BC == 0].any()
    # A label between 0 and 1 is in no pair.
    halves, fewer = targets_BC.float(), mask_BC.clone()
    halves[3], fewer[3] = 0.5, 0
    known = mask_BC.sum() / fewer.sum()
    assert loss(logits_BC, halves, mask_BC).item() == pytest.approx(known * loss(logits_BC, targets_BC, fewer).item())
    for rows in (0, 1, 2):
        few = torch.randn(rows, 6, requires_grad=True)
        nothing = loss(few, torch.ones(rows, 6), torch.ones(rows, 6))
        nothing.backward()
        assert nothing.item() == 0.0 and few.grad is not None and not few.grad.any()
    for row, column in ((7, 1), mask_BC.nonzero()[0].tolist(), (int(mask_BC[:, 3].nonzero()[0]), 3)):
        for value in (torch.nan, torch.inf):
            broken = logits_BC.clone()
            broken[row, column] = value
            assert loss(broken, targets_BC, mask_BC).isnan(), "a known label's logit that is not finite has to be seen"
    for size in (30.0, 1e4):
        huge = ((torch.eye(5) * 2 - 1) * size).requires_grad_()
        wrong, right = loss(-huge, torch.eye(5), torch.ones(5, 5)), loss(huge, torch.eye(5), torch.ones(5, 5))
        assert wrong > right >= 0 and torch.autograd.grad(wrong, huge)[0].isfinite().all()


def test_weights_of_findings(caplog: Any) -> None:
    logits_BC, targets_BC, mask_BC = batch()
    rng, findings = np.random.default_rng(0), list("abcdef")
    targets_NC = (rng.random((4000, 6)) < [0.3, 0.03, 0.3, 0.2, 0.5, 0.1]).astype(np.uint8)
    mask_NC = np.ones_like(targets_NC)
    targets_NC[:, 5] = 0
    with caplog.at_level(logging.WARNING):
        losses = {
            key: build_loss(Loss(name="auc_margin", weights=key), targets_NC, mask_NC, findings)
            for key in ("none", "prior", "balanced")
        }
    assert "loss.name=auc_margin: f has no positive training label, so no pairs: it is left out" in caplog.text
    positive_BC, negative_BC = (mask_BC != 0) & (targets_BC == 1), (mask_BC != 0) & (targets_BC == 0)
    each_C = auc_margin(torch.sigmoid(logits_BC.double()), positive_BC, negative_BC, 1.0)
    p_C = torch.from_numpy(targets_NC.mean(axis=0))
    prior_C = p_C * (1 - p_C)
    n_C, m_C = positive_BC.sum(dim=0), negative_BC.sum(dim=0)
    share_C = n_C * m_C / ((n_C + m_C) * (n_C + m_C - 1)).clamp(min=1)
    torch.testing.assert_close(share_of_pairs(positive_BC, negative_BC), share_C.double())
    expected = {
        "none": each_C,
        "prior": each_C * prior_C,
        "balanced": torch.where(prior_C > 0, each_C * share_C / prior_C, 0.0),
    }
    for key, loss in losses.items():
        found = loss(logits_BC, targets_BC, mask_BC) / mask_BC.sum()
        assert found.item() == pytest.approx(expected[key].mean().item(), rel=1e-5), key
    with pytest.raises(ValueError, match=r"none of a, b has both among the training labels: use bce"):
        build_loss(Loss(name="partial_auc"), np.zeros((9, 2), np.uint8), np.ones((9, 2), np.uint8), ["a", "b"])


def test_balanced_weights_make_up_for_batches_without_a_pair() -> None:
    """Over many small batches a rare finding's loss is on average that of a common one, and of all images."""
    generator = torch.Generator().manual_seed(2)
    scores = torch.rand(6_000, 2, dtype=torch.float64, generator=generator)
    positive = torch.rand(6_000, 2, generator=generator) < torch.tensor([0.02, 0.4])
    scores[positive] = scores[positive] ** 0.5
    whole_C, prior_C = auc_margin(scores, positive, ~positive, 1.0), share_of_pairs(positive, ~positive)
    plain, balanced = [], []
    for rows in torch.arange(6_000).chunk(300):
        batch = (scores[rows], positive[rows], ~positive[rows])
        plain.append(auc_margin(*batch, 1.0))
        balanced.append(plain[-1] * share_of_pairs(*batch[1:]) / prior_C)
    mean_C, balanced_C = torch.stack(plain).mean(dim=0), torch.stack(balanced).mean(dim=0)
    assert mean_C[0] < 0.5 * whole_C[0]
    torch.testing.assert_close(balanced_C, whole_C, rtol=0.15, atol=0)


def test_combined_is_the_sum_of_its_parts_by_their_shares() -> None:
    parts = [
        {"name": "bce", "weights": "balanced", "share": 0.25}, {"name": "asymmetric", "label_smoothing": 0.1},
        {"name": "partial_auc", "share": 2.0},
    ]  # fmt: skip
    rng, findings = np.random.default_rng(0), list("abcdef")
    labels = (rng.random((50, 6)) < 0.3).astype(np.uint8), np.ones((50, 6), np.uint8)
    sample, spec = batch(), Loss.model_validate({"name": "combined", "parts": parts})
    loss = build_loss(spec, *labels, findings).to(torch.device("cpu"))
    alone = [{key: value for key, value in part.items() if key != "share"} for part in parts]
    values = [build_loss(Loss.model_validate(part), *labels, findings)(*sample) for part in alone]
    assert loss(*sample).item() == pytest.approx((0.25 * values[0] + values[1] + 2 * values[2]).item(), rel=1e-6)
    assert loss.of_pairs and loss.count(sample[2]) == sample[2].sum()
    assert spec.in_use()["parts"][0] == {"name": "bce", "weights": "balanced", "label_smoothing": 0.0, "share": 0.25}
    wrong = Loss.model_validate({"name": "combined", "parts": [{"name": "bce"}, {"name": "bce", "weights": [1.0]}]})
    assert not wrong.of_pairs
    with pytest.raises(ValueError, match=r"loss.parts.1.weights holds 1 numbers, but there are 6 findings"):
        check_weights(wrong, findings)


def test_labels_between_0_and_1_are_refused_with_both_keys() -> None:
    check_whole_labels(Loss(), "loss", "augment.mixup")
    combined = Loss.model_validate({"name": "combined", "parts": [{"name": "bce"}, {"name": "auc_margin"}]})
    with pytest.raises(ValueError, match=r"augment.mixup does not go with train.stages.1.loss.name=combined"):
        check_whole_labels(combined, "train.stages.1.loss", "augment.mixup")
