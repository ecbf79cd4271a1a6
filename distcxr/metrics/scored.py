"""What every figure is made from: the scores and labels of a split, checked once and sliced once per finding.

    (scores_NC, targets_NC, mask_NC, patient_id) ──► Scored.of ──► Scored ──► known[c]: a finding's known labels alone

Shape suffixes: N samples, C findings, M samples with a known label of one finding (mask 1), B bad rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.ranking import PositiveRanks, dense_ranks, rank_positives

Scale = Literal["logit", "probability"]
Floats = NDArray[np.floating[Any]]

_CLOSEST_TO_0_OR_1 = 2.0**-53


@dataclass(frozen=True, eq=False)
class Known:
    """One finding's samples with a known label, in the order of the split.

    Holds no samples, and has the reason, where a known score is NaN or infinite: such a finding has no figures.

    Attributes:
        given_M: float32 or float64, on `scale`.
        scores_M: float32 of the same order, for all that ranks: `given_M`, or its dense ranks where that is float64.
        levels: the distinct scores behind those ranks, float64, rising; None where there are no ranks.
        targets_M: uint8, 0 or 1.
        patient_M: int32, as `Scored.patient_N`.
        is_known_N: which samples of the split these are.
        num, num_positive: known labels, those of scores that are not finite among them.
        num_not_finite: known labels with such a score.
    """

    name: str
    scale: Scale
    given_M: Floats
    scores_M: NDArray[np.float32]
    levels: NDArray[np.float64] | None
    targets_M: NDArray[np.uint8]
    patient_M: NDArray[np.int32]
    is_known_N: NDArray[np.bool_]
    num: int
    num_positive: int
    num_not_finite: int = 0

    @property
    def reason(self) -> str | None:
        """Why there are no areas; None where both classes are there."""
        if self.num == 0:
            return "no known labels"
        if self.num_not_finite:
            return f"{self.num_not_finite} of {self.num} {scores_of(self.scale)} are not finite"
        if self.num_positive in (0, self.num):
            return f"no {'negatives' if self.num_positive else 'positives'} among {self.num} known labels"
        return None

    @cached_property
    def ranks(self) -> PositiveRanks | None:
        """All that AUROC and average precision need; None where `reason` is text."""
        return None if self.reason else rank_positives(self.scores_M, self.targets_M)

    @property
    def logits_M(self) -> Floats:
        """`given_M` as logits, to calibrate with."""
        return self.given_M if self.scale == "logit" else as_logits(self.given_M)

    @property
    def num_patients(self) -> int:
        """Patients of these samples."""
        return count_patients(self.patient_M)

    @property
    def num_positive_patients(self) -> int:
        """Patients with a positive among these samples; 0 where scores are not finite."""
        return count_patients(self.patient_M[self.targets_M == 1])

    @property
    def num_negative_patients(self) -> int:
        """Patients with a negative among these samples; those with positives, too, are among them."""
        return count_patients(self.patient_M[self.targets_M == 0])

    def to_rank(self, threshold: float) -> float:
        """What `scores_M` must reach for `given_M` to reach the threshold: exact, whatever the threshold."""
        return threshold if self.levels is None else float(self.levels.searchsorted(threshold))

    def to_score(self, rank: float) -> float:
        """The inverse of `to_rank`, for a score that is there."""
        return rank if self.levels is None else float(self.levels[int(rank)])

    def within(self, inside_N: NDArray[np.bool_]) -> Known:
        """The same of some samples of the split; ranks stay those of all."""
        inside_M = inside_N[self.is_known_N]
        targets_M = self.targets_M[inside_M]
        return replace(
            self,
            given_M=self.given_M[inside_M],
            scores_M=self.scores_M[inside_M],
            targets_M=targets_M,
            patient_M=self.patient_M[inside_M],
            is_known_N=self.is_known_N[inside_N],
            num=len(targets_M),
            num_positive=int(np.count_nonzero(targets_M)),
            num_not_finite=0,
        )


@dataclass(frozen=True, eq=False)
class Scored:
    """N samples of C findings: `known` has a `Known` for each of `findings`.

    Attributes:
        patient_N: int32, patients numbered from 0 in ascending order of their ids.
        num_patients: patients numbered; those of a whole split, where `within` took some of its samples.
    """

    findings: tuple[str, ...]
    scale: Scale
    known: tuple[Known, ...]
    patient_N: NDArray[np.int32]
    num_patients: int

    def __len__(self) -> int:
        return len(self.patient_N)

    @classmethod
    def of(
        cls,
        findings: Sequence[str],
        scores_NC: Floats,
        targets_NC: NDArray[np.uint8],
        mask_NC: NDArray[np.uint8],
        patient_id: NDArray[Any],
        scale: Scale = "logit",
    ) -> Scored:
        """Check the arrays, and slice them.

        Args:
            scores_NC: raw float32 logits: never float32 probabilities, where a sigmoid rounds everything above about
                17 to 1.0 and makes ties that the model did not. Or float64 logits, or with `scale` probabilities,
                which rank as they are: float64 is never rounded to float32.
            targets_NC, mask_NC: uint8 or bool, 0 or 1; what is under an unknown label (mask 0) may be anything.
            patient_id: integers or text `[N]`.

        Raises ValueError for shapes and dtypes other than these, names that repeat, and with rows, counted from 0, for
        a mask or a known target other than 0 and 1, and a known probability outside 0 to 1.
        """
        if len(set(findings)) < len(findings):
            raise ValueError(f"findings repeat a name: {list(findings)}")
        shapes = {"scores": scores_NC.shape, "targets": targets_NC.shape, "mask": mask_NC.shape}
        if any(shape != (len(scores_NC), len(findings)) for shape in shapes.values()):
            raise ValueError(f"all must be [N, C] with C = {len(findings)} findings: {shapes}")
        if scores_NC.dtype not in (np.float32, np.float64):
            raise ValueError(f"scores must be float32 or float64, got {scores_NC.dtype}")
        for name, labels_NC in (("targets", targets_NC), ("mask", mask_NC)):
            if labels_NC.dtype not in (np.uint8, np.bool_):
                raise ValueError(f"{name} must be uint8 or bool, got {labels_NC.dtype}")
        if patient_id.dtype.kind not in "iuU" or patient_id.ndim != 1:
            raise ValueError(f"patient ids must be integers or text [N], got {patient_id.dtype} {patient_id.shape}")
        if len(patient_id) != len(scores_NC):
            raise ValueError(f"{len(patient_id)} patient ids, but {len(scores_NC)} rows of scores")
        _refuse(mask_NC.view(np.uint8) > 1, "mask other than 0 and 1")
        known_NC, targets_NC = mask_NC.astype(bool), targets_NC.astype(np.uint8, copy=False)
        _refuse((targets_NC > 1) & known_NC, "targets other than 0 and 1 where the mask is 1")
        if scale == "probability":
            _refuse(((scores_NC < 0) | (scores_NC > 1)) & known_NC, "probabilities outside 0 to 1 (are they logits?)")
        ids_P, row_N = np.unique(patient_id, return_inverse=True)
        patient_N: NDArray[np.int32] = row_N.astype(np.int32)
        columns = zip(findings, scores_NC.T, targets_NC.T, known_NC.T, strict=True)
        known = tuple(_slice(*column, patient_N, scale) for column in columns)
        return cls(tuple(findings), scale, known, patient_N, len(ids_P))

    def within(self, inside_N: NDArray[np.bool_]) -> Scored:
        """Some of the samples, bool `[N]`; patients keep their numbers, so the draws of the whole split serve."""
        return replace(
            self, known=tuple(known.within(inside_N) for known in self.known), patient_N=self.patient_N[inside_N]
        )

    def columns(self, findings: Sequence[str] | None) -> list[int]:
        """Positions of these findings, of all by default. Raises ValueError for others, and where a name repeats."""
        if findings is None:
            return list(range(len(self.findings)))
        if strangers := [name for name in findings if name not in self.findings]:
            raise ValueError(f"macro findings {strangers} are not scored; scored are {list(self.findings)}")
        if len(set(findings)) < len(findings):
            raise ValueError(f"macro findings repeat a name: {list(findings)}")
        return [self.findings.index(name) for name in findings]


def first_few(values: Sequence[object], shown: int = 5) -> str:
    """The values, or the first of them and how many more."""
    more = f" and {len(values) - shown:,} more" if len(values) > shown else ""
    return ", ".join(map(str, values[:shown])) + more


def scores_of(scale: Scale) -> str:
    """What to call scores of this scale."""
    return "logits" if scale == "logit" else "probabilities"


def as_logits(prob: Floats) -> NDArray[np.float64]:
    """Logits of probabilities, any shape; exactly 0 and 1 count as 2**-53 and 1 - 2**-53."""
    clipped = np.clip(prob.astype(np.float64), _CLOSEST_TO_0_OR_1, 1 - _CLOSEST_TO_0_OR_1)
    logits: NDArray[np.float64] = np.log(clipped) - np.log1p(-clipped)
    return logits


def count_patients(*patients: NDArray[np.int32]) -> int:
    """How many patients these samples are of; numbers as in `Scored.patient_N`."""
    return int(np.count_nonzero(np.bincount(np.concatenate(patients)))) if patients else 0


def _refuse(bad_NC: NDArray[np.bool_], what: str) -> None:
    if bad_NC.any():
        row_B = np.flatnonzero(bad_NC.any(axis=1))
        raise ValueError(f"{what} in {len(row_B)} of {len(bad_NC)} rows: {first_few(row_B.tolist())}")


def _slice(
    name: str,
    scores_N: Floats,
    targets_N: NDArray[np.uint8],
    mask_N: NDArray[np.bool_],
    patient_N: NDArray[np.int32],
    scale: Scale,
) -> Known:
    """Arrays that are whole are not copied more often than needed."""
    if mask_N.all():
        given_M, targets_M, patient_M = np.ascontiguousarray(scores_N), np.ascontiguousarray(targets_N), patient_N
    else:
        given_M, targets_M, patient_M = scores_N[mask_N], targets_N[mask_N], patient_N[mask_N]
    num, num_positive = len(targets_M), int(np.count_nonzero(targets_M))
    num_not_finite = num - int(np.count_nonzero(np.isfinite(given_M)))
    if num_not_finite:
        given_M, targets_M, patient_M, mask_N = given_M[:0], targets_M[:0], patient_M[:0], np.zeros_like(mask_N)
    levels = None
    if given_M.dtype == np.float32:
        scores_M = given_M.astype(np.float32, copy=False)
    else:
        scores_M, levels = dense_ranks(given_M.astype(np.float64, copy=False))
    return Known(
        name, scale, given_M, scores_M, levels, targets_M, patient_M, mask_N, num, num_positive, num_not_finite
    )
