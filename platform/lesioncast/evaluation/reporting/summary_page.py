"""One page for newcomers: what was run, what came out, and what it does not show."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lesioncast.evaluation.analysis.performance import POOLED, PairedDifference
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.analysis.where import WhereReport
from lesioncast.evaluation.metrics.names import AUC, AUC_WITHIN_ARM, AVERAGE_PRECISION, LOG_MSE
from lesioncast.evaluation.reporting.markdown.effects import describe_arm_errors
from lesioncast.evaluation.reporting.markdown.report import (
    METRIC_LABELS,
    describe_comparison,
    describe_monotonicity,
)
from lesioncast.evaluation.where.measurements import MAP_LABELS, SPATIAL_PRIOR
from lesioncast.forecasting.output.calibrated import CalibratedArm
from lesioncast.forecasting.output.summary import ActiveProbability, Difference, ForecastSummary
from lesioncast.imaging.channels import OUTCOME
from lesioncast.markdown import DASH, format_estimate, format_number, markdown_table


def evaluation_section(report: EvaluationReport, *, heading: str, figure: str | None = None) -> str:
    """Return pooled metrics beside the baselines, and P(active) of the same cases by arm."""
    variant = report.headline
    activity, count = variant.activity[POOLED], variant.count[POOLED]
    rows = []
    for key, scores in activity.methods.items():
        counts = count.methods.get(key)
        rows.append(
            [
                report.methods[key],
                format_estimate(scores.auc),
                format_estimate(scores.auc_within_arm),
                format_estimate(scores.average_precision),
                format_estimate(None if counts is None else counts.log_mse),
            ]
        )
    metrics = (AUC, AUC_WITHIN_ARM, AVERAGE_PRECISION, LOG_MSE)
    head = ["method", *(METRIC_LABELS[metric] for metric in metrics)]
    parts = [
        f"## {heading}",
        f"{report.cases.test} held-out subjects, {activity.positives} of them active at "
        f"{report.visits.label(OUTCOME)}; {report.samples} samples each; "
        f"bundle `{report.bundle[:12]}`.",
        markdown_table(head, rows),
        _auc_differences(variant.differences, report.methods),
        _activity_by_arm(report),
        _where(report.where),
        f"![evaluation]({figure})" if figure else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _auc_differences(rows: Sequence[PairedDifference], methods: Mapping[str, str]) -> str:
    lines = [
        f"- {METRIC_LABELS[row.metric]}, {methods[row.method]} minus {methods[row.minus_method]}: "
        f"**{format_estimate(row.difference)}**"
        for row in rows
        if row.metric == AUC
    ]
    return "Paired on the same subjects (95 % bootstrap interval):\n\n" + "\n".join(lines)


def _activity_by_arm(report: EvaluationReport) -> str:
    activity = report.activity_by_arm
    if activity is None:
        return ""
    rows = [
        [
            arm,
            format_estimate(row.p_active),
            format_number(row.true_rate),
            format_number(row.training_rate),
        ]
        for arm, row in activity.arms.items()
    ]
    head = ["arm", "mean P(active)", "truly active", "active, training patients of the arm"]
    return (
        f"The same {activity.cases} subjects under every arm, "
        f"{describe_comparison(activity, report)}. {describe_monotonicity(activity)} First minus "
        f"last arm: {format_estimate(activity.first_minus_last)}.\n\n{markdown_table(head, rows)}"
        f"{describe_arm_errors(activity.errors, digits=3)}"
    )


def _where(where: WhereReport | None) -> str:
    """Return what each map gains over the atlas, for bundles with a spatial prior."""
    if where is None or SPATIAL_PRIOR not in where.maps:
        return ""
    rows = [
        [MAP_LABELS[key], format_estimate(scores.nats_case, digits=1), format_estimate(scores.auc)]
        for key, scores in where.maps.items()
    ]
    head = ["map of where", "gain over the atlas, nats a case", "in-brain AUC"]
    differences = "".join(
        f"\n- {MAP_LABELS[row.method]} minus {MAP_LABELS[row.minus_method]}: "
        f"**{format_estimate(row.difference, digits=2)}** nats a case"
        for row in where.differences
    )
    cases = f"{where.positives} subjects with new lesions."
    return f"{cases}\n\n{markdown_table(head, rows)}\n{differences}"


def forecast_section(summary: ForecastSummary, *, heading: str, figure: str | None = None) -> str:
    """Return one subject's forecast as a table, with its figure."""
    received, observed = summary.received_arm, summary.observed_lesions
    has_expected = all(arm.count.expected is not None for arm in summary.arms.values())
    calibration = summary.calibration
    rows = [
        [
            f"**{name}** (received)" if arm.received else name,
            _format_p_active(arm.p_active),
            *([format_number(arm.count.expected, digits=2)] if has_expected else []),
            *(_calibrated(arm.calibrated) if calibration is not None else []),
            f"{arm.count.mean:.2f} ({arm.count.sd:.2f})",
            _format_difference(arm.minus_reference.p_active),
            _format_difference(arm.minus_reference.count),
        ]
        for name, arm in summary.arms.items()
    ]
    reference = summary.reference_arm
    head = [
        "arm",
        "P(active)",
        *(["lesions expected"] if has_expected else []),
        *(["P(active) recalibrated", "90 % interval of lesions"] if calibration else []),
        "lesions drawn, mean (sd)",
        f"P(active) minus {reference} (MC error)",
        f"lesions minus {reference} (MC error)",
    ]
    truth = (
        "not known" if observed is None else f"{observed} lesion{'s' * (observed != 1)} in the slab"
    )
    parts = [
        f"## {heading}",
        f"{summary.subject}: received {received or 'an arm that is not known'}; observed at "
        f"{summary.visits.label(OUTCOME)}: {truth}. {summary.samples} samples an arm on the "
        f"same seeds; bundle `{summary.bundle[:12]}`.",
        f"![forecast of {summary.subject}]({figure})" if figure else "",
        markdown_table(head, rows),
        ""
        if calibration is None
        else f"Interval and recalibrated P(active) are learned on {calibration.cohort}; "
        f"{calibration.cases} had the images of this subject ({calibration.images}).",
    ]
    return "\n\n".join(part for part in parts if part)


def _calibrated(arm: CalibratedArm | None) -> list[str]:
    """Format the recalibrated P(active) and the interval that figures show."""
    interval = None if arm is None else arm.reported_interval
    return [
        format_number(None if arm is None else arm.p_active, digits=2),
        DASH if interval is None else f"{interval.low} to {interval.high}",
    ]


def _format_p_active(p_active: ActiveProbability) -> str:
    """Format P(active), with the interval of a share of samples; exact values have none."""
    if p_active.low is None or p_active.high is None:
        return f"{p_active.value:.2f}"
    return f"{p_active.value:.2f} ({p_active.low:.2f} to {p_active.high:.2f})"


def _format_difference(difference: Difference) -> str:
    return f"{difference.value:+.2f} ({difference.mc_error:.2f})"


def render_page(title: str, sections: Sequence[str], *, disclaimers: Sequence[str]) -> str:
    """Return the whole page as Markdown, with the disclaimers first."""
    quoted = "\n".join(f"> {sentence}" for sentence in dict.fromkeys(disclaimers))
    return "\n\n".join([f"# {title}", quoted, *sections]) + "\n"


def relative_path(path: Path, *, page_folder: Path) -> str:
    """Return the link to a file from a page in `page_folder`."""
    return Path(os.path.relpath(path, page_folder)).as_posix()
