"""The files at the top for people: what they name is there, and they agree with the package."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from distcxr import __version__
from distcxr.data.pixels.image_bytes import MAX_PIXELS, MAX_SIDE
from distcxr.regular import MOST_BYTES, most_unpacked

ROOT = Path(__file__).parents[1]


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == __version__
    assert citation["license"] == "Apache-2.0" and citation["authors"] == [{"name": "The distcxr authors"}]
    assert {"message", "title"} < set(citation)


def test_the_limits_in_security_are_those_of_the_code() -> None:
    text = " ".join((ROOT / "SECURITY.md").read_text().split())
    side = round(MAX_PIXELS**0.5)
    assert f"{side} × {side} pixels, {MAX_SIDE:,} on a side" in text
    assert f"{MOST_BYTES >> 30} GiB of file" in text and most_unpacked(1) == 16 << 20 and "16 MiB" in text
    assert "SECURITY.md" in (ROOT / "MANIFEST.in").read_text()


def test_every_file_that_contributing_names_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:distcxr|tests|benchmarks|recipes|docs|slurm|\.ci)/[\w./]*)`", text)
    named += re.findall(r"\]\(([\w./]+)", text)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
