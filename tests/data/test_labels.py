"""Names of findings and multi-hot rows."""

from __future__ import annotations

import numpy as np
import pytest

from distcxr.data.labels import CHEXPERT5, CHEXPERT14, NIH14, NIH15, encode, resolve_findings


def test_named_sets_and_lists() -> None:
    assert resolve_findings("nih14", NIH15) == NIH14
    assert resolve_findings("nih15", NIH15) == (*NIH14, "No Finding")
    assert resolve_findings(["Mass", "Edema"], NIH15) == ("Mass", "Edema")
    assert resolve_findings("all", ("Mass", "Other")) == ("Mass", "Other")
    assert resolve_findings("chexpert14", sorted(CHEXPERT14)) == CHEXPERT14 and len(CHEXPERT14) == 14
    assert resolve_findings("chexpert5", CHEXPERT14) == CHEXPERT5
    assert len(NIH14) == 14 and NIH14[0] == "Atelectasis" and NIH14[-1] == "Hernia"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nih16", ["'nih16'", "did you mean 'nih1"]),
        ("Mass", ["[Mass]"]),
        (["Infiltrate"], ["'Infiltrate'", "did you mean 'Infiltration'", "Hernia"]),
        (["pleural_thickening"], ["did you mean 'Pleural_Thickening'"]),
        (["Zebra"], ["'Zebra'", "Valid: Atelectasis"]),
        (["Mass", "Edema", "Mass"], ["Mass more than once"]),
        ([], ["empty"]),
    ],
)
def test_bad_findings_are_named(spec: str | list[str], words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"data\.findings") as caught:
        resolve_findings(spec, NIH15)
    assert all(word in str(caught.value) for word in words)


def test_a_set_that_the_label_file_lacks_is_refused_with_what_is_there() -> None:
    with pytest.raises(ValueError, match=r"data\.findings is nih14.* lacks Infiltration.* has Mass, .*findings=all"):
        resolve_findings("nih14", ("Mass", *(name for name in NIH14 if name not in ("Infiltration", "Mass"))))
    with pytest.raises(ValueError, match=r"unknown finding 'Normal', did you mean 'normal'\? Valid: cardiomegaly, no"):
        resolve_findings(["Normal"], ("cardiomegaly", "normal"))


def test_encode_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    labels = ["|".join(rng.permutation(NIH14)[: rng.integers(1, 5)]) for _ in range(300)] + ["No Finding"] * 3
    expected = [[int(finding in label.split("|")) for finding in NIH15] for label in labels]
    targets_NC = encode(labels, NIH15, str)
    assert targets_NC.dtype == np.uint8
    np.testing.assert_array_equal(targets_NC, expected)


def test_tokens_match_whole() -> None:
    # "Pneumo" would be found in "Pneumonia" and "Pneumothorax" by a substring match.
    findings = ("Pneumo", "Pneumonia", "Pneumothorax")
    np.testing.assert_array_equal(encode(["Pneumonia", "Pneumothorax|Pneumo"], findings, str), [[0, 1, 0], [1, 0, 1]])
    assert encode([], NIH14, str).shape == (0, 14)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("Mass|Infiltrate", ["'Infiltrate'", "did you mean 'Infiltration'"]),
        ("Mass|", ["''"]),
        ("", ["''"]),
        ("Mass,Edema", ["'Mass,Edema'"]),
        ("No Finding|Mass", ["contradicts"]),
    ],
)
def test_bad_labels_name_file_line_and_token(label: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match=r"file\.csv, line 9: label") as caught:
        encode(["Mass", label], NIH15, ["file.csv, line 7", "file.csv, line 9"].__getitem__)
    assert all(word in str(caught.value) for word in words)
