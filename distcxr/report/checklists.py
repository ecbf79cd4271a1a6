"""Where on the page the items of two reporting checklists are: TRIPOD+AI and CLAIM.

TRIPOD+AI: Collins et al., BMJ 385 (2024), e078378. CLAIM: Tejani et al., Radiology: Artificial Intelligence 6 (2024),
e240300. The topics are shortened, in words of our own: the checklists themselves say what an item asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distcxr.report import blocks
from distcxr.report.blocks import Cell, Content, Fold, Part, Section, column, paragraph

YOURS = "not covered: yours to write"

Item = tuple[str, str, tuple[str, ...]]  # number, topic, names of the sections that bear on it

_TRIPOD: tuple[Item, ...] = (
    ("1", "title: a prediction model, whom and what for", ()),
    ("2", "abstract", ()),
    ("3a", "medical context and earlier models", ()),
    ("3b", "target population, purpose, users", ()),
    ("3c", "known inequalities in health between groups", ()),
    ("4", "objectives", ()),
    ("5a", "sources of the data and why they represent the target", ("patients", "data")),
    ("5b", "dates of the data", ()),
    ("6a", "setting and centres", ()),
    ("6b", "who was eligible", ("patients",)),
    ("6c", "treatments", ()),
    ("7", "preparing the data", ("making",)),
    ("8a", "outcome and how it was assessed", ("patients",)),
    ("8b", "who assessed the outcome, if by judgement", ()),
    ("8c", "blinding of the outcome's assessment", ()),
    ("9a", "choice of predictors", ()),
    ("9b", "predictors and how they were measured", ("making",)),
    ("9c", "who assessed the predictors, if by judgement", ()),
    ("10", "size of the study and its reasons", ()),
    ("11", "missing data", ("patients",)),
    ("12a", "which data were for development, which for evaluation", ("patients", "data")),
    ("12b", "how predictors were handled", ("making",)),
    ("12c", "kind of model, how it was built, tuned and validated", ("training", "making")),
    ("12d", "differences between clusters such as hospitals", ()),
    ("12e", "measures of performance and plots", ("methods",)),
    ("12f", "updating the model", ("calibration",)),
    ("12g", "how predictions are computed", ("making",)),
    ("13", "class imbalance and what was done about it", ("making",)),
    ("14", "fairness: what was done", ("subgroups",)),
    ("15", "output of the model, thresholds and their reasons", ("thresholds",)),
    ("16", "differences between development and evaluation data", ("patients",)),
    ("17", "ethical approval and consent", ()),
    ("18a", "funding", ()),
    ("18b", "conflicts of interest", ()),
    ("18c", "protocol", ()),
    ("18d", "registration", ()),
    ("18e", "availability of the data", ()),
    ("18f", "availability of the code", ()),
    ("19", "involvement of patients and the public", ()),
    ("20a", "flow of participants, with and without the outcome", ("patients",)),
    ("20b", "characteristics of the participants, by set of data", ("patients",)),
    ("20c", "evaluation data beside development data", ("patients",)),
    ("21", "participants and events in every analysis", ("patients", "findings")),
    ("22", "the whole model, so that others can predict with it", ("making",)),
    ("23a", "performance with intervals, also by group", ("findings", "calibration", "thresholds", "subgroups")),
    ("23b", "performance by cluster", ()),
    ("24", "results of updating", ("calibration",)),
    ("25", "interpretation, fairness among it", ()),
    ("26", "limitations", ()),
    ("27a", "poor or missing input at use", ()),
    ("27b", "what users have to know and do", ()),
    ("27c", "next steps of research", ()),
)  # fmt: skip

_CLAIM: tuple[Item, ...] = (
    ("1", "title: names the use of AI", ()),
    ("2", "abstract", ()),
    ("3", "scientific and clinical background, intended use", ()),
    ("4", "aims and hypotheses", ()),
    ("5", "prospective or retrospective", ()),
    ("6", "goal of the study", ()),
    ("7", "sources of the data", ("patients", "data")),
    ("8", "inclusion and exclusion", ("patients",)),
    ("9", "preprocessing", ("making",)),
    ("10", "which part of the data was taken", ("patients", "making")),
    ("11", "de-identification", ()),
    ("12", "missing data", ("patients",)),
    ("13", "how images were acquired", ()),
    ("14", "how the reference standard was obtained", ("patients",)),
    ("15", "why this reference standard", ()),
    ("16", "source of the annotations", ("patients",)),
    ("17", "annotation of the test set", ("patients",)),
    ("18", "variability within and between annotators", ()),
    ("19", "how images came into the splits", ("data", "making")),
    ("20", "level at which splits are disjoint", ("patients",)),
    ("21", "intended size of the test set", ()),
    ("22", "description of the model", ("making",)),
    ("23", "software and versions", ("making",)),
    ("24", "initial weights", ("making",)),
    ("25", "training", ("training", "making")),
    ("26", "how the final model was chosen", ("methods",)),
    ("27", "ensembles", ("data",)),
    ("28", "measures of performance", ("methods",)),
    ("29", "significance and uncertainty", ("methods",)),
    ("30", "robustness and sensitivity", ("subgroups",)),
    ("31", "explainability", ("localisation", "pictures")),
    ("32", "evaluation on internal data", ("findings",)),
    ("33", "testing on external data", ()),
    ("34", "registration of a trial", ()),
    ("35", "numbers included and excluded", ("patients",)),
    ("36", "demographic and clinical characteristics by split", ("patients",)),
    ("37", "performance with its uncertainty", ("findings",)),
    ("38", "diagnostic accuracy and its precision", ("thresholds",)),
    ("39", "failures", ("pictures",)),
    ("40", "limitations", ()),
    ("41", "implications for practice", ()),
    ("42", "protocol and further details", ()),
    ("43", "availability of software, model and data", ()),
    ("44", "funding", ()),
)

_CHECKLISTS = {"TRIPOD+AI": _TRIPOD, "CLAIM 2024": _CLAIM}


def checklists(sections: Sequence[Section]) -> dict[str, list[dict[str, Any]]]:
    """By checklist, {item, topic, where, sections}: titles of the sections of a page that bear on it, or that none
    does, and their anchors."""
    titles = {section.name: section.title for section in sections}
    return {
        name: [
            {
                "item": number,
                "topic": topic,
                "where": ", ".join(titles[one] for one in names if one in titles) or YOURS,
                "sections": [one for one in names if one in titles],
            }
            for number, topic, names in items
        ]
        for name, items in _CHECKLISTS.items()
    }


def checklists_section(content: Content, sections: Sequence[Section]) -> Section:
    """Both as tables, folded, with links to the sections of the page."""
    titles = {section.name: section.title for section in sections}
    text = (
        "Where this page bears on an item; it may not be all that the item asks for. What no program knows is yours to "
        "write."
    )
    folds = [
        Fold(
            name,
            (
                blocks.table(
                    ("item", column(one["item"] for one in rows)),
                    ("topic", column(one["topic"] for one in rows)),
                    ("where", [_where(one, titles) for one in rows]),
                ),
            ),
        )
        for name, rows in content.get("checklists").items()
    ]
    return Section("checklists", "Checklists", (paragraph(text, kind="small"), *folds))


def _where(item: dict[str, Any], titles: dict[str, str]) -> Cell:
    links = [Part(titles[name], href=f"#{name}") for name in item["sections"]]
    separated = [part for link in links for part in (Part(", "), link)][1:]
    return Cell(tuple(separated)) if links else blocks.words(item["where"])
