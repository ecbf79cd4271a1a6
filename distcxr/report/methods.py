"""How every figure of a report was made, in words; the same words are in report.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distcxr.report import blocks
from distcxr.report.blocks import Content, Section, column, readable

FIXED_MODEL = (
    "Intervals are about other patients of the same kind, scored by this one trained model: they hold its weights "
    "fixed. Another seed or another training would give other weights, and that spread is not in them; a sweep over "
    "seeds (distcxr sweep RECIPE seed=0,1,2) measures it."
)
_NAMES = {"auroc": "AUROC", "auprc": "average precision", "brier": "Brier score", "ece": "ECE",
          "macro": "macro averages", "rates": "recall, specificity and other rates"}  # fmt: skip


def methods(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Names of figures and tests to how they were made; `metrics` is the content of `metrics_<split>.json`."""
    return {**dict(_of_scores(metrics)), **dict(_of_intervals(metrics))}


def localisation_methods(localisation: Mapping[str, Any] | None) -> dict[str, str]:
    """The same for the content of `localisation_<split>.json`; none without it."""
    return dict(_of_localisation(localisation or {}))


def _of_scores(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "AUROC", "area under the empirical ROC curve (Mann-Whitney); ties count one half; images, not patients"
    yield "average precision", "precision at each distinct threshold, weighted by the recall it adds; not interpolated"
    num = len((metrics.get("macro") or {}).get("findings") or [])
    yield "macro average", f"unweighted mean over {num} findings, those named in eval.macro_findings that are defined"
    findings = metrics.get("findings") or {}
    scored = next((one for one in findings.values() if one.get("brier") is not None), None)
    if scored is not None:
        yield "Brier score", "mean squared difference of probability and label"
        bins = scored.get("ece_bins") or 15
        yield "ECE", f"mean absolute difference of probability and frequency over {bins} bins of equal width"
    if any(one.get("temperature") is not None for one in findings.values()):
        at = metrics.get("operating_points_from") or "validation"
        yield "temperature", f"one factor a finding, fitted to the {at} split by maximum likelihood"
    if metrics.get("operating_points_from"):
        yield "thresholds", f"chosen on the {metrics['operating_points_from']} split, applied unchanged"
    if metrics.get("checkpoint_from"):
        yield "checkpoint", f"chosen on the {metrics['checkpoint_from']} split"


def _of_intervals(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the file states; for older files, which name resamples alone, intervals are percentiles of those."""
    found = metrics.get("intervals")
    if not found:
        yield "intervals", "none: this run was scored without"
        return
    stated = {key.removesuffix("_method"): method for key, method in found.items() if key.endswith("_method")}
    if stated:
        for name, method in stated.items():
            yield f"interval: {_NAMES.get(name, readable(name))}", str(method)
    else:
        level, unit = 100 * found.get("level", 0.95), found.get("unit", "patient")
        resamples = f"{found.get('replicates', 0):,} {unit} resamples (bootstrap, seed {found.get('seed', 0)})"
        yield "intervals", f"{level:g} %, percentile of {resamples}"
    if any(one.get("delong_low") is not None for one in (metrics.get("findings") or {}).values()):
        yield (
            "DeLong's interval",
            "beside the others in the JSON alone: of images as if each were a patient of its own, so too narrow",
        )
    for name, value in metrics.items():
        if name != "intervals" and isinstance(value, dict) and value.get("method"):
            yield readable(name), str(value["method"])
        elif name.endswith("_intervals") and isinstance(value, str):
            yield readable(name), value


def _of_localisation(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if not found:
        return
    threshold, tolerance = found.get("iou_threshold", 0.5), found.get("tolerance_px", 0)
    which = "Grad-CAM" if found.get("map") == "plain" else "Grad-CAM less its mean"
    yield "heat map", which
    yield "pointing", f"share of images with the map's maximum in a box, or within {tolerance:g} px of one"
    yield "IoU", f"of the boxes and the part of the map from {threshold:g} of its maximum on; mean over images"
    if made := found.get("intervals"):
        yield "interval: pointing, IoU", f"{made.get('method')}; none below {made.get('min_patients')} patients"


def methods_section(content: Content) -> Section | None:
    """The table of methods; None where nothing was scored."""
    found: dict[str, str] = content.get("methods") or {}
    if not found:
        return None
    table = blocks.table(("figure", column(found)), ("how it is made", column(found.values())))
    return Section("methods", "Methods", (table,))
