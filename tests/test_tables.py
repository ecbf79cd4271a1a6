"""The one reader of CSV tables: the cells of the csv module, the line in every refusal, nothing repaired silently."""

from __future__ import annotations

import csv
import gzip
import io
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distcxr.tables import Table, read_table


def read(folder: Path, text: str | bytes, **options: object) -> Table:
    path = folder / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_rows_and_their_lines(tmp_path: Path, newline: str, mark: str, quote: str) -> None:
    text = mark + newline.join([f"{quote}name{quote}, n ", "", " á.png,1 ", "", "NA,"])
    table = read(tmp_path, text)
    assert table.header == ("name", "n")
    assert table.cells("name") == ["á.png", "NA"], "a text that pandas takes for missing stays a text"
    assert table.cells("n") == ["1", ""]
    assert table.lines.tolist() == [3, 5] and table.where(1) == f"{tmp_path / 't.csv'}, line 5"


def test_every_file_that_is_read_has_the_cells_of_the_csv_module(tmp_path: Path) -> None:
    """Random tables of awkward characters, some of them of several chunks of pandas' parser."""
    draw = random.Random(0)
    for num_rows in [*range(1, 60), 30_000]:
        rows = [["".join(draw.choices('ab,"\n\r \t#\\\u2028é0', k=draw.randint(0, 6))) for _ in range(4)] + ["."]
                for _ in range(num_rows + 1)]  # fmt: skip
        text = io.StringIO()
        csv.writer(text, lineterminator="\r\n").writerows(rows)
        table = read(tmp_path, text.getvalue())
        reader = csv.reader(io.StringIO(text.getvalue(), newline=""))
        assert table.lines.tolist() == [reader.line_num for _ in reader][1:]
        cells = [list(table.header), *map(list, zip(*table.columns.values(), strict=True))]
        assert cells == [[cell.strip() for cell in row] for row in rows]


def test_numbers_are_the_nearest_doubles(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(1000) * 10.0 ** np.arange(-300, 300, 0.6)
    table = read(tmp_path, "n\n" + "\n".join(map(repr, values.tolist())) + "\n")
    np.testing.assert_array_equal(table.numbers(0), values)
    with pytest.raises(ValueError, match=r"t\.csv, column n, line 4: 'one' is not a number"):
        read(tmp_path, "n\n1\n\none\n").numbers(0)
    with pytest.raises(ValueError, match=r"line 3: '0_1' is not a number"):
        read(tmp_path, "n\n1\n0_1\n").numbers(0)


def test_selected_columns_and_ragged_rows(tmp_path: Path) -> None:
    text = "a, b,c\n1,2\n1,2,3,4\n"
    table = read(tmp_path, text, only=("b", "x"), ragged=True)
    assert table.header == ("a", "b", "c") and dict(table.columns) == {1: ["2", "2"]}
    with pytest.raises(ValueError, match=r"t\.csv, line 2: 2 fields, at least 3 are needed"):
        read(tmp_path, text, only=("c",), ragged=True)
    whole = read(tmp_path, text, ragged=True)
    assert whole.header == ("a", "b", "c", "") and list(whole.columns[3]) == ["", "4"]
    for only in (None, ("a",)):
        with pytest.raises(ValueError, match=r"t\.csv, line 2: 2 cells where the header has 3"):
            read(tmp_path, text, only=only)
        with pytest.raises(ValueError, match=r"t\.csv, line 2: 4 cells where the header has 3"):
            read(tmp_path, "a,b,c\n1,2,3,4\n", only=only)


def test_our_own_tables_are_read_verbatim(tmp_path: Path) -> None:
    table = read(tmp_path, b'file, n\n" a\nb.png ",0\n\xe9.png,\n', verbatim=True)
    assert table.header == ("file", " n")
    assert table.columns[0] == [" a\nb.png ", "\udce9.png"] and table.lines.tolist() == [3, 4]
    assert table.codes(1, {"0": 0, "": -1}).tolist() == [0, -1]
    with pytest.raises(ValueError, match=r"t\.csv, column  n, line 4: '' is not one of '0', '1'"):
        table.codes(1, {"0": 0, "1": 1})
    assert len(read(tmp_path, "file,n\n", verbatim=True)) == 0


def test_columns_by_name(tmp_path: Path) -> None:
    table = read(tmp_path, "Patient ID,x,x\n1,2,3\n")
    with pytest.raises(
        ValueError, match=r"t\.csv has no column 'patient_id', did you mean 'Patient ID'\? its columns:"
    ):
        table.cells("patient_id")
    with pytest.raises(ValueError, match="no column 'Patient Age'; its columns: Patient ID, x, x"):
        table.cells("Patient Age")
    with pytest.raises(ValueError, match=r"data\.columns\.image: .*more than one column 'x'"):
        table.cells("x", "data.columns.image")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.csv is empty"),
        (b"\xef\xbb\xbf\n", "t.csv is empty"),
        (b" \n\n", "t.csv is empty"),
        (b"a,b\n\n", "a header and no rows"),
        (b"a,b\n1,\xe9\n", "line 2: not UTF-8: save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "line 1: UTF-16: save it as UTF-8"),
        (b"PK\x03\x04", "spreadsheet"),
        (b"a\tb\n1\t2\n", r"no column 'a' .* separated by '\\t', its header is .*; save it with commas"),
        (b"a;size[x,y];b\n1;2,5;3\n", r"no column 'a' .* separated by ';'"),
        (b'a,b\n1,2\n"x\ny",2\n\n"1,2\n3,4\n', "line 6: not readable as CSV: unexpected end of data"),
        (b'a,b\n"1"2,3\n', "line 2: not readable as CSV: ',' expected after '\"'"),
        (b'a,b\n"x\ny",2\n1\n', "line 4: 1 cells where the header has 2"),
    ],
)
def test_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, content)
    assert str(caught.value).startswith(str(tmp_path / "t.csv"))


def test_compressed_and_absent_files(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    packed = gzip.compress(b"a\n1\n")
    path.write_bytes(packed)
    assert read_table(path).cells("a") == ["1"]
    for damaged in (packed[:-9], b"a\n1\n", packed[:12] + b"\xff\xff" + packed[14:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"t\.csv\.gz can't be read"):
            read_table(path)
    with pytest.raises(ValueError, match=r"none\.csv can't be read: No such file"):
        read_table(tmp_path / "none.csv")


def test_pandas_waits_until_a_table_is_read() -> None:
    code = "import sys, distcxr.data.read, distcxr.metrics.foreign; sys.exit('pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
