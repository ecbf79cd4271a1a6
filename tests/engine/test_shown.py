"""Which validation images TensorBoard is shown, that captions are true, and that a failure is no more than a line."""

from __future__ import annotations

import logging
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from distcxr.data.augment import COLUMNS, DeviceTransform, identity_parameters
from distcxr.data.batch import Batch
from distcxr.engine import shown
from distcxr.engine.shown import Example, choose_examples
from distcxr.recipe.augmentation import Augment


def test_examples_take_turns_and_one_has_nothing() -> None:
    known_NC = np.array([[0, 0], [1, 1], [1, 0], [0, 1], [1, 0], [0, 0]], dtype=np.uint8)
    assert choose_examples(known_NC, 2) == [Example(1, 0, 1), Example(0, None, 1)]
    three = [Example(1, 0, 1), Example(3, 1, 1), Example(0, None, 1)]
    assert choose_examples(known_NC, 3) == three
    assert choose_examples(known_NC, 100) == [*three, Example(2, 0, 2), Example(5, None, 2), Example(4, 0, 3)]


def test_a_finding_without_images_has_no_example() -> None:
    assert choose_examples(np.array([[0, 1]], dtype=np.uint8), 8) == [Example(0, 1, 1)]
    assert choose_examples(np.zeros((1, 2), dtype=np.uint8), 1) == [Example(0, None, 1)]


def test_a_caption_has_known_labels_and_probabilities() -> None:
    index: Any = SimpleNamespace(
        findings=("Mass", "Edema", "Pleural_Thickening"),
        targets_NC=np.array([[1, 1, 1]]),
        mask_NC=np.array([[1, 0, 1]]),
    )
    caption = shown._caption(index, 0, np.array([0.2, 0.9, 0.126]), 0).replace("\N{NO-BREAK SPACE}", " ")
    assert caption.splitlines() == [
        "labels: Mass, Pleural Thickening", "heat map: Mass 0.20", "Edema 0.90, Mass 0.20, Pleural Thickening 0.13",
    ]  # fmt: skip


def test_captions_of_mixed_images_have_the_share_of_each_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Three images of two pairs: the third needs its partner. A share that rounds to nothing is not named."""
    mixed = torch.tensor([[0.75, 0, 0, 0, 0], [0.75, 0, 0, 0, 0], [1, 0, 0.5, 0, 0.5], [1, 0, 0.5, 0, 0.5]])
    targets = torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.uint8)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.uint8)  # Edema of the first pair
    batch = Batch(
        pixels=torch.zeros(4, 1, 8, 8, dtype=torch.uint8), targets=targets, mask=mask, sample_id=torch.arange(4),
        augment=torch.cat([identity_parameters(4), mixed], dim=1), metadata=torch.zeros(4, 0),
    )  # fmt: skip
    run: Any = SimpleNamespace(
        setup=SimpleNamespace(
            index=SimpleNamespace(findings=("Mass", "Pleural_Thickening", "Edema")),
            recipe=SimpleNamespace(logging=SimpleNamespace(images=3)),
        ),
        training=SimpleNamespace(transform=DeviceTransform(Augment(mixup=0.2, cutmix=1), (0.5,), (0.5,))),
        tracker=SimpleNamespace(image=lambda name, sheet, step: None), state=SimpleNamespace(step=0), folder=tmp_path,
    )  # fmt: skip
    seen: list[list[str]] = []
    sheet = shown.contact_sheet
    monkeypatch.setattr(shown, "contact_sheet", lambda tiles, captions: seen.append(captions) or sheet(tiles, captions))
    shown.show_training_images(run, batch)
    batch.augment[:2, len(COLUMNS)] = 0.997
    shown.show_training_images(run, batch)
    cut = ["Mass 0.75, Pleural Thickening 0.25"]  # a quarter of the pixels is the partner's
    plain = [[caption.replace("\N{NO-BREAK SPACE}", " ") for caption in captions] for captions in seen]
    assert plain[0] == ["Mass 0.75, Pleural Thickening", "Mass 0.25, Pleural Thickening", *cut]
    assert plain[1] == ["Mass, Pleural Thickening", "Pleural Thickening", *cut]
    assert (tmp_path / "augmented.png").is_file()


def test_pictures_that_fail_are_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(run: Any, scores: Any) -> None:
        raise ValueError("its last map of features is not known")

    monkeypatch.setattr(shown, "_show_validation_images", fail)
    wanted = SimpleNamespace(val_images=8, val_images_every=2)
    state = SimpleNamespace(step=7, validations=[])
    run: Any = SimpleNamespace(
        setup=SimpleNamespace(recipe=SimpleNamespace(logging=wanted)), state=state, stopped=False,
        tracker=SimpleNamespace(pr_curves=lambda curves, step: None), evaluated_weights=nullcontext,
    )  # fmt: skip
    scores: Any = SimpleNamespace(rows=np.arange(3), scored=SimpleNamespace(known=()))
    drawn = []
    for number in range(1, 6):
        caplog.clear()
        state.validations.append(0.5)
        with caplog.at_level(logging.WARNING):
            shown.show_validation(run, scores)
        if caplog.messages and re.fullmatch(r"no pictures .* step 7 .*: its last map .* not known", caplog.messages[0]):
            drawn.append(number)
    assert drawn == [1, 2, 4]  # the first, and every second one
