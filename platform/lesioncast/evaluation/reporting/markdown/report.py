"""The evaluation for people: Markdown from the record in metrics.json. A dash is undefined."""

from collections.abc import Mapping, Sequence
from typing import Any

from lesioncast.evaluation.analysis.performance import AUC_WITHIN_ARM, BIAS, POOLED
from lesioncast.evaluation.baselines.methods import ENSEMBLE
from lesioncast.evaluation.metrics.names import AP, AUC, LOG_MSE
from lesioncast.evaluation.paper_results import SOURCE, published
from lesioncast.evaluation.reporting.markdown.effects import (
    contrast_section,
    describe_sessions,
    effect_sections,
)
from lesioncast.evaluation.reporting.markdown.sections import (
    calibration_section,
    cohort_section,
    mask_section,
    regional_section,
)
from lesioncast.evaluation.reporting.markdown.warnings import warnings_section
from lesioncast.markdown import DASH, format_estimate, format_number, markdown_table

Record = Mapping[str, Any]

NAMES = {
    AP: "average precision",
    AUC: "AUC",
    AUC_WITHIN_ARM: "AUC within arms",
    LOG_MSE: "log-count MSE",
    "crps": "CRPS of the count",
    "brier": "Brier score",
}
VARIANTS = {
    "plain": "Lesions counted as drawn",
    "opened": "Opening applied to forecast and truth",
    "opened_forecast": "Opening applied to the forecast only",
}


def render_markdown(record: Record) -> str:
    """tables.md."""
    sections = [_opening_words(record), cohort_section(record), _ladder(record)]
    for key, variant in record["variants"].items():
        sections += [f"## {VARIANTS[key]}", *_variant(variant, record["methods"])]
    sections += [
        regional_section(record["regional"]),
        mask_section(record["masks"]),
        calibration_section(record),
        *effect_sections(record["effects"], record["compared"]),
        contrast_section(record["contrasts"], record["compared"]),
        warnings_section(record["warnings"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _opening_words(record: Record) -> str:
    element = " x ".join(str(size) for size in record["opening"]["element"])
    words = [
        "# Evaluation on the test split",
        *(f"{notice}" for notice in record["notices"]),
        f"{record['cases']['test']} test cases, {record['cases']['train']} training cases for the "
        f"baselines, {record['samples']} samples a case on its own arm, bundle "
        f"`{record['bundle'][:12]}`, seed {record['seed']}. Brackets: 95 % percentile bootstrap "
        f"over cases, {record['bootstrap']} resamples; none where fewer than 95 % of the "
        f"resamples define the figure. {DASH}: undefined.",
        f"The paper's opening element of 1 x 5 x 5 mm is {element} voxels here"
        + (", so it removes nothing." if record["opening"]["idle"] else "."),
    ]
    return "\n\n".join(words)


def _variant(variant: Record, methods: Mapping[str, str]) -> list[str]:
    return [
        _pooled(variant, methods),
        _differences(variant["differences"], methods),
        *(_by_arm(variant["activity"], methods, metric) for metric in (AP, AUC)),
        _by_arm(variant["count"], methods, LOG_MSE),
        _counts(variant["count"], methods),
    ]


def _pooled(variant: Record, methods: Mapping[str, str]) -> str:
    activity, count = variant["activity"][POOLED], variant["count"][POOLED]
    columns = (AP, AUC, AUC_WITHIN_ARM, "brier", LOG_MSE, "crps")
    rows = []
    for key, label in methods.items():
        scores = {**activity["methods"].get(key, {}), **count["methods"].get(key, {})}
        rows.append([label, *(format_estimate(scores.get(column)) for column in columns)])
    head = ["method", *(NAMES[column] for column in columns)]
    title = f"### Pooled: {activity['positives']} of {activity['cases']} cases active"
    return f"{title}\n\n{markdown_table(head, rows)}"


def _differences(rows: Sequence[Record], methods: Mapping[str, str]) -> str:
    body = [
        [NAMES[row["metric"]], methods[row["of"]], methods[row["minus"]], format_estimate(row)]
        for row in rows
    ]
    return "### One method minus another, paired, pooled\n\n" + markdown_table(
        ["metric", "of", "minus", "difference"], body
    )


def _by_arm(groups: Record, methods: Mapping[str, str], metric: str) -> str:
    """One metric, arms in rows, methods in columns, the paper's own figures last."""
    first = next(iter(groups.values()))["methods"]
    keys = [key for key in methods if metric in first.get(key, {})]
    rows = []
    for name, group in groups.items():
        cells = [format_estimate(group["methods"][key][metric]) for key in keys]
        size = f"{group['positives']} of {group['cases']}" if "positives" in group else None
        rows.append([name, size or str(group["cases"]), *cells, _published(metric, name)])
    size = "active" if metric in (AP, AUC) else "cases"
    head = [
        "group",
        size,
        *(methods[key] for key in keys),
        "published model, baseline (other data)",
    ]
    return f"### {NAMES[metric]} by arm\n\n{markdown_table(head, rows)}\n\nPublished: {SOURCE}."


def _published(metric: str, group: str) -> str:
    figures = published(metric, group)
    return DASH if figures is None else f"{figures[0]:.3f}, {figures[1]:.3f}"


def _counts(groups: Record, methods: Mapping[str, str]) -> str:
    keys = [key for key in methods if key in groups[POOLED]["methods"]]
    rows = [
        [
            name,
            format_number(group["true_mean"], digits=2),
            format_estimate(group["methods"][ENSEMBLE][BIAS], digits=2),
            *(format_number(group["methods"][key]["mean"], digits=2) for key in keys),
        ]
        for name, group in groups.items()
    ]
    head = ["group", "observed", "ensemble minus observed", *(methods[key] for key in keys)]
    return f"### Mean lesion count\n\n{markdown_table(head, rows)}"


def _ladder(record: Record) -> str:
    ladder = record["ladder"]
    if ladder is None:
        return ""
    rows = [
        [
            arm,
            format_estimate(row["p_active"]),
            DASH if row["minus_previous"] is None else format_estimate(row["minus_previous"]),
            format_number(row["mc_error"]),
            format_number(row["true_rate"]),
            format_number(row["train_rate"]),
        ]
        for arm, row in ladder["arms"].items()
    ]
    head = [
        "arm",
        "mean P(active)",
        "minus the arm before",
        "Monte Carlo error",
        "truly active",
        "training rate of the arm",
    ]
    return (
        "## The same patients under every arm\n\n"
        f"{ladder['cases']} test cases forced onto each arm, {describe_ladder(record)}. "
        f"{describe_monotonicity(ladder)} First minus last arm: "
        f"{format_estimate(ladder['first_minus_last'])}. Truly active are as many of the same "
        "cases as the simulation says; the training rate is of other patients, those who received "
        "the "
        f"arm.\n\n{markdown_table(head, rows)}"
    )


def describe_ladder(record: Record) -> str:
    """Where the P(active) of the ladder comes from."""
    told, samples = describe_sessions(record["compared"]), record["ladder"]["samples"]
    if samples is None:
        return f"{told}: P(active) as the networks state it before they draw"
    return f"{told}: {samples} samples on the same seeds for all arms of a case"


def describe_monotonicity(ladder: Record) -> str:
    """Whether P(active) falls from the first to the last arm, and where it does not."""
    if ladder["falling"]:
        return "P(active) falls at every step from the first to the last arm."
    if not ladder["rising"]:
        return "P(active) falls, but for steps upwards that may be chance."
    return f"P(active) rises, by more than chance, to {', '.join(ladder['rising'])}."
