"""What validation decides and the test split is told: a threshold per rule and finding, a temperature per finding.

Shape suffixes: N samples, C findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distcxr.metrics.calibration import Logits, Temperature, fit_temperature, probabilities
from distcxr.metrics.ranking import check_arrays, dense_ranks, known
from distcxr.metrics.threshold import Rule, Threshold, choose_threshold

DEFAULT_RULES: Mapping[str, Rule] = {
    "youden": Rule("youden"),
    "max_f1": Rule("max_f1"),
    "recall_90": Rule("recall", 0.9),
    "specificity_90": Rule("specificity", 0.9),
    "probability_50": Rule("probability", 0.5),
}

Scale = Literal["logit", "probability"]

FROM_ITSELF = "this split (optimistic)"
"""Where thresholds are from that were chosen on the split they are applied to."""

_CLOSEST_TO_0_OR_1 = 2.0**-53


@dataclass(frozen=True)
class Ranked:
    """Scores as the ranking code wants them: float32 of the same order.

    Float32 logits are that already. Float64 scores (other people's) become their places among the distinct scores of
    their column, because a cast would make ties; `levels` then holds those scores, rising.
    """

    scores_NC: NDArray[np.float32]
    levels: list[NDArray[np.float64]] | None

    def to_rank(self, column: int, threshold: float) -> float:
        """What `scores_NC` must reach for the score to reach the threshold: exact, whatever the threshold."""
        return threshold if self.levels is None else float(self.levels[column].searchsorted(threshold))

    def to_score(self, column: int, rank: float) -> float:
        """The score that has this place; the inverse of `to_rank` for a score that is there."""
        return rank if self.levels is None else float(self.levels[column][int(rank)])


@dataclass(frozen=True)
class Operating:
    """Thresholds by rule, and temperatures, each in the order of `findings`.

    Attributes:
        scale: of the thresholds; the scores of `choose_operating`.
        num_samples: that they were chosen on.
    """

    findings: tuple[str, ...]
    scale: Scale
    num_samples: int
    thresholds: dict[str, tuple[Threshold, ...]]
    temperatures: tuple[Temperature, ...]

    def threshold(self, rule: str, column: int, scale: Scale) -> float | None:
        """A threshold on the scale asked for; None where there is none."""
        value = self.thresholds[rule][column].value
        if value is None or scale == self.scale:
            return value
        return to_logit(value) if scale == "logit" else to_probability(value)

    def to_json(self) -> dict[str, Any]:
        """Plain Python types, from which `operating_from_json` makes an equal object."""
        return {
            "scale": self.scale,
            "num_samples": self.num_samples,
            "rules": {name: asdict(chosen[0].rule) for name, chosen in self.thresholds.items() if chosen},
            "findings": {
                finding: {
                    "thresholds": {
                        name: {"value": chosen[column].value, "reason": chosen[column].reason}
                        for name, chosen in self.thresholds.items()
                    },
                    "temperature": asdict(self.temperatures[column]),
                }
                for column, finding in enumerate(self.findings)
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Operating:
        """What `to_json` gave; entries beside its own are ignored. Raises ValueError for anything else."""
        try:
            rules = {name: Rule(**rule) for name, rule in content["rules"].items()}
            entries = content["findings"].values()
            scale: Scale = {"logit": "logit", "probability": "probability"}[content["scale"]]  # type: ignore[assignment]
            return cls(
                findings=tuple(content["findings"]),
                scale=scale,
                num_samples=int(content["num_samples"]),
                thresholds={
                    name: tuple(Threshold(rule=rule, **entry["thresholds"][name]) for entry in entries)
                    for name, rule in rules.items()
                },
                temperatures=tuple(Temperature(**entry["temperature"]) for entry in entries),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are no operating points: {type(error).__name__} {error}") from error


def choose_operating(
    findings: Sequence[str],
    logits_NC: Logits,
    targets_NC: NDArray[np.uint8],
    mask_NC: NDArray[np.uint8],
    rules: Mapping[str, Rule] = DEFAULT_RULES,
    *,
    scale: Scale = "logit",
) -> Operating:
    """Choose thresholds and fit temperatures; on validation only, or the figures at them flatter.

    Args: float32 or float64 logits, or with `scale` float64 probabilities; uint8 targets and mask (1 = label known),
    all `[N, C]`. A finding whose known scores are not all finite gets none, with that reason; the threshold of a fixed
    probability every finding gets.
    Raises ValueError as `ranking.check_arrays` does, and for another number of findings.
    """
    if logits_NC.shape[1:] != (len(findings),):
        raise ValueError(f"{len(findings)} findings are named, but the scores are {logits_NC.shape}")
    bad_C = not_finite(logits_NC, mask_NC)
    finite_NC = np.where(bad_C > 0, 0, mask_NC).astype(np.uint8)
    check_arrays(logits_NC, targets_NC, finite_NC, double=True)
    ranked, calibrated_NC = rank(logits_NC), as_logits(logits_NC, scale)
    thresholds: dict[str, list[Threshold]] = {name: [] for name in rules}
    temperatures: list[Temperature] = []
    for column, num_bad in enumerate(bad_C.tolist()):
        mask_N = finite_NC[:, column]
        scores_N, targets_N = known(ranked.scores_NC[:, column], targets_NC[:, column], mask_N)
        diverged = f"{num_bad} of {np.count_nonzero(mask_NC[:, column])} {scores_of(scale)} are not finite"
        for name, rule in rules.items():
            if rule.kind == "probability":
                fixed = rule.at or 0.0  # a rule of this kind has it
                thresholds[name].append(Threshold(fixed if scale == "probability" else to_logit(fixed), rule, None))
                continue
            chosen = Threshold(None, rule, diverged) if num_bad else choose_threshold(scores_N, targets_N, rule)
            value = None if chosen.value is None else ranked.to_score(column, chosen.value)
            thresholds[name].append(Threshold(value, rule, chosen.reason))
        if num_bad:
            temperatures.append(Temperature(None, None, None, diverged))
        else:
            temperatures.append(fit_temperature(*known(calibrated_NC[:, column], targets_NC[:, column], mask_N)))
    return Operating(
        findings=tuple(findings),
        scale=scale,
        num_samples=len(logits_NC),
        thresholds={name: tuple(chosen) for name, chosen in thresholds.items()},
        temperatures=tuple(temperatures),
    )


def rank(scores_NC: Logits) -> Ranked:
    """Float32 scores as they are, float64 ones as places."""
    if scores_NC.dtype == np.float32:
        return Ranked(scores_NC.astype(np.float32, copy=False), None)
    return Ranked(*dense_ranks(scores_NC.astype(np.float64, copy=False)))


def as_logits(scores_NC: Logits, scale: Scale) -> Logits:
    """Logits to calibrate with; probabilities of exactly 0 and 1 count as 2**-53 and 1 - 2**-53."""
    if scale == "logit":
        return scores_NC
    prob_NC = np.clip(scores_NC.astype(np.float64), _CLOSEST_TO_0_OR_1, 1 - _CLOSEST_TO_0_OR_1)
    logits_NC: NDArray[np.float64] = np.log(prob_NC) - np.log1p(-prob_NC)
    return logits_NC


def to_logit(prob: float) -> float:
    """`as_logits` of one probability."""
    return float(as_logits(np.array([[prob]]), "probability")[0, 0])


def to_probability(logit: float) -> float:
    """Sigmoid of one logit."""
    return float(probabilities(np.array([logit]))[0])


def not_finite(scores_NC: Logits, mask_NC: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many scores of known labels are NaN or infinite, by finding, int64 `[C]`."""
    return np.asarray(np.count_nonzero(~np.isfinite(scores_NC) & mask_NC.astype(bool), axis=0), dtype=np.int64)


def scores_of(scale: Scale) -> str:
    """What to call scores of this scale."""
    return "logits" if scale == "logit" else "probabilities"
