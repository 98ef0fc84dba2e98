"""Sections of tables.md on baseline characteristics, on where lesions are, and on calibration."""

from collections.abc import Mapping, Sequence

from lesioncast.evaluation.analysis.baseline_table import BaselineCharacteristics, BaselineTable
from lesioncast.evaluation.analysis.calibration import (
    CalibrationReport,
    GroupCoverage,
    IntervalCoverage,
)
from lesioncast.evaluation.analysis.regional import RegionalReport
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.analysis.spatial import MaskScores, SpatialAgreement, VoxelReliability
from lesioncast.evaluation.analysis.stated_intervals import StatedCalibration
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.evaluation.paper_results import (
    COHORT,
    COHORT_SOURCE,
    REGIONAL,
    REGIONAL_SOURCE,
    PaperRegionalScores,
)
from lesioncast.markdown import DASH, format_estimate, format_number, markdown_table
from storage import VisitSchedule

REGION_NAMES = {"white_matter": "cerebral white matter", "cortex": "cerebral cortex"}
SPLITS = {"train": "training", "test": "test", "validation": "validation"}


def baseline_section(table: BaselineTable, visits: VisitSchedule) -> str:
    """Return the paper's table 1, for the splits that the evaluation read."""
    rows = [
        [SPLITS[split], arm, *_characteristics(row), _published_cohort(arm)]
        for split, arms in table.items()
        for arm, row in arms.items()
    ]
    baseline, current, outcome = visits.labels
    head = ["split", "arm", "cases", f"mean count {current}", f"mean count {outcome}"]
    head += [f"active {current} (%)", f"active {outcome} (%)", "published (other data)"]
    return (
        f"## Baseline characteristics\n\nNew lesions of the slab as drawn, at {current} "
        f"since {baseline} and at {outcome} since {current}. Published, in the same "
        f"order: {COHORT_SOURCE}.\n\n"
        f"{markdown_table(head, rows)}"
    )


def _characteristics(row: BaselineCharacteristics) -> list[str]:
    shares = (row.active_share.current, row.active_share.outcome)
    return [
        str(row.cases),
        format_number(row.mean_count.current, digits=2),
        format_number(row.mean_count.outcome, digits=2),
        *(format_number(None if share is None else 100 * share, digits=1) for share in shares),
    ]


def _published_cohort(arm: str) -> str:
    if arm not in COHORT:
        return DASH
    row = COHORT[arm]
    return (
        f"{row.patients}, {row.mean_count_current:g}, {row.mean_count_outcome:g}, "
        f"{row.percent_active_current:g}, {row.percent_active_outcome:g}"
    )


def regional_section(report: RegionalReport | None) -> str:
    """Return the paper's table 2; nothing without a parcellation."""
    if report is None:
        return ""
    parts = [
        "## Where lesions are forecast",
        f"{report.cases} test cases with a parcellation. Positive: any lesion voxel in the "
        "region. AUC and average precision are of a method's probability of that. For the other "
        "scores a method says yes from the threshold on at which it would say yes of the share "
        f"of positive training cases, {_threshold_cases(report)}. Monte Carlo and single samples "
        f"draw yes or no. Published model and baseline: {REGIONAL_SOURCE}.",
    ]
    for region, group in report.regions.items():
        rows = [
            [
                report.methods[key],
                format_estimate(scores.auc),
                format_estimate(scores.average_precision),
                format_number(scores.threshold),
                format_estimate(scores.balanced_accuracy),
                format_estimate(scores.precision),
                format_estimate(scores.recall),
                format_estimate(scores.f1),
            ]
            for key, scores in group.methods.items()
        ]
        paper, unknown = REGIONAL[region], [DASH] * 3
        rows += [
            ["published model (other data)", *unknown, *_published_scores(paper.proposed)],
            ["published baseline (other data)", *unknown, *_published_scores(paper.baseline)],
        ]
        title = f"### {REGION_NAMES[region].capitalize()}: {group.positives} of "
        head = ["method", "AUC", "average precision", "threshold"]
        head += ["balanced accuracy", "precision", "recall", "F1"]
        parts.append(f"{title}{report.cases} cases positive\n\n{markdown_table(head, rows)}")
    return "\n\n".join(parts)


def _threshold_cases(report: RegionalReport) -> str:
    if report.threshold_cases:
        return f"counted on the forecasts for {report.threshold_cases} validation cases"
    return "counted on the forecasts for the test cases, whose outcomes it does not use"


def _published_scores(scores: PaperRegionalScores) -> list[str]:
    return [
        format_number(score)
        for score in (scores.balanced_accuracy, scores.precision, scores.recall, scores.f1)
    ]


def mask_section(masks: SpatialAgreement | None) -> str:
    """Return lesion detection, distances between masks, and the reliability of voxels."""
    if masks is None:
        return ""
    return "\n\n".join(
        [
            "## Sampled and observed masks",
            "Detection by the rule of MSSEG-2 (Commowick et al. 2018): more than 10 % of a lesion "
            "is covered, by lesions of which no more than 70 % lies outside. Lesions of 3 mm3 or "
            "less are not counted. F1 is over cases with an observed lesion. The second table "
            "describes the samples of the other cases. The energy distance (Kohl et al. 2018, "
            "d = 1 - IoU) is 0 at best; beside it stands that of a forecast without lesions. "
            "Diversity is the mean d between two samples.",
            _detection(masks.groups),
            _lesion_free(masks.groups),
            _voxels(masks.voxels),
        ]
    )


