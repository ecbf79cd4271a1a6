"""Whether a checkpoint goes with a recipe and its data: errors that name what differs."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from distcxr.data.dataset import Dataset
from distcxr.engine.checkpoint import Checkpoint, CheckpointError
from distcxr.engine.unseen import check_unseen
from distcxr.own_parts import ALLOW_VARIABLE, HOW_TO_ALLOW, changed_source, is_change_allowed, open_parts
from distcxr.recipe import Recipe
from distcxr.recipe.data import Data
from distcxr.recipe.keys import IDENTITY_FREE
from distcxr.runfolder.diverged import newest_end
from distcxr.runfolder.layout import is_end_of_stage, run_folder_of

logger = logging.getLogger(__name__)

TAMING = (r"optim\.lr", r"train\.stages\.\d+\.lr", r"train\.clip_norm", r"train\.precision")
"""Patterns of keys that may differ where a run that diverged resumes: elsewhere that would be a mistake unnoticed."""


def as_tested(
    recipe: Recipe, checkpoint: Checkpoint, dataset: Dataset, split: str = "test"
) -> tuple[Recipe, Checkpoint]:
    """The two as they are, if they go together and the split's patients are new to the checkpoint.

    Raises:
        ValueError: as `check_testable`, and for the split `test` as `check_unseen`.
    """
    check_testable(checkpoint, recipe)
    if split == "test":
        check_unseen(checkpoint, dataset)
    return recipe, checkpoint


def as_trained(recipe: Recipe, checkpoint: Checkpoint) -> Recipe:
    """The recipe with the network, image size, crop, normalisation and reader that a checkpoint was trained with."""
    theirs = checkpoint.recipe
    sources = {key: sha256 for key, sha256 in theirs.sources.items() if key in ("model.name", "data.reader")}
    data = as_read(recipe.data, checkpoint)
    update = {"model": theirs.model, "augment": theirs.augment, "data": data, "sources": recipe.sources | sources}
    return recipe.model_copy(update=update)


def as_read(data: Data, checkpoint: Checkpoint) -> Data:
    """The images of a data set, read as those that a checkpoint was trained on: at their size, by the run's own reader
    if it has one, with lateral views beside them if it has those.

    Raises:
        ValueError: it has one, which reads files, and the data set is none of files; or has no lateral views.
    """
    theirs = checkpoint.recipe.data
    update: dict[str, Any] = {"image_size": theirs.image_size, "lateral": theirs.lateral}
    if theirs.lateral != "none" and data.lateral == "none":
        raise CheckpointError(
            f"{checkpoint.path} takes a lateral view beside each frontal image, and here is data.lateral=none: give "
            f"the recipe data.lateral={theirs.lateral}"
        )
    if theirs.reader is not None:
        if data.source != "png":
            raise CheckpointError(
                f"{checkpoint.path} reads image files with its own data.reader={theirs.reader}, and here is "
                f"data.source={data.source}"
            )
        update |= {"reader": theirs.reader, "loader": "torch"}
    return data.model_copy(update=update)


def check_recipe(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Refuse to resume training from a checkpoint of another recipe, naming the keys that differ.

    With `train.stage` the stages that begin after the checkpoint may differ; and the keys that tame a run may where it
    diverged after the checkpoint.
    """
    allowed = () if _diverged_after(checkpoint) is None else TAMING
    lines = [
        f"  - {key}: {theirs!r} in the checkpoint, {ours!r} in the recipe"
        for key, theirs, ours in _differing(checkpoint, recipe)
        if not re.fullmatch("|".join(allowed), key)
    ]
    if not lines:
        _check_sources(checkpoint, recipe.sources)
        return
    raise CheckpointError(
        f"{checkpoint.path} was made by another recipe:\n" + "\n".join(lines) + "\nTrain with another "
        "output=FOLDER, or set these keys back"
    )


