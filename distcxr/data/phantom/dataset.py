"""A folder of synthetic chest X-rays laid out like NIH ChestX-ray14, for the quickstart, tests and benchmarks.

Everything is a pure function of (seed, number): patient p's age, sex and findings of (seed, p), film n's pixels
of (seed, n) and its row of the CSV. So films are drawn by any number of processes in any order with the same
bytes, and a larger set starts with the films of a smaller one.
"""

import json
import logging
import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from distcxr.data.phantom.draw import draw_film
from distcxr.data.phantom.png import encode_png

logger = logging.getLogger(__name__)

VERSION = 1  # of the drawing: raise it when the same seed gives other pixels or labels
CSV_NAME, TRAIN_VAL_NAME, TEST_NAME = "Data_Entry_2017_v2020.csv", "train_val_list.txt", "test_list.txt"
DONE_NAME, STARTED_NAME = "phantom.json", "phantom.unfinished.json"
CSV_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
MIN_IMAGES = 8  # the second patient is the first of the test list, and the first has at most 6 images
MIN_SIZE = 32
FILM_WIDTH_MM = 350
NO_FINDING_SHARE = 0.40
SAME_FINDINGS_SHARE = 0.35  # of follow-up films: the patient has what the last film showed
NUM_FINDINGS_SHARES = (0.50, 0.32, 0.18)  # one, two or three findings on a film that has any
# Relative frequencies, in NIH's order of rank but much flatter, so that 300 films hold enough of each.
FREQUENCY = {
    "Atelectasis": 10.0,
    "Cardiomegaly": 7.0,
    "Consolidation": 7.0,
    "Edema": 6.0,
    "Effusion": 10.0,
    "Emphysema": 6.0,
    "Fibrosis": 6.0,
    "Hernia": 5.0,
    "Infiltration": 11.0,
    "Mass": 8.0,
    "Nodule": 9.0,
    "Pleural_Thickening": 6.5,
    "Pneumonia": 6.0,
    "Pneumothorax": 8.0,
}
# What comes more often once the first finding is there, as in the real set.
COMPANIONS = {
    "Cardiomegaly": ("Effusion", "Edema"),
    "Edema": ("Effusion", "Infiltration"),
    "Effusion": ("Atelectasis", "Infiltration"),
    "Pneumonia": ("Infiltration", "Edema"),
    "Fibrosis": ("Pleural_Thickening",),
    "Emphysema": ("Pneumothorax",),
    "Mass": ("Nodule",),
}
_PLAN_STREAM, _FILM_STREAM = 0, 1  # keep the draws of patient k and of film k apart


@dataclass(frozen=True)
class Film:
    """One row of the CSV. `number` counts films from 0 and, with the seed, fixes the pixels."""

    number: int
    patient_id: int
    follow_up: int
    age: int
    sex: str
    view: str
    findings: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.patient_id:08d}_{self.follow_up:03d}.png"

    @property
    def in_test(self) -> bool:
        """Every fifth patient is a test patient, with all films."""
        return self.patient_id % 5 == 2


def write_phantom(out: Path, *, images: int, size: int, seed: int = 0, workers: int | None = None) -> None:
    """Write `images` films of `size` x `size` pixels, the CSV and both lists of NIH, and last `phantom.json`.

    `workers` processes draw (default: the cores this process may use). The bytes depend on `images`, `size`
    and `seed` only. A whole folder of the same settings is left as it is; an unfinished one is written again.
    Raises ValueError when a setting is out of range, or `out` holds other settings or anything not written here.
    """
    settings = _checked_settings(images, size, seed)
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers is {workers}: at least one process has to draw")
    if _is_whole(out, settings):
        logger.info("%s already holds these %d synthetic X-rays", out, images)
        return
    _claim(out, settings)
    films = plan_films(images, seed)
    (out / "images").mkdir(exist_ok=True)
    _draw_all(out / "images", films, size, seed, workers)
    (out / CSV_NAME).write_text("\n".join([CSV_HEADER, *(_csv_row(film, size) for film in films)]) + "\n")
    (out / TRAIN_VAL_NAME).write_text("\n".join(film.name for film in films if not film.in_test))
    (out / TEST_NAME).write_text("\n".join(film.name for film in films if film.in_test))
    os.replace(out / STARTED_NAME, out / DONE_NAME)  # same content: the name says that all the rest is there


def plan_films(images: int, seed: int) -> list[Film]:
    """Who has which findings on which film, in the order of the CSV; the first films do not depend on `images`."""
    films: list[Film] = []
    patient_id = 0
    while len(films) < images:
        patient_id += 1
        rng = np.random.default_rng([seed, _PLAN_STREAM, patient_id])
        age, sex = int(np.clip(rng.normal(50, 17), 4, 94)), "M" if rng.uniform() < 0.56 else "F"
        findings: tuple[str, ...] = ()
        for follow_up in range(int(rng.integers(1, 7))):
            if follow_up == 0 or rng.uniform() >= SAME_FINDINGS_SHARE:
                findings = _draw_findings(rng)
            view = "AP" if rng.uniform() < 0.4 else "PA"
            age = min(age + int(rng.uniform() < 0.3), 95)
            films.append(Film(len(films), patient_id, follow_up, age, sex, view, findings))
    return films[:images]


