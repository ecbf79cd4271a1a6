"""The recipe: every key, its type, its default and what it means. A key that is not here is an error.

The text under each field is what editors show: it goes into the exported JSON schema.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Duration = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(ep|st|%)$", examples=["10ep", "500st", "5%"])]
"""`10ep` epochs, `500st` steps (optimiser updates) or `5%` of the whole schedule."""

DURATION_KEYS = ("every", "warmup")

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of the recipe: frozen, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, hide_input_in_errors=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `true` where a number is meant: Python would take it for 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError(f"{info.field_name} takes no {str(value).lower()}: see its meaning in recipe.schema.json")
        return value


class SplitLists(Section):
    """Text files with one image name a line; relative to `data.root` unless absolute."""

    train: Path
    """Images to train on."""
    val: Path | None = None
    """Images to validate on; without it, `data.val_fraction` of the training patients."""
    test: Path
    """Images to test on."""


class Cache(Section):
    """The decoded cache: what `distcxr cache RECIPE` writes and `data.loader: cache` reads."""

    path: Path | None = None
    """Its folder; null takes `distcxr-cache/<image_size>px` in `data.root`."""
    stage_to: Path | None = None
    """A folder on each node's own disk that the cache is copied to first, once per node."""
    resident: Literal["host", "device"] = "host"
    """Where images wait: in the file (and the system's page cache), or in the memory of each GPU."""
    device_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """GPU memory that `resident: device` may take; what does not fit stays on the host. null takes the whole cache."""


class Data(Section):
    """Which images, which labels, who may see them, and how they are read."""

    dataset: Literal["nih"] = "nih"
    """Layout and label file: `nih` is ChestX-ray14 as NIH ships it."""
    root: Path | None = None
    """Folder that holds the label CSV, the lists and the images. Without it, `DISTCXR_NIH_ROOT` is used."""
    source: Literal["png"] = "png"
    """What the pixels are read from: the original PNG files."""
    findings: str | list[str] = "nih14"
    """`nih14`, `nih15` (with No Finding) or a list of names."""
    split: Literal["official", "by_patient", "lists"] = "official"
    """`official` uses NIH's two lists, `by_patient` draws at random by patient, `lists` reads `data.lists`."""
    lists: SplitLists | None = None
    """The files of `data.split: lists`."""
    ratios: tuple[NonNegative, NonNegative, NonNegative] = (0.7, 0.1, 0.2)
    """Shares of train, val and test for `data.split: by_patient`."""
    val_fraction: Fraction = 0.1
    """Share of the official training patients that validates instead."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the random parts of the split; apart from `seed`, so that several seeds share one split."""
    missing: Literal["error", "skip"] = "error"
    """Rows of the CSV whose image is not there: stop, or go on without them and say how many."""
    on_error: Literal["mask", "stop"] = "mask"
    """A file that can't be read, in training: keep its place with no known label, or stop. Evaluation lists it
    and leaves it out."""
    max_errors: int = Field(default=100, ge=0)
    """Unreadable training files of one epoch, counted over all ranks, after which `mask` stops too."""
    loader: Literal["auto", "torch", "dali", "cache"] = "auto"
    """Who reads: PyTorch's worker processes, NVIDIA DALI, the decoded cache, or whichever is fastest here."""
    cache: Cache = Cache()
    """The decoded cache."""
    image_size: int = Field(default=224, ge=8, le=4096)
    """Side of the square image in pixels, after decoding and resizing."""
    num_workers: int | None = Field(default=None, ge=0)
    """Reader processes (torch) or threads (dali) of each rank; null takes this rank's share of the cores."""
    prefetch: PositiveInt = 2
    """Batches that each worker reads ahead."""

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        if (self.split == "lists") != (self.lists is not None):
            raise ValueError("data.lists and data.split: lists belong together: give both or neither")
        if abs(sum(self.ratios) - 1) > 1e-6:
            raise ValueError(f"data.ratios must sum to 1, not {sum(self.ratios):g}")
        return self


class Statistics(Section):
    """Mean and standard deviation of grey values, each in [0, 1]."""

    mean: Fraction
    """Subtracted from pixels in [0, 1]."""
    std: Annotated[float, Field(gt=0, le=1)]
    """Divides what is left."""


class Augment(Section):
    """How images change on the device. The same draw gets the same change with any loader and any world size."""

    flip: Fraction = 0.0
    """Probability of a left-right flip."""
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Rotation is drawn from plus or minus this many degrees."""
    translate: Fraction = 0.0
    """Shift along each axis, drawn from plus or minus this share of the side."""
    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 1.0)
    """Zoom is drawn from this range; over 1 enlarges."""
    center_crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the side kept around the centre, in training and evaluation."""
    crop: PositiveInt | None = None
    """Side of a crop in pixels: at a random place in training, at the centre in evaluation."""
    brightness: Fraction = 0.0
    """Added to pixels in [0, 1], drawn from plus or minus this."""
    contrast: Fraction = 0.0
    """Pixels are spread around mid-grey by a factor drawn from 1 plus or minus this."""
    normalize: Literal["imagenet", "half", "dataset"] | Statistics = "imagenet"
    """ImageNet's statistics, 0.5 / 0.5, the training split's own (measured once), or a mean and std."""

    @model_validator(mode="after")
    def _ordered(self) -> Augment:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"augment.scale must be [low, high], not {list(self.scale)}")
        return self


