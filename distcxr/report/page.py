"""`write_report`: report.html, report.md and report.json, from the files of a run folder alone."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from distcxr.metrics.scored import Scored
from distcxr.report.blocks import Cell, Content, KeyPath, Page, Part, Section
from distcxr.report.checklists import checklists, checklists_section
from distcxr.report.curves import curves
from distcxr.report.leaderboard import PUBLISHED
from distcxr.report.methods import FIXED_MODEL, localisation_methods, methods, methods_section
from distcxr.report.origin import (
    NOT_COMPARABLE,
    SELECTED_ON_TEST,
    comparison_section,
    data_section,
    making_section,
    trained_with,
    why_not_comparable,
)  # fmt: skip
from distcxr.report.patients import flow, patients_section, percentages, reference_standard
from distcxr.report.picture_sections import localisation_section, pictures_section
from distcxr.report.rendering import to_html, to_markdown
from distcxr.report.results import curves_section, findings_section, subgroups_section
from distcxr.report.thresholds import calibration_section, decision_section, operating_section
from distcxr.report.training_section import training_section
from distcxr.runfolder import filenames
from distcxr.runfolder.contents import RunFiles, read_run
from distcxr.runfolder.loss_spikes import find_spikes
from distcxr.runfolder.predictions import read_predictions
from distcxr.runfolder.whole import write_whole
from distcxr.version import __version__

logger = logging.getLogger(__name__)

_OPTIMISTIC = (
    "Validation chose both the checkpoint and the thresholds: its own figures flatter the model. Believe those of the "
    "test split."
)


def write_report(run_folder: Path) -> Path:
    """Write report.html, report.md and report.json into a run folder, each whole or not at all.

    The page is about the test split, or validation where test was not scored. It needs no network and no other file.

    Returns the path of the page.
    Raises ValueError: this is not a run folder, a file in it is damaged (it is named), or it can't be written to.
    """
    files = read_run(run_folder)
    with naming(run_folder):
        content, page = build(files)
        written = {
            filenames.REPORT_JSON: _as_json(run_folder, content.values),
            filenames.REPORT_MARKDOWN: to_markdown(page),
            filenames.REPORT: to_html(page),
        }
    try:
        for name, text in written.items():
            write_whole(run_folder / name, text, errors="replace")
    except OSError as error:
        raise ValueError(f"the report can't be written to {run_folder}: {error.strerror}") from None
    if content.get("missing"):
        logger.info(f"{run_folder}: the report does without {', '.join(content.get('missing'))}")
    return run_folder / filenames.REPORT


def _as_json(run_folder: Path, values: Any) -> str:
    try:
        return json.dumps(values, indent=1, allow_nan=False, default=str) + "\n"
    except ValueError as error:  # only YAML holds infinity
        raise ValueError(f"{run_folder / filenames.RECIPE} holds a number that is not finite: {error}") from None


def build(files: RunFiles) -> tuple[Content, Page]:
    """What report.json holds, and the page that shows it. Errors as for `write_report`."""
    split = next(iter(files.metrics), None)
    missing = list(files.missing)
    content = Content(_values(files, split))
    with naming(files.folder / filenames.ENVIRONMENT):
        sections: list[Section | None] = [patients_section(content)]
    trained = ""
    if split is not None:
        with naming(files.folder / filenames.metrics(split)):
            trained = trained_with(content, split)
            sections += [
                findings_section(content, split),
                comparison_section(content, split),
                curves_section(content, split),
                calibration_section(content, split),
                decision_section(content, split),
                operating_section(content, split),
                subgroups_section(content, split),
            ]
        with naming(files.folder / filenames.localisation(split)):
            sections.append(localisation_section(content, split))
        with naming(files.folder / filenames.PICTURES / filenames.PICTURES_LIST):
            sections.append(pictures_section(content, files.folder, missing))
    sections += [training_section(content, files.steps, files.history), data_section(content), methods_section(content)]
    with naming(files.folder / filenames.ENVIRONMENT):
        sections.append(making_section(content, trained, files.recipe_text, missing))
    shown = [section for section in sections if section is not None and section.blocks]
    values: dict[str, Any] = {**content.values, "missing": missing, "checklists": checklists(shown)}
    content = Content(values)
    shown.insert(-1, checklists_section(content, shown))
    result, tiles = result_of(content, split)
    values["result"] = "".join(part.text for part in result)
    page = Page(
        title=values["title"],
        origin=values["run"]["name"],
        result=result,
        tiles=tiles,
        warnings=tuple(values["warnings"]),
        sections=tuple(shown),
    )
    return content, page


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What is not as a run writes it becomes an error that names its file, or the folder of all files."""
    try:
        yield
    except ValueError as error:
        if str(path if path.is_dir() else path.parent) in str(error):  # a sentence about a file
            raise
        raise ValueError(f"{path} is not as distcxr writes it: {error}") from error
    except (LookupError, TypeError, AttributeError, ArithmeticError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not as distcxr writes it: {type(error).__name__} {error}") from error


def _values(files: RunFiles, split: str | None) -> dict[str, Any]:
    """report.json but for its sentence."""
    model, data = files.recipe.get("model") or {}, files.recipe.get("data") or {}
    named = ", ".join(str(part) for part in (model.get("name"), data.get("image_size")) if part)
    folder = files.folder.resolve()
    if members := files.metrics[split].get("members") if split else None:
        named, data = f"ensemble of {len(members)}", {}
    values: dict[str, Any] = {
        "title": f"{named} px" if data.get("image_size") else named or folder.name,
        "result": "",
        "split": split,
        "warnings": warnings_of(files, split),
        "run": {
            **files.environment, "name": f"{folder.parent.name}/{folder.name}",
            "report_by": f"distcxr {__version__}",
        },
        "recipe": files.recipe,
        "reference_standard": reference_standard(files.recipe),
        "metrics": files.metrics,
        "curves": {split: _curves(files.folder / filenames.predictions(split))} if split else {},
        "throughput": _throughput(files),
        "pictures": [entry for entry in files.pictures if entry["split"] == split],
        "localisation": files.localisation,
    }  # fmt: skip
    with naming(files.folder / filenames.ENVIRONMENT):
        values |= {"flow": flow(files.environment, files.metrics), "percent": percentages(files.environment)}
    if split is not None:
        with naming(files.folder / filenames.metrics(split)):
            values |= {"methods": methods(files.metrics[split]), "intervals_hold": FIXED_MODEL}
        with naming(files.folder / filenames.localisation(split)):
            values["methods"] |= localisation_methods(files.localisation.get(split))
    reasons = ["no split was scored"] if split is None else why_not_comparable(Content(values), split)
    values["compare"] = {
        "comparable": not reasons,
        "reasons": reasons,
        "published": [row.json() for row in PUBLISHED],
        "notes": [SELECTED_ON_TEST, NOT_COMPARABLE],
    }
    return values


def warnings_of(files: RunFiles, split: str | None) -> list[str]:
    """What the scores warn of, and what only the recipe knows."""
    if split is None:
        return ["No split was scored yet: there is no metrics_<split>.json in this folder."]
    found = [str(sentence) for sentence in files.metrics[split].get("warnings") or []]
    chosen = files.recipe.get("eval") or {}
    both = chosen.get("weights") == "best" and files.metrics[split].get("operating_points_from") is not None
    has_its_own = "checkpoint_from" in files.metrics[split]
    if (both or split == "val") and not has_its_own:
        alone = "Validation chose the checkpoint: its own figures flatter the model. Believe those of the test split."
        found.append(_OPTIMISTIC if both else alone)
    steps = {name: report.get("step") for name, report in files.metrics.items() if report.get("step") is not None}
    if len(set(steps.values())) > 1:
        shown = ", ".join(f"{name} at step {step}" for name, step in steps.items())
        found.append(f"The splits were scored with weights of different steps: {shown}.")
    return found + _of_training(files)


def _of_training(files: RunFiles) -> list[str]:
    """Updates that were left out, and losses far above the others."""
    found = []
    num_skipped = sum(loss is None for loss in files.steps.get("loss", []))
    if num_skipped:
        found.append(f"{_num(num_skipped, 'update was', 'updates were')} left out: no finite loss (train.on_nan).")
    if spikes := find_spikes(files.steps):
        highest = max(spikes, key=lambda spike: spike.loss)
        num = _num(len(spikes), "step", "steps")
        found.append(f"The training loss spikes at {num}; the highest, at step {highest.step:,.0f}, is {highest}.")
    return found


def _num(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"


def _curves(path: Path) -> dict[str, Any]:
    """ROC and precision-recall points by finding; those that have none are left out."""
    if not path.exists():
        return {}
    held = read_predictions(path)
    scored = Scored.of(
        held.findings, held.logits_NC, held.targets_NC, held.mask_NC, np.array(held.patient_ids, dtype=np.str_)
    )
    return {known.name: points for known in scored.known if (points := curves(known))}


def _throughput(files: RunFiles) -> dict[str, float]:
    """Medians over steps, the peak of the memory, and minutes of training."""
    columns = {name: [value for value in values if value is not None] for name, values in files.steps.items()}
    found = {name: median(columns[name]) for name in ("img_per_s", "data_wait_pct") if columns.get(name)}
    if columns.get("memory_mb"):
        found["memory_mb"] = max(columns["memory_mb"])
    if columns.get("step"):
        found["num_steps"] = max(columns["step"])
    seconds = [value for value in files.history.get("train_s", []) if value is not None]
    return found | ({"train_minutes": sum(seconds) / 60} if seconds else {})


def result_of(content: Content, split: str | None) -> tuple[tuple[Part, ...], tuple[tuple[str, Cell], ...]]:
    """The one sentence, and the figures to see first."""
    if split is None:
        return (Part("This run has no scores yet."),), ()
    base = ("metrics", split)
    images: list[Part] = [Part(", on "), content.figure(*base, "num_samples", form=","), Part(" images")]
    if content.get(*base, "num_patients") is not None:
        images += [Part(" of "), content.figure(*base, "num_patients", form=","), Part(" patients")]
    images.append(Part(f" of the {split} split."))
    if content.get(*base, "macro", "auroc") is None:
        reason = content.get(*base, "macro", "reason") or "no reason is given"
        sentence: tuple[Part, ...] = (Part(f"The macro AUROC is undefined ({reason})"), *images)
    else:
        sentence = (Part("Macro AUROC "), content.figure(*base, "macro", "auroc"))
        interval = content.interval(*base, "macro", "auroc").parts
        if len(interval) == 3:
            level = 100 * (content.get(*base, "intervals", "level") or 0.95)
            sentence += (Part(f" ({level:g} % interval "), interval[0], Part(" to "), interval[2], Part(")"))
        averaged = content.get(*base, "macro", "findings") or []
        sentence += (Part(f", the average of {len(averaged)} findings"), *images)
    figures: tuple[tuple[str, KeyPath, str], ...] = (
        ("macro average precision", (*base, "macro", "auprc"), ".3f"),
        ("accuracy", (*base, "accuracy"), ".3f"),
        ("images", (*base, "num_samples"), ","),
        ("patients", (*base, "num_patients"), ","),
        ("images per second, training", ("throughput", "img_per_s"), ",.0f"),
        ("weights of step", (*base, "step"), ","),
    )
    tiles = [(name, content.number(*path, form=form)) for name, path, form in figures if content.get(*path) is not None]
    return sentence, (("macro AUROC", content.number(*base, "macro", "auroc")), *tiles)
