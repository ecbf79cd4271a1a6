"""Who may import whom, and that heavy libraries wait until they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each folder and the folders it may import; itself is always allowed.
ALLOWED = {
    "recipe": {"regular", "plain_yaml"},
    "runfolder": {"tables", "regular", "plain_yaml"},
    "own_parts": {"runfolder"},
    "compiled": set(),
    "tables": {"regular"},
    "regular": set(),
    "plain_yaml": set(),
    "process_group": {"processes"},
    "error_file": {"exit_codes"},
    "interrupt": set(),
    "exit_codes": set(),
    "version": set(),
    "processes": set(),
    "stall": {"runfolder", "processes", "error_file", "exit_codes"},
    "data": {"recipe", "compiled", "runfolder", "tables", "processes", "regular", "own_parts"},
    "models": {"recipe", "runfolder", "regular", "own_parts"},
    "losses": {"recipe", "own_parts", "pair_losses"},
    "pair_losses": set(),
    "loss_building": {"recipe", "own_parts", "losses"},
    "optim": {"recipe"},
    "schedule": {"recipe"},
    "metrics": {"recipe", "compiled", "runfolder", "tables"},
    "tracking": {"recipe", "runfolder"},
    "determinism": set(),
    "launcher_flags": {"recipe", "processes"},
    "device": {"recipe"},
    "logs": {"error_file"},
    "runtime": {"recipe", "data", "process_group", "processes", "stall", "determinism", "launcher_flags", "device"},
    "engine": {
        "recipe", "data", "models", "losses", "loss_building", "optim", "schedule", "metrics", "tracking", "runtime",
        "explain", "report", "runfolder", "error_file", "exit_codes", "interrupt", "stall", "process_group", "version",
        "determinism", "processes", "own_parts", "device", "logs",
    },
    "api": {"data", "engine", "explain"},
    "ui": {"api", "data", "engine", "explain", "report", "runfolder"},
    "explain": {"recipe", "data", "models", "metrics"},
    "report": {"recipe", "runfolder", "metrics", "tracking", "regular", "version"},
    "phantom": {"data"},
    "jobs": {
        "recipe", "runfolder", "data", "models", "tracking", "engine", "runtime", "launch", "error_file", "interrupt",
        "processes", "stall", "exit_codes", "version", "launcher_flags", "own_parts",
    },
    "cli": {
        "recipe", "runfolder", "data", "models", "losses", "metrics", "tracking", "explain", "report", "engine",
        "runtime", "logs", "jobs", "phantom", "exit_codes", "api", "own_parts", "ui", "version",
    },
    "launch": {"recipe", "engine", "runtime", "error_file", "interrupt", "processes", "stall"},
}  # fmt: skip
HEAVY = {
    "nvidia",
    "cuda",
    "imagecodecs",
    "pydicom",
    "timm",
    "torchvision",
    "tensorboard",
    "matplotlib",
    "sklearn",
    "pandas",
    "numba",
    "llvmlite",
    "wandb",
    "mlflow",
    "onnxruntime",
    "peft",
}
KERNELS = {  # all numba, so they count as heavy themselves
    "distcxr.compiled", "distcxr.data.pixels.kernels", "distcxr.data.pixels.chunk_kernels",
    "distcxr.metrics.area_kernels",
}  # fmt: skip
ARRAYS_ONLY = {
    "scored", "ranking", "estimate", "threshold", "bootstrap", "delong", "calibration", "operating", "subgroup",
    "paired_tests", "area_kernels", "summary", "evaluation", "recalibration", "decision",
}  # fmt: skip


def modules() -> list[Path]:
    return [ROOT / "launch.py", *sorted((ROOT / "distcxr").rglob("*.py"))]


def folder_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "distcxr" and len(parts) > 1 else parts[0]


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which folder is meant"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    folder = folder_of(path)
    if folder == "__init__":
        return
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "distcxr" and len(parts) > 1:
            assert parts[1] == folder or parts[1] in ALLOWED[folder], f"{path} imports {name}"
        if path.stem in ARRAYS_ONLY and folder == "metrics":
            assert parts[0] != "torch", f"{path} knows arrays only"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    top_level = ast.Module(
        [node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.FunctionDef)], []
    )
    inside = {
        id(child)
        for node in ast.walk(top_level)
        if isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for child in ast.walk(node)
    }
    for node in ast.walk(top_level):
        if id(node) not in inside and isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            heavy = HEAVY & {name.split(".")[0] for name in names} or KERNELS.intersection(names)
            assert not heavy or path.stem in ("compiled", "kernels", "chunk_kernels", "area_kernels", "joined_maps"), (
                f"{path} imports {names} at the top"
            )


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """What each module imports of the package. Imports within functions and for type checking alone count, too."""
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in modules()
    }
    within: dict[str, set[str]] = {}
    for name, path in names.items():
        found = imports(ast.parse(path.read_text()))
        # `from package import module` names a module, `from package.module import name` something in one.
        within[name] = {one if one in names else one.rpartition(".")[0] for one in found} & names.keys()
    return within


def check_layered(within: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(within).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_module_imports_itself_through_others(imported: dict[str, set[str]]) -> None:
    check_layered(imported)


def test_no_folder_imports_itself_through_others(imported: dict[str, set[str]]) -> None:
    """What lies in a folder, its own folders as one each, has an order in which to read it."""
    for folder in sorted({name.rpartition(".")[0] for name in imported} - {""}):
        within: dict[str, set[str]] = {}
        for name, others in imported.items():
            if name.startswith(f"{folder}."):
                own = part_of(name, folder)
                within.setdefault(own, set()).update(
                    {part_of(one, folder) for one in others if one.startswith(f"{folder}.")} - {own}
                )
        check_layered(within)


def part_of(name: str, folder: str) -> str:
    """The file or folder in `folder` that a module is or lies in."""
    return f"{folder}." + name.removeprefix(f"{folder}.").partition(".")[0]


def test_a_base_name_means_one_file() -> None:
    names = [path.name for path in modules() if path.name != "__init__.py" and path.parent != ROOT]
    assert [name for name in sorted(set(names)) if names.count(name) > 1] == []


def test_printing_a_recipe_does_not_import_torch() -> None:
    """`--print` and a typing error answer at once."""
    code = "import sys, launch; sys.argv = ['launch.py', 'recipes/quickstart.yaml', '--print']; launch.main(); " + (
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "global_batch_size" in done.stdout


IMPORTED = "{setup}; import sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}} & {{{wanted}}}))"


@pytest.mark.parametrize(
    ("setup", "unwanted"),
    [
        # `distcxr train`, until its ranks run: seconds in which none of them would have started.
        ("import distcxr.cli; from distcxr.jobs.launcher import launch, num_processes; num_processes(2)",
         {"torch", "numpy", "pandas", "accelerate", "rich"}),
        # A rank, until it knows that it is the only one, or has joined the others.
        ("import distcxr.engine.main",
         {"torchvision", "timm", "tensorboard", "nvidia", "numba", "matplotlib", "sklearn", "onnx", "scipy", "pandas"}),
    ],
    ids=["launcher", "rank"],
)  # fmt: skip
def test_what_a_start_does_not_import(setup: str, unwanted: set[str]) -> None:
    code = IMPORTED.format(setup=setup, wanted=", ".join(map(repr, sorted(unwanted))))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_package_itself_is_light() -> None:
    code = "import sys, distcxr; distcxr.load; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_a_run_folder_is_read_without_torch() -> None:
    for path in (ROOT / "distcxr" / "runfolder").glob("*.py"):
        for name in imports(ast.parse(path.read_text())):
            assert name.partition(".")[0] != "torch", f"{path} imports {name}"


def test_launch_stays_small() -> None:
    for file in (ROOT / "launch.py", ROOT / "distcxr" / "launch.py"):
        assert len(file.read_text().splitlines()) < 65
