"""Overrides of keys that the recipe does not use, such as `schedule.every` with `schedule.name=cosine`."""

from __future__ import annotations

from collections.abc import Sequence

from distcxr.recipe.keys import Recipe

_OF_SCHEDULE = {
    "every": {"step"}, "factor": {"step", "plateau"}, "patience": {"plateau"}, "min_lr": {"cosine", "plateau"},
}  # fmt: skip
_OF_OPTIM = {"momentum": {"sgd"}, "nesterov": {"sgd"}, "betas": {"adam", "adamw"}}
_OF_MLP = ("hidden", "drop_rate")


def idle_overrides(recipe: Recipe, overrides: Sequence[str]) -> list[str]:
    """One line for each of the `key=value` overrides that the resolved `recipe` does not use, with the reason."""
    reasons = _reasons(recipe)
    keys = [override.partition("=")[0] for override in overrides]
    return [f"{key} changes nothing: {reasons[key]}" for key in dict.fromkeys(keys) if key in reasons]


def _reasons(recipe: Recipe) -> dict[str, str]:
    """Keys that the recipe does not use, and why."""
    found = {}
    stages = recipe.train.stages
    if stages:
        found["train.epochs"] = "each of train.stages sets its own, as train.stages.0.epochs"
        if all(stage.lr is not None for stage in stages):
            found["optim.lr"] = "each of train.stages sets its own, as train.stages.0.lr"
        if all(stage.trainable is not None for stage in stages):
            found["train.trainable"] = "each of train.stages sets its own, as train.stages.0.trainable"
    used = {key for loss in recipe.losses().values() for key in loss.in_use()}
    unused = [key for key in recipe.loss.model_dump() if key not in used]
    found |= {f"loss.{key}": f"loss.name={recipe.loss.name} does not look at it" for key in unused}
    schedules = {recipe.schedule.name, *(stage.schedule.name for stage in stages if stage.schedule is not None)}
    for section, owners, chosen in (("schedule", _OF_SCHEDULE, schedules), ("optim", _OF_OPTIM, {recipe.optim.name})):
        others = {key: names for key, names in owners.items() if not names & chosen}
        found |= {f"{section}.{key}": _only(f"{section}.name", names) for key, names in others.items()}
    augments = [recipe.augment, *(stage.augment for stage in stages if stage.augment is not None)]
    if not any(augment.erase for augment in augments):
        found["augment.erase_area"] = "augment.erase=0, so nothing is erased"
    if not any(augment.mixes for augment in augments):
        found["augment.mix_prob"] = "augment.mixup and augment.cutmix are 0, so nothing is mixed"
    if not any(augment.mixup and augment.cutmix for augment in augments):
        found["augment.mix_switch"] = "it chooses between augment.mixup and augment.cutmix, and not both are above 0"
    if recipe.model.head.kind != "mlp":
        found |= {f"model.head.{key}": _only("model.head.kind", {"mlp"}) for key in _OF_MLP}
    if recipe.data.loader not in ("gpu", "auto"):
        found |= {f"data.gpu.{key}": _only("data.loader", {"gpu", "auto"}) for key in ("inflate", "wave")}
    if recipe.data.dataset != "python":
        found["data.function"] = _only("data.dataset", {"python"})
    if "vindr" not in {recipe.data.dataset, *(member.dataset for member in recipe.data.members)}:
        found["data.radiologists"] = _only("data.dataset", {"vindr"})
    if recipe.data.source != "pack":
        found["data.pack.path"] = _only("data.source", {"pack"})
    if recipe.train.on_nan == "stop":
        found["train.max_skips"] = _only("train.on_nan", {"skip"})
    if recipe.train.early_stop.patience is None:
        found["train.early_stop.min_delta"] = "train.early_stop.patience is null, so nothing ends early"
    return found


def _only(key: str, names: set[str]) -> str:
    return f"it belongs to {key}={' or '.join(sorted(names))}"
