"""Heat maps against boxes, from batches to figures; and the command."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor, nn

from distcxr.cli import main
from distcxr.data.augment import DeviceTransform, identity_parameters
from distcxr.data.batch import Batch
from distcxr.data.index import SampleIndex
from distcxr.data.sources.nih_boxes import BoxList, InputBoxes, place_boxes
from distcxr.engine.saving import save_best
from distcxr.explain.against_boxes import Localisation, localise
from distcxr.explain.localisation import table_rows
from distcxr.recipe.augmentation import Augment

FINDINGS = ("Mass", "Nodule", "Hernia")
SIDE = 64
SPOTS = ((4, 8, 20, 24), (40, 36, 56, 52), (8, 40, 24, 56), (32, 32, 48, 48))  # x0 y0 x1 y1, one an image


class Bright(nn.Module):
    """Mass is brightness, Nodule darkness, Hernia nothing at all."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 4, 4), nn.ReLU())
        self.features[0].weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4) / 16
        self.features[0].bias.data.zero_()
        self.fc = nn.Linear(2, 3, bias=False)
        self.fc.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(images).mean((2, 3)))
        return logits


def batches(size: int = 2, unreadable: tuple[tuple[int, str], ...] = ()) -> list[Batch]:
    """Images 10, 11, 12, 13 of grey 128, each with one bright square."""
    pixels = torch.full((len(SPOTS), 1, SIDE, SIDE), 128, dtype=torch.uint8)
    for image, (x0, y0, x1, y1) in zip(pixels, SPOTS, strict=True):
        image[0, y0:y1, x0:x1] = 250
    ids, none = torch.arange(10, 14), torch.zeros(len(SPOTS), 3, dtype=torch.uint8)
    every, made = identity_parameters(len(SPOTS)), []
    for start in range(0, len(SPOTS), size):
        part = slice(start, start + size)
        bad = tuple(entry for entry in unreadable if entry[0] in ids[part])
        metadata = torch.zeros(len(ids[part]), 0)
        made.append(Batch(pixels[part], none[part], none[part], ids[part], every[part], metadata, bad))
    return made


def boxes(corners: dict[tuple[int, int], Any], side: int = SIDE) -> InputBoxes:
    placed = {key: np.array(value, dtype=float).reshape(-1, 4) for key, value in corners.items()}
    return InputBoxes(placed, side, Counter(Mass=3), Counter(), Counter(), Counter(), Counter())


def look(drawn: InputBoxes, *, spec: Augment | None = None, **options: Any) -> Localisation:
    transform = DeviceTransform(spec or Augment(), (128 / 255,), (0.25,))
    made = options.pop("batches", None) or batches()
    cpu = torch.device("cpu")
    return localise(Bright(), transform, made, drawn, FINDINGS, device=cpu, layer="features", **options)


def test_a_network_that_looks_at_the_boxes_scores_full_marks() -> None:
    found = look(boxes({(10, 0): SPOTS[0], (11, 0): SPOTS[1], (13, 0): SPOTS[0]}))
    assert [(one.sample_id, one.column, one.score.pointing) for one in found.maps] == [
        (10, 0, 1.0), (11, 0, 1.0), (13, 0, 0.0),
    ]  # fmt: skip
    mass = found.findings["Mass"]
    assert mass.num == 3 and mass.pointing == pytest.approx(2 / 3)
    assert mass.iou is not None and mass.iou > 0.6 and mass.coverage is not None and mass.coverage > 0.55
    assert mass.box_share == pytest.approx(16 * 16 / SIDE**2)
    assert found.findings["Nodule"].pointing is None and "no image here" in str(found.findings["Nodule"].reason)


def test_several_findings_of_one_image_and_images_without_a_box() -> None:
    found = look(boxes({(12, 2): SPOTS[2], (12, 0): [SPOTS[2], SPOTS[0]], (99, 0): SPOTS[0]}), batches=batches(4))
    assert [(one.sample_id, one.column) for one in found.maps] == [(12, 0), (12, 2)]
    assert found.findings["Mass"].pointing == 1
    assert found.findings["Hernia"].num_empty == 1 and found.findings["Hernia"].pointing == 0


def test_batches_of_any_size_give_the_same() -> None:
    drawn = boxes({(10 + place, 0): spot for place, spot in enumerate(SPOTS)})
    one, four = look(drawn, batches=batches(1)), look(drawn, batches=batches(4))
    assert one.maps == four.maps and one.findings == four.findings


def test_an_unreadable_image_is_left_out_and_named() -> None:
    bad = ((10, "truncated"), (12, "truncated"))
    found = look(boxes({(10, 0): SPOTS[0], (11, 0): SPOTS[1]}), batches=batches(unreadable=bad))
    assert [one.sample_id for one in found.maps] == [11]
    assert found.unreadable == ((10, "truncated"),) and found.to_json()["num_unreadable"] == 1


