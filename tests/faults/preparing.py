"""What a campaign needs before its first fault: data, a recipe, and what undisturbed commands end with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from faults.case import STALL_S, STORES, Place
from faults.job import Job, differences, files_of, result, start_launcher

RECIPE = """
data: {image_size: 32, loader: torch, num_workers: 0, val_fraction: 0.25}
augment: {flip: 0.5, rotate_deg: 5, normalize: half}
model: {library: timm, name: test_resnet, weights: none, in_chans: 1}
optim: {lr: 1e-3}
train: {epochs: 4, global_batch_size: 16, precision: no, ema: 0.9, stall_s: STALL_S}
eval: {replicates: 20, pictures: 0, splits: [val], every: 2st}
checkpoint: {every: 2st, keep: 2}
logging: {every: 1st, images: 0}
"""
_WITHIN_S = 600.0


def prepare(folder: Path, worlds: Sequence[int], stores: bool = True, launch: bool = True) -> Place:
    """Data, recipe, undisturbed runs of each world and builds of each store; the first of either twice.

    Its first time compiles and fills caches; the second has to end the same, and tells how long it takes. How long a
    run takes on this machine, at this hour, decides how long a rank may be silent.

    Args:
        stores: build them, too.
        launch: measure how long the command takes that users start.
    """
    import tiny

    tiny.phantom(folder)
    _write_recipe(folder, int(_WITHIN_S))
    place = Place(folder, {}, {})
    for world_size in (worlds[0], *worlds):
        _undisturbed(place, world_size, "train")
    for verb in [name for name in STORES for _ in range(2) if stores]:
        _undisturbed(place, 1, verb)
    if launch:
        log, started_s = folder / "launch.txt", time.monotonic()
        with start_launcher(place.words(folder / "straight-launch"), worlds[0], log) as process:
            if process.wait(_WITHIN_S):
                raise RuntimeError(f"an undisturbed launch failed: {log.read_text()[-2000:]}")
        place.launch_s = time.monotonic() - started_s
    _write_recipe(folder, max(STALL_S, round(max(place.straight_s[world] for world in worlds) / 2)))
    return place


def _write_recipe(folder: Path, stall_s: int) -> None:
    (folder / "recipe.yaml").write_text(RECIPE.replace("STALL_S", str(stall_s)))


def _undisturbed(place: Place, world_size: int, verb: str) -> None:
    key = world_size if verb == "train" else verb
    output = place.folder / f"straight-{key}{'-again' * (key in place.straight)}"
    log = place.folder / f"straight-{key}.txt"
    job, started_s = Job(place.words(output, verb), world_size, log, verb=verb), time.monotonic()
    codes = job.start().wait(_WITHIN_S)
    place.straight_s[key] = time.monotonic() - started_s
    if set(codes) != {0}:
        raise RuntimeError(f"an undisturbed command ends with {codes}: {job.text()[-2000:]}")
    found = result(output) if verb == "train" else files_of(output)
    if different := differences(place.straight.setdefault(key, found), found):
        raise RuntimeError(f"two undisturbed commands differ: {', '.join(different)}")
