"""Which images words mean, and what is unusual of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures import assert_remark, saved
from PIL import Image

from distcxr.data.readers.file_reader import FileReader
from distcxr.data.sources.image_files import find_images

GREY = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
RGB = np.stack([GREY, GREY, GREY], axis=2)
PHOTO = RGB // np.array([1, 2, 3], dtype=np.uint8)


def animated() -> bytes:
    return saved("L", GREY, save_all=True, append_images=[Image.fromarray(255 - GREY)])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (saved("L", GREY), None),
        (saved("RGB", RGB), None),
        (saved("P", RGB), None),
        (saved("RGB", RGB, "JPEG"), None),
        (saved("L", GREY, "JPEG"), None),
        (saved("I;16", GREY.astype(np.uint16) << 8), None),
        (saved("RGB", PHOTO), "a colour photo"),
        (saved("RGB", PHOTO, "JPEG"), "a colour photo"),
        (saved("I;16", GREY.astype(np.uint16) << 4), "12 bits of a 16-bit PNG are used"),
        (saved("I;16", GREY.astype(np.uint16)), r"levels 0 to 0 are left of it. Stretch it .*value << 8"),
        (saved("L", GREY[:15]), "tiny: 64 x 15 pixels, enlarged to 32 x 32"),
        (saved("L", GREY[:20]), "64 x 20 pixels, squashed to a square"),
        (saved("L", GREY // 255 * 0), "one grey level"),
        (animated(), "animated: its first frame was read"),
    ],
)
def test_remarks(data: bytes, expected: str | None) -> None:
    assert_remark(data, expected)


def test_files_folders_and_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "set"
    (folder / "b").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name in ("z.png", "b/a.JPG", "b/._a.JPG", ".hidden/c.png", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (folder / "list.csv").write_text("Image Index,Patient Age,sex\nb/a.JPG,058Y,F\ngone.png,,M\n")
    monkeypatch.chdir(tmp_path)
    found = find_images([Path("set"), "set/list.csv", "other.png"])
    assert found.names == ["set/z.png", "set/b/a.JPG", "b/a.JPG", "gone.png", "other.png"]
    assert found.files == [
        str(tmp_path / name) for name in (*found.names[:2], "set/b/a.JPG", "set/gone.png", "other.png")
    ]
    assert found.passed_over == ["set/list.csv", "set/notes.txt"]
    index = found.index(["Mass", "Hernia"])
    assert index.files(range(5)) == found.files and not index.mask_NC.any()
    assert (
        index.age[2] == 58 and np.isnan(index.age[[0, 1, 3, 4]]).all() and index.sex.tolist() == ["", "", "F", "M", ""]
    )


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("a.png\nb.png\n", None, "has no header: its first line is 'a.png'"),
        ("left,right\na.png,b.png\n", None, "which one of its columns holds the paths"),
        ("path,file\na.png,b.png\n", None, "which one of path, file holds the paths"),
        ("path,file\na.png,b.png\n", "pth", "--column: .* no column 'pth', did you mean 'path'"),
        ("path,age\n,3\n", None, "line 2: no path"),
    ],
)
def test_tables_that_name_no_images(tmp_path: Path, text: str, column: str | None, problem: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=problem):
        find_images([tmp_path / "list.csv"], column)


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no image"):
        find_images([tmp_path])


@pytest.mark.parametrize("num_threads", [0, 2])
def test_the_reader_keeps_order_and_remarks(tmp_path: Path, num_threads: int) -> None:
    contents = [saved("L", GREY), b"torn", saved("RGB", PHOTO), saved("L", 255 - GREY)]
    files = [str(tmp_path / str(number)) for number in range(5)]
    for file, data in zip(files, contents, strict=False):
        Path(file).write_bytes(data)
    reader = FileReader(files, 64, num_threads=num_threads, pin_memory=False)
    one, two = reader.read([np.array([3, 1, 2]), np.array([4, 0])])
    reader.close()
    assert (one.pixels[0, 0].numpy() == 255 - GREY).all() and (two.pixels[1, 0].numpy() == GREY).all()
    assert [position for position, _ in (*one.unreadable, *two.unreadable)] == [1, 0]
    assert "No such file" in two.unreadable[0][1] and not one.pixels[1].any()
    assert list(reader.remarks) == [2]