class Model(Section):
    """The network."""

    name: str = "densenet121"
    """Its name in the library, for example `densenet121`, `resnet50` (torchvision) or `convnext_base` (timm)."""
    library: Literal["torchvision", "timm"] = "torchvision"
    """Where the name is looked up."""
    weights: str = "imagenet"
    """`imagenet`, `none`, or the path of a safetensors file."""
    in_chans: Literal[1, 3] = 3
    """Input channels; with 3 the grey image is repeated on the device."""
    drop_rate: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout before the classifier; null keeps what the network comes with."""


class Loss(Section):
    """What is minimised."""

    name: Literal["bce"] = "bce"
    """Binary cross-entropy, summed over known labels and divided by their number in the whole global batch."""


class Optim(Section):
    """The optimiser."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """Its name."""
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    """Peak learning rate."""
    weight_decay: NonNegative = 0.01
    """Not applied to biases and normalisation parameters."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of Adam and AdamW."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Of SGD."""


class Schedule(Section):
    """How the learning rate changes; a pure function of the step, over the horizon that `train.epochs` gives."""

    name: Literal["constant", "cosine"] = "cosine"
    """Shape after the warm-up."""
    warmup: Duration = "0st"
    """Linear rise to the peak."""
    min_lr: NonNegative = 0.0
    """Where the cosine ends."""


class Train(Section):
    """How long, how large, how precise."""

    epochs: PositiveInt = 10
    """Passes over the training split; also the schedule's horizon."""
    max_steps: PositiveInt | None = None
    """End the run early, after this many updates. The schedule keeps its horizon; may differ on resume."""
    global_batch_size: PositiveInt = 128
    """Images of one update over all ranks and accumulation: what a paper calls the batch size."""
    per_device_batch_size: PositiveInt | None = None
    """Images a device holds at once; null takes the rank's whole share, so no accumulation."""
    precision: Literal["bf16", "fp16", "no"] = "bf16"
    """Mixed precision; `no` computes in float32."""
    tf32: bool = True
    """Let float32 matrix products use TF32 on NVIDIA GPUs."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest gradient norm of an update."""
    sync_bn: bool = False
    """BatchNorm statistics over all ranks instead of each its own."""
    channels_last: bool = True
    """Memory layout that convolutions prefer."""
    compile: bool = False
    """torch.compile: slower start, faster steps."""
    resume: str = "auto"
    """`auto` goes on from the newest whole checkpoint, `never` starts anew, a path goes on from that checkpoint."""


class Eval(Section):
    """When and on what the model is judged."""

    every: Duration = "1ep"
    """How often the validation split is scored; the best macro AUROC is kept as `best`."""
    splits: list[Literal["train", "val", "test"]] = ["val", "test"]
    """Splits that are scored at the end; `train` without augmentation."""
    weights: Literal["best", "last"] = "best"
    """Which weights are scored at the end."""
    macro_findings: list[str] | None = None
    """Findings that the macro average names; null takes all but No Finding."""
    tta: list[Literal["flip", "zoom", "rotate_left", "rotate_right"]] = []
    """Test-time augmentation of the scores at the end, not of the validations while training: views beside the image
    as it is, mirrored, enlarged by 1.1 or turned by 5 degrees. The mean of all views' logits is scored."""
    replicates: int = Field(default=1000, ge=2)
    """Resamples of the patients behind every interval of the scores at the end."""
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
    """Augmented training images drawn in TensorBoard at the start of every epoch; 0 for none."""


IDENTITY_FREE = (
    "output", "train.max_steps", "train.resume", "train.per_device_batch_size", "data.root", "data.loader",
    "data.cache", "data.num_workers", "data.prefetch", "data.max_errors", "checkpoint", "logging", "eval.splits",
    "eval.weights", "eval.tta", "eval.replicates", "eval.pictures", "eval.localise",
)  # fmt: skip
"""Keys that may change between a run and its resumption: none of them changes what is learnt from which image."""


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

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        side = round(self.data.image_size * self.augment.center_crop)
        if self.augment.crop is not None and self.augment.crop > side:
            raise ValueError(f"augment.crop={self.augment.crop} is larger than the {side} px image it is cut from")
        return self

    def identity(self) -> str:
        """Hash (12 hex digits) of all that decides what is learnt; a checkpoint goes with recipes of its identity."""
        values = self.model_dump(mode="json")
        for key in IDENTITY_FREE:
            section, _, name = key.partition(".")
            (values[section] if name else values).pop(name or section)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


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
        "base": {"type": "string", "description": "Recipe file, relative to this one, whose keys are the defaults."}
    } | schema["properties"]
    return schema
