"""setup.cfg names every distribution that the package imports, and no other."""

from __future__ import annotations

import ast
import configparser
import re
import sys
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "cuda": "cuda-bindings", "huggingface_hub": "huggingface-hub"}
NVIDIA = {"dali": "nvidia-dali-cuda130", "libnvcomp": "nvidia-libnvcomp-cu13"}
UNIMPORTED = {  # declared for what they do without being imported by name
    "mlflow": "imported by the name in logging.trackers",
    "onnx": "imported by onnxscript",
    "onnxscript": "imported by torch.onnx",
    "tensorboard": "imported by torch.utils.tensorboard",
    **dict.fromkeys(("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg"), "called by pydicom"),
}
OF_DEVELOPMENT = ("dev", "docs")  # their distributions are for tests, benchmarks, linting and the documentation


def declared(*, development: bool) -> dict[str, set[str]]:
    """Names of distributions by where setup.cfg has them: `install_requires`, or an extra."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = {"install_requires": config["options"]["install_requires"], **config["options.extras_require"]}
    names = {
        key: {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0].lower() for line in text.split("\n") if line.strip()}
        for key, text in lists.items()
    }
    return {key: found for key, found in names.items() if (key in OF_DEVELOPMENT) == development}


@cache
def imported() -> dict[str, str]:
    """Distributions that a file of the package imports, with one such file each."""
    found = {}
    for path in [ROOT / "launch.py", *(ROOT / "distcxr").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules += [f"{node.module}.{alias.name}" for alias in node.names]
            for module in modules:
                top, _, rest = module.partition(".")
                if top not in sys.stdlib_module_names and top != "distcxr":
                    nvidia = NVIDIA.get(rest.partition(".")[0], module)
                    found[nvidia if top == "nvidia" else DISTRIBUTIONS.get(top, top)] = str(path.relative_to(ROOT))
    return found


def test_what_is_imported_is_declared() -> None:
    names = set().union(*declared(development=False).values())
    missing = {name: path for name, path in imported().items() if name not in names}
    assert not missing, f"add to install_requires or to an extra in setup.cfg: {missing}"


def test_what_is_declared_is_imported() -> None:
    unused = set().union(*declared(development=False).values()) - set(imported()) - set(UNIMPORTED)
    assert not unused, f"declared in setup.cfg, and imported nowhere: {unused}"


@pytest.mark.parametrize("name", UNIMPORTED)
def test_exceptions_are_still_exceptions(name: str) -> None:
    assert name not in imported(), f"{name} is imported now: remove it from UNIMPORTED"


def test_the_lock_file_holds_a_version_of_each_that_is_allowed() -> None:
    lock = (ROOT / "requirements" / "lock.txt").read_text()
    pinned = dict(re.findall(r"^([a-z0-9.-]+)==(\S+) \\$", lock, re.MULTILINE))
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = re.findall(r"--extra ([a-z]+)", lock)
    lines = config["options"]["install_requires"] + "\n".join(config["options.extras_require"][name] for name in extras)
    wrong = []
    for line in filter(None, map(str.strip, lines.split("\n"))):
        wanted = Requirement(line)
        if not wanted.specifier.contains(pinned.get(wanted.name.lower(), "0")):
            wrong.append(f"{line}: {pinned.get(wanted.name.lower())}")
    assert not wrong, "make requirements/lock.txt again, see its head"
    assert set(extras) == {*config["options.extras_require"]} - {"trackers", "docs", "dev"}