def _check_sources(checkpoint: Checkpoint, now: Mapping[str, str]) -> None:
    """Refuse a source of an own part, SHA-256 by key, that is another than the checkpoint's; or warn, where the
    environment allows it. Stages that the checkpoint has not begun may have others."""
    before, named = checkpoint.recipe.sources, checkpoint.recipe.own_functions()
    stages = range(checkpoint.meta["state"]["stage"], len(checkpoint.recipe.train.stages))
    new = tuple(f"train.stages.{number}." for number in stages)
    common = [key for key in now if key in before and not key.startswith(new)]
    changed = [changed_source(key, named[key], before[key], now[key]) for key in common if before[key] != now[key]]
    if not changed:
        return
    head = f"{checkpoint.path} was trained with another source of your own parts:"
    lines = "\n  - ".join([head, *changed])
    if not is_change_allowed():
        raise CheckpointError(f"{lines}\n{HOW_TO_ALLOW}, or begin another run with another output=FOLDER")
    logger.warning(f"{lines}\n{ALLOW_VARIABLE}=allow: from here on it is a run of two sources: report both")


def begins_again(recipe: Recipe, checkpoint: Checkpoint) -> bool:
    """Whether `train.stage` and `train.resume` mean to begin a stage that the checkpoint has left.

    A `stage-<n>` has left stage n; another checkpoint in stage n is in the middle of it, unless its run has ended.
    """
    train, state = recipe.train, checkpoint.meta["state"]
    if train.stage is None or train.resume in ("auto", "never"):
        return False
    begun, left = int(state["stage"]), state["ended"] or is_end_of_stage(checkpoint.path)
    return train.stage <= begun if left else train.stage < begun


