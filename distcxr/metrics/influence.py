"""How much each patient moves a figure: variances by patient without drawing any, and intervals from them.

Shape suffixes: P patients of the split, M samples with a known label, V of them of one class, G distinct scores.

A patient's influence is the change of the figure per unit of the patient's weight. Images of a patient are added up
first, so that what they share is not counted as many patients' agreement; the variance is the sum of squares. For the
AUROC that is Obuchowski's variance for clustered data (Biometrics 53 (1997), 567-578), DeLong's where every patient has
one image. Influences of one split's figures may be averaged and subtracted patient by patient: the covariance of two
findings, two groups or two models is the sum of their products.

Of few patients two things go wrong. A patient's deviation from a mean that it helped to make is too small: it is
divided by the root of 1 - its share (the "CR2" of sandwich estimators). And near 0 and 1 a variance is itself made by
the one or two patients that are ranked wrong; without any it is 0. So the variance of a share is averaged with that of
a model in `steady`, which decides alone where all is ranked right. And a variance that hangs on a few of many patients
is less certain than their number tells: it has the degrees of freedom of its fourth moment (`fourth_moment_df`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.delong import placements
from distcxr.metrics.estimate import LEVEL, sigmoid
from distcxr.metrics.scored import Known
from distcxr.metrics.student import quantile

_MODEL_DF = 6.0
_MODEL_CORRELATION = 0.35
"""Of two images of a patient, in the model's variance. Both were chosen by `benchmarks/interval_coverage.py`: more of
either is too wide where images of a patient agree less, less of either too narrow near 1."""

Floats = NDArray[Any]


@dataclass(frozen=True)
class Spread:
    """A figure, what each patient of the split adds to its error `[P]`, and the variance and degrees of freedom.

    `factor`: of a share, what multiplies `sample_variance`; 0 of figures that are none.
    """

    value: float
    influence_P: Floats
    variance: float
    df: float
    factor: float = 0.0


class _Class(NamedTuple):
    """Deviations of a class's samples added up by patient, and each patient's share of the class."""

    deviation_P: Floats
    share_P: Floats

    @property
    def corrected_P(self) -> Floats:
        return self.deviation_P / np.sqrt(np.where(self.share_P < 1, 1 - self.share_P, 1.0))

    @property
    def variance(self) -> float:
        return float((self.corrected_P**2).sum())

    @property
    def effective(self) -> float:
        """Kish's number of patients: as many of equal share would vary as much, were all images of a patient alike."""
        return 1 / float((self.share_P**2).sum())

    @property
    def df(self) -> float:
        """Degrees of freedom of the variance, were deviations normal."""
        return self.effective - 1

    @property
    def tail_df(self) -> float:
        """Those of deviations as they are."""
        return min(self.df, fourth_moment_df(self.corrected_P[self.share_P > 0], self.effective))

    def model_factor(self, num: float) -> float:
        """What a sample's variance is multiplied by, of `num` samples that resemble others of their patient."""
        return _MODEL_CORRELATION / self.effective + (1 - _MODEL_CORRELATION) / num


def auroc_spread(known: Known, num_patients: int) -> Spread:
    """AUROC of a finding with both classes. The sums are of whole numbers, so the order of the samples can't count."""
    assert known.ranks is not None, known.reason
    area = known.ranks.auroc()
    is_positive_M = known.targets_M.astype(bool)
    num_positive, num_negative = known.num_positive, known.num - known.num_positive
    half_pairs = placements(known)
    classes = []
    for half_pairs_V, is_in_M, num, others in (
        (half_pairs[0], is_positive_M, num_positive, num_negative),
        (half_pairs[1], ~is_positive_M, num_negative, num_positive),
    ):
        patient_V = known.patient_M[is_in_M]
        count_P = np.bincount(patient_V, minlength=num_patients).astype(np.float64)
        sum_P = np.bincount(patient_V, weights=half_pairs_V, minlength=num_patients)
        classes.append(_Class((sum_P / (2 * others) - count_P * area) / num, count_P / num))
    positive, negative = classes
    influence_P = positive.corrected_P + negative.corrected_P
    variance = float((influence_P**2).sum())
    # The mean of both: the tails alone are too wide of an AUROC above .95, which `steady` knows better.
    df = welch(variance, [(one.variance, (one.df + one.tail_df) / 2) for one in classes])
    factor = positive.model_factor(num_positive) + negative.model_factor(num_negative)
    return steady(Spread(area, influence_P, variance, df), positive.effective, factor, of_ranks=True)


def auprc_spread(known: Known, num_patients: int) -> Spread:
    """Average precision of a finding with both classes, by its derivative: a positive changes its own term and the
    precision at each positive below, a negative the latter alone."""
    assert known.ranks is not None, known.reason
    area, num = known.ranks.auprc(), known.num_positive
    order_M = np.lexsort((known.patient_M, known.targets_M, -known.scores_M))
    patient_M, scores_M = known.patient_M[order_M], known.scores_M[order_M]
    is_positive_M = known.targets_M[order_M].astype(bool)
    is_last_M = np.append(scores_M[1:] != scores_M[:-1], True)
    ends = np.flatnonzero(is_last_M)  # of equal scores
    group_M = np.cumsum(is_last_M) - is_last_M
    called_G = (ends + 1).astype(np.float64)
    true_G = np.cumsum(is_positive_M)[ends]
    new_G = np.diff(true_G, prepend=0)
    lost_G = np.cumsum((new_G * true_G / called_G**2)[::-1])[::-1]
    # One more positive changes a precision by (called - true) / called^2: 1 / called less what a negative takes.
    won_G = np.cumsum((new_G / called_G)[::-1])[::-1] - lost_G
    change_M = np.where(is_positive_M, (true_G / called_G)[group_M] - area + won_G[group_M], -lost_G[group_M]) / num
    positive_P = np.bincount(patient_M[is_positive_M], minlength=num_patients) / num
    changes = _Class(np.bincount(patient_M, weights=change_M, minlength=num_patients), positive_P)
    return Spread(area, changes.corrected_P, changes.variance, changes.tail_df)


