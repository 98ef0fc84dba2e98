"""One page for newcomers: what was run, what came out, and what it does not show."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lesioncast.evaluation.analysis.activity_by_arm import ActivityByArm
from lesioncast.evaluation.analysis.performance import POOLED, PairedDifference
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.analysis.scoring import PLAIN
from lesioncast.evaluation.metrics.names import AUC, AUC_WITHIN_ARM, AVERAGE_PRECISION, LOG_MSE
from lesioncast.evaluation.reporting.markdown.report import (
    METRIC_LABELS,
    describe_comparison,
    describe_monotonicity,
)
from lesioncast.markdown import format_estimate, format_number, markdown_table


def evaluation_section(report: EvaluationReport, *, heading: str, figure: str | None = None) -> str:
    """Return pooled metrics beside the baselines, and P(active) of the same cases by arm."""
    variant = report.variants[PLAIN.name]
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
        f"week 96; {report.samples} samples each; bundle `{report.bundle[:12]}`.",
        markdown_table(head, rows),
        _auc_differences(variant.differences, report.methods),
        _activity_by_arm(report.activity_by_arm, report.comparison_sessions),
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


def _activity_by_arm(activity: ActivityByArm | None, sessions: Sequence[str]) -> str:
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
        f"{describe_comparison(activity, sessions)}. {describe_monotonicity(activity)} First minus "
        f"last arm: {format_estimate(activity.first_minus_last)}.\n\n{markdown_table(head, rows)}"
    )


def forecast_section(record: Mapping[str, Any], *, heading: str, figure: str | None = None) -> str:
    """One subject's forecast as a table, with its figure."""
    received, observed = record["received_arm"], record["observed_lesions"]
    states = all(row["count"]["stated"] is not None for row in record["arms"].values())
    rows = [
        [
            f"**{arm}** (received)" if row["received"] else arm,
            _chance(row["p_active"]),
            *([format_number(row["count"]["stated"], digits=2)] if states else []),
            f"{row['count']['mean']:.2f} ({row['count']['sd']:.2f})",
            _difference(row["minus_reference"]["p_active"]),
            _difference(row["minus_reference"]["count"]),
        ]
        for arm, row in record["arms"].items()
    ]
    reference = record["reference_arm"]
    head = [
        "arm",
        "P(active)",
        *(["lesions expected, as stated"] if states else []),
        "lesions drawn, mean (sd)",
        f"P(active) minus {reference} (MC error)",
        f"lesions minus {reference} (MC error)",
    ]
    truth = "not known" if observed is None else f"{observed} lesions in the slab"
    parts = [
        f"## {heading}",
        f"{record['subject']}: received {received or 'an arm that is not known'}; observed at week "
        f"96: {truth}. {record['samples']} samples an arm on the same seeds; bundle "
        f"`{record['bundle'][:12]}`.",
        f"![forecast of {record['subject']}]({figure})" if figure else "",
        markdown_table(head, rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _chance(told: Mapping[str, Any]) -> str:
    """With the interval of a share of samples; what the networks state needs none."""
    interval = "" if told["stated"] else f" ({told['low']:.2f} to {told['high']:.2f})"
    return f"{told['value']:.2f}{interval}"


def _difference(gap: Mapping[str, Any]) -> str:
    return f"{gap['value']:+.2f} ({gap['mc_error']:.2f})"


def render_page(title: str, sections: Sequence[str], *, notices: Sequence[str]) -> str:
    """The whole page as Markdown, notices first."""
    warning = "\n".join(f"> {notice}" for notice in dict.fromkeys(notices))
    return "\n\n".join([f"# {title}", warning, *sections]) + "\n"


def relative_path(path: Path, *, page_folder: Path) -> str:
    """The link to a file from a page in `page_folder`."""
    return Path(os.path.relpath(path, page_folder)).as_posix()