def _detection(groups: Mapping[str, MaskScores]) -> str:
    rows = [
        [
            name,
            f"{group.cases_with_lesions} of {group.cases}",
            format_estimate(group.f1_sample),
            format_estimate(group.f1_majority),
            format_estimate(group.energy_distance),
            format_estimate(group.energy_distance_of_empty),
            format_estimate(group.diversity),
        ]
        for name, group in groups.items()
    ]
    head = ["group", "with lesions", "F1 of a sample", "F1 of the majority mask"]
    head += ["energy distance", "that of empty masks", "diversity"]
    return markdown_table(head, rows)


def _lesion_free(groups: Mapping[str, MaskScores]) -> str:
    rows = [
        [
            name,
            str(group.lesion_free.cases),
            format_estimate(group.lesion_free.lesions_per_sample),
            format_estimate(group.lesion_free.mm3_per_sample),
            format_estimate(group.lesion_free.empty_sample_share),
        ]
        for name, group in groups.items()
    ]
    head = ["group", "cases without", "lesions a sample", "mm3 a sample", "samples without any"]
    return f"### Cases without an observed lesion\n\n{markdown_table(head, rows)}"


def _voxels(voxels: VoxelReliability) -> str:
    rows = [
        [
            format_number(row.probability),
            str(row.voxels),
            str(row.lesion_voxels),
            format_estimate(row.lesion_share),
        ]
        for row in voxels.rows
    ]
    head = ["forecast probability", "voxels", "of them lesion", "share"]
    return (
        "### Reliability of the voxel probability\n\nBrier score over all voxels, less the "
        "error that the small number of samples adds (Ferro 2014): "
        f"{_scientific(voxels.brier)}. That of the mean rate alone: "
        f"{voxels.lesion_share * (1 - voxels.lesion_share):.2e}.\n\n"
        f"{markdown_table(head, rows)}"
    )


def _scientific(estimate: Estimate) -> str:
    complete = estimate.with_interval
    if complete is None:
        return DASH if estimate.value is None else f"{estimate.value:.2e}"
    return f"{complete.value:.2e} ({complete.low:.2e} to {complete.high:.2e})"


def calibration_section(report: EvaluationReport) -> str:
    """Return the parts of the Brier score, and what was fitted on the validation cases."""
    rows = [
        [
            report.methods[key],
            format_estimate(scores.brier),
            format_estimate(scores.reliability),
            format_estimate(scores.resolution),
            format_estimate(scores.uncertainty),
        ]
        for key, scores in report.probability_calibration.items()
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
            *_fitted(report.calibration),
            *stated_section(report.stated_calibration),
        ]
    )


def stated_section(calibration: StatedCalibration | None) -> Sequence[str]:
    """Return how the intervals that forecasts state hold, by arm and by images."""
    if calibration is None:
        return ["Forecasts of this bundle state no calibrated interval."]
    head = ["cases", "number", *(f"{one.group} hold, mean width" for one in calibration.levels)]
    rows = [
        [
            "all",
            str(calibration.cases),
            *(
                f"{format_estimate(one.coverage)}, {one.mean_width:.2f}"
                for one in calibration.levels
            ),
        ]
    ]
    for groups in zip(*(one.arms.items() for one in calibration.levels), strict=True):
        rows.append(_stated_row(groups))
    for groups in zip(*(one.images.items() for one in calibration.levels), strict=True):
        rows.append(_stated_row(groups))
    return [
        "### Intervals that forecasts state\n\nThe bundle's own calibration was learned on "
        f"{calibration.cohort}. For {calibration.cases} test cases forecasts state an interval. "
        "By arm, then by the images that a case has (Wilson intervals):\n\n"
        + markdown_table(head, rows)
    ]


def _stated_row(groups: Sequence[tuple[str, GroupCoverage]]) -> list[str]:
    name, first = groups[0]
    widths = [f"{_share(one)}, {format_number(one.mean_width, digits=2)}" for _, one in groups]
    return [name, str(first.cases), *widths]


def _fitted(calibration: CalibrationReport | None) -> Sequence[str]:
    if calibration is None:
        return ["Nothing was calibrated: there was no forecast of a validation case."]
    validation, curve = calibration.validation, calibration.platt_scaling
    logistic = (
        "P(active) could not be recalibrated: one class only."
        if curve is None
        else f"P(active) is recalibrated by a logistic curve (Platt 1999), slope "
        f"{curve.slope:.2f}, intercept {curve.intercept:.2f}. Isotonic regression would need about "
        "a thousand cases."
    )
    return [
        f"Fitted on {validation.cases} validation cases, {validation.positives} of them active, "
        f"and on no others. {logistic}",
        *(_coverage(interval) for interval in calibration.count_intervals),
    ]


def _coverage(interval: IntervalCoverage) -> str:
    nominal = f"{100 * interval.level:.0f} %"
    if interval.quantile is None or interval.mean_width is None:
        return f"A {nominal} interval of the count needs more validation cases than there are."
    low, high = interval.coverage_range
    rows = [
        [arm, str(row.cases), _share(row), format_number(row.mean_width, digits=2)]
        for arm, row in interval.arms.items()
    ]
    return (
        f"### Conformal {nominal} intervals of the count\n\nThey hold for "
        f"{format_estimate(interval.coverage)} of the test cases, with a mean width of "
        f"{interval.mean_width:.2f} lesions. With validation and test sets of these sizes, 95 of "
        f"100 evaluations have a coverage of {low:.3f} to {high:.3f}, or more where counts tie. "
        "The promise is about all cases together. By arm (Wilson interval):\n\n"
        + markdown_table(["arm", "cases", "share that hold", "mean width"], rows)
    )


def _share(row: GroupCoverage) -> str:
    return f"{row.coverage:.3f} ({row.low:.3f} to {row.high:.3f})"
