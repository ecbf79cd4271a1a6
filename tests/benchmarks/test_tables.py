"""BENCHMARKS.md's GPU section is what benchmarks/tables.py writes from the results that are committed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from tables import BEGIN, END, NONE, replaced, section

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "tables.py"


def test_the_committed_section_is_what_the_committed_results_give() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}: run python benchmarks/tables.py"


def write(folder: Path, card: str | None, dry: bool, **parts: list[dict[str, Any]]) -> None:
    passed = {"status": "passed", "seconds": 9.0}
    steps = {
        name: {**passed, "limit_s": 90, "steps": [{"name": "one", **passed, "rows": rows}]}
        for name, rows in parts.items()
    }
    machine = {"card": card, "gpus": int(card is not None), "torch": "2.11.0", "python": "3.12.3"}
    times = {"started": "2026-12-01T10:00:00+00:00", "saved": "2026-12-01T10:20:00+00:00"}
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"dry": dry, "machine": machine, **times, "parts": steps}))


def test_tables_of_a_gpus_results_and_of_no_others(tmp_path: Path) -> None:
    (tmp_path / "2026-11-21_cpu").mkdir()
    assert section(tmp_path) == NONE
    decode = [
        {"what": "decode", "inflate": "gpu", "streams": 256, "img_per_s": 12345.6, "copy_ms": 1.25, "gpu": "H100"},
        {"what": "decode", "inflate": "gpu", "streams": 1024, "img_per_s": None, "note": "out of memory"},
        {"what": "train", "loader": "gpu", "inflate": "gpu", "img_per_s": 2000.4, "alone_img_per_s": 2100.0},
    ]
    tests = [{"passed": 40, "failed": 1, "skipped": 3, "sessions": 2, "note": "", "tests": []}]
    step = [{"model": "densenet121", "loop": "ours", "precision": "bf16", "batch": 128, "img_per_s": 3456.0}]
    write(tmp_path / "2026-12-01_h100", "NVIDIA H100 80GB HBM3", False, tests=tests, decode=decode, step=step)
    write(tmp_path / "2026-12-02_h100", "NVIDIA H100 80GB HBM3", True, decode=[{**decode[0], "img_per_s": 77777.0}])
    write(tmp_path / "2026-12-03_no-gpu", None, False, decode=[{**decode[0], "img_per_s": 88888.0}])
    text = section(tmp_path)
    assert "### NVIDIA H100 80GB HBM3, 2026-12-01" in text and text.count("###") == 1
    assert "| tests | passed | 40 | 1 | 3 |" in text
    assert "(benchmarks/results/2026-12-01_h100/summary.md)" in text
    assert "| inflate | streams | img_per_s | copy_ms | note |" in text  # only columns that hold something
    assert "| gpu | 256 | 12,346 | 1.25 |  |" in text and "| gpu | 1,024 |  |  | out of memory |" in text
    assert "| densenet121 | ours | bf16 | 128 | 3,456 |" in text
    assert "77,777" not in text and "88,888" not in text
    (tmp_path / "2026-12-01_h100" / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        section(tmp_path)


def test_only_what_is_between_the_markers_changes() -> None:
    text = f"# Title\n{BEGIN}\nold\n{END}\nmore\n"
    assert replaced(text, "new") == f"# Title\n{BEGIN}\nnew\n{END}\nmore\n"
    assert replaced(replaced(text, "new"), "new") == replaced(text, "new")
    for wrong in ("", BEGIN, f"{END}{BEGIN}", f"{text}{text}"):
        with pytest.raises(ValueError, match="have to be there once each"):
            replaced(wrong, "new")
