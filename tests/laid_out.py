"""Small data sets with their tables and folders, in the real format of each; images are empty or four pixels."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from dicoms import dicom

from distcxr.data.labels import CHEXPERT14
from distcxr.data.sources.padchest import BROKEN
from distcxr.data.sources.rsna import MAPPING

CHEXPERT_HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(CHEXPERT14) + "\n"
BLANK = "," * 13
CHEXPERT_TRAIN = (
    "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0" + BLANK + "\n"
    "CheXpert-v1.0-small/train/patient00001/study1/view2_lateral.jpg,Female,68,Lateral,,,,1.0,-1.0" + "," * 10 + "\n"
    "CheXpert-v1.0-small/train/patient00002/study3/view1_frontal.jpg,Unknown,0,Frontal,PA,,0.0,,1.0,,,,,,,,,,1.0\n"
)
CHEXPERT_VALID = (
    "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,0.0,1.0" + ",0.0" * 12 + "\n"
)
NIH_SHOWN = ("Mass", "Edema", "Hernia", "No Finding")
NIH_IMAGES = 400


def write_nih(root: Path, *, extra: dict[int, str] | None = None) -> Path:
    """100 patients of 4 empty files each as NIH lays them out; `extra` replaces the labels of rows."""
    (root / "images").mkdir(parents=True)
    rows, names = [], []
    for row in range(NIH_IMAGES):
        patient, visit = divmod(row, 4)
        names.append(f"{patient + 1:08d}_{visit:03d}.png")
        label = (extra or {}).get(row, NIH_SHOWN[(patient + visit) % 4])
        view = "PA" if visit < 2 else "AP"
        rows.append(f"{names[-1]},{label},{visit},{patient + 1},{20 + patient % 60},{'MF'[patient % 2]},{view}")
        (root / "images" / names[-1]).touch()
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([header, *rows]))
    (root / "train_val_list.txt").write_text("\n".join(names[: NIH_IMAGES * 3 // 4]))
    (root / "test_list.txt").write_text("\n".join(names[NIH_IMAGES * 3 // 4 :]))
    return root


def chexpert(root: Path, **tables: str) -> Path:
    """A folder of CheXpert with its images."""
    for name, rows in tables.items():
        root.mkdir(exist_ok=True)
        (root / f"{name}.csv").write_text(CHEXPERT_HEADER + rows)
        for row in rows.splitlines():
            file = root / row.split(",")[0].removeprefix("CheXpert-v1.0-small/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    return root


VINDR = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
    "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,"
    "Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,"
    "Tuberculosis,Other diseases,No finding"
).split(",")
IMAGE_A, IMAGE_B = "000434271f63a053c4128a0ba6352c7f", "00053190460d56c53cc3e57321387478"
VINDR_TRAIN = [
    (IMAGE_A, "R6", {"Pleural effusion"}), (IMAGE_A, "R2", {"Pleural effusion", "Atelectasis"}),
    (IMAGE_A, "R3", {"No finding"}),
    (IMAGE_B, "R1", {"No finding"}), (IMAGE_B, "R2", {"No finding"}), (IMAGE_B, "R9", {"No finding"}),
]  # fmt: skip
VINDR_TEST = [("002a34c58c5b758217ed1f584ccbcfe9", {"Other diseases"}), ("004f33259ee4aef671c2b95d54e4be68", {"Edema"})]


def vindr(root: Path, *, train: list[Any] = VINDR_TRAIN, test: list[Any] = VINDR_TEST, suffix: str = ".dicom") -> Path:
    """A folder of VinDr-CXR; its files are empty."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    lines = {
        "train": [["image_id", "rad_id", *VINDR]]
        + [[image, reader, *(str(int(name in shown)) for name in VINDR)] for image, reader, shown in train],
        "test": [["image_id", *(name.replace("diseases", "disease") for name in VINDR)]]
        + [[image, *(str(int(name in shown)) for name in VINDR)] for image, shown in test],
    }
    for split, rows in lines.items():
        text = "".join(",".join(row) + "\n" for row in rows)
        (root / f"annotations/image_labels_{split}.csv").write_text(text)
        (root / split).mkdir(exist_ok=True)
        for row in rows[1:]:
            (root / split / f"{row[0]}{suffix}").touch()
    return root


