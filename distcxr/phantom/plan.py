"""Plans a synthetic dataset: patients, their ages, sexes and X-rays, with views and findings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

NO_FINDING_SHARE = 0.40
SAME_FINDINGS_SHARE = 0.35  # of follow-up X-rays: the patient has what the last X-ray showed
NUM_FINDINGS_SHARES = (0.50, 0.32, 0.18)  # one, two or three findings on an X-ray that has any
# Relative frequencies, in NIH's order of rank but much flatter, so that 300 X-rays hold enough of each.
FREQUENCY = {
    "Atelectasis": 10.0, "Cardiomegaly": 7.0, "Consolidation": 7.0, "Edema": 6.0, "Effusion": 10.0, "Emphysema": 6.0,
    "Fibrosis": 6.0, "Hernia": 5.0, "Infiltration": 11.0, "Mass": 8.0, "Nodule": 9.0, "Pleural_Thickening": 6.5,
    "Pneumonia": 6.0, "Pneumothorax": 8.0,
}  # fmt: skip
# Findings that are more frequent beside the first, as in the real set.
COMPANIONS = {
    "Cardiomegaly": ("Effusion", "Edema"), "Edema": ("Effusion", "Infiltration"),
    "Effusion": ("Atelectasis", "Infiltration"), "Pneumonia": ("Infiltration", "Edema"),
    "Fibrosis": ("Pleural_Thickening",), "Emphysema": ("Pneumothorax",), "Mass": ("Nodule",),
}  # fmt: skip
_STREAM = 0  # keeps patient k's random numbers apart from X-ray k's


@dataclass(frozen=True)
class Xray:
    """One row of the CSV. `number` counts X-rays from 0 and, with the seed, fixes the pixels."""

    number: int
    patient_id: int
    follow_up: int
    age: int
    sex: str
    view: str
    findings: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.patient_id:08d}_{self.follow_up:03d}.png"

    @property
    def in_test(self) -> bool:
        """Every fifth patient is a test patient, with all X-rays."""
        return self.patient_id % 5 == 2


def plan_xrays(images: int, seed: int) -> list[Xray]:
    """The rows of the CSV in order; the first ones do not depend on `images`."""
    xrays: list[Xray] = []
    patient_id = 0
    while len(xrays) < images:
        patient_id += 1
        rng = np.random.default_rng([seed, _STREAM, patient_id])
        age, sex = int(np.clip(rng.normal(50, 17), 4, 94)), "M" if rng.uniform() < 0.56 else "F"
        findings: tuple[str, ...] = ()
        for follow_up in range(int(rng.integers(1, 7))):
            if follow_up == 0 or rng.uniform() >= SAME_FINDINGS_SHARE:
                findings = _draw_findings(rng)
            view = "AP" if rng.uniform() < 0.4 else "PA"
            age = min(age + int(rng.uniform() < 0.3), 95)
            xrays.append(Xray(len(xrays), patient_id, follow_up, age, sex, view, findings))
    return xrays[:images]


def _draw_findings(rng: np.random.Generator) -> tuple[str, ...]:
    if rng.uniform() < NO_FINDING_SHARE:
        return ()
    weights = dict(FREQUENCY)
    chosen: list[str] = []
    for _ in range(1 + int(rng.choice(len(NUM_FINDINGS_SHARES), p=NUM_FINDINGS_SHARES))):
        total = math.fsum(weights.values())
        name = str(rng.choice(list(weights), p=[weight / total for weight in weights.values()]))
        chosen.append(name)
        del weights[name]
        for other in COMPANIONS.get(name, ()):
            if other in weights:
                weights[other] *= 2
    return tuple(sorted(chosen))
