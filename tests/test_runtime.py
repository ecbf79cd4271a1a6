"""What `start_runtime` sets for the whole process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, resource, sys
from pathlib import Path
import torch
from distcxr.recipe import load_recipe
from distcxr.runtime import start_runtime

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(16 << 20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
start_runtime(load_recipe(Path(sys.argv[1]), []))
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted, and avoided, under Linux")
def test_on_a_cpu_freed_memory_is_kept_for_the_next_tensor() -> None:
    recipe = Path(__file__).parents[1] / "recipes" / "densenet121.yaml"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(recipe)], capture_output=True, text=True, timeout=120,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert before > 10_000 and after < 100, (before, after)
