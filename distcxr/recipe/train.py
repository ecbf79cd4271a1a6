"""The recipe's `optim`, `schedule` and `train`: how the weights are found, for how long, and in which stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distcxr.recipe.augmentation import Augment
from distcxr.recipe.loss import Loss
from distcxr.recipe.section import BelowOne, Duration, NonNegative, Positive, PositiveInt, Section
from distcxr.recipe.selection import Sampling


class Optim(Section):
    """The optimiser."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    """Its name."""
    lr: Positive = 1e-4
    """Peak learning rate."""
    weight_decay: NonNegative = 0.01
    """Not applied to biases and normalisation parameters, unless `decay_all`."""
    decay_all: bool = False
    """Weight decay on every parameter, as PyTorch's optimisers have it where nobody makes groups."""
    decay_embeddings: bool = True
    """False: none on class tokens, position embeddings and tables of relative positions, which is what ViT's, MAE's,
    EVA's and Swin's own scripts do."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """Of Adam and AdamW."""
    momentum: BelowOne = 0.9
    """Of SGD."""
    nesterov: bool = False
    """Of SGD."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Layer-wise learning rate: each block gets this times the rate of the block above it; the head has `lr`."""


class Schedule(Section):
    """How the learning rate changes: a pure function of the step, over the horizon that the epochs give, and for
    `plateau` of the validations so far."""

    name: Literal["constant", "cosine", "step", "plateau"] = "cosine"
    """Shape after the warm-up."""
    warmup: Duration = "0st"
    """Linear rise to the peak."""
    min_lr: NonNegative = 0.0
    """Where the cosine ends, and below which `plateau` does not go."""
    every: Duration = "7ep"
    """Of `step`: the rate is multiplied by `factor` this often."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of `step` and `plateau`."""
    patience: Annotated[int, Field(ge=0)] = 10
    """Of `plateau`: validations in a row without a better `eval.best_metric` that are waited for; one more, and the
    rate is multiplied by `factor` (as PyTorch's ReduceLROnPlateau counts)."""


class EarlyStop(Section):
    """When training ends because it no longer helps."""

    patience: PositiveInt | None = None
    """The stage, and with the last the run, ends after this many validations in a row without a better
    `eval.best_metric`; null never. Every stage counts anew."""
    min_delta: NonNegative = 0.0
    """What counts as better is better by more than this."""


class Stage(Section):
    """A part of training with its own trainable parameters; keys that it lacks are as in the rest of the recipe."""

    name: str | None = None
    """What the log and checkpoints call it; null takes its number."""
    trainable: list[str] | None = None
    """Parameters that are trained, as in `train.trainable`, which stands in for null."""
    lr: Positive | None = None
    """Peak learning rate."""
    epochs: PositiveInt
    """Passes over the stage's samples; also its schedule's horizon."""
    optimizer: Literal["new", "carry"] = "new"
    """Begin with an empty optimiser, or keep the moments of parameters that the stage before trained, too."""
    loss: Loss | None = None
    """Keys that differ from the recipe's `loss`, which validation still uses."""
    augment: Augment | None = None
    """Keys that differ from the recipe's `augment`; not those that change the input's size or normalisation."""
    sampling: Sampling | None = None
    """Keys that differ from `data.sampling`. Caps and weighted sampling are made anew in every stage."""
    schedule: Schedule | None = None
    """Keys that differ from the recipe's `schedule`."""


