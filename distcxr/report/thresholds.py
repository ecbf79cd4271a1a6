"""Sections about probabilities and calls: calibration, decision curves, and what the thresholds give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from distcxr.report import blocks
from distcxr.report.blocks import (
    Block,
    Cell,
    Chart,
    Charts,
    Column,
    Content,
    Fold,
    KeyPath,
    Part,
    Section,
    column,
    paragraph,
    readable,
)  # fmt: skip
from distcxr.report.charts import Dot, Line, nice_end, over_time, panel
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
_RECALIBRATION = {
    "calibration_slope": "slope",
    "calibration_intercept": "intercept",
    "observed_expected": "observed / expected",
    "brier_skill": "Brier skill",
}
_SLOPES = (
    "Slope and intercept are those of logistic recalibration on this split: 1 and 0 are right. A slope below 1 means "
    "probabilities that are too extreme, an intercept below 0 (with the slope held at 1) ones that are too high; "
    "observed / expected compares the numbers of positives. Brier skill is 1 less the Brier score's share of what the "
    "prevalence given to everybody would score: at 0 or below, the probabilities are no better than the prevalence. "
    "Their intervals: cluster-robust by patient; that of Brier skill is corrected for skewness."
)
_TOO_NARROW = (
    "Simulated for a recall of 0.9 and 100 positive patients to test on, they would have to be 2.5 times as wide with "
    "20 positive patients to choose on, 1.8 times with 50 and 1.2 times with 200."
)
_WITH_CHOICE = (
    "Below them, from [ to ], it is: what the rule gives when its threshold is chosen on other patients, by resamples "
    "of those that it was chosen on. Simulated for a recall of 0.9 and 100 positive patients to test on, these hold "
    "the mean recall of the rule in 93 to 97 % of cases from 10 positive patients to choose on; with fewer there are "
    "none."
)
_DECISION_ENDS = (0.05, 0.1, 0.2, 0.5)
"""Where the axis of a decision curve may end: four times the prevalence, or the next of these."""

_RATES = ("recall", "precision", "specificity", "npv", "accuracy", "f1")
_RATE_NAMES = {"npv": "NPV", "f1": "F1"}


def calibration_section(content: Content, split: str) -> Section | None:
    """Brier score, ECE, recalibration, temperature and reliability curves; None without them."""
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
        f"{bins} bins of equal width) are better the smaller. Of a rare finding the ECE means little: nearly all "
        "images are in its lowest bin, and a model that gives the prevalence to everybody has an ECE of 0."
    )
    of_temperature = (
        f"Temperatures were fitted on {_chosen_on(content, split)}. One that differs from 1 does not say why: "
        "probabilities that are too extreme and a shift of all of them, as a weighted loss makes it, both raise it."
    )
    shown: list[Block] = [
        paragraph(text, kind="small"),
        paragraph(of_temperature, kind="small"),
        table,
        *_recalibration(content, paths),
    ]
    if charts:
        orange = " Orange: the same with logits divided by the temperature." if has_scaled else ""
        note = (
            "On the dotted line, probabilities are right. The larger a dot, the more images; bins with fewer than "
            f"{FEWEST_IN_A_BIN} are not drawn.{orange}"
        )
        shown += [paragraph(note, kind="small"), Charts(tuple(charts))]
    return Section("calibration", "Calibration", tuple(shown))


def _recalibration(content: Content, paths: Sequence[KeyPath]) -> list[Block]:
    """Nothing for a run that an older version scored."""
    if not any("calibration_slope" in content.get(*path) for path in paths):
        return []
    table = blocks.table(
        ("finding", column(readable(str(path[-1])) for path in paths)),
        *((title, [content.with_interval(*path, key) for path in paths]) for key, title in _RECALIBRATION.items()),
        sortable=True,
    )
    return [paragraph(_SLOPES, kind="small"), table]


def decision_section(content: Content, split: str) -> Section | None:
    """Net benefit by threshold probability; None for a run that an older version scored."""
    base = ("metrics", split, "findings")
    charts = [chart for name in content.get(*base) if (chart := _decision(content, (*base, name), name))]
    if not charts:
        return None
    note = (
        "Who acts at a probability of t takes a missed case for as bad as (1 - t) / t false alarms. Net benefit is the "
        "share of true positives less that of false positives at these odds: what acting on the model gains in true "
        "positives an image, over acting on nobody (0). Orange: acting on everybody. A model is of use where it is "
        "above both. Of the probabilities as they are: where they are too high or low, net benefit suffers. Dotted: "
        f"the {interval_title(content, split)}."
    )
    return Section("decisions", "Decision curves", (paragraph(note, kind="small"), Charts(tuple(charts), wide=True)))


def _decision(content: Content, path: KeyPath, name: str) -> Chart | None:
    found, rate = content.get(*path, "decision_curve"), content.get(*path, "num_positive")
    if not found or not rate:
        return None
    rate /= content.get(*path, "num")
    last = next((end for end in _DECISION_ENDS if end >= 4 * rate), _DECISION_ENDS[-1])
    within = [place for place, at in enumerate(found["threshold"]) if at <= last]

    def points(key: str) -> list[tuple[float, float]]:
        """Down to a little below 0: what is worse than acting on nobody needs no scale."""
        at = [(100 * found["threshold"][place], found[key][place]) for place in within]
        return [(x, y) for x, y in at if y is not None and y >= -rate / 4]

    lines = [Line(points("treat_all"), "curve thin other", "everybody"), Line(points("net_benefit"), "curve", "model")]
    lines += [Line(points(f"net_benefit_{end}"), "chance") for end in ("low", "high")]
    lines.append(Line([(100 * found["threshold"][place], 0.0) for place in within], "mark"))
    title = f"Decision curve of {readable(name)}"
    return Chart(readable(name), (), over_time(lines, "threshold probability, %", title=title))


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
    counted = [(*base, name, "operating_points_chosen_on") for name in names]
    chosen: list[Column] = []
    if any(content.get(*path) for path in counted):
        chosen.append(("chosen on (positive patients)", content.numbers(counted, "num_positive_patients", form=",")))
    for number, rule in enumerate(rules):
        paths = [(*base, name, "operating_points", rule) for name in names]
        table = blocks.table(
            ("finding", column(map(readable, names))),
            ("threshold", content.numbers(paths, "threshold_prob", form=".3g")),
            *chosen,
            *((_RATE_NAMES.get(rate, rate), [_rate(content, path, rate) for path in paths]) for rate in _RATES),
            *((key.upper(), content.numbers(paths, key, form=",")) for key in ("tp", "fp", "fn", "tn")),
        )
        folds.append(Fold(rule_name(rule), (table,), is_open=number == 0))
    has_choice = any(content.get(*base, name, "operating_points", rules[0], "recall_choice_low") for name in names)
    note = (
        f"Chosen on {_chosen_on(content, split)} and applied as they are: an image is called positive at this "
        "probability or above. Intervals hold the threshold: other images to choose it on would have given another, "
        f"and that is not in them. {_WITH_CHOICE if has_choice else _TOO_NARROW}"
    )
    return Section("thresholds", "Thresholds", (paragraph(note, kind="small"), *folds))


def _rate(content: Content, path: KeyPath, rate: str) -> Cell:
    """A rate with its interval, and below it the one that includes the threshold's choice."""
    cell = content.with_interval(*path, rate)
    low, high = (content.figure(*path, f"{rate}_choice_{end}", form=".2f") for end in ("low", "high"))
    if low.at is None or not cell.aside:
        return cell
    return replace(cell, aside=(*cell.aside, Part(";\n["), low, Part(" to "), high, Part("]")))


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