def _draw_findings(rng: np.random.Generator) -> tuple[str, ...]:
    if rng.uniform() < NO_FINDING_SHARE:
        return ()
    weights = dict(FREQUENCY)
    chosen: list[str] = []
    for _ in range(1 + int(rng.choice(len(NUM_FINDINGS_SHARES), p=NUM_FINDINGS_SHARES))):
        total = math.fsum(weights.values())
        name = str(rng.choice(list(weights), p=[weight / total for weight in weights.values()]))
        chosen.append(name)
        del weights[name]
        for other in COMPANIONS.get(name, ()):
            if other in weights:
                weights[other] *= 2
    return tuple(sorted(chosen))


def _csv_row(film: Film, size: int) -> str:
    labels, spacing = "|".join(film.findings) or "No Finding", round(FILM_WIDTH_MM / size, 6)
    person = f"{film.follow_up},{film.patient_id},{film.age},{film.sex},{film.view}"
    return f"{film.name},{labels},{person},{size},{size},{spacing},{spacing}"


def _draw_all(folder: Path, films: Sequence[Film], size: int, seed: int, workers: int) -> None:
    # Spawned, not forked: the caller may hold threads (torch, DALI) that a fork would freeze half-way.
    # A process costs about 0.3 s to start, so few films are not worth many.
    workers = min(workers, math.ceil(len(films) / 16))
    if workers == 1:
        for film in films:
            _draw_one(folder, film, size, seed)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(_draw_one, repeat(folder), films, repeat(size), repeat(seed), chunksize=16):
            pass  # map raises here what a worker raised


def _draw_one(folder: Path, film: Film, size: int, seed: int) -> None:
    rng = np.random.default_rng([seed, _FILM_STREAM, film.number])
    (folder / film.name).write_bytes(encode_png(draw_film(film.findings, rng, size, film.sex, film.view)))


def _checked_settings(images: int, size: int, seed: int) -> dict[str, int]:
    if images < MIN_IMAGES:
        raise ValueError(f"images is {images}: at least {MIN_IMAGES} are needed for a training and a test patient")
    if size < MIN_SIZE:
        raise ValueError(f"size is {size}: below {MIN_SIZE} pixels no finding can be seen")
    if seed < 0:
        raise ValueError(f"seed is {seed}: it must be 0 or more")
    return {"version": VERSION, "images": images, "size": size, "seed": seed}


def _is_whole(out: Path, settings: dict[str, int]) -> bool:
    if _read_settings(out / DONE_NAME) != settings:
        return False
    tables = all((out / name).is_file() for name in (CSV_NAME, TRAIN_VAL_NAME, TEST_NAME))
    return tables and sum(1 for _ in (out / "images").glob("*.png")) == settings["images"]


def _claim(out: Path, settings: dict[str, int]) -> None:
    """Mark `out` as being written, or say why it can't be."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give the name of a folder")
    done, started = out / DONE_NAME, out / STARTED_NAME
    found = _read_settings(done) or _read_settings(started)
    if found is not None and found != settings:
        theirs, ours = _in_words(found), _in_words(settings)
        raise ValueError(f"{out} holds synthetic X-rays of {theirs}, not {ours}: delete it or give another folder")
    if out.is_dir() and (foreign := _first_foreign(out, ours=found is not None)) is not None:
        raise ValueError(f"{out} holds {foreign}, which distcxr phantom did not write: give an empty or new folder")
    out.mkdir(parents=True, exist_ok=True)
    started.write_text(json.dumps(settings, indent=1) + "\n")
    done.unlink(missing_ok=True)


def _first_foreign(out: Path, *, ours: bool) -> str | None:
    """The first name in `out` that is not from here; without a marker of ours, that is any name at all."""
    known = {"images", CSV_NAME, TRAIN_VAL_NAME, TEST_NAME, DONE_NAME, STARTED_NAME} if ours else set()
    names = sorted(entry.name for entry in out.iterdir() if entry.name not in known)
    if ours and (out / "images").is_dir():
        pictures = (entry.name for entry in (out / "images").iterdir())
        names += sorted(f"images/{name}" for name in pictures if not re.fullmatch(r"\d{8}_\d{3}\.png", name))
    return names[0] if names else None


def _read_settings(path: Path) -> dict[str, int] | None:
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return settings if isinstance(settings, dict) else None


def _in_words(settings: dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())
