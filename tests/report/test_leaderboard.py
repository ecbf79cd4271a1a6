"""The page of published results is what the code has, and a scored result gets a row that tells where it belongs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distcxr.data.labels import NIH14
from distcxr.report.leaderboard import (
    LABELS,
    OFFICIAL,
    ON_OTHER_SPLITS,
    PUBLISHED,
    TEST_IMAGES,
    TEST_LIST,
    row_of,
    tables,
)

PAGE = Path(__file__).parents[2] / "docs/leaderboard.md"
HASHES = {"predictions_sha256": "f" * 64, "labels_sha256": LABELS, "list_sha256": TEST_LIST}


def scores(**changes: Any) -> dict[str, Any]:
    macro = {"auroc": 0.81234, "auroc_low": 0.8, "auroc_high": 0.82, "findings": list(NIH14)}
    return {"num_samples": TEST_IMAGES, "macro": macro | changes}


def test_the_page_holds_the_tables() -> None:
    assert PAGE.read_text().endswith(f"\n\n{tables()}"), "write tables() of distcxr.report.leaderboard into it"


def test_no_model_that_saw_the_test_list_is_ranked_among_the_others() -> None:
    ranks = tables().split("## ")
    assert "EVA-X" not in ranks[1] and "test list" not in ranks[1].partition("\n")[2] and "EVA-X" in ranks[3]
    assert all(row.split == OFFICIAL for row in PUBLISHED) and all(row.split != OFFICIAL for row in ON_OTHER_SPLITS)
    assert all(row.source and float(row.auroc) < 1 for row in PUBLISHED)


def test_a_result_on_the_official_list_is_official() -> None:
    row = row_of("mine", scores(), HASHES)
    assert row.markdown() == (
        "| mine | .8123 | .8000 to .8200 |  |  | unknown | official | "
        "sha256 of predictions ffffffffffffffff, labels dc1d2df67fdc1c5a, list 38ca5ef7f7560929 |"
    )


@pytest.mark.parametrize(
    "metrics, hashes, reason",
    [
        (scores(), {"list_sha256": None}, "its test list is not NIH's"),
        (scores(), {"labels_sha256": "0" * 64}, "its labels are not NIH's file of 2020"),
        (scores() | {"num_samples": 25_000}, {}, "25,000 images were scored"),
        (scores(findings=["Mass"]), {}, "its average is of 1 findings"),
    ],
)
def test_any_other_tells_why_it_is_not(metrics: dict[str, Any], hashes: dict[str, Any], reason: str) -> None:
    assert f"own ({reason}" in row_of("mine", metrics, HASHES | hashes).split


def test_a_name_stays_in_its_cell_and_no_score_is_no_row() -> None:
    assert row_of("a | b\nc", scores(auroc_low=None), HASHES).markdown().startswith("| a   b c | .8123 |  |")
    with pytest.raises(ValueError, match="no finding has one"):
        row_of("mine", scores(auroc=None), HASHES)
