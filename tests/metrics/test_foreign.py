"""Other people's predictions: what is read, what is said of it, and what is refused, with the line and the column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distcxr.metrics.foreign import ForeignScores, align, columns_of, read_foreign
from distcxr.metrics.operating import Scale
from distcxr.metrics.predictions import write_predictions

KNOWN = ("Mass", "Pleural_Thickening", "No Finding")


def read(folder: Path, text: str | bytes, scale: Scale | None = None) -> ForeignScores:
    path = folder / "p.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_foreign(path, KNOWN, scale)


def test_columns_match_by_whole_name(tmp_path: Path) -> None:
    found = read(
        tmp_path, "img,no finding,x,PLEURAL thickening,Mass\r\nf/a.png,1,9,0.25,0.5\r\n\r\nf/b.png,0,9,1,1e-3\r\n"
    )
    assert found.files == ["a.png", "b.png"]
    assert found.findings == KNOWN, "in the labels' order"
    np.testing.assert_array_equal(found.scores_NC, [[0.5, 0.25, 1], [0.001, 1, 0]])
    assert found.scores_NC.dtype == np.float64 and found.scale == "probability"
    said = "\n".join(found.said)
    assert "'no finding' is taken as 'No Finding'" in said and "'PLEURAL thickening' is taken as" in said
    assert "ignored: 'x'" in said and "folders before the image names are ignored (f/a.png)" in said
    assert "taken as probabilities" in said and "--logits" in said and "'Mass'" not in said
    assert columns_of(found, ["No Finding", "Mass"]) == [2, 0]
    with pytest.raises(ValueError, match="no column of Hernia, Edema"):
        columns_of(found, ["Mass", "Hernia", "Edema"])


def test_doubles_are_read_to_the_last_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(500)
    found = read(tmp_path, "f,Mass\n" + "".join(f"{row}.png,{value!r}\n" for row, value in enumerate(values.tolist())))
    np.testing.assert_array_equal(found.scores_NC[:, 0], values)


@pytest.mark.parametrize(
    ("cells", "asked", "scale", "words"),
    [
        (("0", "1"), None, "probability", "all lie in [0, 1]"),
        (("-3", "0.5"), None, "logit", "from -3 to 0.5"),
        (("-3", "-0.5"), None, "logit", "taken as logits"),
        (("0.1", "0.5"), "logit", "logit", "logits, as asked, though all lie in [0, 1]"),
        (("-3", "0.5"), "logit", "logit", "logits, as asked"),
        (("0.1", "0.5"), "probability", "probability", "probabilities, as asked"),
    ],
)
def test_scale_is_said(tmp_path: Path, cells: tuple[str, str], asked: Scale | None, scale: Scale, words: str) -> None:
    found = read(tmp_path, f"f,Mass\na,{cells[0]}\nb,{cells[1]}\n", asked)
    assert found.scale == scale and words in found.said[-1]


@pytest.mark.parametrize(
    ("text", "scale", "message"),
    [
        ("", None, "p.csv is empty"),
        ("\n \n", None, "p.csv is empty"),
        ("f,Mass\n", None, "a header and no rows"),
        (b"PK\x03\x04abc", None, "spreadsheet"),
        ("f,Mass\na,1\n".encode("utf-16"), None, "UTF-16: save it as UTF-8"),
        (b"f,Mass\na,1\n\xe9.png,1\n", None, "line 3: not UTF-8"),
        ("f;Mass\na;1\n", None, "separated by ';'"),
        ('f,Mass\n"a,1\n', None, "line 2: not readable as CSV"),
        ("f,Mass\na,1\nb,1,2\n", None, "line 3: 3 cells where the header has 2"),
        ("f,Mass\na,1\nb\n", None, "line 3: 1 cells"),
        ("f,Mass,Mas\na,1,1\n", None, "'Mas' is no finding of the labels, but nearly 'Mass'"),
        ("f,Mass,mass\na,1,1\n", None, "'Mass' and 'mass' are both Mass"),
        ("f,Kidney\na,1\n", None, "no column after the first is named as a finding.*Findings: Mass"),
        ("f,Mass\na,1\n\nb,high\n", None, "column Mass, line 4: 'high' is not a number"),
        ("f,Mass\na,\n", None, "column Mass, line 2: '' is not a number"),
        ("f,Mass\na,nan\nb,1\nc,inf\n", None, "column Mass: 2 scores are NaN or infinite: lines 2, 4"),
        ("f,Mass,No Finding\na,nan,nan\n", None, "so have 1 further columns"),
        ("f,Mass\na,1\nb,1\na,1\nb,0\n", None, r"names 2 images more than once: a \(lines 2, 4\), b \(lines 3, 5\)"),
        ("f,Mass\na,1\n,1\n", None, "no image is named in 1 lines: 3"),
        ("f,Mass\na,1\nb,97.3\n", None, "from 1 to 97.3, 50.00% of them outside .*Say --probabilities or --logits"),
        ("f,Mass\n" + "".join(f"{n},0.5\n" for n in range(200)) + "x,-1e-9\n", None, "neither plainly"),
        ("f,Mass\na,1\nb,1.5\nc,-2\n", "probability", "line 3, column Mass: 1.5 is no probability, nor are 1 others"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, text: str | bytes, scale: Scale | None, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, text, scale)
    assert "p.csv" in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.csv can't be read: No such file"):
        read_foreign(tmp_path / "none.csv", KNOWN)
    with pytest.raises(ValueError, match="holds no labels: say which are right with --labels"):
        (tmp_path / "p.csv").write_text("f,Mass\na,1\n")
        read_foreign(tmp_path / "p.csv", None)


def test_our_own_file(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    logits, ones = np.float32([[30.0], [31.0]]), np.uint8([[1], [1]])
    write_predictions(path, ["a", "b"], [1, 2], ["Mass"], logits, ones, ones)
    for scale in (None, "logit", "probability"):
        found = read_foreign(path, KNOWN, scale)  # type: ignore[arg-type]
        assert found.scale == "logit" and found.scores_NC.dtype == np.float32 and found.ours is not None
        np.testing.assert_array_equal(found.scores_NC, logits)
    assert read_foreign(path, None).findings == ("Mass",)
    with pytest.raises(ValueError, match="the labels do not know Mass"):
        read_foreign(path, ("Edema",))
    logits[1] = np.nan
    write_predictions(path, ["a", "b"], [1, 2], ["Mass"], logits, ones, ones)
    with pytest.raises(ValueError, match="column logit:Mass: 1 scores are NaN or infinite: lines 3"):
        read_foreign(path, KNOWN)
    write_predictions(path, ["a", "a"], [1, 2], ["Mass"], logits, ones, ones)
    with pytest.raises(ValueError, match="names 1 images more than once: a"):
        read_foreign(path, KNOWN)


def test_align(tmp_path: Path) -> None:
    found = read(tmp_path, "f,Mass\na.png,1\nb.png,1\nc.png,0\n")
    rows, said = align(found, ["c.png", "a.png", "b.png"], "the list")
    assert rows.tolist() == [2, 0, 1] and said == ()
    rows, said = align(found, ["b.png"], "the list")
    assert rows.tolist() == [1] and "2 images that are not of the list are left out: a.png, c.png" in said[0]
    rows, said = align(found, ["b.jpg", "a.jpg", "c.jpg"], "the list")
    assert rows.tolist() == [1, 0, 2] and "without their extensions (a.png, b.jpg)" in said[0]
    message = r"lacks 2 of the 3 images of the list: x.png, y.png. It has 1 of them, and 2 others: a.png, c.png"
    with pytest.raises(ValueError, match=message):
        align(found, ["b.png", "x.png", "y.png"], "the list")
