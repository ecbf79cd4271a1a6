"""Several data sets as one, `data.dataset: joint`: the index of all members, labels aligned by name.

    member's recipe ──► its index ──► its splits ──┐
                            └──► labels by name ───┴──► one index: paths, patients and splits of each member

A finding that a member does not label is unknown for its images. Every member is split as it would be alone, so nothing
moves by what it is joined with. A patient's number is the member's own with a number of the *people* in front: members
of the same people share it, and a patient who is trained on in one and tested on in the other is an error.

Shapes: N samples, C findings.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distcxr.data.index import JointMember, MissingDataError, SampleIndex
from distcxr.data.labels import CHEXPERT14, check_findings, common_name, resolve_findings
from distcxr.data.people import nih_patient, people_of, same_images
from distcxr.data.sources.image_paths import as_bytes, first_few
from distcxr.data.sources.rsna import MAPPING
from distcxr.data.splits import NAMES, Splits, whole_splits
from distcxr.recipe.data import Data
from distcxr.recipe.members import Member

logger = logging.getLogger(__name__)

_PEOPLE = 10**18  # patients' numbers are below it, and nine times as many fit into int64


@dataclass(frozen=True)
class Part:
    """A member before it is joined: what the recipe has of it, `Data.of_member`, and its index."""

    member: Member
    data: Data
    index: SampleIndex

    @property
    def title(self) -> str:
        return self.member.title

    @property
    def people(self) -> str:
        """`people_of` it: two members with the same share patients."""
        return people_of(self.data.dataset, self.index.root)


@contextmanager
def naming(title: str) -> Iterator[None]:
    """Puts the member into the message of a ValueError."""
    try:
        yield
    except MissingDataError as error:
        raise MissingDataError(f"data.members, {title}: {error}") from error
    except ValueError as error:
        raise ValueError(f"data.members, {title}: {error}") from error


def join(data: Data, root: Path, parts: Sequence[Part]) -> SampleIndex:
    """One index of all members, in their order, with the findings that `data.findings` and `data.where` name.

    `split` holds the split of every sample, as `data.members` has it.

    Raises ValueError: a data set that is there twice or is part of another; a patient in different splits of two
    members; a `map` with a finding that the member lacks; a member with none of the findings, or that shares none of
    them with another; otherwise as `whole_splits`.
    """
    _check_different(parts)
    splits = [_splits_of(part) for part in parts]
    _check_patients(parts, splits)
    columns = [_columns_by_name(part) for part in parts]
    findings = _findings(data, parts, columns)
    labels = [_aligned(part.index, by_name, findings) for part, by_name in zip(parts, columns, strict=True)]
    indices = [part.index for part in parts]
    people = list(dict.fromkeys(part.people for part in parts))
    hashes = [f"{part.title} {part.index.label_hash}\n" for part in parts]
    return SampleIndex(
        root=root,
        findings=findings,
        path=_named(parts, [index.path for index in indices]),
        patient_id=np.concatenate([people.index(part.people) * _PEOPLE + part.index.patient_id for part in parts]),
        targets_NC=np.concatenate([targets_NC for targets_NC, _ in labels]),
        mask_NC=np.concatenate([mask_NC for _, mask_NC in labels]),
        age=np.concatenate([index.age for index in indices]),
        sex=np.concatenate([index.sex for index in indices]),
        view=np.concatenate([index.view for index in indices]),
        split=np.concatenate([_split_names(part, its) for part, its in zip(parts, splits, strict=True)]),
        label_hash=hashlib.sha256("".join(hashes).encode()).hexdigest(),
        skipped=_named(parts, [index.skipped for index in indices]),
        num_listed_patients=sum(
            len(np.unique(index.patient_id)) if index.num_listed_patients is None else index.num_listed_patients
            for index in indices
        ),
        named_by_path=True,
        members=tuple(_as_member(part, its) for part, its in zip(parts, splits, strict=True)),
        study=_studies(indices),
    )


def _as_member(part: Part, splits: Splits) -> JointMember:
    lists = {name: digest for name, digest in splits.list_hashes.items() if name not in NAMES}
    index, member = part.index, part.member
    return JointMember(
        part.title, part.data.dataset, index.root, member.weight, index.label_hash, lists, renamed=member.map
    )


def _studies(indices: Sequence[SampleIndex]) -> NDArray[np.int64] | None:
    """Numbers of the studies of all members, each member's above those of the one before."""
    found, first = [], 0
    for index in indices:
        own = np.full(len(index), -1) if index.study is None else index.study
        found.append(np.where(own < 0, -1, own + first))
        first = max(first, int(found[-1].max(initial=-1)) + 1)
    return np.concatenate(found) if first else None


