"""Tables in markdown: measured steps, the check of the model, and its predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from scaling_bench.fit import fit
from scaling_bench.model import DEFAULT_BUCKET_MB, Cluster, Line, Link, Model

Row = dict[str, Any]
BUCKETS_MB = (1, 5, 10, DEFAULT_BUCKET_MB, 50, 100)
WORTH_IT = 1.01  # a setting that gains less than this is not
BUSY = 1.0  # of cores that others use, from which on it is noted
FITTED_RANKS = 2  # the model that is held against larger worlds

PROGRESS = "scaling:"
"""Begins the lines of a world that are shown while it is measured."""


def facts(rows: Sequence[Row]) -> str:
    """Where the rows are from."""
    row = next(row for row in rows if row["kind"] == "step")
    backends = sorted({row["backend"] for row in rows} - {"none"})
    cpu = "" if row["on_gpu"] else "\n\nA CPU: this shows that the tool works, and means nothing for GPUs."
    if row.get("busy_cores", 0) >= BUSY:
        cpu += (
            f"\n\nOther programs kept {row['busy_cores']:g} cores busy: the worlds, measured in turn, had not "
            "the same machine, and neither the fit nor its error means much."
        )
    return (
        f"{row['recipe']}, {row['device']}, {', '.join(backends) or 'one rank'}, precision {row['precision']}, "
        f"{row.get('date', '')}\n`{row.get('command', '')}`{cpu}"
    )


def measured(rows: Sequence[Row]) -> str:
    """A line per world and mode; milliseconds."""
    steps = [row for row in rows if row["kind"] == "step"]
    singles = {row["batch"]: row for row in steps if row["ranks"] == 1}
    lines = [
        "| scaling | ranks | nodes | batch of a rank | data | forward | backward | update | without exchange | step |"
        " all-reduce alone | exposed | img/s | efficiency |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in steps:
        base = max(singles.values(), key=lambda one: one["batch"])
        ranks, step_s = row["ranks"], row["step_s"]
        ideal_s = base["step_s"] / ranks if row["mode"] == "strong" else base["step_s"]
        shared = row["mode"] in ("weak", "strong")
        parts = [row[name] for name in ("data_s", "forward_s", "backward_s", "update_s", "alone_s", "step_s")]
        exchange = [row["exchange_s"], step_s - row["alone_s"]] if ranks > 1 else [None, None]
        cells = [row["mode"], str(ranks), str(row["nodes"]), str(row["batch"]), *map(_ms, [*parts, *exchange])]
        cells += [f"{ranks * row['batch'] / step_s:,.0f}", f"{ideal_s / step_s:.0%}" if shared else ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + (
        "\n\nMilliseconds. Forward, backward and update are of the step without exchange, on images that are on the "
        "device; data is what real training waits for them. Exposed: what the exchange adds to a step, waiting for "
        "the slowest rank included."
    )


def checked(rows: Sequence[Row], inside: Link | None) -> str:
    """The model fitted on one and two ranks, held against larger worlds of the same node."""
    larger = [row for row in rows if row["kind"] == "step" and row["ranks"] > FITTED_RANKS and row["nodes"] == 1]
    if not larger:
        return f"Not checked: no world of more than {FITTED_RANKS} ranks was measured."
    try:
        model, link = fit(rows, inside, most_ranks=FITTED_RANKS)
    except ValueError as error:
        return f"Not checked: {error}."
    lines = ["| scaling | ranks | step predicted, ms | measured, ms | error |", "|---|---|---|---|---|"]
    for row in larger:
        step = model.step(
            row["ranks"], Cluster(row["ranks"], link, link), strong=row["mode"] == "strong",
            bucket_mb=row["bucket_mb"], compressed=row["compressed"],
        )  # fmt: skip
        assert step is not None
        on_device_s = step.total_s - step.data_s
        off = on_device_s / row["step_s"] - 1
        cells = [row["mode"], str(row["ranks"]), _ms(on_device_s), _ms(row["step_s"]), f"{off:+.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return f"Fitted on {FITTED_RANKS} ranks at most, data left out.\n\n" + "\n".join(lines)


def predicted(model: Model, inside: Link, clusters: dict[str, Cluster], sizes: Sequence[int], was_fitted: bool) -> str:
    """Steps by number of GPUs and network, weak and strong, and the numbers they follow from."""
    cluster = next(iter(clusters.values()))
    assumed = f" (assumed, not measured: {', '.join(model.assumed)})" if model.assumed else ""
    named = "; ".join(f"{name}: {_link(cluster.between)}" for name, cluster in clusters.items())
    text = [
        f"Batch {model.batch} a GPU; forward {_line(model.forward)}, backward {_line(model.backward)}, update "
        f"{_ms(model.update_s)} ms, data {_ms(model.data_s)} ms; deviation of a step {model.deviation:.1%}; overlap "
        f"{model.overlap:.2f}, drag {model.drag:.2f}{assumed}; gradients "
        f"{sum(size for _, size in model.gradients) / 1e6:.1f} MB, buffers {model.buffer_bytes / 1e6:.2f} MB.",
        f"Inside a node of {cluster.node_gpus}, {'fitted' if was_fitted else 'given'}: {_link(inside)}. Between nodes, "
        f"all network cards of a node together: {named}.",
        "",
        f"Weak scaling, {model.batch} images a GPU: milliseconds of a step, of which the exchange of gradients is "
        "waited for, and efficiency:",
        "",
        *_by_network(clusters, sizes, lambda num, cluster: _weak(model, num, cluster)),
        "",
        f"Strong scaling, {model.batch} images in all: milliseconds of a step, and speed-up:",
        "",
        *_by_network(clusters, sizes, lambda num, cluster: _strong(model, num, cluster)),
    ]
    return "\n".join(text)


def _by_network(
    clusters: dict[str, Cluster], sizes: Sequence[int], cell: Callable[[int, Cluster], str | None]
) -> list[str]:
    """A line per number of GPUs, a column per network; empty lines are left out."""
    lines = [f"| GPUs | {' | '.join(clusters)} |", "|---|" + "---|" * len(clusters)]
    for num_gpus in sizes:
        cells = [cell(num_gpus, cluster) for cluster in clusters.values()]
        if None not in cells:
            lines.append(f"| {num_gpus:,} | {' | '.join(map(str, cells))} |")
    return lines if len(lines) > 2 else ["none of these sizes has an image for every GPU"]


def _weak(model: Model, num_gpus: int, cluster: Cluster) -> str | None:
    step, alone = model.step(num_gpus, cluster), model.step(1, cluster)
    assert step is not None and alone is not None
    return f"{_ms(step.total_s)}, {_ms(step.exposed_s)}, {alone.total_s / step.total_s:.0%}"


def _strong(model: Model, num_gpus: int, cluster: Cluster) -> str | None:
    step, alone = model.step(num_gpus, cluster, strong=True), model.step(1, cluster)
    assert alone is not None
    return None if step is None else f"{_ms(step.total_s)}, {alone.total_s / step.total_s:.1f}"


def settings(model: Model, clusters: dict[str, Cluster], sizes: Sequence[int]) -> str:
    """Milliseconds of a step by bucket size, with float32 and bfloat16 gradients."""
    lines = [
        "| GPUs | network between nodes | gradients |" + "".join(f" {size} MiB |" for size in BUCKETS_MB) + " best |",
        "|---|---|---|" + "---|" * (len(BUCKETS_MB) + 1),
    ]
    for num_gpus in (min(sizes), max(sizes)):
        for name, cluster in _that_matter(clusters, num_gpus).items():
            for compressed in (False, True):
                seconds = {}
                for size in BUCKETS_MB:
                    step = model.step(num_gpus, cluster, bucket_mb=size, compressed=compressed)
                    assert step is not None
                    seconds[size] = step.total_s
                best = min(seconds, key=lambda size: seconds[size])
                if seconds[DEFAULT_BUCKET_MB] < WORTH_IT * seconds[best]:
                    best = DEFAULT_BUCKET_MB
                cells = [f"{num_gpus:,}", name, "bf16" if compressed else "float32", *map(_ms, seconds.values())]
                lines.append(f"| {' | '.join([*cells, f'{best} MiB'])} |")
    return "\n".join(lines) + (
        f"\n\nMilliseconds of a step in weak scaling by `train.bucket_mb`; another than {DEFAULT_BUCKET_MB} is best if "
        "it gains 1 % or more. bf16: `train.compress_gradients=bf16`, which rounds the gradients."
    )


def _that_matter(clusters: dict[str, Cluster], num_gpus: int) -> dict[str, Cluster]:
    """Within one node no network does."""
    if num_gpus > next(iter(clusters.values())).node_gpus:
        return clusters
    return {"none: one node": next(iter(clusters.values()))}


def _line(line: Line) -> str:
    return f"{_ms(line.floor_s)} ms + {line.slope_s * 1e3:.3g} ms an image"


def _link(link: Link) -> str:
    return f"{link.latency_s * 1e6:.3g} µs, {link.bytes_per_s / 1e9:.3g} GB/s"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:,.0f}"
