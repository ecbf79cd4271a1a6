"""Caps per label and weighted draws: who stays, how often, and that nothing but seed and stage decides."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import index_of

from distcxr.data.index import SampleIndex
from distcxr.data.order import BatchPlan, TrainOrder
from distcxr.data.sampling import NONE, capped, label_weights, labels_of, train_order
from distcxr.recipe.selection import Sampling

PLAN = BatchPlan(4, 4)
SHARES = np.array([0.45, 0.3, 0.2, 0.1, 0.03, 0.01])


def labelled(targets_NC: NDArray[np.uint8], mask_NC: NDArray[np.uint8] | None = None) -> SampleIndex:
    num, width = targets_NC.shape
    mask_NC = np.ones_like(targets_NC) if mask_NC is None else mask_NC
    index = index_of(Path("/nowhere"), [f"{row}.png" for row in range(num)])
    return replace(index, findings=tuple("ABCDEFGHIJKLMN"[:width]), targets_NC=targets_NC, mask_NC=mask_NC)


def random_labels(num: int = 600, seed: int = 0, shares: NDArray[np.float64] = SHARES) -> NDArray[np.uint8]:
    """Common and rare findings, several on one image; about a fifth of the images show none."""
    return (np.random.default_rng(seed).random((num, len(shares))) < shares).astype(np.uint8)


def one_by_one(shown_NL: NDArray[np.bool_], cap: int, draw_N: NDArray[np.uint64]) -> list[bool]:
    """The rule of `capped`'s docstring, image by image."""
    num_L = shown_NL.sum(axis=0).tolist()
    order = sorted(range(len(num_L)), key=lambda label: num_L[label])
    labels = [[label for label in range(len(num_L)) if row[label]] for row in shown_NL]
    kept = [any(num_L[label] <= cap for label in on) for on in labels]
    count = [sum(keep and label in on for on, keep in zip(labels, kept, strict=True)) for label in range(len(num_L))]
    for row in sorted(range(len(kept)), key=lambda row: (min(map(order.index, labels[row])), draw_N[row])):
        if not kept[row] and all(count[label] < cap for label in labels[row]):
            kept[row] = True
            for label in labels[row]:
                count[label] += 1
    return kept


@pytest.mark.parametrize("cap", [1, 5, 30, 100, 200, 599])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_cap_against_a_plain_loop(cap: int, seed: int) -> None:
    _, shown_NL = labels_of(labelled(random_labels(seed=seed)), np.arange(600))
    draw_N = np.random.default_rng(seed).permutation(600).astype(np.uint64)
    for limit in (cap, *shown_NL.sum(axis=0).tolist()):  # also where a label has exactly as many
        assert capped(shown_NL, limit, draw_N).tolist() == one_by_one(shown_NL, limit, draw_N)


def test_rare_findings_keep_every_image_and_common_ones_come_down_to_the_cap() -> None:
    index, rows = labelled(random_labels(3000)), np.arange(100, 3000)
    order = train_order(index, rows, Sampling(cap_per_label=250), seed=3, stage=0, plan=PLAN)
    kept = np.asarray(order.rows)
    names, before_NL = labels_of(index, rows)
    _, after_NL = labels_of(index, kept)
    before, after = before_NL.sum(axis=0), after_NL.sum(axis=0)
    assert names == (*"ABCDEF", NONE)
    assert (before[4:6] < 250).all() and (after[4:6] == before[4:6]).all()  # all of E and F
    assert (before[:4] > 250).all() and (after[:4] == 250).all() and before[6] > after[6] == 250
    assert np.isin(kept, rows).all() and (np.diff(kept) > 0).all()
    assert len(order) == len(kept) // 4
    (note,) = order.notes
    assert f"cap_per_label=250: {len(kept):,} of 2,900 training images; A {before[0]:,} -> 250, " in note
    assert f"F {before[5]} -> {before[5]}, {NONE} {before[6]} -> 250" in note


