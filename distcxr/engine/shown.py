"""What TensorBoard shows beside curves: pictures, precision and recall, hyperparameters. On rank 0 alone.

Nothing here changes what is trained: no random number is drawn, the network is left as it was, and what goes wrong is a
line of the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from distcxr.data.batch import Batch
from distcxr.data.index import SampleIndex
from distcxr.engine.evaluate import Scores
from distcxr.engine.state import Run
from distcxr.explain.gradcam import gradcam
from distcxr.explain.overlay import overlay
from distcxr.losses import binary_logits
from distcxr.metrics.calibration import probabilities
from distcxr.runfolder import filenames
from distcxr.runfolder.whole import not_fatal
from distcxr.tracking.images import contact_sheet, save_sheet

logger = logging.getLogger(__name__)

_TRAIN_PX, _VAL_PX = 160, 192
_NUM_NAMED = 3
"""Likeliest findings in a caption."""


def show_hyperparameters(run: Run) -> None:
    """What TensorBoard's HParams tab compares: few columns, or nobody reads them."""
    assert run.tracker is not None
    recipe = run.setup.recipe
    shown = {
        "model": recipe.model.name,
        "lr": max(stage.base_lr for stage in run.stages),
        "weight_decay": recipe.optim.weight_decay,
        "global_batch_size": recipe.train.global_batch_size,
        "stages": len(run.stages),
        "epochs": sum(stage.horizon.epochs for stage in run.stages),
        "image_size": recipe.data.image_size,
        "optimizer": recipe.optim.name,
        "schedule": recipe.schedule.name,
        "precision": recipe.train.precision,
        "seed": recipe.seed,
    }
    best = f"val/{recipe.eval.best_metric}/best"
    run.tracker.hyperparameters(shown, [best, *(_final(split, "auroc") for split in recipe.eval.splits)])


def final_scalars(scores: Mapping[str, Scores]) -> dict[str, float]:
    """The scores at a run's end, by tag: the average of each split alone, or curves of one point would crowd out the
    others."""
    figures = {}
    for split, found in scores.items():
        for name, value in (("auroc", found.report.macro_auroc), ("loss", found.loss), ("accuracy", found.accuracy)):
            if value is not None:
                figures[_final(split, name)] = value
    return figures


def _final(split: str, figure: str) -> str:
    return f"when_done/{split}_{figure}"  # TensorBoard sorts groups by name: after the curves


def show_training_images(run: Run, batch: Batch) -> None:
    """The epoch's first training images, as the network sees them, with their labels; `augmented.png` is them, too."""
    assert run.tracker is not None
    index = run.setup.index
    num = min(run.setup.recipe.logging.images, len(batch))
    end = min(num + num % 2, len(batch))  # mixed images need their partners
    transform = run.training.transform
    images = transform(batch.pixels[:end].cpu(), batch.augment[:end])[:num, 0].numpy()
    tiles = [overlay(image, side_px=_TRAIN_PX) for image in images]
    mixed = transform.with_mixed_labels(batch)
    shares_BC = (mixed.targets * mixed.mask)[:num].float().round(decimals=2).tolist()  # many of mixup's are next to 0
    captions = [_of_training(index, shares) or "none" for shares in shares_BC]
    sheet = contact_sheet(tiles, captions)
    run.tracker.image("train/images", sheet, run.state.step)
    path = run.folder / filenames.AUGMENTED
    with not_fatal(path, "tried again in the next epoch"):
        save_sheet(path, sheet)


def _of_training(index: SampleIndex, shares: list[float]) -> str:
    """The findings of a training image that are known to be there; of a mixed one with what there is of each."""
    return ", ".join(
        _plain(name) + (f"\N{NO-BREAK SPACE}{share:.2f}" if share < 1 else "")
        for name, share in zip(index.findings, shares, strict=True)
        if share
    )


def show_validation(run: Run, scores: Scores) -> None:
    """Precision-recall curves of a validation, and now and then pictures of it."""
    assert run.tracker is not None
    run.tracker.pr_curves(
        {
            f"val/pr/{known.name}": (known.targets_M, probabilities(known.given_M))
            for known in scores.scored.known
            if known.reason is None
        },
        run.state.step,
    )
    wanted = run.setup.recipe.logging
    number = len(run.state.validations)
    if wanted.val_images and len(scores.rows) and (number == 1 or number % wanted.val_images_every == 0 or run.stopped):
        try:
            with run.evaluated_weights():
                _show_validation_images(run, scores)
        except Exception as error:  # a network that Grad-CAM does not know, a file that is gone: no reason to end a run
            logger.warning(
                f"no pictures of the validation at step {run.state.step} (logging.val_images=0 tries none): {error}"
            )


