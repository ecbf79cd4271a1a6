"""The wheel, built and installed outside of the tree: what it holds, and the commands that need more than its code."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from distcxr.cli import app
from distcxr.recipe import load_recipe

ROOT = Path(__file__).parents[1]
FOLDERS = ("distcxr", "recipes", "slurm")
FILES = ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir")
ENVIRONMENT = {
    key: value
    for key, value in os.environ.items()
    if not key.startswith(("ACCELERATE_", "DISTCXR_", "SBATCH_", "PYTEST"))  # NiceGUI looks for the last
}


def start(*command: str | Path, cwd: Path, **environ: str) -> subprocess.Popen[str]:
    """The command, running; its output is both streams."""
    return subprocess.Popen(
        [str(word) for word in command], cwd=cwd, env=ENVIRONMENT | environ, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def output_of(process: subprocess.Popen[str], code: int = 0) -> str:
    """What the command wrote; it has to end with this exit code."""
    output, _ = process.communicate(timeout=240)
    assert process.returncode == code, output
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
    for cached in (ROOT / "distcxr").rglob("__pycache__/*.nb[ic]"):  # compiling all loops anew takes 20 s
        folder = target / cached.relative_to(ROOT).parent
        folder.mkdir(exist_ok=True)
        shutil.copy(cached, folder)
        name = f"{cached.name.partition('.')[0]}.py"
        made = (ROOT / folder.relative_to(target)).with_name(name).stat()
        os.utime(folder.with_name(name), (made.st_atime, made.st_mtime))
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


class Use(NamedTuple):
    """A verb's arguments, and what its output holds, the file that it leaves and its exit code."""

    words: str
    output: str = ""
    file: str = ""
    code: int = 0


RECIPE = (
    "quickstart data.root=phantom data.image_size=32 data.loader=torch data.num_workers=0 data.val_fraction=0.3 "
    "train.global_batch_size=8 train.max_steps=2 eval.replicates=20 eval.pictures=0 logging.images=0 "
    "logging.val_images=0"
)
USES: tuple[dict[str, Use], ...] = (  # those of a group need what the groups before it made, and not each other
    {
        "phantom": Use("phantom --images 64 --size 32", "64 synthetic X-rays", "phantom/test_list.txt"),
        "import": Use("weights.pth weights.safetensors", "1 tensors", "weights.safetensors"),
        "schema": Use("", '"global_batch_size"'),
        "models": Use("test_resnet", "test_resnet"),
        "env": Use("", "torch"),
    },
    {
        "train": Use(f"{RECIPE} eval.splits=[val] output=run --processes 1", "run folder: run", "run/report.html"),
        "sweep": Use(
            f"{RECIPE} optim.lr=1e30 output=sweep --processes 1", "failed", "sweep/sweep.html", code=1
        ),
        "cache": Use(RECIPE, "64 images of 32 x 32 pixels"),
        "pack": Use(RECIPE, "64 images in 1 shard"),
        "find-lr": Use(f"{RECIPE} --steps 10 --out rates.csv", "written: rates.csv", "rates.svg"),
        "probe": Use(f"{RECIPE} output=probe --l2 1e-3", "run folder: probe", "probe/metrics_val.json"),
        "submit": Use(f"{RECIPE} --gpus 2 --dry-run", "it would start now"),
    },
    {
        "status": Use("run", "finished"),
        "test": Use("run --processes 1", "macro", "run/predictions_test.csv"),
        "check": Use("run", "whole"),
        "predict": Use("run phantom/images --out found.csv", "written: found.csv", "found.csv"),
        "explain": Use("run --json boxes.json", "1 images of test with boxes", "boxes.json"),
        "embed": Use("run --out features.npz --split val", "images of val", "features.npz"),
        "export": Use("run model.safetensors", "how to use it", "model.md"),
        "replay": Use("sweep/quickstart --json step.json", "replayed with the initial weights", "step.json"),
        "ui": Use("run --port PORT --device cpu", "end with Ctrl-C"),
    },
    {
        "report": Use("run", "report.html"),
        "score": Use("run/predictions_test.csv --replicates 20 --json scored.json", "by patient", "scored.json"),
    },
)  # fmt: skip
BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n{},Mass,100,200,300,400,,,\n"


def test_every_verb_is_used() -> None:
    used = [verb for group in USES for verb in group]
    assert sorted(used) == sorted(str(verb.name) for verb in app.registered_commands), "USES names every verb once"


@pytest.mark.slow
def test_every_verb_runs_elsewhere(installed: Path, tmp_path: Path) -> None:
    """Each as a process of its own, two at a time, and with an effect; all about one run, which they train first."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "sbatch").write_text("#!/bin/sh\necho it would start now, with $DISTCXR_SITE\n")
    (tmp_path / "tools" / "sbatch").chmod(0o755)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pth")
    environment = {
        "PYTHONPATH": str(installed), "PATH": f"{tmp_path / 'tools'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def use(verb: str) -> str:
        """The output of a verb, which has to do what USES has of it."""
        what = next(group[verb] for group in USES if verb in group)
        port = free_port()
        words = what.words.replace("PORT", str(port)).split()
        process = start(installed / "bin" / "distcxr", verb, *words, cwd=tmp_path, **environment)
        if verb == "ui":
            assert "not for clinical use" in served(f"http://127.0.0.1:{port}", process)
            process.send_signal(signal.SIGINT)
        output = output_of(process, what.code)
        assert what.output in output, f"{verb}: {output}"
        assert not what.file or (tmp_path / what.file).stat().st_size, f"{verb}: {output}"
        return output

    outputs: dict[str, str] = {}
    with ThreadPoolExecutor(2) as pool:
        for group in USES:
            outputs |= dict(zip(group, pool.map(use, group), strict=True))
            if "phantom" in group:
                tested = (tmp_path / "phantom" / "test_list.txt").read_text().split()
                (tmp_path / "phantom" / "BBox_List_2017.csv").write_text(BOXES.format(tested[0]))
    slurm = installed / "distcxr" / "shipped" / "slurm"
    assert f"{slurm / 'train.sbatch'} quickstart data.root=phantom" in outputs["submit"]
    assert f"it would start now, with {slurm / 'site.env'}" in outputs["submit"]
    trained = load_recipe(tmp_path / "run" / "recipe.yaml")
    assert trained.model.name == "test_resnet" and trained.augment.scale == (0.95, 1.05), "the second is of base.yaml"
    made_by = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert made_by["commit"] is None, "it ran from the wheel, not from the checkout"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def served(url: str, process: subprocess.Popen[str]) -> str:
    """The page, as soon as there is one."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url) as answer:
                return str(answer.read(), "utf-8")
        except urllib.error.URLError:
            time.sleep(0.1)
    process.kill()
    raise AssertionError(f"no page at {url}: {process.communicate()[0]}")
