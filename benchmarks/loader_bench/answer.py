"""Compares the loaders' speed with the need of the GPUs and with what distcxr promises, and gives advice."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loader_bench.table import Row, find

NIH_IMAGES = 112_120
BUILD_CORES = 24
MARGIN = 1.1  # the training process needs some of the cores, too
QUIET = 0.15  # of the cores; below it, a run is taken for undisturbed
LARGE_MB = 4000
_USABLE = ("torch", "dali", "cache", "cache device")  # values of data.loader, and the cache's resident form


@dataclass(frozen=True)
class Need:
    """What the training step of one GPU takes in.

    Attributes:
        img_per_s: None when it is unknown.
        why: where the figure comes from, or how to get it.
    """

    img_per_s: float | None
    why: str


def find_need(recipe: Path, overrides: Sequence[str], batch_size: int, precision: str, gpus_here: int) -> Need:
    """Measure the training step on this machine's GPU, by `epoch.py` in a process of its own."""
    script = Path(__file__).parents[1] / "epoch.py"
    how = f"python benchmarks/epoch.py {recipe}"
    if not gpus_here:
        return Need(None, f"unknown, there is no GPU here: run `{how}` where it trains and give its img/s as --need")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "need.json"
        command = [
            sys.executable, str(script), str(recipe), *overrides, f"train.global_batch_size={batch_size}",
            "train.per_device_batch_size=null", f"train.precision={precision}", "data.loader=torch", "--steps", "3",
            "--json", str(out),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
            return Need(None, f"unknown, `{how}` failed ({reason}): give its img/s as --need")
        speed = json.loads(out.read_text())[0]["step_img_per_s"]
    return Need(speed, f"measured here, {precision}, batch {batch_size}")


def answer(rows: Sequence[Row], need: Need, *, image_size: int, cores: int, gpus: int, recipe: str) -> str:
    """The need of a node's GPUs beside what each loader gives, and advice in a sentence.

    Figures of all cores are measured where the run has a row with that many ranks and threads, otherwise the speed of
    a core times the cores, marked ~. The cache is read by one core of each rank.
    """
    share = max(1, cores // gpus)
    wanted = 1000.0 if need.img_per_s is None else need.img_per_s * gpus
    gives = {}
    lines = [
        f"Will {gpus} GPU{'s' * (gpus > 1)} starve with {cores} core{'s' * (cores > 1)}?   {recipe}, {image_size} px",
        f"Each GPU's training step needs: {'?' if need.img_per_s is None else f'{need.img_per_s:,.0f}'} img/s "
        f"({need.why}).",
        "",
        f"| loader | img/s of one core | img/s of all {cores} | cores for {wanted:,.0f} img/s |",
        "|---|---|---|---|",
    ]
    for name in ("seed", *_USABLE):
        one = find(rows, name, image_size)
        if one is None:
            continue
        busy = 1 if name.startswith("cache") else share
        whole = find(rows, name, image_size, busy, gpus)
        of_a_core = 1000 / one["core_ms"] if one["core_ms"] else one["img_per_s"]
        gives[name] = whole["img_per_s"] if whole else of_a_core * busy * min(gpus, cores)
        lines.append(
            f"| {name} | {of_a_core:,.0f} | {'' if whole else '~'}{gives[name]:,.0f} "
            f"| {math.ceil(wanted * MARGIN / of_a_core)} |"
        )
    return "\n".join([*lines, "", advice(rows, gives, need, gpus, cores, image_size, recipe)])


def advice(
    rows: Sequence[Row], gives: dict[str, float], need: Need, gpus: int, cores: int, image_size: int, recipe: str
) -> str:
    """One or two sentences: what to put into the recipe."""
    png = {name: speed for name, speed in gives.items() if name in ("torch", "dali")}
    if not png:
        return "No loader of data.loader was measured, so there is no advice: leave --loaders away."
    fastest = max(png, key=lambda name: png[name])
    build = build_seconds(rows, cores, image_size)
    cost = f", about {build / 60:.0f} min and {NIH_IMAGES * image_size**2 / 1e9:.1f} GB for all of NIH" if build else ""
    cache = f"build the decoded cache once (`distcxr cache {recipe}`{cost}) and set data.loader=cache"
    if need.img_per_s is None:
        return (
            f"Unknown before the need is known: {cores} cores decode {png[fastest]:,.0f} img/s at best "
            f"(data.loader={fastest}). Where the GPUs need more, {cache}."
        )
    wanted = need.img_per_s * gpus
    if png[fastest] >= wanted * MARGIN:
        return (
            f"No: data.loader={fastest} gives {png[fastest] / wanted:.1f} times what they need. Leave data.loader=auto."
        )
    starving = (
        f"Yes, with PNGs: {cores} cores decode {png[fastest] / wanted:.0%} of what they need (data.loader={fastest})."
    )
    if "cache" not in gives or gives["cache"] >= wanted * MARGIN:
        found = f": it gives {gives['cache'] / wanted:,.0f} times the need" if "cache" in gives else ""
        return f"{starving} Do this: {cache}{found}."
    return f"{starving} Do this: {cache} and data.cache.resident=device, which needs no core per image."


def build_seconds(rows: Sequence[Row], cores: int, image_size: int) -> float | None:
    """Time to build the cache of all of NIH, from the measured core time of an image; None without a figure."""
    row = find(rows, "cache build", image_size) or find(rows, "png", image_size)
    return None if row is None or not row["core_ms"] else NIH_IMAGES * row["core_ms"] / 1e3 / cores


@dataclass(frozen=True)
class Claim:
    """A promised figure and this run's.

    Attributes:
        value: None when the rows for it are missing.
        at_least: False where the bar is an upper limit.
    """

    text: str
    value: float | None
    bar: float
    at_least: bool = True

    @property
    def holds(self) -> bool:
        return self.value is not None and (self.value >= self.bar if self.at_least else self.value <= self.bar)

    def __str__(self) -> str:
        verdict = "unknown" if self.value is None else "holds" if self.holds else "FAILS"
        value = "–" if self.value is None else f"{self.value:,.2f}"
        return f"| {self.text} | {'≥' if self.at_least else '≤'} {self.bar:,g} | {value} | {verdict} |"


def claims(rows: Sequence[Row], image_size: int) -> list[Claim]:
    """The speed and memory that distcxr promises, as ratios of core time (ms of a core per image) in this run."""

    def row(name: str, threads: int = 1) -> Row | None:
        return find(rows, name, None if name.endswith(("decode", "pack build")) else image_size, threads)

    def ratio(key: str, top: Row | None, bottom: Row | None) -> float | None:
        return top[key] / bottom[key] if top and bottom and top[key] and bottom[key] else None

    cache, build = row("cache"), build_seconds(rows, BUILD_CORES, image_size)
    packed = row("pack build")
    beyond = cache["rss_mb"] - cache["base_mb"] if cache and cache.get("base_mb") is not None else None
    size = f"{image_size} px"
    return [
        Claim(f"PNG to {size}, one core, against the usual pipeline", ratio("core_ms", row("seed"), row("png")), 2.8),
        Claim("PNG decode against torchvision", ratio("core_ms", row("torchvision decode"), row("png decode")), 2.2),
        Claim("PNG decode against DALI on the CPU", ratio("core_ms", row("dali decode"), row("png decode")), 2.2),
        Claim("pack read and decode against PIL's PNG", ratio("core_ms", row("pil decode"), row("pack decode")), 2.0),
        Claim("pack build, ms of a core per image", packed["core_ms"] if packed else None, 20, at_least=False),
        Claim(f"PNG to {size}, two threads against one", ratio("img_per_s", row("png", 2), row("png")), 1.85),
        Claim(f"cache at {size}, one core, against the usual pipeline", ratio("core_ms", row("seed"), cache), 1500),
        Claim(f"cache at {size} against memcpy", ratio("core_ms", row("memcpy"), cache), 0.55),
        Claim("cache: memory beyond the map and Python with torch, MB", beyond, 300, at_least=False),
        Claim(f"cache of all of NIH at {size} on {BUILD_CORES} cores, seconds", build, 60, at_least=False),
    ]


def claims_table(found: Sequence[Claim]) -> str:
    """The claims as markdown."""
    return "\n".join(["| claim | bar | measured | |", "|---|---|---|---|", *map(str, found)])


def facts(rows: Sequence[Row]) -> str:
    """Hardware and versions of a run in a line, and what may have spoilt its figures."""
    row = rows[0]
    gpu = row.get("gpu") or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in row.get("versions", {}).items())
    lines = [f"{row.get('date')}, {row.get('cpu')}, {row.get('cores')} cores, {gpu}; {versions}"]
    if row.get("busy_before", 0) > QUIET:
        lines.append(
            f"Other programs kept {row['busy_before']:.0%} of the cores busy when this began: img_per_s and what is "
            "made of it are too low, core_ms is nearly right."
        )
    working_set = min((row["working_set_mb"] for row in rows if row["source"] in ("cache", "memory")), default=None)
    if working_set is not None and working_set < LARGE_MB:
        lines.append(
            f"Cache and memcpy went through {working_set:,.0f} MB only, part of which a large processor holds in its "
            "own cache: a full run takes 4 GB."
        )
    return "\n".join(lines)
