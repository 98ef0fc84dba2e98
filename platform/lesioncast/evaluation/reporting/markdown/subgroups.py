"""Sections of tables.md on subgroups and on the decision curve."""

from collections.abc import Iterator, Mapping

from lesioncast.evaluation.analysis.validity.decision_curve import (
    TABLE_THRESHOLDS,
    DecisionCurve,
    MethodNetBenefit,
)
from lesioncast.evaluation.analysis.validity.subgroups import Subgroup, SubgroupVariable
from lesioncast.markdown import format_estimate, format_number, markdown_table

NO_CLINICAL_USE = (
    "This is research software: no threshold is proposed, and no clinical decision follows."
)


def subgroup_section(variables: Mapping[str, SubgroupVariable], methods: Mapping[str, str]) -> str:
    """Return the forecast's scores by subgroup, and the AUC of every method."""
    rows = list(_subgroups(variables))
    if not rows:
        return "## Subgroups\n\nNo case has a sex, an age or a trial, so there are no subgroups."
    forecast, *_ = keys = list(rows[0][1].methods)
    head = ["subgroup", "active", "AUC", "Brier score", "mean P(active) minus share active"]
    table = [
        [
            name,
            f"{group.positives} of {group.cases}",
            format_estimate(group.methods[forecast].auc),
            format_estimate(group.methods[forecast].brier),
            format_estimate(group.methods[forecast].calibration_in_the_large),
        ]
        for name, group in rows
    ]
    aucs = [
        [name, *(format_estimate(group.methods[key].auc) for key in keys)] for name, group in rows
    ]
    return "\n\n".join(
        [
            "## Subgroups",
            "Age is divided at the median of the training cases. The last column is the "
            "calibration in the large: above 0 the forecast is too high. Many subgroups are "
            "looked at and nothing is corrected for that: one interval in twenty misses its value "
            "by chance.",
            f"### Of the forecast: {methods[forecast]}\n\n{markdown_table(head, table)}",
            "### AUC of every method by subgroup\n\n"
            + markdown_table(["subgroup", *(methods[key] for key in keys)], aucs),
        ]
    )


def _subgroups(variables: Mapping[str, SubgroupVariable]) -> Iterator[tuple[str, Subgroup]]:
    """Yield the label and the scores of every subgroup."""
    for variable, found in variables.items():
        yield from ((f"{variable}: {name}", group) for name, group in found.groups.items())


def decision_section(curve: DecisionCurve, methods: Mapping[str, str]) -> str:
    """Return the net benefit at a few thresholds, with that of treating all and none."""
    thresholds = [f"{threshold:.0%}" for threshold in TABLE_THRESHOLDS]
    treat_all = [
        format_number(curve.treat_all[curve.thresholds.index(threshold)])
        for threshold in TABLE_THRESHOLDS
    ]
    own = [[methods[key], *_net_benefit(method)] for key, method in curve.methods.items()]
    own += [["treat all", *treat_all], ["treat none", *(format_number(0.0) for _ in thresholds)]]
    minus = [[methods[key], *_minus_default(method)] for key, method in curve.methods.items()]
    return "\n\n".join(
        [
            "## Decision curve",
            "Net benefit (Vickers and Elkin 2006): who acts where P(active) reaches the threshold "
            "gains one for each active patient and loses the threshold's odds for each other one, "
            "per patient of the test split. At a threshold of 20 % four needless treatments weigh "
            'as much as one omitted. "Treat" stands for any step that a forecast of activity '
            f"could lead to. {NO_CLINICAL_USE} All thresholds: metrics.json.",
            f"### By threshold\n\n{markdown_table(['method', *thresholds], own)}",
            "### Minus the better of treating all and treating none, paired\n\n"
            + markdown_table(["method", *thresholds], minus),
        ]
    )


def _net_benefit(method: MethodNetBenefit) -> list[str]:
    return [format_estimate(one.net_benefit) for one in method.at]


def _minus_default(method: MethodNetBenefit) -> list[str]:
    return [format_estimate(one.minus_best_default) for one in method.at]
