"""Linear heads at the minimum: scikit-learn's logistic regression where all is known, and masks that leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from distcxr.engine.head_fit import converged, fit_heads
from distcxr.losses import LossFunction
from distcxr.recipe.loss import Loss


def features() -> Tensor:
    """160 images of 5 features of very different sizes, the last of which never changes."""
    drawn = torch.randn(160, 5, generator=torch.Generator().manual_seed(0))
    return drawn * torch.tensor([1.0, 100.0, 0.01, 3.0, 0.0]) + torch.tensor([0.0, 500.0, 1.0, -2.0, 7.0])


def labels(columns: int) -> Tensor:
    score = (features()[:, :3] - features()[:, :3].mean(0)) / features()[:, :3].std(0)
    noise = torch.randn(160, columns, generator=torch.Generator().manual_seed(1))
    return ((score.repeat(1, columns)[:, :columns] + noise) > 0.5).byte()


def reference(x: Tensor, y: Tensor, penalty: float) -> np.ndarray:
    scaled = (x.numpy() - x.numpy().mean(0)) / np.where(x.numpy().std(0) > 0, x.numpy().std(0), 1)
    fitted = LogisticRegression(C=1 / (len(x) * penalty), tol=1e-10, max_iter=10_000).fit(scaled, y.numpy())
    logits = fitted.decision_function(scaled)
    return logits[:, None] if logits.ndim == 1 else logits - logits.mean(1, keepdims=True)


@pytest.mark.parametrize("penalty", [1.0, 1e-3])
def test_each_finding_has_the_weights_of_scikit_learn_s_regression_on_what_is_known(penalty: float) -> None:
    x, y = features(), labels(2)
    mask = torch.ones_like(y)
    mask[:60, 1] = 0
    spoilt = torch.where(mask == 1, y, 1 - y)
    heads = list(fit_heads(x, spoilt, mask, LossFunction(Loss()), [penalty, 10.0]))
    assert [head.penalty for head in heads] == [10.0, penalty] and all(map(converged, heads))
    got = heads[1].logits(x).numpy()
    # The penalty is shared out by the mean number of known labels: 130 of 160 and 100.
    np.testing.assert_allclose(got[:, :1], reference(x, y[:, 0], penalty * 130 / 160), atol=2e-3)
    known, scaled = mask[:, 1] == 1, x.double()
    scaled = (scaled - scaled.mean(0)) / torch.where(scaled.std(0) > 0, scaled.std(0, correction=0), 1.0)
    fitted = LogisticRegression(C=1 / (130 * penalty), tol=1e-10, max_iter=10_000)
    fitted.fit(scaled[known].numpy(), y[known, 1].numpy())
    np.testing.assert_allclose(got[:, 1], fitted.decision_function(scaled.numpy()), atol=2e-3)


def test_classes_that_exclude_each_other_have_a_softmax() -> None:
    x, kind = features(), (labels(1)[:, 0] + labels(2)[:, 1]).long()
    loss = LossFunction(Loss(name="cross_entropy"))
    targets = torch.nn.functional.one_hot(kind, 3).byte()
    (head,) = fit_heads(x, targets, torch.ones_like(targets), loss, [0.01])
    logits = head.logits(x)
    np.testing.assert_allclose(logits - logits.mean(1, keepdim=True), reference(x, kind, 0.01), atol=2e-3)


def test_a_finding_without_positives_keeps_its_frequency() -> None:
    y = labels(2)
    y[:, 1] = 0
    (head,) = fit_heads(features(), y, torch.ones_like(y), LossFunction(Loss()), [1e-6])
    assert not head.weight_CD[1].any() and head.bias_C[1] == pytest.approx(np.log(0.5 / 160.5))
    assert head.weight_CD[0].any() and not head.weight_CD[0, 4], "a feature that never changes has no weight"
