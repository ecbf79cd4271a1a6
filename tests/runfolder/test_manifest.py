"""What a checkpoint's manifest may hold; found by fuzzing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distcxr.runfolder.manifest import read_meta


@pytest.mark.parametrize("held", [{"crc32": {"model": "1"}}, {"bytes": [1]}, {"bytes": {"model": 1.5}}, {"crc32": 7}])
def test_a_size_or_checksum_of_another_type_is_refused(tmp_path: Path, held: dict[str, Any]) -> None:
    (tmp_path / "checkpoint.json").write_text(json.dumps({"format_version": 4} | held))
    with pytest.raises(ValueError, match="not a whole number for each file"):
        read_meta(tmp_path)