@pytest.mark.parametrize("spec", [Augment(), Augment(center_crop=0.875), Augment(crop=56), Augment(flip=0.5, crop=48)])
def test_boxes_in_nih_s_pixels_meet_the_heat(spec: Augment) -> None:
    """Scaled and cropped as the image is: full marks before and after."""
    index = SampleIndex(
        root=Path("/nowhere"), findings=FINDINGS, path=np.array([b"images/%d.png" % row for row in range(14)]),
        patient_id=np.arange(14), targets_NC=np.zeros((14, 3), np.uint8), mask_NC=np.ones((14, 3), np.uint8),
        age=np.zeros(14, np.float32), sex=np.array([""] * 14), view=np.array([""] * 14), split=np.full(14, ""),
        label_hash="", skipped=np.array([], dtype="S1"),
    )  # fmt: skip
    corners = np.array(SPOTS[1:], dtype=float) * (1024 / SIDE)
    source = BoxList(("11.png", "12.png", "13.png"), ("Mass",) * 3, corners, "")
    found = look(place_boxes(source, index, SIDE, spec), spec=spec)
    assert [one.score.pointing for one in found.maps] == [1, 1, 1]
    assert all(one.score.iou > 0.6 for one in found.maps)


def test_boxes_for_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="an input of 32 pixels, this one has 64"):
        look(boxes({(10, 0): SPOTS[0]}, side=32))


def test_pictures_are_the_first_of_each_finding() -> None:
    found = look(boxes({(10 + place, 0): spot for place, spot in enumerate(SPOTS)} | {(13, 1): SPOTS[3]}), pictures=2)
    assert [(one.sample_id, one.finding) for one in found.pictures] == [(10, "Mass"), (11, "Mass"), (13, "Nodule")]
    pixels = found.pictures[0].pixels
    assert pixels.shape == (320, 320, 3) and pixels.dtype == np.uint8
    coloured = np.ptp(pixels.astype(int), axis=2) > 40
    assert coloured[8 * 5 : 24 * 5, 4 * 5 : 20 * 5].mean() > 0.9, "heat over the bright square"
    assert coloured.mean() < 0.2


def test_json_says_how_it_was_measured() -> None:
    found = look(boxes({(10, 0): SPOTS[0]}), threshold=0.4, tolerance_px=2)
    written = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert written["iou_threshold"] == 0.4 and written["tolerance_px"] == 2 and written["map"] == "relative"
    assert written["method"] == "Grad-CAM less its mean" and written["intervals"]["unit"] == "patient"
    assert written["findings"]["Mass"]["num"] == 1 and written["findings"]["Mass"]["num_boxes"] == 3
    assert written["findings"]["Hernia"]["iou"] is None and written["findings"]["Hernia"]["num_boxes"] == 0
    assert table_rows(found.findings)[1][0] == "Mass"


def test_plain_maps_are_grad_cam_as_published() -> None:
    """Bright everywhere but in the box, where it is brightest: only the map less its mean is empty outside."""
    drawn = boxes({(10, 0): SPOTS[0]})
    lit = [replace(batch, pixels=batch.pixels.clamp(min=200)) for batch in batches()]
    relative, plain = (look(drawn, batches=lit, map=which) for which in ("relative", "plain"))
    assert plain.to_json()["map"] == "plain" and plain.to_json()["method"] == "Grad-CAM"
    coverage = [found.findings["Mass"].coverage or 0.0 for found in (relative, plain)]
    assert coverage[0] > 0.5 > 0.2 > coverage[1]


def test_images_of_one_patient_count_as_one_patient() -> None:
    drawn = boxes({(10 + place, 0): spot for place, spot in enumerate(SPOTS)})
    mass = look(drawn, patient_id=np.array([0] * 12 + [1, 1])).findings["Mass"]
    assert (mass.num, mass.num_patients, mass.pointing_low) == (4, 2, None)
    assert mass.reason == "fewer than 10 patients, too few for an interval"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny.phantom(tmp_path)
    run = tiny.build(tmp_path, f"output={tmp_path / 'run'}")
    save_best(run)
    run.setup.close()
    assert run.tracker is not None
    run.tracker.close()
    tested = (data / "test_list.txt").read_text().split()
    header = ["Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", ""]
    entries = [[name, "Infiltrate", "100.5", "200", "300", "400"] for name in tested[:5]]
    with (data / "BBox_List_2017.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *entries, ["elsewhere.png", "Mass", "1", "2", "3", "4"]])
    arguments = ["distcxr", "explain", str(tmp_path / "run/checkpoints/best"), str(tmp_path / "tiny.yaml")]
    options = ["--map", "plain", "--json", str(tmp_path / "found.json"),
               "--pictures", str(tmp_path / "pictures")]  # fmt: skip
    monkeypatch.setattr("distcxr.engine.opening.start_logging", lambda console: None)  # it would take pytest's handlers
    monkeypatch.setattr("sys.argv", [*arguments, f"data.root={data}", *options])
    assert main() == 0
    out = capsys.readouterr().out
    assert "5 images of test with boxes; Grad-CAM\n" in out and "pointing" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["map"] == "plain"
    assert found["findings"]["Infiltration"]["num"] == 5 and found["findings"]["Mass"]["num_absent"] == 1
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [picture.name for picture in pictures] == [f"Infiltration_{name}" for name in sorted(tested[:5])[:4]]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (320, 320)

    monkeypatch.setattr("sys.argv", [*arguments, f"data.root={data}", "--split", "val"])
    assert main() == 2
    assert "no image of the val split has a box" in capsys.readouterr().err

    (data / "BBox_List_2017.csv").unlink()
    monkeypatch.setattr("distcxr.engine.opening.opened", lambda *_: pytest.fail("loaded before the boxes were read"))
    assert main() == 2
    error = capsys.readouterr().err
    assert "BBox_List_2017.csv does not exist" in error
    assert f"distcxr predict {tmp_path / 'run/checkpoints/best'} IMAGE ... --explain FOLDER" in error