def test_only_images_that_a_rarer_finding_keeps_lift_another_above_the_cap() -> None:
    targets = np.zeros((100, 2), dtype=np.uint8)
    targets[:, 0] = 1
    targets[:30, 1] = 1  # B is rare, and every image of it shows A
    order = train_order(labelled(targets), np.arange(100), Sampling(cap_per_label=30), seed=0, stage=0, plan=PLAN)
    assert np.asarray(order.rows).tolist() == list(range(30))
    order = train_order(labelled(targets), np.arange(100), Sampling(cap_per_label=40), seed=0, stage=0, plan=PLAN)
    assert len(order.rows) == 40 and np.isin(np.arange(30), order.rows).all()
    three = np.concatenate([targets, np.zeros((100, 1), np.uint8)], axis=1)
    three[30:40, 2] = 1  # C keeps its images first; B still has no more than the cap
    order = train_order(labelled(three), np.arange(100), Sampling(cap_per_label=30), seed=0, stage=0, plan=PLAN)
    assert np.asarray(order.rows).tolist() == list(range(40))
    targets[30:50] = [0, 1]
    targets[50:, 1], targets[90:] = 0, 0  # A 70, B 50, neither 10
    targets[90:, 0] = [1] * 5 + [0] * 5
    index = labelled(np.concatenate([targets, np.array([[1, 0]] * 3, np.uint8)]))
    order = train_order(index, np.arange(103), Sampling(cap_per_label=5), seed=0, stage=0, plan=PLAN)
    assert labels_of(index, np.asarray(order.rows))[1].sum(axis=0).tolist() == [5, 5, 5]


def test_rare_findings_may_overfill_a_common_one_and_the_others_still_come_down_to_the_cap() -> None:
    targets = np.zeros((180, 5), dtype=np.uint8)
    for rare in range(3):
        targets[rare * 10 : rare * 10 + 10, [rare, 3]] = 1  # D comes along with A, B and C: 30 images, three caps
    targets[30:80, 3], targets[80:, 4] = 1, 1
    _, shown_NL = labels_of(labelled(targets), np.arange(180))
    draw_N = np.random.default_rng(0).permutation(180).astype(np.uint64)
    kept_N = capped(shown_NL, 10, draw_N)
    assert kept_N.tolist() == one_by_one(shown_NL, 10, draw_N)
    assert shown_NL[kept_N].sum(axis=0).tolist() == [10, 10, 10, 30, 10]


def test_seed_and_stage_alone_decide_who_stays() -> None:
    index, rows, spec = labelled(random_labels()), np.arange(600), Sampling(cap_per_label=60)

    def kept(seed: int = 1, stage: int = 0, plan: BatchPlan = PLAN) -> list[int]:
        return np.asarray(train_order(index, rows, spec, seed=seed, stage=stage, plan=plan).rows).tolist()

    assert kept() == kept() == kept(plan=BatchPlan(32, 4, 4, 3))
    draws = [kept(), kept(stage=1), kept(seed=2), kept(seed=0, stage=1)]
    assert all(first != second for at, first in enumerate(draws) for second in draws[:at])
    assert set(draws[0]) | set(draws[1]) > set(draws[0])  # a stage shows images that the one before left out


def test_a_cap_above_every_finding_changes_nothing() -> None:
    index, rows = labelled(random_labels()), np.arange(5, 600)
    plain = train_order(index, rows, Sampling(), seed=1, stage=2, plan=PLAN)
    large = train_order(index, rows, Sampling(cap_per_label=600), seed=1, stage=2, plan=PLAN)
    reference = TrainOrder(rows, 1, PLAN)
    assert plain.notes == () and plain.rows is rows
    for epoch in (0, 3):
        draws = [np.concatenate([row for _, row in order.epoch(epoch)]) for order in (plain, large, reference)]
        np.testing.assert_array_equal(draws[0], draws[2])
        np.testing.assert_array_equal(draws[1], draws[2])


