"""The steps of each part of the suite, each a command."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpu_suite.settings import Settings

RECIPE, TINY_RECIPE = "recipes/densenet121.yaml", "recipes/quickstart.yaml"
TEST_FOLDERS = ("tests/gpu", "tests/data", "tests/dist")
NUM_IMAGES = 96
_TOOLKITS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/compute-sanitizer")
_STREAMS = ("64", "256", "1024")
_SANITIZED = ("memcheck", "racecheck")


@dataclass(frozen=True)
class Step:
    """A command of a part.

    Attributes:
        name: unique in its part.
        command: what to run.
        json: the file with rows that the command writes, if any; also counted where the command was stopped.
        seconds: its own limit; the part's holds, too.
        environment: variables to add.
        skip: why it is not run; empty where it is.
        needed: whether the part's other steps are pointless without it.
        trace: a profiler's trace that it writes.
    """

    name: str
    command: tuple[str, ...] = ()
    json: Path | None = None
    seconds: float = float("inf")
    environment: Mapping[str, str] = field(default_factory=dict)
    skip: str = ""
    needed: bool = False
    trace: Path | None = None


def steps_of(part: str, settings: Settings) -> list[Step]:
    """The steps of a part, in order."""
    makers: dict[str, Callable[[Settings], Iterable[Step]]] = {
        "preflight": _preflight, "tests": _tests, "sanitize": _sanitize, "decode": _decode, "step": _step,
        "runs": _runs, "dali": _dali, "ranks": _ranks,
    }  # fmt: skip
    return list(makers[part](settings))


def _preflight(settings: Settings) -> Iterable[Step]:
    yield _module(settings, "preflight", "versions", "preflight", "versions", needed=True)
    yield _module(settings, "preflight", "kernels", "preflight", "kernels")
    yield from _images(settings)
    yield _train(settings, "preflight", "3 steps", "train.max_steps=3", "eval.splits=[]")


def _tests(settings: Settings) -> Iterable[Step]:
    yield _tested(settings, "tests", TEST_FOLDERS, "gpu")


def _sanitize(settings: Settings) -> Iterable[Step]:
    script = ("benchmarks/gpu_sanitize.py", *(("--images", "4") if settings.dry else ()))
    for inflate in ("gpu", "cpu"):
        yield Step(f"decode, inflated by the {inflate}", (sys.executable, *script, "--inflate", inflate))
    sanitizer = _find("compute-sanitizer")
    skip = "" if settings.on_gpu else "no GPU"
    skip = skip or ("" if sanitizer else "compute-sanitizer is not installed (it comes with the CUDA toolkit)")
    for tool in _SANITIZED:
        # Shared memory is racecheck's matter, and only these kernels are ours to mend.
        only = ("--kernel-name", "kns=unfilter", "--kernel-name", "kns=resize") if tool == "racecheck" else ()
        for inflate in ("cpu", "gpu"):
            command = (
                sanitizer or "", "--tool", tool, "--error-exitcode", "77", "--report-api-errors", "no",
                "--print-limit", "20", *only, sys.executable, *script, "--inflate", inflate,
            )  # fmt: skip
            # In torch's cache of memory a step over an allocation's end is a step into its own memory.
            uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            yield Step(f"{tool}, inflated by the {inflate}", command, seconds=70, environment=uncached, skip=skip)


def _decode(settings: Settings) -> Iterable[Step]:
    yield from _images(settings)
    file = _json(settings, "decode", "gpu_decode")
    sizes = ("--files", "4", "--streams", "2", "4", "--batch", "4", "--steps", "1", "--windows", "1")
    full = ("--files", str(NUM_IMAGES), "--streams", *_STREAMS, "--steps", "20")
    script = ("benchmarks/gpu_decode.py", _recipe(settings), "--root", str(_root(settings)))
    command = (sys.executable, *script, *(sizes if settings.dry else full), "--json", str(file))
    yield Step("gpu_decode", command, file, seconds=200)
    yield _loaders(settings, "decode", ("torch", "cache"), ("gpu", "gpu filters", "cache device"))


def _step(settings: Settings) -> Iterable[Step]:
    groups = (  # name, batches, precision, loops, ways to run ours, windows, seconds that it is worth
        ("bf16", ("128", "32", "256", "64"), "bf16", ("ours", "timm", "torchvision"), "eager", 5, 170),
        ("bf16 compiled", ("128",), "bf16", ("ours",), "compile,graphs", 5, 100),
        ("fp16", ("128",), "fp16", ("ours",), "eager", 3, 25),
        ("fp32", ("128",), "no", ("ours",), "eager", 3, 25),
        ("profile", ("128",), "bf16", ("ours",), "eager", 1, 25),
    )
    for name, batches, precision, loops, ours, windows, seconds in groups:
        file, trace = _json(settings, "step", name), settings.work / "trace.json.gz" if name == "profile" else None
        sizes = ("--image-size", "64", "--steps", "1", "--windows", "1", "--batches", "2")
        full = ("--image-size", "224", "--windows", str(windows), "--batches", *batches)
        command = (
            sys.executable, "benchmarks/step.py", "--models", "densenet121", "--loops", *loops, "--ours", ours,
            "--precisions", precision, *(sizes if settings.dry else full), "--seconds", str(seconds),
            "--json", str(file), *(("--profile", str(trace)) if trace else ()),
        )  # fmt: skip
        needs = {"fp16": "fp16", "bf16 compiled": "compile with CUDA graphs"}.get(name)
        skip = f"{needs} needs a GPU" if needs and not settings.on_gpu else ""
        yield Step(name, command, file, seconds=seconds + 20, skip=skip, trace=trace)


def _runs(settings: Settings) -> Iterable[Step]:
    yield from _images(settings)
    data = _data(settings)
    yield _train(settings, "runs", "torch", "data.loader=torch")
    skip = "" if settings.on_gpu else "data.loader=gpu needs a GPU"
    like = ("--like", str(settings.work / "runs" / "torch"))
    yield _train(settings, "runs", "gpu", "data.loader=gpu", *like, skip=skip)
    build = (sys.executable, "-m", "distcxr.cli", "cache", _recipe(settings), *data)
    yield Step("cache", (*build, f"data.cache.path={settings.work / 'cache'}"))
    place = "device" if settings.on_gpu else "host"
    cache = ("data.loader=cache", f"data.cache.path={settings.work / 'cache'}", f"data.cache.resident={place}")
    yield _train(settings, "runs", f"cache in the memory of the {place}", *cache, *like)
    stages = "train.stages=[{trainable: [head], epochs: 1}, {epochs: 1, optimizer: carry}]"
    yield _train(settings, "runs", "stages, optimiser carried", stages, "data.loader=torch")
    yield _module(
        settings, "runs", "kill -9 and resume", "training_runs", "cut", _recipe(settings), *data, "data.loader=torch",
        "--output", str(settings.work / "cut"),
    )  # fmt: skip


def _dali(settings: Settings) -> Iterable[Step]:
    yield _module(settings, "dali", "versions", "preflight", "versions", "--needed", "nvidia.dali", "imagecodecs")
    yield _tested(settings, "dali", TEST_FOLDERS, "gpu", "-k", "dali or pack")
    yield from _images(settings)
    yield _loaders(settings, "dali", ("torch", "dali"), ("dali pack",))
    path = f"data.pack.path={settings.work / 'pack'}"
    yield Step("pack", (sys.executable, "-m", "distcxr.cli", "pack", _recipe(settings), *_data(settings), path))
    yield _train(settings, "dali", "run from the pack", "data.source=pack", path, "data.loader=dali")


def _ranks(settings: Settings) -> Iterable[Step]:
    yield from _images(settings)
    recipe, data, output = _recipe(settings), _data(settings), ("--output", str(settings.work / "ranks"))
    yield _module(settings, "ranks", "gloo", "ranks", "gloo", recipe, *data, *output)
    nccl = settings.site / "nvidia" / "nccl" / "lib" / "libnccl.so.2" if settings.site else None
    library: tuple[str, ...] = ()
    if settings.machine["gpus"] > 1:
        skip = ""
    elif nccl and nccl.exists():
        library, skip = ("--library", str(nccl)), ""
    else:
        skip = "NCCL before 2.30 gives every rank a GPU of its own, and no later one is in WHEELS"
    skip = skip if settings.on_gpu else "no GPU"
    yield _module(settings, "ranks", "nccl", "ranks", "nccl", recipe, *data, *output, *library, skip=skip)


def _loaders(settings: Settings, part: str, everywhere: tuple[str, ...], on_gpu: tuple[str, ...]) -> Step:
    """Loaders side by side, one thread and all."""
    file, loaders = _json(settings, part, "loaders"), (*everywhere, *(on_gpu if settings.on_gpu else ()))
    threads = sorted({1, len(os.sched_getaffinity(0))})
    sizes = (
        "--files", str(NUM_IMAGES), "--windows", "3", "--working-set-mb", "1024", "--image-sizes", "224", "--threads",
        *map(str, threads),
    )  # fmt: skip
    tiny = ("--quick", "--files", "16", "--batch", "4", "--working-set-mb", "2", "--image-sizes", "64")
    command = (
        sys.executable, "benchmarks/loaders.py", _recipe(settings), "--root", str(_root(settings)), "--ranks", "1",
        "--loaders", *loaders, "--no-cold", "--need", "1", *(tiny if settings.dry else sizes), "--json", str(file),
    )  # fmt: skip
    return Step("loaders", command, file, seconds=120)


def _tested(settings: Settings, part: str, folders: Iterable[str], marker: str, *more: str) -> Step:
    file = _json(settings, part, "pytest")
    seconds = settings.limits_s[part] - 10
    command = (sys.executable, "-m", "gpu_suite.run_tests", "--json", str(file), "--seconds", f"{seconds:g}", "--")
    return Step("pytest", (*command, "-m", marker, *more, *folders), file)


def _train(settings: Settings, part: str, name: str, *overrides: str, skip: str = "") -> Step:
    """A training run through launch.py."""
    output = ("--output", str(settings.work / part / name.replace(" ", "-").replace(",", "")))
    few = ("train.max_steps=12",) if settings.dry else ()
    arguments = (_recipe(settings), *_data(settings), *few, *overrides, *output)
    return _module(settings, part, name, "training_runs", "train", *arguments, skip=skip)


def _module(
    settings: Settings, part: str, name: str, module: str, *arguments: str, skip: str = "", needed: bool = False
) -> Step:
    """A step that is a module of the suite."""
    file = _json(settings, part, name)
    command = (sys.executable, "-m", f"gpu_suite.{module}", *arguments, "--json", str(file))
    return Step(name, command, file, skip=skip, needed=needed)


def _images(settings: Settings) -> Iterable[Step]:
    """Phantoms, drawn once, where there are no real images."""
    if settings.nih_root is None:
        sizes = ("--images", "48", "--size", "96") if settings.dry else ("--images", str(NUM_IMAGES))
        yield Step("images", (sys.executable, "-m", "gpu_suite.xrays", str(_root(settings)), *sizes), needed=True)


def _root(settings: Settings) -> Path:
    return settings.nih_root or settings.scratch / ("images-dry" if settings.dry else "images")


def _recipe(settings: Settings) -> str:
    return TINY_RECIPE if settings.dry else RECIPE


def _data(settings: Settings) -> tuple[str, ...]:
    """Overrides of every training run: few images, many checkpoints, losses of every step."""
    sizes = ("data.image_size=64", "train.global_batch_size=8") if settings.dry else ("train.global_batch_size=16",)
    return (
        f"data.root={_root(settings)}", "data.missing=skip", "model.weights=none", "logging.every=1st",
        "logging.images=0", "eval.replicates=20", "eval.pictures=1", "data.val_fraction=0.25", *sizes,
    )  # fmt: skip


def _find(program: str) -> str | None:
    return shutil.which(program) or next(
        (str(Path(folder) / program) for folder in _TOOLKITS if (Path(folder) / program).exists()), None
    )


def _json(settings: Settings, part: str, name: str) -> Path:
    return settings.work / f"{part}-{name.replace(' ', '-').replace(',', '')}.json"
