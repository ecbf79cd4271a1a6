"""The section that a report opens with: what counts as the truth, which images there are, and of whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from distcxr.report import blocks
from distcxr.report.blocks import Block, Cell, Column, Content, Fold, Part, Section, column, paragraph, readable
from distcxr.runfolder.contents import SPLITS

_REFERENCE = {
    "nih": "Labels of ChestX-ray14, which NIH mined from the radiologists' reports with natural language processing. "
    "Nobody read the images for them, and a report need not mention what an image shows.",
    "chexpert": "Labels of CheXpert, which its rule-based labeler mined from the radiologists' reports; those of its "
    "own validation list were set by radiologists.",
    "mimic": "Labels of MIMIC-CXR-JPG, which CheXpert's rule-based labeler mined from the radiologists' reports.",
    "chestmnist": "Labels of ChestX-ray14, which NIH mined from the radiologists' reports with natural language "
    "processing, on the reduced images of ChestMNIST.",
    "padchest": "Labels of PadChest, 27 % of them set by physicians who read the radiologists' reports; a network "
    "mined the others from reports.",
    "vindr": "Labels of VinDr-CXR, set by radiologists who read the images: three for a training image, and five, who "
    "had to agree, for a test image.",
    "rsna": "Labels of the RSNA Pneumonia challenge, set by radiologists who read images of ChestX-ray14 and marked "
    "opacities that made them think of pneumonia.",
    "csv": "Labels of a table of your own. How they were made is not known here: state who set them, and from what.",
    "folders": "The folder that an image lies in. How images came into it is not known here: state who chose, and from "
    "what.",
}
_UNKNOWN = "It is not recorded which dataset the labels are of."
_UNCERTAIN = {"mask": "as unknown", "zero": "as absent", "one": "as present"}
_OPEN_LABELS = ("chexpert", "mimic", "csv")
"""Datasets in which a label may be uncertain."""
_SEXES = {"F": "women and girls", "M": "men and boys", "unknown": "sex unknown"}
_VIEWS = {"LATERAL": "lateral", "unknown": "view unknown"}


def reference_standard(recipe: Mapping[str, Any]) -> str:
    """In words, by the recipe's dataset; of a joint one, by each member's."""
    data = recipe.get("data") or {}
    if data.get("dataset") == "joint":
        members = [
            {**one, "uncertain": one.get("uncertain") or data.get("uncertain")} for one in data.get("members") or []
        ]
        return " ".join(
            f"{one.get('name') or one.get('dataset')}: {reference_standard({'data': one})}"
            for one in members
            if one.get("dataset") != "joint"
        )
    text = _REFERENCE.get(str(data.get("dataset")), _UNKNOWN)
    if data.get("dataset") in _OPEN_LABELS and data.get("uncertain") in _UNCERTAIN:
        text += f" Labels that are uncertain (-1) count {_UNCERTAIN[data['uncertain']]}."
    return text


def flow(environment: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """From the label file to what was scored: {step, num_images, num_patients, note}, as far as it was recorded."""
    cohort = environment.get("cohort") or {}
    counts = environment.get("splits") or {}
    rows = []
    if cohort:
        listed, there = cohort["label_file"], cohort["with_file"]
        absent = listed["num_images"] - there["num_images"]
        kept = {f"num_{of}": sum(one[f"num_{of}"] for one in counts.values()) for of in ("images", "patients")}
        outside = there["num_images"] - kept["num_images"]
        why = [*([f"in no split: {outside:,}"] if outside else []), *map(str, cohort.get("notes") or [])]
        rows = [
            {"step": "in the label file", **listed, "note": ""},
            {"step": "with a file", **there, "note": f"without a file: {absent:,}" if absent else ""},
            {"step": "in a split", **kept, "note": "; ".join(why)},
        ]
    for name in counts:
        rows.append({"step": f"split {name}", **counts[name], "note": ""})
        for member, splits in (cohort.get("members") or {}).items():
            sizes = {f"num_{of}": splits.get(name, {}).get(f"num_{of}", 0) for of in ("images", "patients")}
            rows.append({"step": f"split {name}, of {member}", **sizes, "note": ""})
    for name in reversed(SPLITS):
        if found := metrics.get(name):
            bad = len(found.get("unreadable") or [])
            sizes = {"num_images": found.get("num_samples"), "num_patients": found.get("num_patients")}
            note = f"can't be read: {bad:,}" if bad else ""
            rows.append({"step": f"scored, {name}", **sizes, "note": note})
    return rows


def percentages(environment: Mapping[str, Any]) -> dict[str, Any]:
    """By split: of `sex`, `view`, and of the known labels of each finding, images and patients. None of nothing."""
    found = {}
    for name, split in ((environment.get("cohort") or {}).get("splits") or {}).items():
        found[name] = {
            "sex": {sex: _percent(num, split["num_patients"]) for sex, num in split["sex"].items()},
            "view": {view: _percent(num, split["num_images"]) for view, num in split["view"].items()},
            "findings": {
                finding: {
                    "images": _percent(one["num_positive"], one["num_known"]),
                    "patients": _percent(one["num_patients_positive"], one["num_patients_known"]),
                }
                for finding, one in split["findings"].items()
            },
        }
    return found


def _percent(num: int, of: int) -> float | None:
    return 100 * num / of if of else None


def patients_section(content: Content) -> Section:
    """Reference standard, flow, demographics and prevalence."""
    shown: list[Block] = [paragraph("Reference standard: ", content.get("reference_standard"))]
    if num_rows := len(content.get("flow")):
        paths = [("flow", number) for number in range(num_rows)]
        notes = [content.get(*path, "note") for path in paths]
        table = blocks.table(
            ("flow of the data", column(content.get(*path, "step") for path in paths)),
            ("images", content.numbers(paths, "num_images", form=",")),
            ("patients", content.numbers(paths, "num_patients", form=",")),
            *blocks.notes(notes),
        )
        shown += [table, paragraph(_disjoint(content), kind="small")]
    splits: dict[str, Any] = content.get("run", "cohort", "splits") or {}
    if not splits:
        older = "This run began before its splits' demographics and prevalence were recorded."
        return Section("patients", "Patients and labels", (*shown, paragraph(older, kind="small")))
    prevalence = blocks.table(*_prevalence(content, splits), sortable=True)
    about = (
        "Age and sex are of patients (at their first image in the split), views of images. Percentages of a finding "
        "are of those images and patients with a known label."
    )
    shown += [
        paragraph("Who is in each split", kind="heading"),
        paragraph(about, kind="small"),
        blocks.table(("", column(_titles(splits))), *((name, list(_who(content, name, splits))) for name in splits)),
        Fold("Prevalence: images and patients with each finding", (prevalence,)),
    ]
    return Section("patients", "Patients and labels", tuple(shown))


def _disjoint(content: Content) -> str:
    counts: dict[str, dict[str, int]] = content.get("run", "splits") or {}
    sizes = [sum(one.get(f"num_{of}", 0) for one in counts.values()) for of in ("images", "patients")]
    if counts and sizes[0] == sizes[1]:
        return "Each image counts as a patient of its own: whether a person is in two splits is not known."
    return "Splits are by patient: training does not begin where a patient is in two of them."


def _titles(splits: Mapping[str, Any]) -> Iterable[str]:
    yield from ("patients", "age in years, median", "age, quartiles", "age unknown")
    yield from (_SEXES.get(sex, sex) for sex in _shown(splits, "sex"))
    yield "images"
    yield from (_VIEWS.get(view, view) for view in _shown(splits, "view"))


def _shown(splits: Mapping[str, Any], of: str) -> list[str]:
    """Groups that any split has."""
    return [name for name in _all(splits, of) if any(split[of].get(name) for split in splits.values())]


def _all(splits: Mapping[str, Any], of: str) -> dict[str, None]:
    return dict.fromkeys(name for split in splits.values() for name in split[of])


def _who(content: Content, name: str, splits: Mapping[str, Any]) -> Iterable[Cell]:
    base = ("run", "cohort", "splits", name)
    yield content.number(*base, "num_patients", form=",")
    yield content.number(*base, "age", "median", form=".0f")
    low, high = (content.figure(*base, "age", key, form=".0f") for key in ("q25", "q75"))
    yield Cell((low, Part(" to "), high), is_number=True)
    yield content.number(*base, "age", "num_unknown", form=",")
    for sex in _shown(splits, "sex"):
        yield _count(content, (*base, "sex", sex), ("percent", name, "sex", sex))
    yield content.number(*base, "num_images", form=",")
    for view in _shown(splits, "view"):
        yield _count(content, (*base, "view", view), ("percent", name, "view", view))


def _count(content: Content, at: tuple[str, ...], percent_at: tuple[str, ...]) -> Cell:
    """A count with its percentage below."""
    share = content.figure(*percent_at, form=".1f")
    return Cell((content.figure(*at, form=","),), is_number=True, aside=(share, Part(" %")) if share.at else ())


def _prevalence(content: Content, splits: Mapping[str, Any]) -> Iterable[Column]:
    names = list(_all(splits, "findings"))
    yield "finding", column(map(readable, names))
    for split in splits:
        base, percent = ("run", "cohort", "splits", split, "findings"), ("percent", split, "findings")
        for what, key in (("images", "num_positive"), ("patients", "num_patients_positive")):
            cells = [_count(content, (*base, name, key), (*percent, name, what)) for name in names]
            yield f"{split}, {what}", cells
        if any(splits[split]["findings"][name]["num_known"] < splits[split]["num_images"] for name in names):
            yield f"{split}, labels known", [content.number(*base, name, "num_known", form=",") for name in names]