def share_spread(part_P: Floats, whole_P: Floats) -> Spread:
    """The sum of the parts of the sum of the wholes, a whole above 0: recall of true positives and positives."""
    whole = float(whole_P.sum())
    value = float(part_P.sum()) / whole
    one = _Class((part_P - value * whole_P) / whole, whole_P / whole)
    spread = Spread(value, one.corrected_P, one.variance, one.df)
    return steady(spread, one.effective, one.model_factor(whole), of_ranks=False)


def steady(spread: Spread, effective: float, factor: float, *, of_ranks: bool) -> Spread:
    """The spread of a share with the variance averaged with a model's, that of the model counting as `_MODEL_DF`
    degrees of freedom and its own as many as it has, times the root of 4 v (1 - v).

    Args: the effective number of patients; by what the model multiplies a sample's variance.
    """
    shrunk = (spread.value * effective + 0.5) / (effective + 1)
    df = spread.df * 2 * math.sqrt(shrunk * (1 - shrunk))
    model_variance = sample_variance(spread.value, of_ranks) * factor
    ratio = spread.variance / model_variance if model_variance else 1.0
    df, ratio = df + _MODEL_DF, (df * ratio + _MODEL_DF) / (df + _MODEL_DF)
    return Spread(spread.value, spread.influence_P, model_variance * ratio, df, factor * ratio)


def sample_variance(value: float, of_ranks: bool) -> float:
    """Of one sample's part in a share: v (1 - v) where it is 0 or 1.

    Of a positive's rank among many negatives it is less: .33 v (1 - v) at v = .6 and .12 v (1 - v) at .99 for two
    normal distributions of equal width, and more where positives spread more. The curve is a little above the former.
    """
    product = value * (1 - value)
    return product * 0.4 * (4 * product) ** 0.3 if of_ranks else product


def average_spread(spreads: list[Spread]) -> Spread:
    """The mean of figures of one split, at least one; patients that several share count once."""
    influence_P = np.sum([one.influence_P for one in spreads], axis=0) / len(spreads)
    # What a model added to each variance is added here, too: no covariance is known for it.
    added = sum(one.variance - float((one.influence_P**2).sum()) for one in spreads)
    variance = float((influence_P**2).sum()) + max(added, 0.0) / len(spreads) ** 2
    df = fourth_moment_df(influence_P, float(np.count_nonzero(influence_P)))
    return Spread(math.fsum(one.value for one in spreads) / len(spreads), influence_P, variance, df)


def logit_interval(spread: Spread) -> tuple[float, float]:
    """Symmetric in log(v / (1 - v)), from a value and a variance above 0 and below 1."""
    centre = math.log(spread.value / (1 - spread.value))
    reach = quantile(LEVEL, spread.df) * math.sqrt(spread.variance) / (spread.value * (1 - spread.value))
    return sigmoid(centre - reach), sigmoid(centre + reach)


def score_interval(spread: Spread, of_ranks: bool) -> tuple[float, float]:
    """The values that the figure does not reject at the variance that *they* have: Wilson's interval, of a share."""
    squared = quantile(LEVEL, spread.df) ** 2 * spread.factor
    ends = []
    for end in (0.0, 1.0):
        inside, outside = spread.value, end
        for _ in range(50):
            middle = (inside + outside) / 2
            if (spread.value - middle) ** 2 <= squared * sample_variance(middle, of_ranks):
                inside = middle
            else:
                outside = middle
        ends.append(inside)
    return ends[0], ends[1]


def mean_interval(sum_P: Floats, count_P: Floats) -> tuple[float, float]:
    """Of the mean of samples, from their sum and number by patient: Student's t on the scale of the mean."""
    num = float(count_P.sum())
    mean = float(sum_P.sum()) / num
    one = _Class((sum_P - mean * count_P) / num, count_P / num)
    reach = quantile(LEVEL, max(one.df, 1.0)) * math.sqrt(one.variance)
    return mean - reach, mean + reach


def fourth_moment_df(deviation_P: Floats, num: float) -> float:
    """Degrees of freedom of a sum of squares of `num` patients: twice its square by its own variance; at least 1."""
    square_P = deviation_P**2
    variance = float(square_P.sum())
    uncertain = float((square_P**2).sum()) - variance**2 / num if num else 0.0
    return max(2 * variance**2 / uncertain, 1.0) if uncertain > 0 else max(float(num) - 1, 1.0)


def welch(variance: float, parts: list[tuple[float, float]]) -> float:
    """Welch and Satterthwaite's degrees of freedom of a sum of variances; at least 1."""
    total = sum(part**2 / max(df, 1.0) for part, df in parts)
    return max(variance**2 / total, 1.0) if total else max(min(df for _, df in parts), 1.0)