def test_an_unknown_label_is_no_label() -> None:
    targets, mask = np.ones((10, 2), np.uint8), np.ones((10, 2), np.uint8)
    mask[:6, 0], mask[:4, 1] = 0, 0
    names, shown_NL = labels_of(labelled(targets, mask), np.arange(10))
    assert names == ("A", "B", NONE) and shown_NL.sum(axis=0).tolist() == [4, 6, 4]
    names, shown_NL = labels_of(labelled(targets, mask), np.arange(6, 10))
    assert names == ("A", "B") and shown_NL.all()


def test_a_cap_that_leaves_a_finding_without_images_names_it() -> None:
    """G is only seen beside A to F, on 2 of 10 images of each: with a cap of 1, the one image of each may lack it."""
    targets = np.zeros((60, 7), dtype=np.uint8)
    targets[np.arange(60), np.arange(60) // 10] = 1
    targets[np.arange(60) % 10 < 2, 6] = 1
    index, refused = labelled(targets), []
    for seed in range(30):
        try:
            spec = Sampling(cap_per_label=1)
            train_order(index, np.arange(60), spec, seed=seed, stage=0, plan=BatchPlan(1, 1))
        except ValueError as error:
            refused.append(str(error))
    assert 2 <= len(refused) <= 16  # 26 %
    assert "data.sampling.cap_per_label=1 leaves no training image of G (12): " in refused[0]


def test_a_cap_that_leaves_less_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cap_per_label=20 leaves \d+ of 600 training images, fewer than train"):
        train_order(
            labelled(random_labels()), np.arange(600), Sampling(cap_per_label=20), seed=0, stage=0,
            plan=BatchPlan(600, 600),
        )  # fmt: skip


def test_nih_s_size_in_well_under_a_second() -> None:
    shares = np.array([11559, 2776, 13317, 19894, 5782, 6331, 1431, 5302, 4667, 2303, 2516, 1686, 3385, 227]) / 112120
    index, rows = labelled(random_labels(112_120, shares=shares)), np.arange(112_120)
    started_s = time.process_time()
    order = train_order(index, rows, Sampling(cap_per_label=1000, balance="sqrt"), seed=0, stage=0, plan=PLAN)
    assert time.process_time() - started_s < 1  # 0.25 s on one core
    num_L = labels_of(index, np.asarray(order.rows))[1].sum(axis=0)
    assert (num_L <= 1000).all() and num_L[13] > 200


@pytest.mark.parametrize("balance", ["class", "sqrt"])
def test_weights_are_those_of_sampling_a_label_first(balance: str) -> None:
    _, shown_NL = labels_of(labelled(random_labels(80)), np.arange(80))
    num_L = shown_NL.sum(axis=0)
    wanted_L = [float(num) ** (0.5 if balance == "sqrt" else 0.0) for num in num_L]
    expected = [sum(wanted_L[at] / num_L[at] for at in range(len(num_L)) if row[at]) for row in shown_NL]
    weights = label_weights(shown_NL, root=balance == "sqrt")
    np.testing.assert_allclose(weights, expected, rtol=1e-12)
    assert (weights > 0).all()


def test_balance_meets_findings_equally_where_no_image_shows_two() -> None:
    targets = np.zeros((1000, 2), dtype=np.uint8)
    targets[:10, 0], targets[10:210, 1] = 1, 1
    index, rows = labelled(targets), np.arange(1000)
    met = {}
    for balance in ("class", "sqrt"):
        spec = Sampling.model_validate({"balance": balance})
        order = train_order(index, rows, spec, seed=0, stage=0, plan=BatchPlan(100, 100))
        assert len(order) == 10  # as long as without
        drawn = np.concatenate([row for epoch in range(20) for _, row in order.epoch(epoch)])
        met[balance] = labels_of(index, drawn)[1].mean(axis=0)
        assert f"balance={balance}: " in order.notes[0]
        order_2 = train_order(index, rows, spec, seed=0, stage=0, plan=BatchPlan(100, 5, 4, 2))
        third = np.concatenate([row for _, row in order_2.epoch(0)])
        np.testing.assert_array_equal(third, drawn[:1000].reshape(10, 4, 25)[:, 2].ravel())
    np.testing.assert_allclose(met["class"], 1 / 3, atol=0.015)
    roots = np.sqrt([10, 200, 790])
    np.testing.assert_allclose(met["sqrt"], roots / roots.sum(), atol=0.015)


def test_the_note_has_how_often_each_finding_is_sampled() -> None:
    index, rows = labelled(random_labels()), np.arange(600)
    order = train_order(index, rows, Sampling(balance="class"), seed=0, stage=0, plan=BatchPlan(600, 600))
    drawn = np.concatenate([row for epoch in range(50) for _, row in order.epoch(epoch)])
    shares_pct = [float(part.rsplit(" ", 2)[1]) for part in order.notes[0].split(": ")[2].split(", ")]
    np.testing.assert_allclose(100 * labels_of(index, drawn)[1].mean(axis=0), shares_pct, atol=1.2)
    assert labels_of(index, drawn)[0][0] == "A" and shares_pct[5] > 10  # F, on 1 % of the images


def test_the_cap_comes_before_the_balance() -> None:
    index, rows = labelled(random_labels()), np.arange(600)
    both = train_order(index, rows, Sampling(cap_per_label=60, balance="class"), seed=4, stage=1, plan=PLAN)
    cap = train_order(index, rows, Sampling(cap_per_label=60), seed=4, stage=1, plan=PLAN)
    np.testing.assert_array_equal(both.rows, cap.rows)
    assert both.cumulative_N is not None and len(both.cumulative_N) == len(cap.rows) and len(both.notes) == 2
    _, shown_NL = labels_of(index, np.asarray(cap.rows))
    np.testing.assert_allclose(both.cumulative_N, np.cumsum(label_weights(shown_NL, root=False)))


def test_a_cap_can_be_drawn_anew_for_every_epoch() -> None:
    targets = np.zeros((300, 2), dtype=np.uint8)
    targets[:40, 0] = targets[40:, 1] = 1
    index, rows = labelled(targets), np.arange(300)
    spec = Sampling(cap_per_label=60, redraw="epoch")
    once = train_order(index, rows, Sampling(cap_per_label=60), seed=5, stage=1, plan=PLAN)
    order = train_order(index, rows, spec, seed=5, stage=1, plan=PLAN)
    assert "drawn anew for every epoch" in order.notes[0] and len(order) == len(once)

    def drawn(order: TrainOrder, epoch: int) -> set[int]:
        return {int(row) for _, rows in order.epoch(epoch) for row in rows}

    assert drawn(order, 0) == drawn(once, 0) and drawn(once, 0) == drawn(once, 1)
    epochs = [drawn(order, epoch) for epoch in range(4)]
    assert all(len(rows) == len(order) * PLAN.global_batch_size for rows in epochs)
    assert all(a != b for place, a in enumerate(epochs) for b in epochs[:place])
    assert drawn(order, 1) == epochs[1]  # asked again, out of turn
    with pytest.raises(ValueError, match="redraw=epoch is about cap_per_label"):
        Sampling(redraw="epoch")


def test_an_epoch_that_draws_fewer_images_begins_again() -> None:
    order = TrainOrder(np.arange(12), 0, BatchPlan(4, 4), rows_of=lambda epoch: np.arange(100, 110 + 4 * epoch))
    few = [int(row) for _, rows in order.epoch(0) for row in rows]
    assert len(few) == 12 and set(few) == set(range(100, 110))
    many = [int(row) for _, rows in order.epoch(1) for row in rows]
    assert len(set(many)) == 12 and set(many) < set(range(100, 114))