def _show_validation_images(run: Run, scores: Scores) -> None:
    """A picture of each image beside its heat map: of the finding it was chosen for, or else of the likeliest one.

    TensorBoard shows pictures 320 px wide: one by one they can be read, and followed over the run with their sliders.
    """
    assert run.tracker is not None
    setup, index, prob_NC = run.setup, run.setup.index, probabilities(scores.logits_NC)
    known_NC = index.targets_NC[scores.rows] * index.mask_NC[scores.rows]
    chosen = choose_examples(known_NC, setup.recipe.logging.val_images)
    of_row = {int(scores.rows[one.position]): one for one in chosen}
    for batch in setup.batches(np.array(sorted(of_row)), alone=True):
        on_device = batch.to(setup.runtime.device)
        images = setup.inputs(on_device)
        examples = [of_row[row] for row in batch.sample_id.tolist()]
        columns = [prob_NC[at].argmax().item() if column is None else column for at, column, _ in examples]
        wanted = sorted(set(columns))
        heat = _heat(run, images, wanted, on_device.metadata)
        for number, (example, row, column) in enumerate(zip(examples, batch.sample_id.tolist(), columns, strict=True)):
            image_HW, heat_HW = images[number, 0].cpu().numpy(), heat[number, wanted.index(column)]
            pair = overlay(image_HW, side_px=_VAL_PX), overlay(image_HW, heat_HW, side_px=_VAL_PX)
            caption = _caption(index, row, prob_NC[example.position], column)
            picture = contact_sheet([np.concatenate(pair, axis=1)], [caption], columns=1, lines=4)
            name = "none" if example.column is None else index.findings[example.column]
            again = f"_{example.number}" if example.number > 1 else ""
            run.tracker.image(f"val_images/{name}{again}", picture, run.state.step)


def _heat(run: Run, images: Tensor, columns: list[int], metadata: Tensor) -> NDArray[np.float32]:
    setup = run.setup
    explained = partial(binary_logits, setup.recipe.loss.name)
    heat = gradcam(setup.module, images, columns, metadata=metadata, explained=explained, relative=True)
    return heat.cpu().numpy()


class Example(NamedTuple):
    """An image of a finding: its position among the N scored, the finding's column, and the how many-th one it is.

    The column is None where the image has no finding that is known.
    """

    position: int
    column: int | None
    number: int


def choose_examples(known_NC: NDArray[np.uint8], num: int) -> list[Example]:
    """Up to `num` of N samples, each once: the first of each finding in turn and one of none, then the second ones.

    Args:
        known_NC: 1 where the finding is known to be there.
    """
    groups: list[tuple[int | None, list[int]]] = [
        (column, np.flatnonzero(known_NC[:, column]).tolist()) for column in range(known_NC.shape[1])
    ]
    groups.insert(num - 1, (None, np.flatnonzero(~known_NC.any(axis=1)).tolist()))  # never left out in the first turn
    chosen: dict[int, Example] = {}
    number = 0
    while any(positions for _, positions in groups) and len(chosen) < num:
        number += 1
        for column, positions in groups:
            while positions and positions[0] in chosen:
                positions.pop(0)
            if positions and len(chosen) < num:
                chosen[positions[0]] = Example(positions[0], column, number)
    return list(chosen.values())


def _caption(index: SampleIndex, row: int, prob_C: NDArray[np.float64], column: int) -> str:
    def predicted(column: int) -> str:
        return f"{_plain(index.findings[column])}\N{NO-BREAK SPACE}{prob_C[column]:.2f}"

    likeliest = map(predicted, np.argsort(-prob_C, kind="stable")[:_NUM_NAMED].tolist())
    present = ", ".join(_present(index, row)) or "none"
    return f"labels: {present}\nheat map: {predicted(column)}\n{', '.join(likeliest)}"


def _present(index: SampleIndex, row: int) -> list[str]:
    """The findings of a sample that are known to be there."""
    on_C = index.targets_NC[row] * index.mask_NC[row]
    return [_plain(name) for name, on in zip(index.findings, on_C, strict=True) if on]


def _plain(finding: str) -> str:
    return finding.replace("_", " ")