def log_after_divergence(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Where the run diverged after the checkpoint, warn of what is different this time, or that nothing is."""
    end = _diverged_after(checkpoint)
    if end is None:
        return
    if changed := _differing(checkpoint, recipe):
        named = ", ".join(f"{key} {now!r} in place of {before!r}" for key, before, now in changed)
        logger.warning(
            f"the run diverged at step {end['step']}; it resumes from step {checkpoint.step} with {named}. From here "
            "on it is a run of two recipes: report both"
        )
    skips = [end["recipe"]["train"].get(key) for key in ("on_nan", "max_skips")]
    if end["identity"] == recipe.identity() and skips == [recipe.train.on_nan, recipe.train.max_skips]:
        logger.warning(
            f"the run diverged at step {end['step']}, and nothing that would change that is different this time: lower "
            "optim.lr or train.clip_norm, or set train.on_nan=skip"
        )


def _diverged_after(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What is known of the update after the checkpoint that ended its run; None where none did."""
    folder = run_folder_of(checkpoint.path)
    end = None if folder is None else newest_end(folder)
    return end if end is not None and end["step"] > checkpoint.step else None


def _differing(checkpoint: Checkpoint, recipe: Recipe) -> list[tuple[str, Any, Any]]:
    """(key, the checkpoint's value, the recipe's) of keys that decide what is learnt; not of stages yet to begin."""
    whole = checkpoint.recipe
    if whole.identity() == recipe.identity():
        return []
    theirs, ours = (_flat(one.model_dump(mode="json")) for one in (whole, recipe))
    begun, asked = checkpoint.meta["state"]["stage"], recipe.train.stage or 0
    if begins_again(recipe, checkpoint):
        first = asked - 1
    else:
        first = begun if asked > begun else len(ours)  # none
    new = [f"train.stages.{number}" for number in range(first, max(len(recipe.train.stages), len(whole.train.stages)))]
    free = tuple(f"{section}." for section in (*IDENTITY_FREE, *new))
    return [
        (key, theirs.get(key), ours.get(key))
        for key in ours | theirs
        if theirs.get(key) != ours.get(key)
        and not f"{key}.".startswith(free)
        and not re.fullmatch(r"data\.members\.\d+\.root", key)
    ]


def check_testable(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Refuse to test weights with a recipe that would show them other images or another head."""
    theirs, ours = (_flat(one.model_dump(mode="json")) for one in (checkpoint.recipe, recipe))
    keys = (
        "model.name", "model.library", "model.in_chans", "model.head.kind", "model.head.hidden", "model.head.metadata",
        "data.image_size", "data.lateral", "augment.center_crop", "augment.crop",
    )  # fmt: skip
    lines = [
        f"  - {key}: {theirs.get(key)!r} in the checkpoint, {ours.get(key)!r} in the recipe"
        for key in (*keys, "data.findings")
        if theirs.get(key) != ours.get(key)
    ]
    losses = [values.get("loss.name") for values in (theirs, ours)]
    if losses.count("cross_entropy") == 1:  # any other's logits are of findings one by one
        lines.append(f"  - loss.name: {losses[0]!r} in the checkpoint, {losses[1]!r} in the recipe")
    if checkpoint.recipe.data.reader not in (None, recipe.data.reader):  # one alone is for files of another kind
        names = [values["data.reader"] for values in (theirs, ours)]
        lines.append(f"  - data.reader: {names[0]!r} in the checkpoint, {names[1]!r} in the recipe")
    if lines:
        raise CheckpointError(f"{checkpoint.path} was trained differently:\n" + "\n".join(lines))
    for shown in ("model.", "data.reader"):
        _check_sources(checkpoint, open_parts(recipe.own_functions(), recipe.sources, only=shown))


def check_data(checkpoint: Checkpoint, hashes: dict[str, str]) -> None:
    """Refuse to resume with other labels or other images in a split: the order would change in mid-epoch, and patients
    trained on could come to validate.
    """
    theirs = checkpoint.meta["hashes"]
    names = ("labels", "train", "val", "test", "laterals")
    changed = [name for name in names if theirs.get(name) != hashes.get(name)]
    if changed:
        raise CheckpointError(
            f"{checkpoint.path} was trained on other data: {', '.join(changed)} changed since, "
            "for example because files were added or removed. Give data.root the data it was trained on, or start anew "
            "with train.resume=never and another output=FOLDER"
        )


def check_findings(checkpoint: Checkpoint, findings: Sequence[str]) -> None:
    """Refuse other columns than the checkpoint's: `data.findings=all` means what the label file of the day has."""
    theirs = checkpoint.meta["findings"]
    if theirs != list(findings):
        raise CheckpointError(
            f"{checkpoint.path} was trained on the findings {', '.join(theirs)}; with this recipe and label file they "
            f"are {', '.join(findings)}. List the checkpoint's in data.findings"
        )


def check_together(checkpoints: Sequence[Checkpoint], recipe: Recipe, findings: Sequence[str]) -> None:
    """Refuse checkpoints with logits of different meaning, or of other findings than the recipe's `findings`."""
    first = checkpoints[0]
    lines = [
        f"  - {one.path}: findings {', '.join(one.meta['findings'])}; the recipe's are {', '.join(findings)}"
        for one in checkpoints
        if one.meta["findings"] != list(findings)
    ]
    lines += [
        f"  - {one.path}: trained with other labels than {first.path}"
        for one in checkpoints
        if one.meta["hashes"]["labels"] != first.meta["hashes"]["labels"]
    ]
    lines += [
        f"  - {one.path}: trained with loss.name={theirs}; the recipe's is {recipe.loss.name}"
        for one in checkpoints
        if [theirs := one.meta["recipe"]["loss"]["name"], recipe.loss.name].count("cross_entropy") == 1
    ]
    named = [one.path.resolve() for one in checkpoints]
    lines += [f"  - {path}: named twice" for path in dict.fromkeys(named) if named.count(path) > 1]
    if lines:
        raise CheckpointError("these checkpoints make no ensemble:\n" + "\n".join(lines))


def read_alike(one: Data, other: Data) -> bool:
    """Whether both make the same labels of the same label files: hashes are of the files alone."""

    def reading(data: Data) -> list[Any]:
        return [data.uncertain, data.radiologists, *((one.map, one.uncertain) for one in data.members)]

    return reading(one) == reading(other)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their whole key, as overrides name them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            value = {str(number): entry for number, entry in enumerate(value)}
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
