"""Sections of tables.md on the cohort, on where lesions are, and on calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

from lesioncast.evaluation.analysis.regional import BA, F1, PRECISION, RECALL, SCORES
from lesioncast.evaluation.paper_results import (
    COHORT,
    COHORT_SOURCE,
    REGIONAL,
    REGIONAL_SOURCE,
)
from lesioncast.markdown import DASH, format_estimate, format_number, markdown_table

Record = Mapping[str, Any]

WEEKS = ("w048", "w096")
REGION_NAMES = {"white_matter": "cerebral white matter", "cortex": "cerebral cortex"}
SCORE_NAMES = {BA: "balanced accuracy", PRECISION: "precision", RECALL: "recall", F1: "F1"}
SPLITS = {"train": "training", "test": "test", "validation": "validation"}


def cohort_section(record: Record) -> str:
    """The paper's table 1, of the splits that the evaluation read."""
    rows = [
        [SPLITS[split], arm, *_characteristics(row), _published_cohort(arm)]
        for split, arms in record["cohort"].items()
        for arm, row in arms.items()
    ]
    head = ["split", "arm", "cases", *(f"mean count {week}" for week in WEEKS)]
    head += [*(f"active {week} (%)" for week in WEEKS), "published (other data)"]
    return (
        "## The cohort\n\nNew lesions of the slab as drawn, w048 against w000 and w096 against "
        f"w048. Published, in the same order: {COHORT_SOURCE}.\n\n{markdown_table(head, rows)}"
    )


def _characteristics(row: Record) -> list[str]:
    activity = (row["activity"][week] for week in WEEKS)
    return [
        str(row["cases"]),
        *(format_number(row["count"][week], digits=2) for week in WEEKS),
        *(format_number(None if share is None else 100 * share, digits=1) for share in activity),
    ]


def _published_cohort(arm: str) -> str:
    if arm not in COHORT:
        return DASH
    cases, *figures = COHORT[arm]
    return ", ".join([str(cases), *(f"{figure:g}" for figure in figures)])


def regional_section(record: Record | None) -> str:
    """The paper's table 2."""
    if record is None:
        return ""
    parts = [
        "## Where lesions are forecast",
        f"{record['cases']} test cases with a parcellation. Positive: any lesion voxel in the "
        f"region. Published model and baseline: {REGIONAL_SOURCE}.",
    ]
    for region, group in record["regions"].items():
        rows = [
            [record["methods"][key], *(format_estimate(scores[name]) for name in SCORES)]
            for key, scores in group["methods"].items()
        ]
        for label, figures in zip(("model", "baseline"), REGIONAL[region], strict=True):
            rows.append(
                [f"published {label} (other data)", *(format_number(each) for each in figures)]
            )
        title = f"### {REGION_NAMES[region].capitalize()}: {group['positives']} of "
        head = ["method", *(SCORE_NAMES[name] for name in SCORES)]
        parts.append(f"{title}{record['cases']} cases positive\n\n{markdown_table(head, rows)}")
    return "\n\n".join(parts)


def mask_section(record: Record | None) -> str:
    """Lesion-level detection, distance between masks, reliability of voxels."""
    if record is None:
        return ""
    return "\n\n".join(
        [
            "## Masks beside the observed ones",
            "Detection by the rule of MSSEG-2 (Commowick et al. 2018: more than 10 % of a lesion "
            "covered, by lesions no more than 70 % outside; lesions above 3 mm3). F1 is over cases "
            "with an observed lesion; of the others the table gives what a sample draws there. The "
            "energy distance (Kohl et al. 2018, d = 1 - IoU) is 0 at best, beside that of a "
            "forecast that never draws a lesion; diversity is the mean d between two samples.",
            _detection(record["groups"]),
            _empty(record["groups"]),
            _voxels(record["voxels"]),
        ]
    )


def _detection(groups: Record) -> str:
    rows = [
        [
            name,
            f"{group['with_lesions']} of {group['cases']}",
            *(format_estimate(group[key]) for key in ("f1_sample", "f1_majority")),
            *(format_estimate(group[key]) for key in ("energy", "energy_of_empty", "diversity")),
        ]
        for name, group in groups.items()
    ]
    head = ["group", "with lesions", "F1 of a sample", "F1 of the majority mask"]
    head += ["energy distance", "that of empty masks", "diversity"]
    return markdown_table(head, rows)