NORMAL, OPAQUE, OTHER = (f"0{number}0322c-f94d-4cda-8c3f-a8c7a6b6d7d8" for number in range(3))
RSNA_LABELS = (
    "patientId,x,y,width,height,Target\n"
    f"{NORMAL},,,,,0\n{OPAQUE},264.0,152.0,213.0,379.0,1\n{OPAQUE},562.0,152.0,256.0,453.0,1\n{OTHER},,,,,0\n"
)
RSNA_CLASSES = (
    f"patientId,class\n{NORMAL},Normal\n{OPAQUE},Lung Opacity\n{OPAQUE},Lung Opacity\n"
    f"{OTHER},No Lung Opacity / Not Normal\n"
)
RSNA_IMAGES = {NORMAL: "00000013_005.png", OPAQUE: "00000013_026.png", OTHER: "00028173_002.png"}


def rsna(root: Path, *, mapped: bool = False, lists: bool = False, images: dict[str, str] | None = None) -> Path:
    """A folder of the challenge; its images are DICOMs of four pixels."""
    (root / "stage_2_train_images").mkdir(parents=True, exist_ok=True)
    (root / "stage_2_train_labels.csv").write_text(RSNA_LABELS)
    (root / "stage_2_detailed_class_info.csv").write_text(RSNA_CLASSES)
    content = dicom(np.array([[0, 255], [128, 7]], dtype=np.uint8))
    for image in RSNA_IMAGES:
        (root / f"stage_2_train_images/{image}.dcm").write_bytes(content)
    entries = [
        {"img_id": name, "subset_img_id": image, "SOPInstanceUID": "1.2"}
        for image, name in (images or RSNA_IMAGES).items()
    ]
    if mapped:
        (root / MAPPING).write_text(json.dumps(entries))
    if lists:
        (root / "train_val_list.txt").write_text("00000013_005.png\n00000013_026.png\n00000001_000.png\n")
        (root / "test_list.txt").write_text("00028173_002.png\n00000003_000.png\n")
    return root


PADCHEST_NAME = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
PADCHEST_HEADER = [
    "", "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM",
    "ViewPosition_DICOM", "Projection", "MethodProjection", "Pediatric", "Report", "MethodLabel", "Labels",
]  # fmt: skip
PADCHEST_CUT = sorted(BROKEN)[0]
PADCHEST_ROWS = [  # ImageID, ImageDir, PatientID, birth, sex, projection, labels
    ("1_a.png", "0", "839860488694292331637988235681460987", "1930.0", "F", "PA", "['pneumonia', 'air bronchogram']"),
    ("1_b.png", "0", "839860488694292331637988235681460987", "1930.0", "F", "L", "['pneumonia']"),
    ("2_a.png", "9", "2", "2052.0", "M", "AP_horizontal", "['subcutaneous emphysema', ' NSG tube', '']"),
    ("3_a.png", "9", "3", "", "", "AP", '["normal"]'),
    ("4_a.png", "9", "4", "1960.0", "M", "PA", ""),
    ("5_a.png", "9", "5", "1960.0", "M", "PA", "['nodule', ' exclude']"),
    ("6_a.png", "9", "6", "1960.0", "O", "COSTAL", "['rib fracture']"),
    (PADCHEST_CUT, "9", "7", "1960.0", "M", "PA", "['normal']"),
]


def padchest(root: Path, rows: list[tuple[str, ...]] = PADCHEST_ROWS, layout: str = "{dir}/") -> Path:
    """A folder of PadChest; its files are empty."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / PADCHEST_NAME).open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(PADCHEST_HEADER)
        for number, (image, folder, patient, birth, sex, projection, labels) in enumerate(rows):
            report = 'sin hallazgos, "normal" .\nsegunda linea'
            writer.writerow(
                [number, image, folder, "20140915", "1", patient, birth, sex, "POSTEROANTERIOR", projection, "", "No",
                 report, "Physician", labels]
            )  # fmt: skip
            file = root / layout.format(dir=folder) / image
            file.parent.mkdir(parents=True, exist_ok=True)
            if image != PADCHEST_CUT:
                file.touch()
    return root
