"""What validation decides for the test split: a threshold per rule and finding, a temperature per finding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from distcxr.metrics.bootstrap import PatientResamples
from distcxr.metrics.calibration import Temperature, fit_temperature, probabilities
from distcxr.metrics.scored import Known, Scale, Scored, as_logits, count_patients
from distcxr.metrics.threshold import Rule, Threshold, choose_threshold
from distcxr.metrics.threshold_choice import resampled_thresholds

RULES: Mapping[str, Rule] = {
    "youden": Rule("youden"),
    "max_f1": Rule("max_f1"),
    "recall_90": Rule("recall", 0.9),
    "specificity_90": Rule("specificity", 0.9),
    "probability_50": Rule("probability", 0.5),
}

FROM_ITSELF = "this split (optimistic)"
"""Where thresholds are from that were chosen on the split they are applied to."""


HELD = "held: the interval does not include its choice; RATE_choice_low and RATE_choice_high do"
"""What the intervals of recall and the other rates do with the threshold."""


@dataclass(frozen=True)
class Counts:
    """Known labels that a finding's thresholds and temperature were chosen on, and the patients they are of."""

    num: int
    num_positive: int
    num_patients: int
    num_positive_patients: int


@dataclass(frozen=True)
class Operating:
    """Thresholds by rule, and temperatures, each in the order of `findings`.

    Attributes:
        scale: of the thresholds; the scores of `choose_operating`.
        num_samples: that they were chosen on.
        counts: of each finding; None where an older file does not have them.
    """

    findings: tuple[str, ...]
    scale: Scale
    num_samples: int
    thresholds: dict[str, tuple[Threshold, ...]]
    temperatures: tuple[Temperature, ...]
    counts: tuple[Counts | None, ...]

    def threshold(self, rule: str, column: int, scale: Scale) -> float | None:
        """A threshold on the scale asked for; None where there is none."""
        value = self.thresholds[rule][column].value
        return None if value is None else self._on(scale, value)

    def resampled(self, rule: str, column: int, scale: Scale) -> list[float]:
        """`Threshold.resampled` on the scale asked for."""
        return [self._on(scale, value) for value in self.thresholds[rule][column].resampled]

    def _on(self, scale: Scale, value: float) -> float:
        if scale == self.scale:
            return value
        return _to_logit(value) if scale == "logit" else float(probabilities(np.array(value)))

    def to_json(self) -> dict[str, Any]:
        """Plain Python types, from which `from_json` makes an equal object."""
        return {
            "scale": self.scale,
            "num_samples": self.num_samples,
            "rules": {name: asdict(chosen[0].rule) for name, chosen in self.thresholds.items() if chosen},
            "findings": {
                finding: {
                    "thresholds": {
                        name: {
                            "value": chosen[column].value,
                            "reason": chosen[column].reason,
                            "resampled": list(chosen[column].resampled),
                        }
                        for name, chosen in self.thresholds.items()
                    },
                    "temperature": asdict(self.temperatures[column]),
                    "chosen_on": counts and asdict(counts),
                }
                for column, (finding, counts) in enumerate(zip(self.findings, self.counts, strict=True))
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
                    name: tuple(_read(rule, entry["thresholds"][name]) for entry in entries)
                    for name, rule in rules.items()
                },
                temperatures=tuple(Temperature(**entry["temperature"]) for entry in entries),
                counts=tuple(Counts(**kept) if (kept := entry.get("chosen_on")) else None for entry in entries),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are not operating points: {type(error).__name__} {error}") from error


def _read(rule: Rule, entry: Mapping[str, Any]) -> Threshold:
    """Older files have no `resampled`."""
    return Threshold(rule=rule, **{**entry, "resampled": tuple(map(float, entry.get("resampled", ())))})


def choose_operating(scored: Scored, replicates: int = 1000) -> Operating:
    """Choose thresholds and fit temperatures; on validation only, or the figures at them flatter.

    Args: replicates that choose thresholds anew; none of fewer than 2.

    A finding with known scores that are not all finite gets none, with that reason; the threshold of a fixed
    probability every finding gets.
    """
    thresholds = {name: tuple(_choose(known, rule) for known in scored.known) for name, rule in RULES.items()}
    if replicates > 1 and scored.num_patients > 1:
        resamples = PatientResamples(scored.num_patients, replicates)
        for name, rule in RULES.items():
            again = resampled_thresholds(resamples, scored, rule)
            thresholds[name] = tuple(
                replace(one, resampled=kept if one.value is not None else ())
                for one, kept in zip(thresholds[name], again, strict=True)
            )
    return Operating(
        findings=scored.findings,
        scale=scored.scale,
        num_samples=len(scored),
        thresholds=thresholds,
        temperatures=tuple(map(fit_temperature, scored.known)),
        counts=tuple(map(_count, scored.known)),
    )


def _count(known: Known) -> Counts:
    positive = count_patients(known.patient_M[known.targets_M == 1])
    return Counts(known.num, known.num_positive, known.num_patients, positive)


def _choose(known: Known, rule: Rule) -> Threshold:
    """A threshold on the scale of the scores."""
    if rule.kind == "probability":
        fixed = rule.at or 0.0  # a rule of this kind has it
        return Threshold(fixed if known.scale == "probability" else _to_logit(fixed), rule, None)
    chosen = choose_threshold(known, rule)
    return chosen if chosen.value is None else replace(chosen, value=known.to_score(chosen.value))


def _to_logit(prob: float) -> float:
    return float(as_logits(np.array(prob)))
