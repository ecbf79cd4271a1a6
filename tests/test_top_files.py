"""The files at the top for people: what they name is there, and they agree with the package."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from distcxr import __version__

ROOT = Path(__file__).parents[1]


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == __version__
    assert citation["license"] == "Apache-2.0" and citation["authors"] == [{"name": "The distcxr authors"}]
    assert {"message", "title"} < set(citation)


def test_every_file_that_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:distcxr|tests|benchmarks|recipes|docs|slurm|\.ci)/[\w./]*)`", text)
    named += re.findall(r"\]\(([\w./]+)", text)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
