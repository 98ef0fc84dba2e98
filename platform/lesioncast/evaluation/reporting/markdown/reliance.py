"""The section of tables.md on what the forecast rests on, and the same in a few sentences."""

from lesioncast.evaluation.analysis.validity.reliance import (
    ALL_INPUTS,
    ARM_ALONE,
    BASELINE_FLAIR,
    OTHER_PATIENT,
    WITHOUT_COVARIATES,
    WITHOUT_GADOLINIUM,
    WITHOUT_MASKS,
    RelianceReport,
    RelianceRow,
    RelianceScores,
)
from lesioncast.imaging.channels import BASELINE
from lesioncast.markdown import format_estimate, format_number, markdown_table
from storage import VisitSchedule

TITLE = "What the forecast rests on"
QUESTION = "What does the forecast rest on?"
NOT_MEASURED = (
    "Not measured: this model has no prior that states its probability in closed form. Sampling "
    "every case once more for each choice of inputs would multiply the cost of the evaluation."
)
SCORES = ["AUC", "AUC within arms", "average precision", "Brier score", "log-count MSE"]


def reliance_section(report: RelianceReport | None, visits: VisitSchedule) -> str:
    """Return the scores from each choice of inputs, and their differences from all inputs."""
    if report is None:
        return f"## {TITLE}\n\n{NOT_MEASURED}"
    labels = input_labels(visits)
    head = ["inputs shown", "cases", *SCORES, "mean P(active)"]
    rows = [
        [labels[key], str(row.cases), *_cells(row.scores), format_number(row.mean_probability)]
        for key, row in report.inputs.items()
    ]
    differences = [
        [labels[key], *_cells(row.minus_all_inputs)]
        for key, row in report.inputs.items()
        if row.minus_all_inputs is not None
    ]
    return "\n\n".join(
        [
            f"## {TITLE}",
            "The prognostic prior's P(active) and mean of log counts in closed form, of the test "
            "patients under the arm received. No mask is sampled: the diffusion networks have no "
            "part in this table. A hidden channel is absent, as where a patient lacks it; training "
            "hid channels at random, so the prior has learned to do without. Covariates, where "
            "the model has any, are shown but in the rows that say otherwise. In the row with "
            "another patient's images, the patients of each arm exchange all images and masks at "
            "random and nobody keeps their own.",
            markdown_table(head, rows),
            "### Minus all inputs, paired on the same patients",
            markdown_table(["inputs shown", *SCORES], differences),
        ]
    )


def input_labels(visits: VisitSchedule) -> dict[str, str]:
    """Return the name of each choice of inputs for readers."""
    return {
        ALL_INPUTS: "all inputs",
        WITHOUT_GADOLINIUM: "without gadolinium",
        WITHOUT_MASKS: "without any lesion mask",
        BASELINE_FLAIR: f"FLAIR of {visits.label(BASELINE)} alone",
        OTHER_PATIENT: "images and masks of another patient of the same arm",
        WITHOUT_COVARIATES: "without covariates",
        ARM_ALONE: "none: the arm alone",
    }


def _cells(scores: RelianceScores) -> list[str]:
    return [
        format_estimate(score)
        for score in (
            scores.auc,
            scores.auc_within_arm,
            scores.average_precision,
            scores.brier,
            scores.log_mse,
        )
    ]


def describe_reliance(report: RelianceReport, visits: VisitSchedule) -> str:
    """Say whether the forecast rests on the patient's own images, and what each input adds."""
    everything, arm_alone = report.inputs[ALL_INPUTS], report.inputs[ARM_ALONE]
    return (
        f"{_verdict(report)}{_parts(report, visits)} Over all patients, the AUC is "
        f"{format_estimate(arm_alone.scores.auc, digits=2)} from the arm alone and "
        f"{format_estimate(everything.scores.auc, digits=2)} from all inputs."
    )


def _verdict(report: RelianceReport) -> str:
    own = _within_arms(report.inputs[ALL_INPUTS])
    if report.rests_on_images is None:
        return (
            "Whether it rests on the patient's images cannot be told from these patients. Among "
            f"patients on the same treatment, the AUC is {own} from all inputs."
        )
    others = _within_arms(report.inputs[OTHER_PATIENT])
    if report.rests_on_images:
        return (
            "With the images of another patient on the same treatment it does worse: among such "
            f"patients, the AUC falls from {own} to {others}."
        )
    return (
        "It is not shown to rest on the patient's images: with those of another patient on the "
        f"same treatment, the AUC among such patients is {others}; with their own it is {own}."
    )


def _parts(report: RelianceReport, visits: VisitSchedule) -> str:
    """Return a sentence on the choices of inputs that hide some of the images or covariates."""
    labels = input_labels(visits)
    parts = [
        f"{_within_arms(report.inputs[key])} {before}{labels[key]}"
        for key, before in (
            (WITHOUT_GADOLINIUM, ""),
            (WITHOUT_MASKS, ""),
            (BASELINE_FLAIR, "from the "),
            (WITHOUT_COVARIATES, ""),
        )
        if key in report.inputs
    ]
    return f" It is {', '.join(parts)}." if parts else ""


def _within_arms(row: RelianceRow) -> str:
    return format_estimate(row.scores.auc_within_arm, digits=2)
