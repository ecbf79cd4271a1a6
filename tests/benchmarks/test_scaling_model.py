"""The scaling model by hand-made numbers: all-reduce, buckets, fit, and what must hold of any prediction."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from scaling_bench.fit import ASSUMED_OVERLAP, fit, fit_between, fit_link
from scaling_bench.model import MIB, Bucket, Cluster, Line, Link, Model, largest_of, left_over
from scaling_bench.table import checked, facts, predicted, settings

NVLINK, SLOW = Link(3e-6, 300e9), Link(20e-6, 1e9)
CLUSTER = Cluster(8, NVLINK, SLOW)
MODEL = Model(
    batch=64, data_s=0.001, forward=Line(0.010, 0.0005), backward=Line(0.020, 0.001), update_s=0.004,
    gradients=tuple((number / 40, 3 * MIB) for number in range(1, 41)), buffer_bytes=300_000,
    deviation=0.01, overlap=0.8, drag=1.05, devices=8,
)  # fmt: skip


def test_all_reduce_is_a_ring_in_a_node_and_the_better_of_ring_and_tree_beyond() -> None:
    assert CLUSTER.all_reduce_s(1e9, 1) == 0
    assert CLUSTER.all_reduce_s(1e9, 4) == pytest.approx(6 * 3e-6 + 1.5 * 1e9 / 300e9)
    # Two nodes: the ring goes round 14 links inside and 2 between, the tree over 1 hop and 7 links.
    ring, tree = 2 * 15 / 16 * (14 * 3e-6 + 2 * 20e-6), 2 * (20e-6 + 7 * 3e-6)
    assert CLUSTER.all_reduce_s(0, 16) == pytest.approx(min(ring, tree))
    assert CLUSTER.all_reduce_s(1e9, 16) == pytest.approx(tree + 2 * 15 / 16)
    assert CLUSTER.all_reduce_s(0, 1024) == pytest.approx(2 * (7 * 20e-6 + 7 * 3e-6))
    few = Cluster(1, NVLINK, SLOW)
    assert few.all_reduce_s(0, 2) == pytest.approx(min(2 * 20e-6, 2 / 2 * 2 * 20e-6))


def test_buckets_close_when_full_and_the_first_is_small_at_the_default_alone() -> None:
    backward_s = MODEL.backward.at(64)
    sizes = [bucket.num_bytes // MIB for bucket in MODEL.buckets(64, 25)]
    assert sizes == [3, 27, 27, 27, 27, 9]
    assert [bucket.num_bytes // MIB for bucket in MODEL.buckets(64, 50)] == [51, 51, 18]
    first, *_, last = MODEL.buckets(64, 25)
    assert first.full_s == pytest.approx(backward_s / 40) and last.full_s == pytest.approx(backward_s)


def test_what_is_left_over_waits_for_the_bucket_and_for_the_one_before() -> None:
    buckets = [Bucket(0.1, 1), Bucket(0.5, 1), Bucket(1.0, 1)]
    assert left_over(buckets, [0.1, 0.1, 0.25], 1.0) == pytest.approx(0.25)
    assert left_over(buckets, [0.8, 0.3, 0.25], 1.0) == pytest.approx(0.1 + 0.8 + 0.3 + 0.25 - 1.0)
    assert left_over([Bucket(0.1, 1)], [0.2], 1.0) == 0


def test_the_slowest_of_many() -> None:
    assert largest_of(1) == 0
    assert largest_of(2) == pytest.approx(1 / math.sqrt(math.pi), rel=0.05)  # exact for two
    assert largest_of(1024) == pytest.approx(3.2, abs=0.1)


def test_one_device_is_what_was_measured_and_waits_for_nobody() -> None:
    step = MODEL.step(1, CLUSTER)
    assert step is not None
    assert step.total_s == pytest.approx(0.001 + 0.010 + 0.032 + 0.020 + 0.064 + 0.004)
    assert step.exposed_s == step.exchange_s == step.before_s == step.straggler_s == 0


@pytest.mark.parametrize("strong", [False, True])
def test_more_gpus_are_never_more_efficient_and_a_faster_network_never_slower(strong: bool) -> None:
    previous = None
    for num_gpus in (1, 2, 4, 8, 16, 32, 64):
        slow = MODEL.step(num_gpus, CLUSTER, strong=strong)
        fast = MODEL.step(num_gpus, Cluster(8, NVLINK, Link(5e-6, 300e9)), strong=strong)
        assert slow is not None and fast is not None
        assert fast.total_s <= slow.total_s
        assert slow.rest_s - 1e-12 <= slow.exposed_s <= slow.exchange_s + 1e-12
        each = slow.img_per_s / num_gpus
        assert previous is None or each <= previous
        previous = each
    assert (MODEL.step(128, CLUSTER, strong=strong) is None) == strong  # no image for each of 128


def test_half_the_bytes_take_half_the_time_beyond_latency() -> None:
    whole, half = MODEL.step(16, CLUSTER), MODEL.step(16, CLUSTER, compressed=True)
    assert whole is not None and half is not None
    latency_s = len(MODEL.buckets(64, 25)) * CLUSTER.all_reduce_s(0, 16)
    assert (half.exchange_s - latency_s) * 2 == pytest.approx(whole.exchange_s - latency_s)


def test_ranks_that_share_devices_take_turns() -> None:
    alone, shared = replace(MODEL, devices=8).step(8, CLUSTER), replace(MODEL, devices=2).step(8, CLUSTER)
    assert alone is not None and shared is not None
    assert shared.compute_s == pytest.approx(4 * alone.compute_s)


def rows_of(model: Model, link: Link, worlds: tuple[int, ...] = (1, 2, 4)) -> Iterator[dict[str, Any]]:
    """What a machine that obeys the model would have measured."""
    common = {
        "kind": "step", "nodes": 1, "devices": model.devices, "bucket_mb": 25, "compressed": False, "on_gpu": True,
        "buffer_bytes": model.buffer_bytes, "gradients": list(model.gradients), "recipe": "r.yaml", "device": "x",
        "backend": "nccl", "precision": "bf16", "data_s": model.data_s, "exchange_s": 0.0,
    }  # fmt: skip
    for ranks in worlds:
        cluster = Cluster(ranks, link, link)
        smaller = [("batch", model.batch // 2), ("batch", model.batch // 4)] if ranks == 1 else []
        strong = [("strong", model.batch // ranks)] if ranks > 1 else []
        for mode, batch in [("weak", model.batch), *smaller, *strong]:
            step = replace(model, batch=batch).step(ranks, cluster)
            assert step is not None
            yield common | {
                "ranks": ranks, "mode": mode, "batch": batch, "step_s": step.total_s - step.data_s,
                "alone_s": step.compute_s, "forward_s": model.forward.at(batch),
                "backward_s": model.backward.at(batch), "update_s": model.update_s,
                "deviation_s": model.deviation * model.compute_s(batch),
            }  # fmt: skip
        for num_bytes in (2**10, 2**16, 2**20, 2**26):
            if ranks > 1:
                seconds = cluster.all_reduce_s(num_bytes, ranks)
                kept = {name: common[name] for name in ("nodes", "devices", "backend")}
                yield {"kind": "all_reduce", **kept, "ranks": ranks, "bytes": num_bytes, "seconds": seconds}


def test_the_fit_finds_what_the_rows_were_made_with_and_predicts_what_it_did_not_see() -> None:
    link = Link(40e-6, 2e9)
    rows = list(rows_of(MODEL, link))
    model, inside = fit(rows)
    assert (inside.latency_s, inside.bytes_per_s) == (pytest.approx(40e-6), pytest.approx(2e9))
    for name in ("data_s", "update_s", "deviation", "overlap", "drag"):
        assert getattr(model, name) == pytest.approx(getattr(MODEL, name)), name
    assert (model.forward.floor_s, model.backward.slope_s) == (pytest.approx(0.010), pytest.approx(0.001))
    assert not model.assumed
    table = checked(rows, None)  # fitted on two ranks, held against four
    assert table.count("| weak | 4 |") == table.count("| strong | 4 |") == 1
    assert table.count("0% |") == 2, table


def test_the_fit_blames_no_rank_it_was_not_to_see() -> None:
    rows = [row | {"step_s": 9.0} if row.get("ranks") == 4 and row["kind"] == "step" else row
            for row in rows_of(MODEL, NVLINK)]  # fmt: skip
    assert fit(rows, most_ranks=2)[0].overlap == pytest.approx(0.8)
    assert "-99%" in checked(rows, None)


def test_one_gpu_and_a_given_link_are_enough_and_what_is_assumed_is_stated() -> None:
    rows = list(rows_of(MODEL, NVLINK, worlds=(1,)))
    model, inside = fit(rows, NVLINK)
    assert inside == NVLINK and model.overlap == ASSUMED_OVERLAP and model.drag == 1
    assert "assumed, not measured: overlap, drag" in predicted(model, inside, {"x": CLUSTER}, (8, 64), False)
    assert "Not checked" in checked(rows, NVLINK)
    with pytest.raises(ValueError, match="--node-bandwidth-gbs"):
        fit(rows)
    with pytest.raises(ValueError, match="--ranks 1"):
        fit([row for row in rows if row["ranks"] > 1], NVLINK)


def test_links_come_from_all_reduces_inside_nodes_and_between_them() -> None:
    assert fit_link([], 8) is None and fit_between([], NVLINK) is None
    cluster = Cluster(4, NVLINK, Link(8e-6, 40e9))
    turns = 2 * 7 / 8  # a ring over 2 nodes of 4
    rows = [
        {"ranks": 8, "nodes": 2, "bytes": num_bytes,
         "seconds": turns * (6 * 3e-6 + 2 * 8e-6 + num_bytes / 40e9)}
        for num_bytes in (2**10, 2**20, 2**26)
    ]  # fmt: skip
    found = fit_between(rows, NVLINK)
    assert found is not None
    assert (found.latency_s, found.bytes_per_s) == (pytest.approx(8e-6), pytest.approx(40e9))
    assert cluster.all_reduce_s(2**26, 8) == pytest.approx(rows[-1]["seconds"], rel=0.02)


def test_settings_keep_pytorchs_buckets_unless_others_gain_one_per_cent() -> None:
    fast = settings(MODEL, {"fast": Cluster(8, NVLINK, Link(5e-6, 300e9))}, (8, 16))
    assert fast.count("| 25 MiB |") == 4 + 1  # the best of each line, and the column
    # Here the last bucket is what is left over, and smaller ones leave less.
    tail = settings(replace(MODEL, overlap=1.0), {"slower": Cluster(8, NVLINK, Link(5e-6, 4e9))}, (64,))
    best = next(line.split("|")[-2].strip() for line in tail.splitlines() if "float32" in line)
    assert best in ("1 MiB", "5 MiB")


def test_a_cpu_and_a_busy_machine_are_noted() -> None:
    rows = list(rows_of(MODEL, NVLINK))
    assert "means nothing for GPUs" not in facts(rows) and "Other programs" not in facts(rows)
    spoilt = [row | {"busy_cores": 3.2, "on_gpu": False} for row in rows]
    assert "means nothing for GPUs" in facts(spoilt) and "Other programs kept 3.2 cores busy" in facts(spoilt)
