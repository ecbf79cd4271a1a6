"""CSV files of labels, boxes and predictions, lists of images, and MedMNIST's arrays."""

from __future__ import annotations

import functools
import gzip
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import cohort
import laid_out
import numpy as np
from fuzz.harness import Entry
from fuzz.mutations import spoil_bytes, spoil_lines
from fuzz.places import Place, spoiling

from distcxr.data.index import SampleIndex
from distcxr.data.labels import CHEXPERT14, NIH14, NIH15
from distcxr.data.read import read_index
from distcxr.data.sources.chestmnist import array_rows, read_array
from distcxr.data.sources.label_table import read_labels
from distcxr.data.sources.nih_boxes import read_boxes
from distcxr.data.splits import read_list
from distcxr.metrics.foreign import read_foreign
from distcxr.metrics.scored import Scored
from distcxr.recipe.data import Data
from distcxr.runfolder.history import best_auroc, newest_step, read_columns
from distcxr.runfolder.predictions import read_predictions, write_predictions
from distcxr.tables import read_table

_NAMES = [f"{patient:08d}_{number:03d}.png" for patient in (1, 2, 3) for number in range(3)]


def _write(files: dict[str, str | bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            data = content.encode() if isinstance(content, str) else content
            (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    return write


def _csv(*rows: Sequence[object]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def _spoil(name: str, content: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    if not name.endswith(".gz"):
        return spoil_lines(content, rng, seeds)
    if rng.random() < 0.3:
        return spoil_bytes(content, rng)
    if rng.random() < 0.02:
        return _gzip_bomb()
    return gzip.compress(spoil_lines(gzip.decompress(content), rng), 1)


@functools.cache
def _gzip_bomb() -> bytes:
    return gzip.compress(b"a,b\n" * (1 << 18), 9) * 1024  # 1 GB in 1 MB


def inside(index: SampleIndex) -> None:
    """No image lies outside the root, whatever the table named."""
    root = f"{index.root}{os.sep}"
    for file in index.files(range(len(index))):
        assert os.path.normpath(file) == file and file.startswith(root), file


# Any table

TABLE = Place("table", _write({"a.csv": 'a,b,"c d"\n1,2,3\n4,"5,\n6",\n', "b.csv": _csv(("a", "b"), (1, 2), (3, 4)),
                               "c.csv.gz": _csv(("a", "b", "c"), (1, 2, 3), (3, 4, 5))}))  # fmt: skip


def run_table(data: bytes) -> None:
    with TABLE.holding(data) as name:
        kind = zlib.crc32(data) % 4
        only, ragged, verbatim = (None, ("a", "c"))[kind % 2], kind == 2, kind == 3
        table = read_table(TABLE.folder / name, only=only, ragged=ragged, verbatim=verbatim)
        assert all(len(cells) == len(table) for cells in table.columns.values())
        for position in table.columns:
            table.numbers(position, empty="nan")


# Datasets

_LABELS = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender",
           "View Position")  # fmt: skip
_IMAGES: dict[str, str | bytes] = {f"images/{name}": b"" for name in _NAMES}
_ROWS = [(name, NIH15[number % 15], 0, int(name[:8]), 50 + number, "MF"[number % 2], "PA")
         for number, name in enumerate(_NAMES)]  # fmt: skip
NIH = Place("nih", _write({"Data_Entry_2017_v2020.csv": _csv(_LABELS, *_ROWS), **_IMAGES}))
ANY = Place(
    "any-csv",
    _write(
        {
            "columns.csv": _csv(
                ("image", "patient", "Mass", "Edema"), *((f"images/{n}", n[:8], 1, "") for n in _NAMES)
            ),
            "label.csv": _csv(("image", "patient", "label"), *((f"images/{n}", n[:8], "Mass|Edema") for n in _NAMES)),
            **_IMAGES,
        }
    ),
)
_CHEXPERT_ROWS = [
    (f"CheXpert-v1.0-small/train/patient0000{number}/study1/view1_frontal.jpg", "Male", 60, "Frontal", "AP",
     *(("1.0", "0.0", "-1.0", "")[(number + column) % 4] for column in range(14)))
    for number in range(1, 6)
]  # fmt: skip
_CHEXPERT_TABLE = _csv(("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT14), *_CHEXPERT_ROWS)
CHEXPERT = Place(
    "chexpert",
    _write(
        {
            "train.csv": _CHEXPERT_TABLE, "valid.csv": _CHEXPERT_TABLE.replace("/train/", "/valid/"),
            **{row[0].partition("/")[2]: b"" for row in _CHEXPERT_ROWS},
            **{row[0].partition("/")[2].replace("train/", "valid/"): b"" for row in _CHEXPERT_ROWS},
        }
    ),
)  # fmt: skip
_DICOMS = [(f"d{number}", 10000000 + number, 50000000 + number) for number in range(5)]
MIMIC = Place(
    "mimic",
    _write(
        {
            "mimic-cxr-2.0.0-chexpert.csv.gz": _csv(
                ("subject_id", "study_id", *CHEXPERT14),
                *((subject, study, *("1.0",) * 14) for _, subject, study in _DICOMS),
            ),
            "mimic-cxr-2.0.0-split.csv.gz": _csv(
                ("dicom_id", "study_id", "subject_id", "split"), *((d, study, s, "train") for d, s, study in _DICOMS)
            ),
            "mimic-cxr-2.0.0-metadata.csv.gz": _csv(
                ("dicom_id", "subject_id", "study_id", "ViewPosition"),
                *((d, s, study, "PA") for d, s, study in _DICOMS),
            ),
            **{f"files/p10/p{s}/s{study}/{d}.jpg": b"" for d, s, study in _DICOMS},
        }
    ),
)


def _others(folder: Path) -> None:
    laid_out.padchest(folder / "padchest")
    laid_out.vindr(folder / "vindr")
    laid_out.rsna(folder / "rsna", mapped=True, lists=True)


OTHERS = Place("others", _others)


def asked(dataset: str, **keys: Any) -> Data:
    """The recipe's section that asks for a dataset, with what has no file left out."""
    return Data.model_validate({"dataset": dataset, "missing": "skip", **keys})


def run_nih(data: bytes) -> None:
    with NIH.holding(data):
        inside(read_index(asked("nih", **({"findings": "all"} if len(data) % 2 else {})), NIH.folder))


def run_any(data: bytes) -> None:
    with ANY.holding(data) as name:
        columns = {"table": name, "patient": "patient"} | ({"label": "label"} if name == "label.csv" else {})
        inside(read_index(asked("csv", columns=columns, findings="all", split="by_patient"), ANY.folder))


def run_chexpert(data: bytes) -> None:
    with CHEXPERT.holding(data):
        inside(read_index(asked("chexpert"), CHEXPERT.folder))


def run_mimic(data: bytes) -> None:
    with MIMIC.holding(data):
        inside(read_index(asked("mimic"), MIMIC.folder))


def run_others(data: bytes) -> None:
    with OTHERS.holding(data) as name:
        dataset = name.partition("/")[0]
        inside(read_index(asked(dataset, findings="all", split="by_patient"), OTHERS.folder / dataset))


# Tables beside datasets

_COHORT = cohort.cohort(num=12, patients=4, findings=2)


def _predictions(folder: Path) -> None:
    files = [f"{number:08d}_000.png" for number in range(12)]
    held = cohort.predictions(files, _COHORT.patient_id.tolist(), NIH14[:2], *_COHORT[:3])
    write_predictions(folder / "ours.csv", *held)
    rows = [(name, round(0.05 * number, 2), 0.5) for number, name in enumerate(files)]
    (folder / "theirs.csv").write_text(_csv(("file", *NIH14[:2]), *rows))
    (folder / "labels.csv").write_text(
        _csv(("file", "Patient ID", "sex", "age", *NIH14[:2]), *((n, n[:8], "M", 50, 0, 1) for n in files))
    )
    (folder / "boxes.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        + _csv(*((n, "Infiltrate" if k % 2 else "Mass", 10 + k, 20, 30.5, 40, "", "", "") for k, n in enumerate(files)))
    )
    (folder / "steps.csv").write_text(
        _csv(("step", "epoch", "loss", "lr", "img_per_s", "data_wait_pct", "memory_mb"), *(
            (step, 0, 0.5, 1e-4, 100.0, 1.0, "") for step in range(5)))
    )  # fmt: skip
    (folder / "history.csv").write_text(
        _csv(("epoch", "step", "val_loss", "val_auroc"), (0, 5, 0.5, 0.7), (1, 9, "", ""))
    )
    (folder / "list.txt").write_text("".join(f"{name}\n" for name in _NAMES))


BESIDE = Place("tables", _predictions)


def run_beside(data: bytes) -> None:
    with BESIDE.holding(data) as name:
        path = BESIDE.folder / name
        if name == "ours.csv":
            held = read_predictions(path)
            Scored.of(
                held.findings, held.logits_NC, held.targets_NC, held.mask_NC, np.array(held.patient_ids, dtype=np.str_)
            )
            read_foreign(path, NIH14)
        elif name == "theirs.csv":
            read_foreign(path, NIH14)
        elif name == "labels.csv":
            read_labels(path)  # opens no image
        elif name == "boxes.csv":
            read_boxes(path)
        elif name == "list.txt":
            row_of = {image: row for row, image in enumerate(_NAMES)}
            member, _ = read_list(path, row_of, set())
            assert member.shape == (len(_NAMES),)
        else:
            newest_step(path.parent), best_auroc(path.parent)
            read_columns(path)


# MedMNIST


def _npz(folder: Path) -> None:
    for name, write in (("chestmnist.npz", np.savez), ("chestmnist_packed.npz", np.savez_compressed)):
        arrays = {}
        for split in ("train", "val", "test"):
            arrays[f"{split}_images"] = np.zeros((4, 8, 8), np.uint8)
            arrays[f"{split}_labels"] = np.eye(4, 14, dtype=np.uint8)
        stream = io.BytesIO()
        write(stream, **arrays)  # type: ignore[operator]
        (folder / name).write_bytes(stream.getvalue())


MNIST = Place("chestmnist", _npz)


def spoil_npz(name: str, content: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """Bytes of the file, or of one array's header and content in an archive that is right."""
    if rng.random() < 0.3:
        return spoil_bytes(content, rng, seeds)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    spoilt = rng.choice(list(members))
    members[spoilt] = spoil_npy(members[spoilt], rng)
    stream = io.BytesIO()
    packed = zipfile.ZIP_DEFLATED if "packed" in name else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", packed) as archive:
        for member, held in members.items():
            archive.writestr(zipfile.ZipInfo(member), held, packed)  # without the time of day
    return stream.getvalue()


def spoil_npy(held: bytes, rng: Random) -> bytes:
    """A .npy file of another shape or type, or with bytes changed."""
    kind = rng.randrange(5)
    if kind == 0 and held.startswith(b"\x93NUMPY"):
        start = 10 + int.from_bytes(held[8:10], "little")
        shape = rng.choice(("(4, 14)", "(99999999999, 14)", "(-1, 14)", "(4, 14, 1)", "()", "(0,)", "(1 << 62,)",
                            "(" * 300, "[4, 14]", "(True, 14)", "(4.0, 14)", "(1000000000,)"))  # fmt: skip
        kind_ = rng.choice(("'|u1'", "'<i8'", "'|O'", "'|V900000000'", "'<M8[s]'", "'<U9'", "[('a', '|u1')]", "'|S0'",
                            "[('path', '<f4')]", "'<f8'", "[]", "'<c16'"))  # fmt: skip
        order = rng.choice(("True", "False", "None"))
        head = f"{{'descr': {kind_}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
        head += b" " * (-(len(head) + 11) % 64) + b"\n"
        return held[:8] + struct.pack("<H", len(head)) + head + held[start:]
    if kind == 1:
        return held[:10] + spoil_bytes(held[10:128], rng) + held[128:]
    return spoil_bytes(held, rng)


def run_npz(data: bytes) -> None:
    with MNIST.holding(data) as name:
        index = read_index(asked("chestmnist"), MNIST.folder / name)
        array_rows(index)
        for split in ("train", "val", "test"):
            images = read_array(index.root, f"{split}_images")
            if images.size:
                assert images.flat[0] is not None and images.flat[-1] is not None  # read, not only mapped


def _names(place: Place) -> Callable[[], str]:
    return lambda: str(place.folder)


def _tables(place: Place) -> Callable[[], tuple[bytes, ...]]:
    tables = (".csv", ".csv.gz", ".txt", ".json")
    return lambda: place.inputs([name for name in place.files if name.endswith(tables)])


ENTRIES = (
    Entry("table", _tables(TABLE), spoiling(_spoil), run_table, (ValueError,), _names(TABLE)),
    Entry("nih", _tables(NIH), spoiling(_spoil), run_nih, (ValueError,), _names(NIH)),
    Entry("any-csv", _tables(ANY), spoiling(_spoil), run_any, (ValueError,), _names(ANY)),
    Entry("chexpert", _tables(CHEXPERT), spoiling(_spoil), run_chexpert, (ValueError,), _names(CHEXPERT)),
    Entry("mimic", _tables(MIMIC), spoiling(_spoil), run_mimic, (ValueError,), _names(MIMIC)),
    Entry("others", _tables(OTHERS), spoiling(_spoil), run_others, (ValueError,), _names(OTHERS)),
    Entry("tables", _tables(BESIDE), spoiling(_spoil), run_beside, (ValueError,)),
    Entry("chestmnist", lambda: MNIST.inputs(), spoiling(spoil_npz), run_npz, (ValueError,), _names(MNIST)),
)
