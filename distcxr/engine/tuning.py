"""How the network's layers run: as written, compiled, or replayed as CUDA graphs; and which of them is fastest here.

`train.autotune` tries them on batches of the real shape before the first step. A way that computes something else, or
does not run on this machine, is left out: the eager network is what it is held to.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from distcxr.data.batch import Batch
from distcxr.device import device_name
from distcxr.engine.setup import Mode, Setup
from distcxr.engine.stages import Stage
from distcxr.engine.step import made_up_batch
from distcxr.models.freeze import set_trainable, training_mode
from distcxr.runfolder import filenames
from distcxr.runfolder.contents import read_autotune
from distcxr.runfolder.whole import write_json

logger = logging.getLogger(__name__)

TOLERANCE = 2.0
"""A way is left out if its logits or gradients are further from float32's than this many times the eager network's
distance, `FLOOR` added."""
FLOOR = 1e-3
"""Relative distance that rounding in another order may make in float32 itself."""

_BACKEND = "inductor"
_MEASURE_S, _MOST_STEPS = 5.0, 50
_TRIAL_STEPS = 3


@dataclass(frozen=True)
class Trial:
    """What came of one way to run the network; distances are relative, in the L2 norm, from float32's."""

    mode: Mode
    ms: float | None = None
    """Of forward and backward, on this rank; median."""
    start_s: float | None = None
    """Compilation included."""
    logits_gap: float | None = None
    gradients_gap: float | None = None
    reason: str | None = None
    """Why it can't be taken."""


def check_mode(compile_key: bool | str, device: torch.device, accumulation: int) -> None:
    """Refuse CUDA graphs where they can't run.

    Raises:
        ValueError: with what to set instead.
    """
    if compile_key != "graphs":
        return
    if device.type != "cuda":
        raise ValueError(
            "train.compile=graphs needs a GPU: its kernels are recorded once and replayed. Use true or false"
        )
    if accumulation > 1:
        raise ValueError(
            f"train.compile=graphs takes no accumulation, and a batch is gathered in {accumulation} parts: a replay "
            "overwrites the gradients of the one before. Leave out train.per_device_batch_size, or use true"
        )


def set_mode(module: nn.Module, mode: Mode) -> None:
    """Have `module(...)` run that way from now on; compilation waits for the first call."""
    if module._compiled_call_impl is None and mode == "eager":
        return  # a start that compiles nothing does not pay for importing the compiler
    torch.compiler.reset()
    module._compiled_call_impl = None
    if mode == "compiled":
        module.compile(dynamic=False, backend=_BACKEND)
    elif mode == "graphs":
        module.compile(dynamic=False, mode="reduce-overhead")


def choose_mode(setup: Setup, stage: Stage, folder: Path, earlier: Path | None) -> Mode:
    """As the recipe's `train.compile` asks, or with `train.autotune` as was chosen before, or is found to be fastest.

    Args:
        folder: the run's; gets `autotune.json`.
        earlier: folder of the run that this one resumes, if it does.
    """
    train = setup.recipe.train
    if not train.autotune:
        return "graphs" if train.compile == "graphs" else "compiled" if train.compile else "eager"

    def choose() -> Mode:  # on rank 0 alone, while the others wait: all ranks have to run the same way
        kept = read_autotune(earlier) if earlier else None
        if kept is not None:
            logger.info(f"train.autotune: the network runs {kept}, as was chosen when the run began")
            return cast(Mode, kept)
        mode, trials = autotune(setup, stage, made_up_batch(setup))
        logger.info(describe_trials(mode, trials))
        about = {"device": device_name(setup.runtime.device), "tolerance": TOLERANCE, "floor": FLOOR}
        content = {"mode": mode} | about | {"trials": [asdict(trial) for trial in trials]}
        write_json(folder / filenames.AUTOTUNE, content)
        return mode

    return setup.runtime.decided_by_main(choose)


def autotune(setup: Setup, stage: Stage, batch: Batch) -> tuple[Mode, list[Trial]]:
    """Try every way that this device has with the stage's parameters; leaves no trace in the network.

    Args:
        setup: not yet wrapped for training.
        batch: of the real shape, on the device.

    Returns:
        The fastest way that agrees with float32, and all that were tried.
    """
    set_trainable(setup.module, stage.parameters)
    training_mode(setup.module, setup.recipe.train.frozen_bn)
    buffers = [buffer.clone() for buffer in setup.module.buffers()]
    with _no_tf32():
        reference = _logits_and_gradients(setup, batch, lambda: setup.call(setup.module, setup.inputs(batch), batch))
    modes: list[Mode] = ["eager", "compiled"]
    if setup.runtime.device.type == "cuda" and setup.plan.accumulation == 1:
        modes.append("graphs")
    trials: list[Trial] = []
    for mode in modes:
        logger.info(f"train.autotune: trying the network {mode}")
        trials.append(_try(setup, batch, mode, reference, trials[0] if trials else None))
        with torch.no_grad():
            for buffer, kept in zip(setup.module.buffers(), buffers, strict=True):
                buffer.copy_(kept)
    set_mode(setup.module, "eager")
    chosen = min(
        (trial for trial in trials if trial.ms is not None and not trial.reason), key=lambda one: one.ms or 0.0
    )
    return chosen.mode, trials


