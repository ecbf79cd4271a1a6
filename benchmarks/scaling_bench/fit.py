"""Fits the numbers of the model to measured rows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scaling_bench.model import Cluster, Line, Link, Model

Row = dict[str, Any]

ASSUMED_OVERLAP = (
    0.9  # where a single device was measured; NCCL's kernels take a part of the GPU from the backward pass
)


def fit(rows: Sequence[Row], inside: Link | None = None, *, most_ranks: int | None = None) -> tuple[Model, Link]:
    """The model of the rows, and the link inside a node that fits their all-reduces.

    Args:
        inside: in place of the fitted link.
        most_ranks: rows of larger worlds are left out: what they show can then be held against the prediction.

    Raises:
        ValueError: there is no row of one rank, or neither a link nor all-reduces to fit one to.
    """
    used = [row for row in rows if most_ranks is None or row["ranks"] <= most_ranks]
    alone = [row for row in used if row["kind"] == "step" and row["ranks"] == 1]
    if not alone:
        raise ValueError("no row of 1 rank: measure with --ranks 1, too")
    whole = max(alone, key=lambda row: row["batch"])
    weak = [row for row in used if row["kind"] == "step" and row["ranks"] > 1 and row["mode"] == "weak"]
    on_one_node = [row for row in weak if row["nodes"] == 1]
    devices, assumed = whole["devices"], []
    if inside is None:
        inside = fit_link([row for row in used if row["kind"] == "all_reduce" and row["nodes"] == 1], devices)
        if inside is None:
            raise ValueError(
                "no all-reduce was measured: give the speed between GPUs of a node with --node-latency-us and "
                "--node-bandwidth-gbs, or measure with --ranks 1 2"
            )
    drags = [row["alone_s"] / whole["alone_s"] / max(1.0, row["ranks"] / devices) for row in on_one_node]
    if not on_one_node:
        assumed = ["overlap", "drag"]
    model = Model(
        batch=whole["batch"],
        data_s=max([whole, *on_one_node], key=lambda row: row["ranks"])["data_s"],
        forward=fit_line([(row["batch"], row["forward_s"]) for row in alone]),
        backward=fit_line([(row["batch"], row["backward_s"]) for row in alone]),
        update_s=statistics.median(row["update_s"] for row in alone),
        gradients=tuple((share, num_bytes) for share, num_bytes in whole["gradients"]),
        buffer_bytes=whole["buffer_bytes"],
        deviation=whole["deviation_s"] / whole["alone_s"],
        overlap=ASSUMED_OVERLAP,
        drag=max(1.0, statistics.median(drags)) if drags else 1.0,
        devices=devices,
        assumed=tuple(assumed),
    )
    if on_one_node:
        model = _with_overlap(model, inside, on_one_node)
    return model, inside


def _with_overlap(model: Model, inside: Link, rows: Sequence[Row]) -> Model:
    """Choose the overlap that explains what the exchange adds to a step, beside the same step without it."""
    shares = []
    for row in rows:
        cluster = Cluster(row["ranks"], inside, inside)
        step = model.step(row["ranks"], cluster, bucket_mb=row["bucket_mb"], compressed=row["compressed"])
        assert step is not None
        added_s = row["step_s"] - row["alone_s"] - step.before_s - step.straggler_s
        if step.exchange_s > step.rest_s:
            shares.append((step.exchange_s - added_s) / (step.exchange_s - step.rest_s))
    return replace(model, overlap=min(1.0, max(0.0, statistics.median(shares))) if shares else 1.0)


def fit_link(rows: Sequence[Row], devices: int) -> Link | None:
    """The latency and bandwidth that come nearest to measured all-reduces inside a node, by relative error."""
    if not rows:
        return None
    columns, seconds = [], []
    for row in rows:
        ranks = row["ranks"]
        columns.append((2 * (ranks - 1), 2 * (ranks - 1) / ranks * row["bytes"]))
        seconds.append(row["seconds"] / max(1.0, ranks / devices))
    latency_s, s_per_byte = _least_squares(columns, seconds)
    return Link(latency_s, 1 / max(s_per_byte, 1e-15))


def fit_between(rows: Sequence[Row], inside: Link) -> Link | None:
    """The link between nodes from all-reduces over several of them."""
    if not rows:
        return None
    columns, seconds = [], []
    for row in rows:
        ranks, nodes = row["ranks"], row["nodes"]
        turns = 2 * (ranks - 1) / ranks
        columns.append((turns * nodes, turns * row["bytes"]))
        seconds.append(max(row["seconds"] - turns * (ranks - nodes) * inside.latency_s, 0.1 * row["seconds"]))
    latency_s, s_per_byte = _least_squares(columns, seconds)
    return Link(latency_s, 1 / max(s_per_byte, 1e-15))


def fit_line(points: Sequence[tuple[int, float]]) -> Line:
    """Floor and slope through (batch, seconds), by relative error; from one point the floor is 0."""
    if len({batch for batch, _ in points}) == 1:
        return Line(0.0, statistics.median(seconds / batch for batch, seconds in points))
    return Line(*_least_squares([(1.0, float(batch)) for batch, _ in points], [seconds for _, seconds in points]))


def _least_squares(columns: Sequence[tuple[float, float]], seconds: Sequence[float]) -> tuple[float, float]:
    """Two weights, none below 0, with the least squared relative error."""
    scaled = np.array(columns, dtype=float) / np.array(seconds, dtype=float)[:, None]
    ones = np.ones(len(seconds))
    found = np.linalg.lstsq(scaled, ones, rcond=None)[0]
    if (found < 0).any():
        alone = [float(column @ ones / (column @ column)) for column in scaled.T]
        errors = [float(((column * weight - 1) ** 2).sum()) for column, weight in zip(scaled.T, alone, strict=True)]
        found = np.array([alone[0], 0.0] if errors[0] < errors[1] else [0.0, alone[1]])
    return float(found[0]), float(found[1])
