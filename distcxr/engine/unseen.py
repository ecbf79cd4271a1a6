"""Refuses to test a checkpoint on patients whom its run has seen, in joint data sets and earlier runs, too."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from distcxr.data.dataset import Dataset
from distcxr.data.index import JointMember
from distcxr.data.people import same_images
from distcxr.engine.checkpoint import Checkpoint, begun_from
from distcxr.own_parts import open_parts
from distcxr.recipe.data import Data
from distcxr.recipe.members import Member
from distcxr.recipe.selection import Where

logger = logging.getLogger(__name__)


def check_unseen(checkpoint: Checkpoint, dataset: Dataset) -> None:
    """Refuse to test on patients that the checkpoint was trained or chosen on, whatever split the recipe has."""
    seen = shared_patients(checkpoint, dataset, ("train", "val"), "test")
    if seen is None:
        logger.warning("the checkpoint was trained with other labels: whether it saw these patients is not known")
        data = checkpoint.recipe.data
        for trained in {data.dataset, *(member.dataset for member in data.members)}:
            if same_images(trained, dataset.data.dataset):
                logger.warning(
                    f"the images of {dataset.data.dataset} and of {trained}, which it was trained on, are the same, "
                    "NIH's: its figures are flattered, unless this split is NIH's official one in both"
                )
    elif len(seen):
        raise ValueError(
            f"{checkpoint.path} was trained or chosen on {len(seen):,} patients of this test split, such as "
            f"{seen[0]}: the result would be flattered. Test with the split it was trained with"
        )


def check_beginnings(weights: str, dataset: Dataset) -> None:
    """`check_unseen` for the run of the weights that `model.weights` names, the run which that began with, and so on.

    Validation on patients that one of them was trained on is no error: the log warns that it is flattered.
    """
    checkpoint = begun_from(weights)
    while checkpoint is not None:
        check_unseen(checkpoint, dataset)
        seen = shared_patients(checkpoint, dataset, ("train",), "val")
        if seen is not None and len(seen):
            logger.warning(
                f"{checkpoint.path}, which this run begins with, was trained on {len(seen):,} patients of this val "
                "split: validation, and what is chosen by it, is flattered"
            )
        checkpoint = begun_from(checkpoint.meta["recipe"]["model"]["weights"])


def shared_patients(
    checkpoint: Checkpoint, dataset: Dataset, theirs: tuple[str, ...], ours: str
) -> NDArray[np.int64] | None:
    """Patients of the checkpoint's splits `theirs` that are in `ours`, too; None where its labels were others. Where
    either data set is a joint one, or both are, members with the same labels count."""
    hashes, data, index = checkpoint.meta["hashes"], checkpoint.recipe.data, dataset.index
    common: list[tuple[Data, JointMember | None]] = [(data, None)]
    if hashes["labels"] != index.label_hash:
        trained = {hashes.get(f"{one.title}: labels"): _whole_member(data, one) for one in data.members}
        trained = trained or {hashes["labels"]: data}
        tested: dict[str, JointMember | None] = {one.label_hash: one for one in index.members}
        tested = tested or {index.label_hash: None}
        common = [(trained[labels], member) for labels, member in tested.items() if labels in trained]
        if not common:
            return None
    open_parts(checkpoint.recipe.own_functions(), checkpoint.recipe.sources, only="data.function")
    patients = np.concatenate([dataset.patients_of(section, theirs, member) for section, member in common])
    return np.intersect1d(patients, dataset.index.patient_id[dataset.splits.rows(ours)])


def _whole_member(data: Data, member: Member) -> Data:
    """The section of a joint data set's member without what leaves images out: limits choose among the images of all
    members, conditions name findings as all of them do. So patients count as seen who were left out."""
    view = data.where.view if member.dataset == "padchest" else None  # which of PadChest's images are read
    limits = {"max_train_samples": None, "max_val_samples": None, "max_test_samples": None, "quarantine": None}
    return data.of_member(member).model_copy(update={"where": Where(view=view), **limits})
