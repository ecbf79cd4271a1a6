"""The recipe: every key, its type, its default and what it means. A key that is not here is an error.

The text under each field is what editors show: it goes into the exported JSON schema.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from distcxr.recipe.augmentation import Augment
from distcxr.recipe.data import Data
from distcxr.recipe.loss import Loss, check_whole_labels
from distcxr.recipe.model import Model
from distcxr.recipe.section import Duration, PositiveInt, Section
from distcxr.recipe.train import Optim, Schedule, Train


class Eval(Section):
    """When and on what the model is evaluated."""

    every: Duration = "1ep"
    """How often the validation split is scored; the best by `best_metric` is kept as `best`."""
    best_metric: Literal["auroc", "loss", "accuracy"] = "auroc"
    """What `best`, `schedule.name: plateau` and `train.early_stop` look at: validation's macro AUROC, its loss (the
    recipe's, in stages with one of their own, too), or with `loss.name: cross_entropy` the share of images for which
    the likeliest class is right."""
    splits: list[Literal["train", "val", "test"]] = ["val", "test"]
    """Splits that are scored at the end; `train` without augmentation."""
    weights: Literal["best", "last"] = "best"
    """Which weights are scored at the end."""
    macro_findings: list[str] | None = None
    """Findings that the macro average names; null takes all but No Finding."""
    ensemble: list[str] = []
    """Runs or checkpoints: a recipe that names any trains nothing and tests their mean, as `--test` with several."""
    tta: list[Literal["flip", "zoom", "rotate_left", "rotate_right"]] = []
    """Test-time augmentation of the scores at the end, not of the validations while training: views beside the image
    as it is, mirrored, enlarged by 1.1 or turned by 5 degrees. The mean of all views' logits is scored."""
    replicates: int = Field(default=1000, ge=2)
    """Resamples of the patients behind the intervals of Brier score and calibration error, and behind comparisons."""
    pictures: int = Field(default=8, ge=0, le=100)
    """Worst false positives drawn with heat maps, and as many false negatives, of the test split; 0 for none."""
    localise: bool = True
    """Hold heat maps of the test split against `BBox_List_2017.csv`, where `data.root` has it."""

    @field_validator("tta")
    @classmethod
    def _once(cls, views: list[str]) -> list[str]:
        if len(set(views)) < len(views):
            raise ValueError(f"eval.tta names a view twice: {', '.join(views)}")
        return views


class Checkpoint(Section):
    """What survives a crash."""

    every: Duration = "1ep"
    """How often `last-<step>` is written."""
    keep: PositiveInt = 2
    """How many of them stay; `best` always does."""


class Logging(Section):
    """What is written while training."""

    every: Duration = "20st"
    """How often loss, lr and speed are read from the device and written."""
    images: int = Field(default=16, ge=0, le=64)
    """Augmented training images drawn in TensorBoard and `augmented.png` at the start of every epoch; 0 for none."""
    val_images: int = Field(default=8, ge=0, le=64)
    """Validation images drawn in TensorBoard with labels, probabilities and heat maps: the same ones over the whole
    run, one of each finding in turn, then one of none; 0 for none."""
    val_images_every: PositiveInt = 5
    """Validations from one such drawing to the next; the first and the last of a launch or stage have one, too."""
    trackers: list[Literal["wandb", "mlflow"]] = []
    """Beside TensorBoard: Weights & Biases, MLflow; the package must be installed (`pip install wandb`, `mlflow`)."""
    project: str = "distcxr"
    """Project (W&B) or experiment (MLflow) the run belongs to."""


IDENTITY_FREE = (
    "sources",
    "output", "train.max_steps", "train.resume", "train.stage", "train.per_device_batch_size", "train.bucket_mb",
    "train.stall_s", "train.gradient_checkpointing", "train.deterministic", "train.on_nan", "train.max_skips",
    "data.root", "data.source", "data.pack", "data.loader", "data.cache", "data.gpu", "data.num_workers",
    "data.prefetch", "data.max_errors", "checkpoint", "logging", "eval.splits", "eval.weights",
    "eval.ensemble", "eval.tta", "eval.replicates", "eval.pictures", "eval.localise",
)  # fmt: skip
"""Keys that may change between a run and its resumption: none of them changes what is learnt from which image
(`train.on_nan` decides what becomes of a run that would have ended)."""


