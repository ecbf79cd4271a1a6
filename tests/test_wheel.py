"""The wheel, built and installed outside of the tree: what it holds, and the commands that need more than its code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distcxr.recipe import load_recipe

ROOT = Path(__file__).parents[1]
FOLDERS = ("distcxr", "recipes", "slurm")
FILES = ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir")
ENVIRONMENT = {
    key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "DISTCXR_", "SBATCH_"))
}


def start(*command: str | Path, cwd: Path, **environ: str) -> subprocess.Popen[str]:
    """The command, running; its output is both streams."""
    return subprocess.Popen(
        [str(word) for word in command], cwd=cwd, env=ENVIRONMENT | environ, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def output_of(process: subprocess.Popen[str]) -> str:
    """What the command wrote; it has to end well."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel unpacked by pip, which is built from a copy: a build leaves files in the tree."""
    place = tmp_path_factory.mktemp("wheel")
    source, target = place / "source", place / "installed"
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    offline = ("--no-deps", "--no-index")
    output_of(start(*PIP, "wheel", *offline, "--no-build-isolation", "--wheel-dir", place, source, cwd=place))
    (wheel,) = place.glob("distcxr-*.whl")
    output_of(start(*PIP, "install", *offline, "--no-compile", "--target", target, wheel, cwd=place))
    return target


def test_it_holds_the_recipes_the_templates_and_the_licence(installed: Path) -> None:
    for name in ("recipes", "slurm"):
        here = {path.relative_to(ROOT): path.read_bytes() for path in (ROOT / name).rglob("*") if path.is_file()}
        shipped = installed / "distcxr" / "shipped"
        assert here == {
            path.relative_to(shipped): path.read_bytes() for path in (shipped / name).rglob("*") if path.is_file()
        }
    assert (installed / "distcxr" / "ui" / "look.css").is_file()
    (info,) = installed.glob("distcxr-*.dist-info")
    assert re.search(r"^License(-Expression)?: Apache-2\.0$", (info / "METADATA").read_text(), re.MULTILINE)
    assert {path.name for path in info.rglob("*") if path.is_file()} >= {"LICENSE", "NOTICE"}


@pytest.mark.slow
def test_its_commands_run_elsewhere(installed: Path, tmp_path: Path) -> None:
    """`distcxr phantom`, `distcxr submit --dry-run`, and training under `accelerate launch`; the recipe by its name."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "sbatch").write_text("#!/bin/sh\necho it would start now, with $DISTCXR_SITE\n")
    (tmp_path / "tools" / "sbatch").chmod(0o755)
    where = {"PYTHONPATH": str(installed), "PATH": f"{tmp_path / 'tools'}:{os.environ['PATH']}"}
    distcxr, slurm = installed / "bin" / "distcxr", installed / "distcxr" / "shipped" / "slurm"
    made = start(distcxr, "phantom", "phantom", "--images", "64", "--size", "32", cwd=tmp_path, **where)
    assert "64 synthetic X-rays" in output_of(made)
    recipe = (
        "densenet121", "data.root=phantom", "data.image_size=32", "data.val_fraction=0.3", "data.loader=torch",
        "data.num_workers=0", "model.weights=none", "train.global_batch_size=4", "train.precision=no",
        "train.max_steps=1", "eval.splits=[]", "logging.images=0", "output=run",
    )  # fmt: skip
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1")
    launch += ("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "distcxr.launch")
    training = start(*launch, *recipe, cwd=tmp_path, **where)  # imports mostly, so beside the other's
    submitted = output_of(start(distcxr, "submit", *recipe, "--gpus", "2", "--dry-run", cwd=tmp_path, **where))
    assert f"{slurm / 'train.sbatch'} densenet121 data.root=phantom" in submitted
    assert f"it would start now, with {slurm / 'site.env'}" in submitted
    assert "run folder: run" in output_of(training)
    trained = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert trained.model.name == "densenet121" and trained.optim.lr == 1e-4, "the second is of base.yaml"
    made_by = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert made_by["commit"] is None, "it ran from the wheel, not from the checkout"
