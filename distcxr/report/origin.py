"""Sections about where the figures come from and what they compare with: data, recipe, published work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distcxr.report import blocks
from distcxr.report.blocks import Block, Code, Content, Fold, KeyPath, Section, column, paragraph
from distcxr.report.charts import interval_bar

OFFICIAL_TEST_IMAGES = 25_596
OFFICIAL_TEST_LIST = "38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc"
OFFICIAL_LABELS = "dc1d2df67fdc1c5a7601d48699cda2b13dc2c4841488b4183dcf04884dbaca11"
"""sha256 of NIH's test_list.txt and of its Data_Entry_2017_v2020.csv."""

PUBLISHED = (
    ("ResNet-50 (Wang 2017)", 0.745, None, None),
    ("ConvNeXt-S, 384 px (grisha1998, 2026)", 0.8015, None, None),
    ("ResNet-38 + metadata (Baltruschat 2019)", 0.806, None, None),
    ("Swin-B, 384 px (grisha1998, 2026)", 0.8069, None, None),
    ("DenseNet-121, 1024 px (Guendel 2018)", 0.807, None, None),
    ("DenseNet-121, 320 px (Yzaza 2026)", 0.8106, 0.8036, 0.8167),
    ("Swin-T, 320 px (Yzaza 2026)", 0.8184, 0.8127, 0.8236),
    ("DenseNet-121, 224 px (Goel 2024)", 0.8202, None, None),
    ("ensemble of three (grisha1998, 2026)", 0.8222, None, None),
    ("ViT-B pretrained on X-rays, MAE (Xiao 2023)", 0.830, None, None),
    ("EVA-X, which picks its epoch on the test list", 0.835, None, None),
)
"""Mean AUROC of the 14 findings on NIH's official test list."""

_UNSMOOTHED = ("label_smoothing", 0.0)

HARDER = (
    "The official test list is harder than validation: every honest model scores .015 to .035 lower there. That is the "
    "list, not a bug."
)
NOT_COMPARABLE = (
    "Not comparable with anything on the official list: figures from other splits, which are easier (CheXNet .841, "
    "arnoweng .847, zoogzog .851, jrzech .838), and ChestMNIST, which is made of 28 px images and has lists of its own."
)


def why_not_comparable(content: Content, split: str) -> list[str]:
    """What keeps this result from being held against figures on the official test list; empty if nothing does."""
    report, hashes = content.get("metrics", split), content.get("run", "hashes") or {}
    reasons = []
    if split != "test":
        reasons.append(f"it is about the {split} split")
    elif hashes.get("test_list.txt") != OFFICIAL_TEST_LIST:
        reasons.append("its test list is not NIH's")
    elif report["num_samples"] != OFFICIAL_TEST_IMAGES:
        reasons.append(f"{report['num_samples']:,} images were scored, the list has {OFFICIAL_TEST_IMAGES:,}")
    if hashes.get("labels") != OFFICIAL_LABELS:
        reasons.append("its labels are not NIH's file of 2020")
    averaged = report["macro"].get("findings") or []
    if len(averaged) != 14 or "No Finding" in averaged:
        reasons.append(f"its average is of {len(averaged)} findings, not of the 14")
    return reasons


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
    lines: list[tuple[str, KeyPath]] = [
        (one[0], ("compare", "published", number)) for number, one in enumerate(PUBLISHED)
    ]
    if not reasons and content.get(*mine, "auroc") is not None:
        lines.append(("this run", mine))
    lines.sort(key=lambda line: content.get(*line[1], "auroc"))
    paths = [path for _, path in lines]
    table = blocks.table(
        ("official test list", column(name for name, _ in lines)),
        ("macro AUROC", content.numbers(paths, "auroc")),
        ("95 % interval", content.intervals(paths, "auroc")),
        ("0.7 to 0.85", [interval_bar(content, path, (0.7, 0.85), "strong" if path == mine else "") for path in paths]),
        strong=[number for number, path in enumerate(paths) if path == mine],
    )
    return Section(
        "comparison", "Comparison", (paragraph(verdict), paragraph(HARDER), table, paragraph(NOT_COMPARABLE))
    )


def data_section(content: Content) -> Section:
    """How many images and patients each split has, what was scored, and what labels and lists hash to."""
    shown: list[Block] = []
    paths: list[KeyPath]
    if splits := content.get("run", "splits"):
        paths = [("run", "splits", name) for name in splits]
        sizes = [(key, content.numbers(paths, f"num_{key}", form=",")) for key in ("images", "patients")]
        shown.append(blocks.table(("split", column(splits)), *sizes))
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
        known = {OFFICIAL_TEST_LIST: " (NIH's test_list.txt)", OFFICIAL_LABELS: " (NIH's Data_Entry_2017_v2020.csv)"}
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
        "trained with": trained,
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
    loss, sampling = part.get("loss") or {}, part.get("sampling") or {}
    changed = {key: value for key, value in loss.items() if key != "name" and value not in (None, "none")}
    keys = [f"{key.replace('_', ' ')} {value}" for key, value in changed.items() if (key, value) != _UNSMOOTHED]
    named = f"{loss.get('name')} ({', '.join(keys)})" if keys else str(loss.get("name"))
    if sampling.get("cap_per_label"):
        named += f", at most {sampling['cap_per_label']:,} images per label"
    if sampling.get("balance", "none") != "none":
        named += f", images drawn by {sampling['balance']}"
    return named