class Recipe(Section):
    """One training run, whole."""

    output: Path | None = None
    """Run folder; without it `runs/<recipe>/<time>`."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of weights, order, augmentation and dropout."""
    data: Data = Data()
    """Images, labels, splits, loaders."""
    augment: Augment = Augment()
    """Changes on the device."""
    model: Model = Model()
    """The network."""
    loss: Loss = Loss()
    """What is minimised."""
    optim: Optim = Optim()
    """The optimiser."""
    schedule: Schedule = Schedule()
    """The learning rate over time."""
    train: Train = Train()
    """Length, batch, precision, resume."""
    eval: Eval = Eval()
    """Validation and test."""
    checkpoint: Checkpoint = Checkpoint()
    """Saving."""
    logging: Logging = Logging()
    """Writing down."""
    sources: dict[str, str] = {}
    """SHA-256 of the source files of your own parts, by the key that names each. A run writes it; a recipe that has it
    refuses another source (docs/own_parts.md)."""

    @model_validator(mode="before")
    @classmethod
    def _stages_inherit(cls, values: Any) -> Any:
        """Complete the sections of each stage from the recipe's own, so that a stage need only name what differs."""
        return _with_whole_stages(values)

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        if self.eval.best_metric == "accuracy" and self.loss.name != "cross_entropy":
            raise ValueError(
                "eval.best_metric=accuracy needs classes that exclude each other (loss.name=cross_entropy): where "
                "findings are rare, a model that finds nothing is right nearly always. Use auroc"
            )
        side = round(self.data.image_size * self.augment.center_crop)
        if self.augment.crop is not None and self.augment.crop > side:
            raise ValueError(f"augment.crop={self.augment.crop} is larger than the {side} px image it is cut from")
        augments = {"": self.augment}
        augments |= {f"train.stages.{n}.": one.augment for n, one in enumerate(self.train.stages) if one.augment}
        for above, augment in augments.items():
            if augment.train_size is not None and augment.train_size > (self.augment.crop or side):
                raise ValueError(
                    f"{above}augment.train_size={augment.train_size} is larger than the {self.augment.crop or side} px "
                    "that validation sees: raise data.image_size, or leave it out"
                )
        if self.train.deterministic and self.data.loader == "auto" and self.data.source != "npz":
            raise ValueError(
                "train.deterministic=true with data.loader=auto: it takes the loader that it measures as fastest, and "
                "pixels of two loaders may be a grey level apart. Set data.loader to torch, dali, cache or gpu"
            )
        if self.data.lateral != "none":
            self._check_lateral([one.augment or self.augment for one in self.train.stages] or [self.augment])
        if not self.train.stages:
            _check_mixed("", self.loss, self.augment)
        for number, stage in enumerate(self.train.stages, start=1):
            changed = [
                key
                for key in ("center_crop", "crop", "normalize")
                if stage.augment is not None and getattr(stage.augment, key) != getattr(self.augment, key)
            ]
            if changed:
                raise ValueError(
                    f"train.stages.{number - 1}.augment.{changed[0]} differs from augment.{changed[0]}: a stage can't "
                    "change the input's size or normalisation, or validation would not fit what is trained"
                )
            _check_mixed(f"train.stages.{number - 1}.", stage.loss or self.loss, stage.augment or self.augment)
            names = {self.loss.name, stage.loss.name if stage.loss else self.loss.name}
            if len(names) == 2 and "cross_entropy" in names:
                raise ValueError(
                    f"train.stages: loss.name of stage {number} makes {' and '.join(sorted(names))} of one run, but "
                    "only with cross_entropy do findings exclude each other: use it in all stages or in none"
                )
        for key, loss in self.losses().items():
            if loss.of_pairs and self.train.global_batch_size < 2:
                raise ValueError(
                    f"train.global_batch_size=1 with {key}.name={loss.name}: it ranks the images of a batch, so there "
                    "have to be two or, better, a hundred"
                )
        return self

    def _check_lateral(self, augments: list[Augment]) -> None:
        """Refuse what does not go with a second view."""
        key = f"data.lateral={self.data.lateral}"
        if self.model.library == "python":
            raise ValueError(
                f"{key}: a network of your own, {self.model.name}, takes one image: use timm's or torchvision's"
            )
        if self.model.head.kind == "attention":
            raise ValueError(f"{key} joins the pooled features of two views: take model.head.kind=linear or mlp")
        if mixed := next((one.mixes for one in augments if one.mixes), None):
            raise ValueError(
                f"{key}: augment.{mixed} would mix an image that has a lateral view with one that has none: set it to 0"
            )

    @property
    def metadata(self) -> tuple[str, ...]:
        """What is known of a sample and given to the network beside its pixels, as `data.metadata` names it: of
        `model.head.metadata`, then whether there is a lateral view, where `data.lateral` asks for it."""
        return (*self.model.head.metadata, *(("lateral",) if self.data.lateral != "none" else ()))

    def losses(self) -> dict[str, Loss]:
        """All losses by their keys: `loss`, and that of each stage with one of its own."""
        own = {f"train.stages.{number}.loss": stage.loss for number, stage in enumerate(self.train.stages)}
        return {"loss": self.loss} | {key: loss for key, loss in own.items() if loss is not None}

    def own_functions(self) -> dict[str, str]:
        """`module:function` of users' own parts by the key that names each, `loss.function` for example."""
        found = {"model.name": self.model.name} if self.model.library == "python" else {}
        if self.data.dataset == "python" and self.data.function:
            found["data.function"] = self.data.function
        if self.data.reader:
            found["data.reader"] = self.data.reader
        parts: dict[str, tuple[Loss | None, Augment | None]] = {"": (self.loss, self.augment)}
        parts |= {f"train.stages.{number}.": (one.loss, one.augment) for number, one in enumerate(self.train.stages)}
        for above, (loss, augment) in parts.items():
            if loss is not None and loss.name == "python" and loss.function:
                found[f"{above}loss.function"] = loss.function
            if augment is not None and augment.function:
                found[f"{above}augment.function"] = augment.function
        return found

    def identity(self) -> str:
        """Hash (12 hex digits) of all that decides what is learnt; a checkpoint goes with recipes of its identity."""
        values = self.model_dump(mode="json")
        for key in IDENTITY_FREE:
            section, _, name = key.partition(".")
            (values[section] if name else values).pop(name or section)
        for member in values["data"]["members"]:  # as data.root
            member.pop("root")
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _check_mixed(above: str, loss: Loss, augment: Augment) -> None:
    if not augment.mixes:
        return
    key = f"{above}augment.{augment.mixes}"
    check_whole_labels(loss, f"{above}loss", key)
    if loss.name == "cross_entropy":
        raise ValueError(
            f"{key}={getattr(augment, augment.mixes):g} does not go with {above}loss.name={loss.name}: labels of mixed "
            f"images lie between 0 and 1, and an image that is two has no one class. Set {key}=0, or loss.name to bce, "
            "focal or asymmetric"
        )


