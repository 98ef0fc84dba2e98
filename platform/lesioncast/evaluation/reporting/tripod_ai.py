"""The TRIPOD+AI checklist, item by item: where this project answers it, or that it does not.

Items are those of Collins et al. 2024 (BMJ 385:e078378), paraphrased. Places are headings of
tables.md, which the report shows as well, and pages of this repository; tests check that both
exist.
"""

from dataclasses import dataclass
from enum import StrEnum

from lesioncast.markdown import DASH, markdown_table

TITLE = "TRIPOD+AI checklist"
SOURCE = "Collins et al. 2024, BMJ 385:e078378"


class Answer(StrEnum):
    """How far an item is answered."""

    YES = "reported"
    PARTLY = "in part"
    NO = "not reported"
    NOT_APPLICABLE = "not applicable"
    TRIAL = "by the trial"
    """Only those who ran the trial can answer."""


@dataclass(frozen=True)
class ChecklistItem:
    """One item: what it asks, how far it is answered, where, and what is to be said of it.

    `sections` are headings of tables.md, `pages` are pages of the repository with a heading.
    """

    number: str
    topic: str
    answer: Answer
    sections: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()
    note: str = ""


METHOD, EVALUATION = "platform/METHOD.md", "platform/EVALUATION.md"
GUIDE, STORAGE = "storage/TRIAL_GUIDE.md", "storage/README.md"
SIMULATION = "platform/lesioncast/simulation/README.md"

