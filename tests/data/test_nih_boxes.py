"""NIH's boxes: read strictly, and placed where the network sees them."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distcxr.data.augment import DeviceTransform, identity_parameters, input_side
from distcxr.data.index import JointMember, MissingDataError, SampleIndex
from distcxr.data.labels import NIH14
from distcxr.data.sources.nih_boxes import BoxList, place_boxes, read_boxes
from distcxr.recipe.augmentation import Augment

HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
ROW = "00000001_000.png,Infiltrate,100.5,200,50,60.25\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "BBox_List_2017.csv"
    path.write_text(text, newline="")
    return path


def index(*names: str, findings: tuple[str, ...] = NIH14) -> SampleIndex:
    num = len(names)
    labels = np.zeros((num, len(findings)), dtype=np.uint8)
    return SampleIndex(
        root=Path("/nowhere"), findings=findings, path=np.array([f"images/{name}".encode() for name in names]),
        patient_id=np.arange(num), targets_NC=labels, mask_NC=labels + 1, age=np.zeros(num, np.float32),
        sex=np.array([""] * num), view=np.array([""] * num), split=np.full(num, ""), label_hash="",
        skipped=np.array([], dtype="S1"),
    )  # fmt: skip


def boxes(*entries: tuple[str, str, tuple[float, float, float, float]]) -> BoxList:
    return BoxList(
        tuple(e[0] for e in entries), tuple(e[1] for e in entries), np.array([e[2] for e in entries], float), ""
    )


@pytest.mark.parametrize("header", [HEADER, "\ufeff" + HEADER, "Image Index, Finding Label,Bbox [x,y,w,h]\r\n"])
@pytest.mark.parametrize("tail", ["", ",,,"])
def test_a_row_is_a_file_a_finding_and_corners(tmp_path: Path, header: str, tail: str) -> None:
    path = write(tmp_path, header + ROW.replace("\n", f"{tail}\n") + "\n00000002_000.png,Mass,0,0,1024,1024\n")
    read = read_boxes(path)
    assert read.files == ("00000001_000.png", "00000002_000.png")
    assert read.findings == ("Infiltration", "Mass"), "NIH's spelling here differs from its labels'"
    assert read.corners.tolist() == [[100.5, 200, 150.5, 260.25], [0, 0, 1024, 1024]]
    assert read.box_hash == read_boxes(tmp_path).box_hash and len(read) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("Image,Finding,x,y,w,h\n" + ROW, "line 1: columns 'Image,Finding,x,y,w,h'; expected are 'Image Index"),
        (HEADER, "a header and no rows"),
        (HEADER + ",,,\n", "a header and no boxes"),
        (HEADER + ROW + "a.png,Mass,1,2,3\n", "line 3: 5 fields"),
        (HEADER + ROW + "a.png,Mass,1,2,3,4,5\n", "line 3: 7 fields"),
        (HEADER + "../a.png,Mass,1,2,3,4\n", "line 2: image '../a.png' is not a plain file name"),
        (HEADER + "a.png,Effussion,1,2,3,4\n", "line 2: unknown finding 'Effussion', did you mean 'Effusion'"),
        (HEADER + "a.png,No Finding,1,2,3,4\n", "line 2: unknown finding 'No Finding'"),
        (HEADER + "a.png,Mass,1,two,3,4\n", "line 2: 1, two, 3, 4 are not the four numbers"),
        (HEADER + "a.png,Mass,1,nan,3,4\n", "line 2: .* is not a box"),
        (HEADER + "a.png,Mass,1,2,0,4\n", "line 2: .* above 0"),
        (HEADER + "a.png,Mass,1,2,3,-4\n", "line 2: .* above 0"),
        (HEADER + "a.png,Mass,-1,2,3,4\n", "line 2: .* out of the image of 1024 x 1024"),
        (HEADER + "a.png,Mass,1000,2,25,4\n", r"line 2: .* reaches from \(1000, 2\) to \(1025, 6\), out of"),
        (HEADER + ROW + "\n" + ROW, "line 4: the same box as in line 2"),
        (HEADER + 'a.png,"Mass,1,2,3,4\n', "line 2: not readable as CSV: unexpected end of data"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as error:
        read_boxes(path)
    assert str(error.value).startswith(str(path))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "BBox_List_2017.csv").write_bytes(HEADER.encode() + b"\xff\xfe\n")
    with pytest.raises(ValueError, match="not readable as CSV"):
        read_boxes(tmp_path)


def test_the_error_of_a_missing_file_has_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match=r"BBox_List_2017\.csv does not exist.*nihcc"):
        read_boxes(tmp_path)


@pytest.mark.parametrize(
    ("center_crop", "crop"), [(1.0, None), (0.875, None), (0.9, None), (1.0, 224), (1.0, 255), (0.9, 201), (0.77, 100)]
)
@pytest.mark.parametrize("image_size", [256, 257])
def test_a_box_is_where_the_network_sees_what_it_holds(image_size: int, center_crop: float, crop: int | None) -> None:
    """A bright rectangle goes through the transform of evaluation; its box has to frame it to the pixel."""
    spec = Augment(flip=0.5, rotate_deg=5, center_crop=center_crop, crop=crop)
    unit = 1024 / image_size
    left, top, right, bottom = 100, 70, 140, 170
    pixels = torch.zeros(1, 1, image_size, image_size, dtype=torch.uint8)
    pixels[..., top:bottom, left:right] = 255
    seen = DeviceTransform(spec, (0.0,), (1.0,))(pixels, identity_parameters(1))[0, 0]
    rows, columns = torch.nonzero(seen > 0.5, as_tuple=True)
    bright = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]

    corners = (left * unit, top * unit, right * unit, bottom * unit)
    placed = place_boxes(boxes(("a.png", "Mass", corners)), index("a.png"), image_size, spec)
    assert placed.side == seen.shape[-1] == input_side(image_size, spec)
    np.testing.assert_allclose(placed.corners[0, NIH14.index("Mass")], [[int(edge) for edge in bright]], atol=1e-9)
    cut = (len(rows) < (right - left) * (bottom - top)) if crop or center_crop < 1 else False
    assert placed.num_clipped["Mass"] == int(cut)


def test_what_the_crop_loses_is_counted() -> None:
    spec = Augment(crop=128)  # of 256: source pixels 256 to 768
    placed = place_boxes(
        boxes(
            ("a.png", "Mass", (300, 300, 400, 500)),  # inside
            ("a.png", "Mass", (200, 300, 300, 400)),  # cut
            ("b.png", "Mass", (0, 0, 256, 1024)),  # touches the crop's edge: no area
            ("b.png", "Nodule", (700, 700, 900, 900)),  # cut
            ("c.png", "Mass", (300, 300, 400, 500)),  # no such image here
            ("a.png", "Hernia", (300, 300, 400, 500)),  # no such finding here
        ),
        index("b.png", "a.png", findings=("Nodule", "Mass")), 256, spec,
    )  # fmt: skip
    assert {key: found.tolist() for key, found in placed.corners.items()} == {
        (1, 1): [[11, 11, 36, 61], [0, 11, 11, 36]],
        (0, 0): [[111, 111, 128, 128]],
    }
    assert placed.num_boxes == Counter(Mass=2, Nodule=1)
    assert placed.num_clipped == Counter(Mass=1, Nodule=1)
    assert placed.num_lost == Counter(Mass=1)
    assert placed.num_absent == Counter(Mass=1) and placed.unused == Counter(Hernia=1)
    assert placed.rows.tolist() == [0, 1]


def test_in_a_joint_data_set_they_are_the_nih_member_s() -> None:
    """Another member's image of the same name has none; findings are called as in the joint one."""
    alone = index("a.png", "b.png", "a.png", findings=("Pleural Effusion", "Opacity", "Mass"))
    renamed: dict[str, str | None] = {"Nodule": "Opacity", "Mass": None}
    joint = replace(
        alone, named_by_path=True,
        path=np.array([b"chex/images/a.png", b"theirs/images/b.png", b"theirs/images/a.png"]),
        members=(
            JointMember("chex", "chexpert", Path("/chex"), 1, "", {}, {}),
            JointMember("theirs", "nih", Path("/nih"), 1, "", {}, renamed),
        ),
    )  # fmt: skip
    corners = (0, 0, 512, 512)
    listed = boxes(*((file, name, corners) for file, name in (
        ("a.png", "Effusion"), ("b.png", "Nodule"), ("b.png", "Mass"), ("c.png", "Nodule")
    )))  # fmt: skip
    placed = place_boxes(listed, joint, 256, Augment())
    assert {key: found.tolist() for key, found in placed.corners.items()} == {
        (2, 0): [[0, 0, 128, 128]], (1, 1): [[0, 0, 128, 128]],
    }  # fmt: skip
    assert placed.num_boxes == {"Pleural Effusion": 1, "Opacity": 1}
    assert placed.num_absent == {"Opacity": 1} and placed.unused == {"Mass": 1}


def test_no_boxes_for_these_images() -> None:
    placed = place_boxes(boxes(("a.png", "Mass", (1, 1, 2, 2))), index("b.png"), 64, Augment())
    assert placed.corners == {} and placed.rows.tolist() == [] and placed.rows.dtype == np.int64


@pytest.mark.skipif("DISTCXR_NIH_ROOT" not in os.environ, reason="needs NIH's own file")
def test_nih_s_own_file() -> None:
    root = Path(os.environ["DISTCXR_NIH_ROOT"])
    read = read_boxes(root)
    assert len(read) == 984 and len(set(read.files)) == 880
    assert Counter(read.findings) == Counter(
        Atelectasis=180, Effusion=153, Cardiomegaly=146, Infiltration=123, Pneumonia=120, Pneumothorax=98, Mass=85,
        Nodule=79,
    )  # fmt: skip
    assert read.corners.max() == pytest.approx(1022.05, abs=0.01)
    assert set(read.files) <= set((root / "test_list.txt").read_text().split())