def _with_whole_stages(values: Any) -> Any:
    recipe = _section(values)
    train = _section(recipe.get("train"))
    stages = train.get("stages")
    if not isinstance(stages, list | tuple):
        return values
    above = {key: _section(recipe.get(key)) for key in ("loss", "augment", "schedule")}
    above["sampling"] = _section(_section(recipe.get("data")).get("sampling"))
    whole = []
    for stage in stages:
        if isinstance(stage, dict):
            own = {key: {**above[key], **stage[key]} for key in above if isinstance(stage.get(key), dict)}
            stage = {**stage, **own}
        whole.append(stage)
    return {**recipe, "train": {**train, "stages": whole}}


def _section(values: Any) -> dict[str, Any]:
    return values if isinstance(values, dict) else {}


def to_steps(duration: str, *, steps_per_epoch: int, epochs: int) -> int:
    """A duration in optimiser updates, rounded to the nearest.

    Args:
        duration: `10ep`, `500st` or `5%` (of `epochs` epochs).
    """
    if duration.endswith("ep"):
        return round(float(duration[:-2]) * steps_per_epoch)
    if duration.endswith("st"):
        return round(float(duration[:-2]))
    assert duration.endswith("%")
    return round(float(duration[:-1]) / 100 * steps_per_epoch * epochs)


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, for editors; `base` is allowed beside the recipe's own keys."""
    schema = Recipe.model_json_schema()
    schema["properties"] = {
        "base": {"type": "string", "description": "Recipe file, relative to this one, which gives the defaults."}
    } | schema["properties"]
    return schema
