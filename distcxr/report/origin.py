"""Sections about where the figures come from and what they compare with: data, recipe, published work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distcxr.report import blocks, leaderboard
from distcxr.report.blocks import Block, Code, Content, Fold, KeyPath, Section, column, paragraph
from distcxr.report.charts import interval_bar
from distcxr.report.leaderboard import PUBLISHED, Row, why_not_official

_UNSMOOTHED = ("label_smoothing", 0.0)

SELECTED_ON_TEST = (
    "Figures of models that were selected on the test list are upper bounds: the epoch that is best there looks better "
    "than it will on new images."
)
NOT_COMPARABLE = (
    "Not comparable with anything on the official list: figures of other test images (CheXNet .841, arnoweng .847, "
    "zoogzog .851, jrzech .838), and ChestMNIST, which is made of 28 px images and has lists of its own."
)


def why_not_comparable(content: Content, split: str) -> list[str]:
    """What keeps this result from being held against figures on the official test list; empty if nothing does."""
    report, hashes = content.get("metrics", split), content.get("run", "hashes") or {}
    averaged = report["macro"].get("findings") or []
    is_test = split == "test"
    test_list = hashes.get("test_list.txt") if is_test else None
    reasons = why_not_official(test_list, hashes.get("labels"), report["num_samples"], averaged)
    return reasons if is_test else [f"it is about the {split} split", *reasons[1:]]  # the first is about the list


def comparison_section(content: Content, split: str) -> Section:
    """Which published figures this one may be held against."""
    reasons = why_not_comparable(content, split)
    mine = ("metrics", split, "macro")
    if reasons:
        verdict = f"This figure may not be compared with the published ones below: {', and '.join(reasons)}."
    else:
        verdict = (
            "This figure may be compared with the published ones below: the same test list, labels that NIH published "
            "in 2020, and the mean AUROC of the same 14 findings. Other works may have used the label file of 2017."
        )
    lines: list[tuple[Row | None, KeyPath]] = [
        (row, ("compare", "published", number)) for number, row in enumerate(PUBLISHED)
    ]
    if not reasons and content.get(*mine, "auroc") is not None:
        lines.append((None, mine))
    lines.sort(key=lambda line: content.get(*line[1], "auroc"))
    forms = [f".{row.digits if row else 4}f" for row, _ in lines]  # published figures keep the digits they came with
    paths = [path for _, path in lines]
    table = blocks.table(
        ("official test list", column(f"{row.model} ({row.source})" if row else "this run" for row, _ in lines)),
        ("pixels", column(row.pixels if row else "" for row, _ in lines)),
        ("selected on", column(row.selected_on if row else "" for row, _ in lines)),
        ("macro AUROC", [content.number(*path, "auroc", form=form) for path, form in zip(paths, forms, strict=True)]),
        (
            "95 % interval",
            [
                content.interval(*path, "auroc", form=form, why="none was published" if row else None)
                for path, form, (row, _) in zip(paths, forms, lines, strict=True)
            ],
        ),
        ("0.7 to 0.85", [interval_bar(content, path, (0.7, 0.85), "strong" if path == mine else "") for path in paths]),
        strong=[number for number, path in enumerate(paths) if path == mine],
    )
    after = (paragraph(SELECTED_ON_TEST), paragraph(NOT_COMPARABLE))
    return Section("comparison", "Comparison", (paragraph(verdict), table, *after))


def data_section(content: Content) -> Section:
    """What was scored, and what labels and lists hash to."""
    shown: list[Block] = []
    paths: list[KeyPath]
    if metrics := content.get("metrics"):
        paths = [("metrics", split) for split in metrics]
        table = blocks.table(
            ("scored split", column(metrics)),
            ("images", content.numbers(paths, "num_samples", form=",")),
            ("patients", content.numbers(paths, "num_patients", form=",")),
            ("weights of step", content.numbers(paths, "step", form=",")),
            ("loss", content.numbers(paths, "loss", form=".4f")),
            ("macro AUROC", content.numbers(paths, "macro", "auroc")),
            ("95 % interval", content.intervals(paths, "macro", "auroc")),
        )
        shown.append(table)
    for split in metrics:
        if members := content.get("metrics", split, "members"):
            paths = [("metrics", split, "members", number) for number in range(len(members))]
            table = blocks.table(
                (f"member of the ensemble, on {split}", column(f"{m['model']}, {m['checkpoint']}" for m in members)),
                ("step", content.numbers(paths, "step", form=",")),
                ("macro AUROC alone", content.numbers(paths, "auroc")),
            )
            shown.append(table)
    if hashes := content.get("run", "hashes"):
        known = {
            leaderboard.TEST_LIST: " (NIH's test_list.txt)",
            leaderboard.LABELS: " (NIH's Data_Entry_2017_v2020.csv)",
        }
        names = [f"{name}{known.get(digest, '')}" for name, digest in hashes.items()]
        shown.append(paragraph("A figure without the hashes of its labels and lists can't be compared:", kind="small"))
        shown.append(blocks.table(("labels or list", column(names)), ("sha256", column(hashes.values()))))
    return Section("data", "Data", tuple(shown))


def making_section(content: Content, trained: str, recipe_text: str, missing: Sequence[str]) -> Section:
    """Loss and sampling (`trained_with`), commit, versions, hardware, command and the whole recipe."""
    run = content.get("run")
    hardware, versions = run.get("hardware") or {}, run.get("versions") or {}
    device = hardware.get("device")
    gpus = hardware.get("num_gpus")
    facts = {
        "recipe": run.get("recipe"),
        "loss and sampling": trained,
        "started": run.get("started"),
        "commit of distcxr": run.get("commit"),
        "command": " ".join(map(str, run.get("command") or [])),
        "hardware": f"{device}, {gpus} GPUs, {hardware.get('cores')} cores" if device else None,
        "processes": f"{run['world_size']} ({run.get('backend')})" if run.get("world_size") else None,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "identity of the recipe": run.get("identity"),
        "earlier launches": len(run["earlier"]) if run.get("earlier") else None,
    }
    known = {name: value for name, value in facts.items() if value}
    shown: list[Block] = [blocks.table(("what", column(known)), ("", column(known.values())))] if known else []
    if missing:
        shown.append(paragraph(f"Not in the run folder, so not on this page: {', '.join(missing)}.", kind="small"))
    if recipe_text:
        shown.append(Fold("The whole recipe", (Code(recipe_text),)))
    return Section("making", "Origin", tuple(shown))


def trained_with(content: Content, split: str) -> str:
    """Loss and sampling in words, of every stage where they differ; empty where the file does not have them."""
    found = content.get("metrics", split, "trained_with")
    parts = found.get("stages", [found]) if found else []
    named = [_loss_and_sampling(part) for part in parts]
    if len(set(named)) > 1:
        named = [f"stage {number}: {words}" for number, words in enumerate(named, start=1)]
    return "; ".join(dict.fromkeys(named))


def _loss_and_sampling(part: dict[str, Any]) -> str:
    sampling = part.get("sampling") or {}
    named = _loss_in_words(part.get("loss") or {})
    if sampling.get("cap_per_label"):
        named += f", at most {sampling['cap_per_label']:,} images per label"
    if sampling.get("balance", "none") != "none":
        named += f", images drawn by {sampling['balance']}"
    return named


def _loss_in_words(loss: dict[str, Any]) -> str:
    if parts := loss.get("parts"):
        return " + ".join(f"{part.get('share')} x {_loss_in_words(part)}" for part in parts)
    shown = {key: value for key, value in loss.items() if key not in ("name", "share") and value not in (None, "none")}
    keys = [f"{key.replace('_', ' ')} {value}" for key, value in shown.items() if (key, value) != _UNSMOOTHED]
    return f"{loss.get('name')} ({', '.join(keys)})" if keys else str(loss.get("name"))
