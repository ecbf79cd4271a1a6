"""Sections about probabilities and calls: calibration, and what the thresholds give."""

from __future__ import annotations

from distcxr.report import blocks
from distcxr.report.blocks import Block, Chart, Charts, Content, Fold, Part, Section, column, paragraph, readable
from distcxr.report.charts import Dot, Line, nice_end, panel
from distcxr.report.results import interval_title

FEWEST_IN_A_BIN = 10
"""A reliability curve of bins with fewer images would be noise."""

_RULES = {
    "youden": "Youden: the largest recall + specificity",
    "max_f1": "the largest F1",
    "recall": "recall of at least {}",
    "specificity": "specificity of at least {}",
    "probability": "a probability of {}, whatever validation holds",
}
_RATES = ("recall", "precision", "specificity", "npv", "accuracy", "f1")
_RATE_NAMES = {"npv": "NPV", "f1": "F1"}


def calibration_section(content: Content, split: str) -> Section | None:
    """Brier score, ECE, temperature and reliability curves; None without them."""
    base = ("metrics", split, "findings")
    names = [name for name in content.get(*base) if content.get(*base, name, "brier") is not None]
    if not names:
        return None
    has_scaled = any(content.get(*base, name, "calibrated") for name in names)
    interval = interval_title(content, split)
    paths = [(*base, name) for name in names]
    scaled = [
        (title, content.numbers(paths, "calibrated", key, form=".4f"))
        for title, key in (("Brier, scaled", "brier"), ("ECE, scaled", "ece"))
    ]
    table = blocks.table(
        ("finding", column(map(readable, names))),
        ("Brier score", content.numbers(paths, "brier", form=".4f")),
        (interval, content.intervals(paths, "brier", form=".4f")),
        ("ECE", content.numbers(paths, "ece", form=".4f")),
        (interval, content.intervals(paths, "ece", form=".4f")),
        ("temperature", content.numbers(paths, "temperature", form=".2f")),
        *(scaled if has_scaled else []),
        sortable=True,
    )
    charts = [chart for name in names if (chart := _reliability(content, split, name))]
    bins = content.get(*base, names[0], "ece_bins") or 15
    text = (
        "Does a probability of 0.3 come true three times in ten? Brier score and expected calibration error (ECE, over "
        f"{bins} bins of equal width) are better the smaller. A temperature above 1 means that the model is too sure "
        f"of itself; temperatures were fitted on {_chosen_on(content, split)}."
    )
    shown: list[Block] = [paragraph(text, kind="small"), table]
    if charts:
        orange = " Orange: the same with logits divided by the temperature." if has_scaled else ""
        note = (
            "On the dotted line, probabilities are right. The larger a dot, the more images; bins with fewer than "
            f"{FEWEST_IN_A_BIN} are not drawn.{orange}"
        )
        shown += [paragraph(note, kind="small"), Charts(tuple(charts))]
    return Section("calibration", "Calibration", tuple(shown))


def _reliability(content: Content, split: str, name: str) -> Chart | None:
    path = ("metrics", split, "findings", name)
    plain = content.get(*path, "reliability")
    if not plain or not plain.get("count"):
        return None
    scaled = content.get(*path, "calibrated", "reliability") or {"mean_prob": [], "frequency": [], "count": []}
    points, others = (
        [
            (x, y, count)
            for x, y, count in zip(found["mean_prob"], found["frequency"], found["count"], strict=True)
            if count >= FEWEST_IN_A_BIN
        ]
        for found in (plain, scaled)
    )
    end = nice_end(max((max(x, y) for x, y, _ in [*points, *others]), default=1.0))
    whole = max(plain["count"])
    dots = [Dot(x, y, 1.6 + 4.4 * (count / whole) ** 0.5, "dot bubble") for x, y, count in points]
    lines = [Line([(0, 0), (end, end)], "chance"), Line([(x, y) for x, y, _ in others], "curve thin other")]
    lines.append(Line([(x, y) for x, y, _ in points], "curve thin"))
    title = f"Reliability curve of {readable(name)}"
    drawn = panel(lines, dots, "probability", "frequency", end=end, title=title)
    return Chart(readable(name), (Part("ECE "), content.figure(*path, "ece", form=".4f")), drawn)


def operating_section(content: Content, split: str) -> Section | None:
    """What each rule's thresholds give; None where none were chosen."""
    base = ("metrics", split, "findings")
    names = list(content.get(*base))
    rules = list(dict.fromkeys(rule for name in names for rule in content.get(*base, name, "operating_points") or {}))
    if not rules:
        return None
    folds = []
    for number, rule in enumerate(rules):
        paths = [(*base, name, "operating_points", rule) for name in names]
        table = blocks.table(
            ("finding", column(map(readable, names))),
            ("threshold", content.numbers(paths, "threshold_prob", form=".3g")),
            *((_RATE_NAMES.get(rate, rate), [content.with_interval(*path, rate) for path in paths]) for rate in _RATES),
            *((key.upper(), content.numbers(paths, key, form=",")) for key in ("tp", "fp", "fn", "tn")),
            *blocks.notes(content.get(*path, "reason") for path in paths),
        )
        folds.append(Fold(rule_name(rule), (table,), is_open=number == 0))
    note = (
        f"Chosen on {_chosen_on(content, split)} and applied as they are: an image is called positive at this "
        "probability or above. Intervals hold the threshold."
    )
    return Section("thresholds", "Thresholds", (paragraph(note, kind="small"), *folds))


def rule_name(rule: str) -> str:
    """`recall_90` in words."""
    kind, _, percent = rule.rpartition("_")
    if percent.isdigit() and kind in _RULES:
        return f"Rule: {_RULES[kind].format(int(percent) / 10 ** len(percent))}"
    return f"Rule: {_RULES.get(rule, readable(rule))}"


def _chosen_on(content: Content, split: str) -> str:
    source = content.get("metrics", split, "operating_points_from")
    if source is None:
        return "nothing: no thresholds were chosen"
    named = {"val": "validation", "this split (optimistic)": "this very split, which flatters them"}
    return named.get(source, str(source))
