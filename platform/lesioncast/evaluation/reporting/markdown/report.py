"""tables.md: the evaluation report as Markdown tables for people."""

from collections.abc import Mapping, Sequence

from lesioncast.evaluation.analysis.activity_by_arm import ActivityByArm
from lesioncast.evaluation.analysis.performance import (
    POOLED,
    ActivityGroup,
    ActivityScores,
    CountGroup,
    PairedDifference,
    VariantReport,
)
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.baselines.methods import SAMPLED
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.evaluation.metrics.names import (
    AUC,
    AUC_WITHIN_ARM,
    AVERAGE_PRECISION,
    LOG_MSE,
)
from lesioncast.evaluation.paper_results import SOURCE, published
from lesioncast.evaluation.reporting.markdown.effects import (
    contrast_section,
    describe_arm_errors,
    describe_sessions,
    describe_source,
    effect_sections,
)
from lesioncast.evaluation.reporting.markdown.participants import (
    censoring_section,
    participants_section,
)
from lesioncast.evaluation.reporting.markdown.reliance import reliance_section
from lesioncast.evaluation.reporting.markdown.sections import (
    baseline_section,
    calibration_section,
    mask_section,
    regional_section,
)
from lesioncast.evaluation.reporting.markdown.subgroups import decision_section, subgroup_section
from lesioncast.evaluation.reporting.markdown.warnings import warnings_section
from lesioncast.evaluation.reporting.markdown.where import where_section
from lesioncast.evaluation.reporting.tripod_ai import checklist_section
from lesioncast.markdown import DASH, format_estimate, format_number, markdown_table

METRIC_LABELS = {
    AVERAGE_PRECISION: "average precision",
    AUC: "AUC",
    AUC_WITHIN_ARM: "AUC within arms",
    LOG_MSE: "log-count MSE",
}
VARIANT_TITLES = {
    "plain": "Lesions counted as drawn",
    "opened": "Opening applied to forecast and truth",
    "opened_forecast": "Opening applied to the forecast only",
}
PUBLISHED_COLUMN = "published model, baseline (other data)"


