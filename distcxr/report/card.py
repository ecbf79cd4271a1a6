"""The card of an exported network: what it is, what it was measured to do and what it can't, for whoever gets it.

Markdown that opens with the YAML that Hugging Face's hub reads. A card is published, so it names no path, host, command
or image file of where the run was made.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from distcxr.report import blocks
from distcxr.report.blocks import (
    Block,
    Charts,
    Code,
    Content,
    Fold,
    Pictures,
    Section,
    Text,
    column,
    paragraph,
    readable,
)
from distcxr.report.methods import methods, methods_section
from distcxr.report.origin import data_section, trained_with
from distcxr.report.page import naming, result_of, warnings_of
from distcxr.report.patients import flow, patients_section, reference_standard
from distcxr.report.rendering import sections_to_markdown
from distcxr.report.results import findings_section, interval_title, subgroups_section
from distcxr.report.thresholds import calibration_section, rule_name
from distcxr.runfolder import filenames
from distcxr.runfolder.contents import SPLITS, RunFiles, read_environment, read_metrics
from distcxr.version import __version__

RULE = "youden"
"""The rule that the card shows recall and specificity at; all rules have their thresholds."""

_NOT_MEASURED = "Not measured: there is no metrics_<split>.json of these weights."
_PATHS = ("/", "~", "\\", "$", "%")
_LIBRARIES = {"onnx": "onnx"}


@dataclass(frozen=True)
class CardFacts:
    """What the card has of the exported file; figures are those of the run's files.

    Attributes:
        about: content of the JSON beside the file.
        code: lines of Python that use it.
        not_clinical: the sentence that every answer of ours ends with.
    """

    about: Mapping[str, Any]
    code: str
    not_clinical: str


def card_files(
    run: Path | None, scored: Path | None, step: int, recipe: dict[str, Any], recipe_text: str, hashes: dict[str, str]
) -> RunFiles:
    """What a run folder has about the weights of a step.

    Args:
        run: the run folder; None for a checkpoint that was copied elsewhere.
        scored: the folder with the figures of these weights, if there is one.
        recipe, recipe_text, hashes: of the checkpoint.

    Raises:
        ValueError: one of the files is damaged; it is named.
    """
    environment: dict[str, Any] = {"hashes": hashes}
    if run is not None and (run / filenames.ENVIRONMENT).exists():
        environment |= read_environment(run / filenames.ENVIRONMENT)
    found = {split: read_metrics(scored, split) if scored else None for split in SPLITS}
    metrics = {split: one for split, one in found.items() if one is not None and one.get("step") == step}
    return RunFiles(
        folder=scored or run or Path(), recipe=recipe, recipe_text=recipe_text, environment=environment,
        metrics=metrics, steps={}, history={}, pictures=[], localisation={}, missing=(),
    )  # fmt: skip


def model_card(files: RunFiles, facts: CardFacts) -> str:
    """The card.

    Args:
        files: of `card_files`.

    Raises:
        ValueError: a file of the run is not as distcxr writes it.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("distcxr.report"), autoescape=False, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    split = next(iter(files.metrics), None)
    with naming(files.folder):
        content = _content(files, split)
        about, result = facts.about, "".join(part.text for part in result_of(content, split)[0])
        sections = sections_to_markdown(map(_for_a_card, _sections(content, split, facts, files.recipe_text)))
        top = Section("top", "Results", (Text((blocks.Part(result if split else _NOT_MEASURED),)),))
        limits = Section("limits", "Limits", tuple(paragraph(text) for text in _limits(content, files, split, facts)))
        return environment.get_template("card.md").render(
            front_matter=yaml.safe_dump(_front_matter(content, split, about), sort_keys=False, allow_unicode=True),
            title=f"{about['model']}, chest X-rays, {len(about['findings'])} findings",
            not_clinical=facts.not_clinical, about=about, code=facts.code, check=about.get("check"),
            findings=json.dumps(about["findings"]), results=sections_to_markdown([top]), sections=sections,
            limits=sections_to_markdown([limits]), version=__version__,
        )  # fmt: skip


def _content(files: RunFiles, split: str | None) -> Content:
    """As report.json has it, without names of files."""
    unnamed = {name: {**one, "unreadable": []} for name, one in files.metrics.items()}
    values: dict[str, Any] = {
        "run": files.environment, "metrics": unnamed, "recipe": files.recipe,
        "reference_standard": reference_standard(files.recipe), "flow": flow(files.environment, files.metrics),
        "methods": methods(files.metrics[split]) if split else {},
    }  # fmt: skip
    return Content(values)


def _front_matter(content: Content, split: str | None, about: Mapping[str, Any]) -> dict[str, Any]:
    dataset = str(content.get("recipe", "data", "dataset"))
    found: dict[str, Any] = {
        "library_name": _LIBRARIES.get(about["format"], "pytorch"),
        "pipeline_tag": "image-classification",
        "tags": ["chest-x-ray", "medical-imaging", "not-for-clinical-use", "distcxr", str(about["model"])],
        "metrics": ["roc_auc"],
    }
    figures = [(kind, name, content.get("metrics", split or "", "macro", key)) for kind, name, key in _HUB_FIGURES]
    known = [
        {"type": kind, "name": name, "value": round(value, 4)} for kind, name, value in figures if value is not None
    ]
    if known:
        result = {
            "task": {"type": "image-classification", "name": "findings on chest X-rays"},
            "dataset": {"type": dataset, "name": dataset, "split": split},
            "metrics": known,
        }
        found["model-index"] = [{"name": str(about["model"]), "results": [result]}]
    return found