class Train(Section):
    """How long, how large, how precise."""

    epochs: PositiveInt = 10
    """Passes over the training split; also the schedule's horizon."""
    stages: tuple[Stage, ...] = ()
    """Training in parts, one after the other, in place of `train.epochs`, `optim.lr` and `train.trainable`."""
    stage: PositiveInt | None = None
    """Begin with this stage, counted from 1: from the checkpoint that the stage before it left in `output`, or without
    one from `model.weights`. A run that has begun it resumes. With `train.resume` and the path of a checkpoint, of
    whatever stage, it begins with that one's weights and history, in another `output`; a checkpoint from the middle of
    this stage resumes. Null begins with the first, or where a resumed run stopped."""
    trainable: list[str] | None = None
    """Parameters that are trained: names, beginnings of names up to a dot (`layer4`), or patterns with `*`; `head` is
    the last layer, or the head of `model.head`, whatever the network calls it. null trains all."""
    frozen_bn: Literal["eval", "train"] = "eval"
    """Whether BatchNorm layers with all parameters frozen keep their statistics, or continue to update them."""
    ema: BelowOne | None = None
    """Decay of a moving average of the weights, for example 0.999; validation and test then evaluate the average."""
    ema_warmup: bool = True
    """Begin with a lower decay, (1 + n) / (10 + n) in update n, so that the first weights do not stay in the average
    for long; false has the decay from the first update on."""
    early_stop: EarlyStop = EarlyStop()
    """When training ends because it no longer helps."""
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
    clip_norm: Positive | None = None
    """Largest gradient norm of an update."""
    on_nan: Literal["stop", "skip"] = "stop"
    """Where the loss or the gradient is not finite: stop, or leave the weights and BatchNorm's statistics as they were
    before the update and continue with the next batch. Either way a file of the run folder names the images. With
    `skip` the ranks decide alike and nothing waits for the device; may differ on resume."""
    max_skips: int = Field(default=10, ge=0)
    """Updates of a whole run after which `skip` stops, too. Where fp16 lowers its scale because of a gradient alone,
    with a finite loss, that counts for nothing."""
    sync_bn: bool = False
    """BatchNorm statistics over all ranks instead of each its own. Needs GPUs."""
    bn_averages: Literal["device", "global"] = "device"
    """What BatchNorm's running averages, with which evaluation computes, take in: `device` the first rank's
    micro-batches one by one, as PyTorch does; `global` once an update the mean over all micro-batches of the global
    batch. With `global` and `per_device_batch_size` set, results do not depend on the number of ranks."""
    bucket_mb: PositiveInt = 25
    """MiB of gradients that the ranks exchange at once during the backward pass. At 25, PyTorch's own, the first
    bucket holds 1; at any other value the first is as large as the rest."""
    compress_gradients: Literal["none", "bf16"] = "none"
    """Exchange gradients as bfloat16: half the bytes, for slow networks. Their sum then has 8 bits of precision."""
    gradient_checkpointing: bool = False
    """Keep each block's input alone for the backward pass, which computes the rest of the block anew: the same numbers
    (on CPUs bit for bit) with much less memory, in about a quarter more time. May differ on resume."""
    channels_last: bool = True
    """Memory layout that convolutions prefer."""
    compile: bool | Literal["graphs"] = False
    """torch.compile: slower start, faster steps. `graphs` also records a step's kernels as a CUDA graph and replays
    them, which helps small batches on fast GPUs; without accumulation."""
    autotune: bool = False
    """Try the network as written, compiled and as CUDA graphs before the first step, and run it the fastest way that
    agrees with float32; in place of `train.compile`. The run folder's autotune.json keeps the choice."""
    deterministic: bool = False
    """Compute with deterministic kernels alone: the same recipe on the same devices then gives the same numbers twice,
    bit for bit. Slower on GPUs; an operation without such a kernel ends the run and is named. Needs a `data.loader`
    other than `auto`, and no `train.autotune`: both choose by measured time."""
    stall_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 120.0
    """Seconds without progress after which the run ends and names the rank that holds it up, in stalled.txt and on the
    screen; three times the slowest update so far if that is longer. Ends with exit code 75; the same command resumes.
    null or 0 waits."""
    resume: str = "auto"
    """`auto` resumes from the newest whole checkpoint, `never` starts anew, a path resumes from that checkpoint."""

    @model_validator(mode="after")
    def _consistent(self) -> Train:
        if self.stage is not None and self.stage > max(1, len(self.stages)):
            names = [f"{number} {stage.name or ''}".strip() for number, stage in enumerate(self.stages, start=1)]
            there = f"train.stages are {', '.join(names)}" if names else "the recipe has no train.stages"
            raise ValueError(f"train.stage={self.stage}: {there}")
        if self.deterministic and self.autotune:
            raise ValueError(
                "train.deterministic=true with train.autotune=true: it takes what it measures as fastest, which may "
                "be another way to compute next time. Set train.compile instead"
            )
        for key, trainable in (
            ("train.trainable", self.trainable),
            *((f"train.stages.{number}.trainable", stage.trainable) for number, stage in enumerate(self.stages)),
        ):
            if trainable == []:
                raise ValueError(f"{key} is empty, so nothing would be trained: name parameters, or null for all")
        return self