def render_markdown(report: EvaluationReport) -> str:
    """Return the content of tables.md."""
    sections = [
        _opening_words(report),
        participants_section(report.participants),
        baseline_section(report.baseline_characteristics, report.visits),
        reliance_section(report.reliance, report.visits),
        _activity_by_arm(report),
    ]
    for name, variant in report.variants.items():
        sections += [f"## {VARIANT_TITLES[name]}", *_variant(variant, report.methods)]
    sections += [
        censoring_section(report.censoring, report.methods),
        regional_section(report.regional),
        mask_section(report.masks),
        where_section(report.where),
        calibration_section(report),
        decision_section(report.decision_curve, report.methods),
        subgroup_section(report.subgroups, report.methods),
        *effect_sections(report.effects, report.comparison_sessions, report.visits),
        contrast_section(report.trial_contrasts, report.comparison_sessions, report.visits),
        warnings_section(report.identifiability_warnings),
        checklist_section(),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _opening_words(report: EvaluationReport) -> str:
    element = " x ".join(str(size) for size in report.opening.element)
    words = [
        "# Evaluation on the test split",
        *report.disclaimers,
        f"{report.cases.test} test cases, {report.cases.train} training cases for the "
        f"baselines, {report.samples} samples a case on its own arm, bundle "
        f"`{report.bundle[:12]}`, seed {report.seed}. Brackets: 95 % percentile bootstrap "
        f"over cases, {report.bootstrap_resamples} resamples; none where fewer than 95 % of the "
        f"resamples define the figure. {DASH}: undefined.",
        f"The paper's opening element of 1 x 5 x 5 mm is {element} voxels here"
        + (", so it removes nothing." if report.opening.no_op else f". {_headline_words(report)}"),
    ]
    return "\n\n".join(words)


def _headline_words(report: EvaluationReport) -> str:
    counted = "after the opening" if report.opening.applied else "without the opening"
    return (
        f"Forecasts count lesions {counted}, and so do findings, figures, calibration, activity by "
        "arm and effects."
    )


def _variant(variant: VariantReport, methods: Mapping[str, str]) -> list[str]:
    return [
        _pooled(variant, methods),
        _differences(variant.differences, methods),
        _activity_table(variant.activity, methods, AVERAGE_PRECISION),
        _activity_table(variant.activity, methods, AUC),
        _log_mse_table(variant.count, methods),
        _mean_counts(variant.count, methods),
    ]


def _pooled(variant: VariantReport, methods: Mapping[str, str]) -> str:
    activity, count = variant.activity[POOLED], variant.count[POOLED]
    rows = []
    for key, label in methods.items():
        scores, counts = activity.methods.get(key), count.methods.get(key)
        rows.append(
            [
                label,
                *_activity_cells(scores),
                format_estimate(None if counts is None else counts.log_mse),
                format_estimate(None if counts is None else counts.crps),
            ]
        )
    head = ["method", METRIC_LABELS[AVERAGE_PRECISION], METRIC_LABELS[AUC]]
    head += [METRIC_LABELS[AUC_WITHIN_ARM], "Brier score", METRIC_LABELS[LOG_MSE]]
    head += ["CRPS of the count"]
    title = f"### Pooled: {activity.positives} of {activity.cases} cases active"
    return f"{title}\n\n{markdown_table(head, rows)}"


def _activity_cells(scores: ActivityScores | None) -> list[str]:
    if scores is None:
        return [DASH] * 4
    return [
        format_estimate(scores.average_precision),
        format_estimate(scores.auc),
        format_estimate(scores.auc_within_arm),
        format_estimate(scores.brier),
    ]


def _differences(rows: Sequence[PairedDifference], methods: Mapping[str, str]) -> str:
    body = [
        [
            METRIC_LABELS[row.metric],
            methods[row.method],
            methods[row.minus_method],
            format_estimate(row.difference),
        ]
        for row in rows
    ]
    return "### One method minus another, paired, pooled\n\n" + markdown_table(
        ["metric", "of", "minus", "difference"], body
    )


def _activity_table(
    groups: Mapping[str, ActivityGroup], methods: Mapping[str, str], metric: str
) -> str:
    """Return average precision or AUC by arm, methods in columns, the paper's figures last."""

    def score(scores: ActivityScores) -> Estimate:
        return scores.auc if metric == AUC else scores.average_precision

    keys = [key for key in methods if key in groups[POOLED].methods]
    rows = [
        [
            name,
            f"{group.positives} of {group.cases}",
            *(format_estimate(score(group.methods[key])) for key in keys),
            _published(metric, name),
        ]
        for name, group in groups.items()
    ]
    head = ["group", "active", *(methods[key] for key in keys), PUBLISHED_COLUMN]
    return _table_by_arm(metric, head, rows)


def _log_mse_table(groups: Mapping[str, CountGroup], methods: Mapping[str, str]) -> str:
    keys = [key for key in methods if key in groups[POOLED].methods]
    rows = [
        [
            name,
            str(group.cases),
            *(format_estimate(group.methods[key].log_mse) for key in keys),
            _published(LOG_MSE, name),
        ]
        for name, group in groups.items()
    ]
    head = ["group", "cases", *(methods[key] for key in keys), PUBLISHED_COLUMN]
    return _table_by_arm(LOG_MSE, head, rows)


def _table_by_arm(metric: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = markdown_table(head, rows)
    return f"### {METRIC_LABELS[metric]} by arm\n\n{table}\n\nPublished: {SOURCE}."


def _published(metric: str, group: str) -> str:
    pair = published(metric, group)
    return DASH if pair is None else f"{pair.proposed:.3f}, {pair.baseline:.3f}"


def _mean_counts(groups: Mapping[str, CountGroup], methods: Mapping[str, str]) -> str:
    keys = [key for key in methods if key in groups[POOLED].methods]
    rows = [
        [
            name,
            format_number(group.observed_mean, digits=2),
            format_estimate(group.methods[SAMPLED].bias, digits=2),
            *(format_number(group.methods[key].mean_count, digits=2) for key in keys),
        ]
        for name, group in groups.items()
    ]
    head = ["group", "observed", "as sampled minus observed", *(methods[key] for key in keys)]
    return f"### Mean lesion count\n\n{markdown_table(head, rows)}"


def _activity_by_arm(report: EvaluationReport) -> str:
    activity = report.activity_by_arm
    if activity is None:
        return ""
    rows = [
        [
            arm,
            format_estimate(row.p_active),
            format_estimate(row.minus_previous),
            format_number(row.monte_carlo_error),
            format_number(row.true_rate),
            format_estimate(row.forecast_minus_true),
            format_number(row.training_rate),
        ]
        for arm, row in activity.arms.items()
    ]
    head = ["arm", "mean P(active)", "minus the arm before", "Monte Carlo error"]
    head += ["truly active", "forecast minus true", "training rate of the arm"]
    return (
        "## The same patients under every arm\n\n"
        f"{activity.cases} test cases under each arm, "
        f"{describe_comparison(activity, report)}. "
        f"{describe_monotonicity(activity)} First minus last arm: "
        f'{format_estimate(activity.first_minus_last)}. "Truly active" is the share of the same '
        "cases that would have been active in the simulation. The training rate is of other "
        f"patients: those who received the arm.\n\n{markdown_table(head, rows)}"
        f"{describe_arm_errors(activity.errors, digits=3)}"
    )


def describe_comparison(activity: ActivityByArm, report: EvaluationReport) -> str:
    """Describe from which images and how P(active) under every arm was obtained."""
    images = describe_sessions(report.comparison_sessions, report.visits)
    return f"{images}: {describe_source(activity.samples)}"


def describe_monotonicity(activity: ActivityByArm) -> str:
    """Say whether P(active) falls from the first to the last arm, and where it does not."""
    if activity.falls_at_every_step:
        return "P(active) falls at every step from the first to the last arm."
    if not activity.arms_above_previous:
        return "P(active) falls, except for steps upwards that may be chance."
    return f"P(active) rises, by more than chance, to {', '.join(activity.arms_above_previous)}."
