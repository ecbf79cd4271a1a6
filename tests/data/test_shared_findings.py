"""Which findings of two data sets are the same."""

from __future__ import annotations

from distcxr.data.labels import CHEXPERT14, NIH14
from distcxr.data.shared_findings import shared_findings


def test_nih_and_chexpert() -> None:
    shared = shared_findings(NIH14, CHEXPERT14)
    equal = ("Atelectasis", "Cardiomegaly", "Pneumonia", "Pneumothorax", "Consolidation", "Edema")
    assert shared == {"Effusion": "Pleural Effusion"} | {name: name for name in equal}
    assert list(shared) == [name for name in NIH14 if name in shared]
    assert shared_findings(CHEXPERT14, NIH14) == {theirs: ours for ours, theirs in shared.items()}


def test_other_names() -> None:
    vindr = ["Pleural thickening", "Pulmonary fibrosis", "Nodule/Mass", "No finding", "Infiltration"]
    ours = ["Pleural_Thickening", "Fibrosis", "Nodule", "Mass", "No Finding", "Infiltration"]
    assert shared_findings(ours, vindr) == {
        "Pleural_Thickening": "Pleural thickening", "Fibrosis": "Pulmonary fibrosis", "No Finding": "No finding",
        "Infiltration": "Infiltration",
    }  # fmt: skip


def test_no_guess_where_several_may_be_meant() -> None:
    assert shared_findings(["Effusion"], ["pleural effusion", "Pleural Effusion"]) == {}
    assert shared_findings(["Effusion", "pleural_effusion"], ["Pleural Effusion"]) == {}
    assert shared_findings(["Effusion"], ["Effusion", "Pleural Effusion"]) == {"Effusion": "Effusion"}