def _empty(groups: Record) -> str:
    rows = [
        [
            name,
            str(group["empty"]["cases"]),
            *(format_estimate(group["empty"][key]) for key in ("lesions", "volume", "silent")),
        ]
        for name, group in groups.items()
    ]
    head = ["group", "cases without", "lesions a sample", "mm3 a sample", "samples without any"]
    return f"### Cases without an observed lesion\n\n{markdown_table(head, rows)}"


def _voxels(record: Record) -> str:
    rows = [
        [
            format_number(row["probability"]),
            str(row["voxels"]),
            str(row["lesion_voxels"]),
            format_estimate(row["share"]),
        ]
        for row in record["rows"]
    ]
    head = ["forecast probability", "voxels", "of them lesion", "share"]
    return (
        "### Reliability of the voxel probability\n\nBrier score over all voxels, less what the "
        "small number of samples costs (Ferro 2014): "
        f"{_small(record['brier'])}; that of the mean rate alone "
        f"{record['lesion_share'] * (1 - record['lesion_share']):.2e}.\n\n"
        f"{markdown_table(head, rows)}"
    )


def _small(estimate: Record) -> str:
    if estimate["low"] is None:
        return DASH if estimate["value"] is None else f"{estimate['value']:.2e}"
    return f"{estimate['value']:.2e} ({estimate['low']:.2e} to {estimate['high']:.2e})"


def calibration_section(record: Record) -> str:
    """Brier score in its parts; what was learned on validation and whether it holds."""
    parts = ("brier", "reliability", "resolution", "uncertainty")
    rows = [
        [record["methods"][key], *(format_estimate(scores[part]) for part in parts)]
        for key, scores in record["probabilities"].items()
    ]
    head = ["method", "Brier score", "reliability", "resolution", "uncertainty"]
    return "\n\n".join(
        [
            "## Calibration",
            "Brier score = reliability - resolution + uncertainty (Murphy 1973, without bins as in "
            "Dimitriadis et al. 2021): reliability 0 is best, resolution is at most the "
            "uncertainty. The isotonic curve is fitted on the cases shown, so both are a little "
            "too large where cases are few.",
            markdown_table(head, rows),
            *_learned(record["calibration"]),
        ]
    )


def _learned(record: Record | None) -> Sequence[str]:
    if record is None:
        return ["Nothing was calibrated: no validation case was drawn."]
    validation, curve = record["validation"], record["activity"]
    logistic = (
        "P(active) could not be recalibrated: one class only."
        if curve is None
        else f"P(active) is recalibrated by a logistic curve (Platt 1999), slope "
        f"{curve['slope']:.2f}, intercept {curve['intercept']:.2f}: two numbers, for isotonic "
        "regression needs about a thousand cases."
    )
    return [
        f"Learned on {validation['cases']} validation cases, {validation['positives']} of them "
        f"active, and on nothing else. {logistic}",
        *(_coverage(each) for each in record["counts"]),
    ]


def _coverage(record: Record) -> str:
    nominal = f"{100 * record['level']:.0f} %"
    if record["score"] is None:
        return f"A {nominal} interval of the count needs more validation cases than there are."
    low, high = record["likely"]
    rows = [
        [arm, str(row["cases"]), _share(row), format_number(row["mean_width"], digits=2)]
        for arm, row in record["arms"].items()
    ]
    return (
        f"### Conformal {nominal} intervals of the count\n\nThey hold for "
        f"{format_estimate(record['coverage'])} of the test cases, mean width "
        f"{record['mean_width']:.2f} lesions. Validation and test sets of these sizes give "
        f"{low:.3f} to {high:.3f} in 95 of 100 trials, more where counts tie. The promise is about "
        "all cases together; by arm (Wilson interval):\n\n"
        + markdown_table(["arm", "cases", "share that hold", "mean width"], rows)
    )


def _share(row: Record) -> str:
    return f"{row['coverage']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