def describe_trials(mode: Mode, trials: Sequence[Trial]) -> str:
    """One line for the log."""
    shown = [
        f"{trial.mode} {trial.ms:.1f} ms" if trial.ms is not None and not trial.reason
        else f"{trial.mode} left out ({trial.reason})" for trial in trials
    ]  # fmt: skip
    return f"train.autotune: {', '.join(shown)} for forward and backward; the network runs {mode}"


def _try(setup: Setup, batch: Batch, mode: Mode, reference: tuple[Tensor, Tensor], eager: Trial | None) -> Trial:
    set_mode(setup.module, mode)
    tried = replace(setup, mode=mode)

    def forward() -> Tensor:
        return tried.logits(tried.module, batch)

    started_s = time.monotonic()
    try:
        for _ in range(_TRIAL_STEPS):
            _forward_backward(tried, batch, forward)
        _wait(setup)
        start_s = time.monotonic() - started_s
        ms = _median_ms(tried, batch, forward)
        logits, gradients = _logits_and_gradients(tried, batch, forward)
    except Exception as error:  # whatever a compiler can't do on this machine: the network runs without it
        if eager is None:
            raise
        setup.module.zero_grad(set_to_none=True)
        lines = str(error).strip().splitlines() or [""]
        return Trial(mode, reason=f"{type(error).__name__}: {lines[0][:200]}")
    gaps = _gap(logits, reference[0]), _gap(gradients, reference[1])
    reason = None
    if eager is not None:
        for name, gap, theirs in (("logits", gaps[0], eager.logits_gap), ("gradients", gaps[1], eager.gradients_gap)):
            assert theirs is not None
            if not gap <= TOLERANCE * theirs + FLOOR:
                reason = reason or f"its {name} are {gap:.2g} from float32's, the eager network's {theirs:.2g}"
    return Trial(mode, round(ms, 3), round(start_s, 2), *gaps, reason)


def _forward_backward(setup: Setup, batch: Batch, forward: Callable[[], Tensor]) -> Tensor:
    setup.runtime.seed_step(setup.recipe.seed, 0, 0)
    logits = forward()
    (setup.loss(logits, batch.targets, batch.mask) / batch.mask.numel()).backward()  # type: ignore[no-untyped-call]
    return logits.detach()


def _median_ms(setup: Setup, batch: Batch, forward: Callable[[], Tensor]) -> float:
    times: list[float] = []
    started_s = time.monotonic()
    while len(times) < _MOST_STEPS and (len(times) < _TRIAL_STEPS or time.monotonic() - started_s < _MEASURE_S):
        begun_s = time.perf_counter()
        _forward_backward(setup, batch, forward)
        setup.module.zero_grad(set_to_none=True)
        _wait(setup)
        times.append(1e3 * (time.perf_counter() - begun_s))
    return sorted(times)[len(times) // 2]


def _logits_and_gradients(setup: Setup, batch: Batch, forward: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and all gradients as two float64 vectors, without dropout, which differs between the ways."""
    setup.module.zero_grad(set_to_none=True)
    with _without_dropout(setup.module):
        logits = _forward_backward(setup, batch, forward).double().flatten()
    gradients = [
        parameter.grad.double().flatten() for parameter in setup.module.parameters() if parameter.grad is not None
    ]
    setup.module.zero_grad(set_to_none=True)
    return logits, torch.cat(gradients)


def _gap(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


def _wait(setup: Setup) -> None:
    if setup.runtime.device.type == "cuda":
        torch.cuda.synchronize(setup.runtime.device)


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    """Dropout and drop path (timm's and torchvision's), known by their names, off within the block."""
    dropping = [layer for layer in module.modules() if layer.training and _drops(layer)]
    for layer in dropping:
        layer.training = False
    try:
        yield
    finally:
        for layer in dropping:
            layer.training = True


def _drops(layer: nn.Module) -> bool:
    return type(layer).__name__.lower().startswith(("dropout", "droppath", "dropblock", "stochasticdepth"))


@contextmanager
def _no_tf32() -> Iterator[None]:
    kept = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(kept[0])
        torch.backends.cudnn.allow_tf32 = kept[1]