_HUB_FIGURES = (
    ("roc_auc", "macro AUROC", "auroc"),
    ("average_precision", "macro average precision", "auprc"),
)


def _sections(content: Content, split: str | None, facts: CardFacts, recipe_text: str) -> Iterator[Section]:
    if split is not None:
        yield findings_section(content, split)
    yield _thresholds(content, split, facts.about)
    if split is not None:
        made = (calibration_section(content, split), subgroups_section(content, split, of_findings=False))
        yield from (section for section in made if section is not None)
    yield patients_section(content)
    yield data_section(content)
    if section := methods_section(content):
        yield section
    yield _making(content, split, recipe_text)


def _thresholds(content: Content, split: str | None, about: Mapping[str, Any]) -> Section:
    """On the scale of the calibrated probabilities, and what they give."""
    names, by_rule = about["findings"], about["thresholds"]
    values = Content(about)
    if not by_rule:
        return Section("thresholds", "Thresholds", (paragraph("Not measured: the run has none for these weights."),))
    text = (
        "Chosen on validation, a threshold a finding by each rule: an image is called positive at this calibrated "
        "probability, sigmoid(logit / temperature), or above. A dash: validation could not choose one, mostly for want "
        "of positives. Temperatures were fitted on validation, too, and a dash means 1."
    )
    table = blocks.table(
        ("finding", column(map(readable, names))),
        ("temperature", values.numbers([("temperatures", name) for name in names], form=".3g")),
        *((rule_name(rule).removeprefix("Rule: "),
           values.numbers([("thresholds", rule, name) for name in names], form=".3g")) for rule in by_rule),
    )  # fmt: skip
    shown: list[Block] = [paragraph(text), table]
    paths = [("metrics", split, "findings", name, "operating_points", RULE) for name in names] if split else []
    if split and any(content.get(*path) for path in paths):
        shown.append(paragraph(f"On the {split} split, at the threshold of {rule_name(RULE)[6:]}:", kind="small"))
        rates = [(rate, [content.with_interval(*path, rate) for path in paths]) for rate in _RATES]
        notes = blocks.notes(content.get(*path, "reason") for path in paths)
        shown.append(blocks.table(("finding", column(map(readable, names))), *rates, *notes))
        shown.append(paragraph(f"In brackets: {interval_title(content, split)}.", kind="small"))
    return Section("thresholds", "Thresholds", tuple(shown))


_RATES = ("recall", "specificity", "precision")


def _making(content: Content, split: str | None, recipe_text: str) -> Section:
    run = content.get("run")
    versions = run.get("versions") or {}
    facts = {
        "trained with": trained_with(content, split) if split else None,
        "started": run.get("started"),
        "commit of distcxr": run.get("commit"),
        "device": (run.get("hardware") or {}).get("device"),
        "processes": run.get("world_size"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    known = {name: value for name, value in facts.items() if value}
    rows = [blocks.table(("what", column(known)), ("", column(known.values())))] if known else []
    recipe = yaml.safe_dump(_without_paths(yaml.safe_load(recipe_text)), sort_keys=False, allow_unicode=True, width=110)
    return Section("recipe", "Recipe", (*rows, Fold("The whole recipe, without paths", (Code(recipe),))))


def _without_paths(values: Any) -> Any:
    """Paths of the machine that trained become `PATH`."""
    if isinstance(values, dict):
        return {key: "PATH" if key == "output" and value else _without_paths(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_without_paths(value) for value in values]
    is_path = isinstance(values, str) and (values.startswith(_PATHS) or values[1:3] in (":\\", ":/"))
    return "PATH" if is_path else values


def _limits(content: Content, files: RunFiles, split: str | None, facts: CardFacts) -> Iterator[str]:
    yield facts.not_clinical
    yield (
        "Probabilities and thresholds hold as far as images are like those of validation: the same kind of machine, "
        "view, patients and share of ill ones. Elsewhere choose thresholds and temperatures anew. A low probability "
        "does not exclude a finding, and what is not among the findings is not looked for."
    )
    if begun := facts.about.get("begun_with"):
        yield f"Training began with {begun}."
    yield f"What counts as the truth: {content.get('reference_standard')}"
    if split is not None:
        bad = sum(len(one.get("unreadable") or []) for one in files.metrics.values())
        named = [text for text in warnings_of(files, split) if "could not be read and were left out" not in text]
        yield from named
        if bad:
            yield f"{bad:,} image files could not be read and were left out of the figures."
    if not facts.about["thresholds"]:
        yield "Probabilities are not calibrated, and there are no thresholds: validation has none for these weights."


def _for_a_card(section: Section) -> Section:
    """Without charts and pictures, which are in the run's report, and what is written about them."""
    kept: list[Block] = []
    for block in section.blocks:
        if isinstance(block, Charts | Pictures):
            if kept and isinstance(kept[-1], Text):
                kept.pop()
        else:
            kept.append(block)
    return replace(section, blocks=tuple(kept))