def _named(parts: Sequence[Part], paths: Sequence[NDArray[np.bytes_]]) -> NDArray[np.bytes_]:
    prefixes = [os.fsencode(f"{part.title}/") for part in parts]
    found = [np.char.add(prefix, its) for prefix, its in zip(prefixes, paths, strict=True) if len(its)]
    return np.concatenate(found) if found else as_bytes(())


def _check_different(parts: Sequence[Part]) -> None:
    """Refuse a data set that is there twice, whatever it is called, and images that a table shares with another."""
    for one, other in combinations(parts, 2):
        both = f"data.members: {one.title} and {other.title}"
        if one.index.label_hash == other.index.label_hash:
            raise ValueError(f"{both} have the same label file: leave one of them out")
        kinds = {one.data.dataset: one, other.data.dataset: other}
        if same_images(one.data.dataset, other.data.dataset) and one.people != other.people:
            raise ValueError(
                f"{both} have the same images: RSNA's are NIH's, under other names. Put {MAPPING} (from RSNA) "
                f"into {kinds['rsna'].index.root}, so that it is known which patients they are of, and NIH's two lists "
                "beside it, so that both have its official split; or leave one of them out"
            )
        for stranger, known in ((one, other), (other, one)):
            if stranger.data.dataset not in ("csv", "folders") or one.people == other.people:
                continue
            for what, shared in (
                ("show patients", _of_nih(stranger, known)),
                ("are files", _same_files(stranger, known)),
            ):
                if shared:
                    raise ValueError(
                        f"{both}: {len(shared):,} images of {stranger.title} {what} of {known.title}'s, such as "
                        f"{shared[0]}: leave them out of its table, or take {known.title} out of data.members"
                    )


def _of_nih(stranger: Part, known: Part) -> list[str]:
    """The stranger's images that are called as NIH's are, of patients whom the known one has, too."""
    if known.people != "nih":
        return []
    patients = set(known.index.patient_id.tolist())
    paths = [os.fsdecode(path) for path in stranger.index.path.tolist()]
    named = ((path, nih_patient(path.rpartition("/")[2])) for path in paths)
    return [path for path, patient in named if patient and int(patient) in patients]


def _same_files(stranger: Part, known: Part) -> list[str]:
    """The stranger's images that the known one lists, too; only where the root of one is within that of the other."""
    roots = [part.index.root.resolve() for part in (stranger, known)]
    if not roots[0].is_relative_to(roots[1]) and not roots[1].is_relative_to(roots[0]):
        return []
    below = [os.fsencode(root) + b"/" for root in roots]
    theirs = {below[1] + path for path in known.index.path.tolist()}
    return [os.fsdecode(path) for path in stranger.index.path.tolist() if below[0] + path in theirs]


def _splits_of(part: Part) -> Splits:
    with naming(part.title):
        return whole_splits(part.data, part.index)


def _split_names(part: Part, splits: Splits) -> NDArray[np.str_]:
    """The split of each sample, str [N]; "" for those in none, or in one that the member does not take part in."""
    names = np.full(len(part.index), "", dtype="<U5")
    for name in part.member.splits:
        names[splits.rows(name)] = name
    return names


