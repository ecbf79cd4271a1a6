"""The loops that are measured, and the packages that a loop of others is pinned to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Loop:
    """One loop.

    Attributes:
        module: has `train(job, meter)`.
        what: for the legend.
        package: what it is the loop of; its version is shown.
        pins: packages of its own environment, installed without their dependencies: torch is this interpreter's.
    """

    module: str
    what: str
    package: str
    pins: tuple[str, ...] = ()


LOOPS = {
    "ours": Loop(
        "step_bench.ours",
        "build_run and train_step of recipes/densenet121.yaml: grey uint8, augmented, clipped, logged every 20 steps",
        "distcxr",
    ),
    "minimal": Loop(
        "step_bench.plain",
        "the least that trains: autocast, channels_last, AdamW, inputs already normalised",
        "torch",
    ),
    "fp32": Loop(
        "step_bench.plain",
        "what is usually written, always in float32: NCHW, AdamW, loss.item() each step, inputs already normalised",
        "torch",
    ),
    "timm": Loop(
        "step_bench.timm_loop",
        "as timm's train.py: AMP, channels_last, PrefetchLoader, create_optimizer_v2 (AdamW), AverageMeter of "
        "loss.item(), scheduler",
        "timm",
        ("timm==1.0.31",),
    ),
    "torchvision": Loop(
        "step_bench.torchvision_loop",
        "as its references/classification: AMP, NCHW, SGD with momentum, metric logger with loss.item() and accuracy",
        "torchvision",
    ),
    "lightning": Loop(
        "step_bench.lightning_loop",
        "Trainer(barebones=True), automatic optimisation, AdamW, in channels_last",
        "lightning",
        (
            "lightning==2.6.6", "lightning-utilities==0.15.3", "torchmetrics==1.9.0", "fsspec==2026.9.0",
            "packaging==26.3", "tqdm==4.70.1",
        ),
    ),
}  # fmt: skip
CEILING = Loop("step_bench.ceiling", "matrix product that the device's FLOP/s are held to", "torch")
MODES = {
    "eager": (), "compile": ("train.compile=true",), "graphs": ("train.compile=graphs",),
    "autotune": ("train.autotune=true",), "deterministic": ("train.deterministic=true",),
}  # fmt: skip
"""Ways to run ours, and what each sets."""
