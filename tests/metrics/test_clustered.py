"""Obuchowski's test against the paper's formula with all pairs, copies of images, and under no difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cohort import Cohort, cohort, known, scored

from distcxr.metrics.clustered import paired_p_value
from distcxr.metrics.p_values import holm


def by_the_paper(models: list[np.ndarray], targets: np.ndarray, patients: np.ndarray) -> float:
    """Variance of the difference of two areas: Obuchowski 1997, sums of placements by patient, all pairs."""
    ids = np.unique(patients)
    x, y, areas = [], [], []
    for scores in models:
        above = scores[targets == 1][:, None] - scores[targets == 0][None]
        psi = (above > 0) + 0.5 * (above == 0)
        x.append(np.array([psi[patients[targets == 1] == one].mean(axis=1).sum() for one in ids]))
        y.append(np.array([psi[:, patients[targets == 0] == one].mean(axis=0).sum() for one in ids]))
        areas.append(psi.mean())
    m, n = (np.array([np.count_nonzero(targets[patients == one] == label) for one in ids]) for label in (1, 0))
    total = np.zeros((2, 2))
    for j in (0, 1):
        for k in (0, 1):
            with_m, with_n = np.count_nonzero(m), np.count_nonzero(n)
            s10 = with_m / ((with_m - 1) * m.sum()) * np.sum((x[j] - m * areas[j]) * (x[k] - m * areas[k]))
            s01 = with_n / ((with_n - 1) * n.sum()) * np.sum((y[j] - n * areas[j]) * (y[k] - n * areas[k]))
            s11 = len(ids) / (len(ids) - 1) * np.sum((x[j] - m * areas[j]) * (y[k] - n * areas[k]))
            s11_turned = len(ids) / (len(ids) - 1) * np.sum((x[k] - m * areas[k]) * (y[j] - n * areas[j]))
            total[j, k] = s10 / m.sum() + s01 / n.sum() + (s11 + s11_turned) / (m.sum() * n.sum())
    return float(total[0, 0] + total[1, 1] - 2 * total[0, 1])


def second(found: Cohort) -> Cohort:
    noise = np.random.default_rng(99).normal(size=found.logits_NC.shape)
    return found._replace(logits_NC=(found.logits_NC + 0.7 * noise).round(1).astype(np.float32))


def test_equals_the_papers_formula() -> None:
    from scipy.stats import t

    found = cohort(1)
    for a, b in zip(scored(*found).known, scored(*second(found)).known, strict=True):
        variance = by_the_paper([a.scores_M, b.scores_M], a.targets_M, a.patient_M)
        patients = [len(np.unique(a.patient_M[a.targets_M == label])) for label in (0, 1)]
        statistic = abs(a.ranks.auroc() - b.ranks.auroc()) / math.sqrt(variance)
        assert paired_p_value(a, b) == pytest.approx(2 * t.sf(statistic, min(patients) - 1), rel=1e-9)


def test_copies_of_images_change_nothing() -> None:
    """Four copies of every image, each of its patient; taken as patients of their own they make p far smaller."""
    found = cohort(2)._replace(patient_id=np.arange(400))
    once = [scored(*each).known[0] for each in (found, second(found))]
    copied = [scored(*(np.repeat(part, 4, axis=0) for part in each)).known[0] for each in (found, second(found))]
    apart = [known(one.scores_M, one.targets_M) for one in copied]
    assert paired_p_value(*copied) == pytest.approx(paired_p_value(*once), rel=1e-9)
    assert paired_p_value(*apart) < 0.1 * paired_p_value(*once)


def test_few_patients_have_no_p_value() -> None:
    targets = (np.arange(60) % 5 == 0).astype(np.uint8)[:, None]
    models = [np.random.default_rng(seed).normal(size=(60, 1)).astype(np.float32) for seed in (0, 1)]
    for patients, has_p in ((np.arange(60), True), (np.arange(60) // 7, False)):
        labels = targets, np.ones_like(targets), patients
        assert (paired_p_value(*(scored(one, *labels).known[0] for one in models)) is not None) == has_p


def test_holm() -> None:
    """Holm's own order of steps: the smallest times 4, the next times 3, and never below one before."""
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02], nan_ok=True)
    assert holm([0.9, 0.5]) == [1.0, 1.0] and holm([]) == [] and holm([None]) == [None]