def _check_patients(parts: Sequence[Part], splits: Sequence[Splits]) -> None:
    """Refuse members of the same people of whom some are in different splits."""
    for (one, first), (other, second) in combinations(zip(parts, splits, strict=True), 2):
        if one.people != other.people:
            continue
        for what in ("patient_id", "path"):  # of two tables of the same files, one may not name patients
            found = [
                {name: np.unique(getattr(part.index, what)[its.rows(name)]) for name in part.member.splits}
                for part, its in ((one, first), (other, second))
            ]
            for (here, ours), (there, theirs) in product(found[0].items(), found[1].items()):
                both = np.intersect1d(ours, theirs, assume_unique=True).tolist()
                if here != there and both:
                    kind = "patients" if what == "patient_id" else "images"
                    raise ValueError(
                        f"data.members: {one.title} and {other.title} are of the same people, and {len(both):,} {kind} "
                        f"are in {here} of {one.title} and in {there} of {other.title}: "
                        f"{first_few([os.fsdecode(each) if kind == 'images' else str(each) for each in both])}. Give "
                        "both the same official lists, or split: by_patient with the same ratios and, of a csv, "
                        "columns.patient: that puts a patient into the same split of both"
                    )
        logger.info(f"data.members: {one.title} and {other.title} are of the same people, each in one split of both")


def _columns_by_name(part: Part) -> dict[str, list[int]]:
    """The columns of the member's labels by the common name of what its `map` calls them."""
    with naming(part.title):
        check_findings("map", list(part.member.map), part.index.findings)
    found: dict[str, list[int]] = {}
    for column, finding in enumerate(part.index.findings):
        name = part.member.map.get(finding, finding)
        if name is not None:
            found.setdefault(common_name(name), []).append(column)
    return found


def _findings(data: Data, parts: Sequence[Part], columns: Sequence[dict[str, list[int]]]) -> tuple[str, ...]:
    """The findings that are learnt, then others that `data.where` names, as the recipe spells them."""
    offered = list(dict.fromkeys(name for by_name in columns for name in by_name))
    where = [*(data.where.findings or ()), *(data.where.without or ())]
    if data.findings == "all":
        # Spelled as `where` likes: a second column of the same finding would be learnt, too.
        spelled_by_where = {common_name(name): name for name in where}
        learnt: tuple[str, ...] = tuple(sorted(spelled_by_where.get(name, name) for name in offered))
    else:
        # Spelled as the recipe likes: chexpert5 has Pleural Effusion, which NIH calls Effusion.
        spelled = [*CHEXPERT14, *(data.findings if isinstance(data.findings, list) else ())]
        others = [name for name in spelled if common_name(name) in offered]
        learnt = resolve_findings(data.findings, list(dict.fromkeys([*offered, *others])))
    if alike := [name for name in learnt if [*map(common_name, learnt)].count(common_name(name)) > 1]:
        raise ValueError(f"data.findings: {' and '.join(alike)} mean the same: leave one of them out")
    having = [{name for name in learnt if common_name(name) in by_name} for by_name in columns]
    for part, its in zip(parts, having, strict=True):
        rest = set().union(*(names for names in having if names is not its))
        if not its & rest:
            has = ", ".join(sorted(its)) or "none of data.findings"
            raise ValueError(
                f"data.members, {part.title}: it shares no finding with the other members, so nothing would be learnt "
                f"from both: it labels {has}, the others {', '.join(sorted(rest)) or 'none of them'}. Its label file "
                f"has {', '.join(part.index.findings)}: name in `map` what they are called elsewhere, or leave it out"
            )
    return tuple(dict.fromkeys([*learnt, *(name for name in where if common_name(name) in offered)]))


def _aligned(
    index: SampleIndex, columns: dict[str, list[int]], findings: Sequence[str]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A member's targets and mask for `findings`, uint8 [N, C] both.

    Of several columns that make one finding, any that is positive decides; absent takes all of them to be known.
    """
    targets_NC, mask_NC = (np.zeros((len(index), len(findings)), dtype=np.uint8) for _ in range(2))
    for column, name in enumerate(findings):
        if ours := columns.get(common_name(name)):
            shown_N = ((index.targets_NC[:, ours] & index.mask_NC[:, ours]) != 0).any(axis=1)
            targets_NC[:, column] = shown_N
            mask_NC[:, column] = shown_N | (index.mask_NC[:, ours] != 0).all(axis=1)
    return targets_NC, mask_NC