ITEMS = (
    ChecklistItem(
        "1", "Title names model, population, outcome", Answer.PARTLY,
        pages=("README.md",), note="the software's title, not a study's",
    ),
    ChecklistItem("2", "Structured abstract", Answer.NO),
    ChecklistItem(
        "3a", "Medical context and rationale", Answer.PARTLY,
        pages=("README.md",), note="see the paper for the rationale",
    ),
    ChecklistItem(
        "3b", "Target population, purpose, users", Answer.PARTLY,
        pages=("README.md#what-the-results-do-and-do-not-show",),
        note="research only; no clinical purpose is proposed",
    ),
    ChecklistItem("3c", "Known health inequalities", Answer.NO),
    ChecklistItem(
        "4", "Objectives: development, evaluation or both", Answer.YES,
        pages=(f"{EVALUATION}#what-it-does",), note="both, on one trial's data",
    ),
    ChecklistItem(
        "5a", "Sources of data, separately for each use", Answer.PARTLY, ("Participants",),
        (f"{STORAGE}#inputs-and-outputs",), "how representative they are is for the trial to say",
    ),
    ChecklistItem("5b", "Dates of recruitment and follow-up", Answer.TRIAL),
    ChecklistItem("6a", "Setting and number of centres", Answer.TRIAL),
    ChecklistItem(
        "6b", "Eligibility of participants", Answer.PARTLY, ("Participants",),
        note="exclusions at conversion; the trial's criteria are its own",
    ),
    ChecklistItem(
        "6c", "Treatments received and how they are handled", Answer.YES,
        ("Observed effects within trials",), (f"{METHOD}#section-3-data",),
    ),
    ChecklistItem(
        "7", "Preparation of data, quality checks", Answer.PARTLY,
        pages=(f"{STORAGE}#how-a-volume-becomes-a-slab", f"{GUIDE}#3-run-it"),
        note="not compared between sociodemographic groups",
    ),
    ChecklistItem(
        "8a", "Outcome, its time, how it is assessed", Answer.YES, ("Baseline characteristics",),
        (f"{METHOD}#section-3-data",), "new or enlarging T2 lesions on the slab",
    ),
    ChecklistItem(
        "8b", "Qualification of the assessors of the outcome", Answer.TRIAL,
    ),
    ChecklistItem("8c", "Blinding of the assessment", Answer.TRIAL),
    ChecklistItem(
        "9a", "Choice of predictors", Answer.PARTLY,
        pages=(f"{METHOD}#section-2-network-objective-and-schedule",),
        note="images of two visits and the arm, as in the paper; the covariates are a setting",
    ),
    ChecklistItem(
        "9b", "Definition and measurement of predictors", Answer.PARTLY,
        ("What the forecast rests on",), (f"{METHOD}#clinical-covariates",),
        "how a covariate was measured is for the trial to say",
    ),
    ChecklistItem("9c", "Qualification of those who assess predictors", Answer.TRIAL),
    ChecklistItem("10", "Sample size and its rationale", Answer.NO, note="all cases are used"),
    ChecklistItem(
        "11", "Missing data", Answer.PARTLY,
        ("Participants", "Scores weighted for missing outcomes"),
        (f"{METHOD}#clinical-covariates",),
        "missing channels and covariates are inputs of their own; nothing is imputed",
    ),
    ChecklistItem(
        "12a", "Use of the data, partition", Answer.YES, ("Participants",),
        (f"{EVALUATION}#what-it-does",),
    ),
    ChecklistItem(
        "12b", "Handling of predictors", Answer.YES,
        pages=(f"{STORAGE}#how-a-volume-becomes-a-slab", f"{METHOD}#clinical-covariates"),
    ),
    ChecklistItem(
        "12c", "Type of model, building, tuning, internal validation", Answer.PARTLY,
        pages=(f"{METHOD}#presets", f"{METHOD}#departures-from-the-paper"),
        note="how settings were tuned is described, not logged trial by trial",
    ),
    ChecklistItem(
        "12d", "Differences between clusters", Answer.PARTLY, ("Subgroups",),
        note="scores by trial; centres are not known",
    ),
    ChecklistItem(
        "12e", "Measures of performance", Answer.YES,
        ("Calibration", "Decision curve"), (f"{EVALUATION}#how-to-read-the-report",),
    ),
    ChecklistItem(
        "12f", "Updating of the model", Answer.YES, ("Calibration",),
        note="recalibration on validation cases, shown as a row of its own",
    ),
    ChecklistItem(
        "12g", "How predictions are computed", Answer.YES,
        pages=(f"{METHOD}#the-lesion-load", f"{METHOD}#sampling"),
    ),
    ChecklistItem(
        "13", "Class imbalance", Answer.YES, ("Calibration",),
        (f"{METHOD}#departures-from-the-paper",),
    ),
    ChecklistItem(
        "14", "Approaches to fairness", Answer.PARTLY, ("Subgroups",),
        note="scores by sex and age; the model does nothing for fairness",
    ),
    ChecklistItem(
        "15", "Output of the model, thresholds", Answer.YES, ("Decision curve",),
        (f"{METHOD}#the-lesion-load",), "a probability, counts and masks; no threshold",
    ),
    ChecklistItem(
        "16", "Differences between training and evaluation data", Answer.YES,
        ("Baseline characteristics",), note="splits of one trial's patients, by arm",
    ),
    ChecklistItem("17", "Ethical approval and consent", Answer.TRIAL),
    ChecklistItem("18a", "Funding", Answer.NO),
    ChecklistItem("18b", "Conflicts of interest", Answer.NO),
    ChecklistItem("18c", "Protocol", Answer.NO, note="there is none"),
    ChecklistItem("18d", "Registration", Answer.NO, note="not registered"),
    ChecklistItem(
        "18e", "Availability of data", Answer.PARTLY, pages=(SIMULATION,),
        note="simulated trials can be made again; a real trial's data are the trial's",
    ),
    ChecklistItem(
        "18f", "Availability of code", Answer.YES, pages=("README.md#quick-start",),
    ),
    ChecklistItem("19", "Involvement of patients and the public", Answer.NO, note="none"),
    ChecklistItem(
        "20a", "Flow of participants, with and without outcome", Answer.YES, ("Participants",),
        note="follow-up times are in the store",
    ),
    ChecklistItem(
        "20b", "Characteristics of participants", Answer.PARTLY, ("Baseline characteristics",),
        note="lesions by arm; not sex and age",
    ),
    ChecklistItem(
        "20c", "Predictors in evaluation against development data", Answer.PARTLY,
        ("Baseline characteristics",), note="lesion counts alone",
    ),
    ChecklistItem(
        "21", "Participants and events in each analysis", Answer.YES,
        ("Participants", "Baseline characteristics"),
    ),
    ChecklistItem(
        "22", "Full specification of the model", Answer.YES,
        pages=("platform/README.md#the-bundle",), note="weights, settings and code",
    ),
    ChecklistItem(
        "23a", "Performance with intervals, also in subgroups", Answer.YES,
        ("Lesions counted as drawn", "Subgroups"),
        note="intervals leave out the variation between training runs",
    ),
    ChecklistItem(
        "23b", "Heterogeneity between clusters", Answer.PARTLY, ("Subgroups",),
        note="by trial",
    ),
    ChecklistItem("24", "Results of updating the model", Answer.YES, ("Calibration",)),
    ChecklistItem(
        "25", "Interpretation, also of fairness", Answer.PARTLY,
        pages=("README.md#what-the-results-do-and-do-not-show",),
        note="findings in words at the head of the report; not on fairness",
    ),
    ChecklistItem(
        "26", "Limitations", Answer.YES,
        pages=("README.md#what-the-results-do-and-do-not-show", "platform/README.md#limits"),
    ),
    ChecklistItem(
        "27a", "Poor or missing input at use", Answer.PARTLY,
        ("What the forecast rests on",),
        (f"{GUIDE}#3-run-it", "serve/README.md#a-patient-who-is-not-in-the-store"),
        "files that cannot be used are refused; what missing masks cost is measured",
    ),
    ChecklistItem(
        "27b", "Interaction and expertise needed at use", Answer.PARTLY,
        pages=("serve/README.md#a-patient-who-is-not-in-the-store",),
        note="lesion masks are optional; who may read a forecast is not studied",
    ),
    ChecklistItem("27c", "Next steps of research", Answer.NO),
)  # fmt: skip


def checklist_section() -> str:
    """Return the checklist as a section of tables.md."""
    rows = [
        [item.number, item.topic, item.answer.value, _places(item), item.note or DASH]
        for item in ITEMS
    ]
    counts = ", ".join(
        f"{answer.value} {sum(item.answer is answer for item in ITEMS)}"
        for answer in Answer
        if any(item.answer is answer for item in ITEMS)
    )
    return "\n\n".join(
        [
            f"## {TITLE}",
            f"Items of {SOURCE}, in our words. Places in quotation marks are sections of this "
            'report, others are pages of the source repository. "By the trial" means that only '
            f"those who ran the trial can answer. Of {len(ITEMS)} items: {counts}.",
            markdown_table(["item", "asks for", "answer", "where", "remark"], rows),
        ]
    )


def _places(item: ChecklistItem) -> str:
    places = [*(f'"{section}"' for section in item.sections), *item.pages]
    return ", ".join(places) or DASH
