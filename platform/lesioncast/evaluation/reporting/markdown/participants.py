"""Sections of tables.md on the flow of participants and on those without an outcome."""

from collections.abc import Mapping

from lesioncast.evaluation.analysis.validity.censoring import (
    MIN_MISSING,
    TRUNCATION,
    CensoringReport,
    HeadlineScores,
)
from lesioncast.evaluation.analysis.validity.participants import (
    TOTAL,
    UNKNOWN_ARM,
    FlowCounts,
    ParticipantFlow,
)
from lesioncast.markdown import DASH, format_estimate, markdown_table

SIGNIFICANT = 0.05
TITLE = "Participants"


def participants_section(flow: ParticipantFlow | None) -> str:
    """Return what became of the participants of each arm; nothing where it was not counted."""
    if flow is None:
        return ""
    head = ["arm", "allocated", "excluded at conversion", "converted", "arm not known"]
    head += ["without an outcome", "training", "validation", "test", "scored here"]
    rows = [
        [
            arm,
            *map(
                str,
                (
                    one.allocated,
                    one.excluded,
                    one.converted,
                    one.without_arm,
                    one.without_outcome,
                    one.training,
                    one.validation,
                    one.test,
                    one.scored,
                ),
            ),
        ]
        for arm, one in flow.arms.items()
    ]
    kinds = ", ".join(f"{kind} {number}" for kind, number in flow.exclusions.items())
    return "\n\n".join(
        part
        for part in (
            f"## {TITLE}",
            "Allocated: every subject with files or a row in the trial's table. Excluded: the "
            "files cannot be used. Without an outcome: converted, with an arm, but without a mask "
            "of new lesions at the outcome.",
            markdown_table(head, rows),
            f"Excluded: {kinds}." if kinds else "",
            describe_missing(flow),
        )
        if part
    )


def describe_missing(flow: ParticipantFlow) -> str:
    """Say who has no outcome, and whether arms differ in that by more than chance."""
    if not flow.total.allocated - flow.total.with_outcome:
        return "Every participant has an outcome."
    shares = {
        arm: one.missing_share for arm, one in flow.arms.items() if arm not in (TOTAL, UNKNOWN_ARM)
    }
    if flow.missing_by_arm_p is None:
        return f"{_missing(flow.total)}. Arms cannot be compared."
    least, most = min(shares, key=lambda arm: shares[arm]), max(shares, key=lambda arm: shares[arm])
    span = (
        f"from {shares[least]:.1%} on {least} to {shares[most]:.1%} on {most}, chi-squared test "
        f"against random tables, {_p_value(flow.missing_by_arm_p)}"
    )
    if flow.missing_by_arm_p < SIGNIFICANT:
        return (
            f"{_missing(flow.total)}, more often on some arms than on others ({span}). Scores "
            "of those with an outcome may not hold for all who were allocated."
        )
    return f"{_missing(flow.total)}. Arms are not shown to differ in that ({span})."


def _p_value(p: float) -> str:
    """Format a p value; below 0.001 the random tables are too few to tell more."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _missing(total: FlowCounts) -> str:
    missing = total.allocated - total.with_outcome
    return f"{missing} of {total.allocated} participants have no outcome"


def censoring_section(report: CensoringReport | None, methods: Mapping[str, str]) -> str:
    """Return the scores weighted for the cases without an outcome, or why there are none."""
    title = "## Scores weighted for missing outcomes"
    if report is None:
        return (
            f"{title}\n\nNot computed: fewer than {MIN_MISSING} patients with an arm and images "
            "have no outcome, too few to model who they are."
        )
    rows = [
        [methods[key], *_pairs(comparison.observed, comparison.weighted)]
        for key, comparison in report.methods.items()
    ]
    head = ["method"]
    for name in ("AUC", "Brier score", "log-count MSE"):
        head += [name, f"{name}, weighted"]
    low, high = (f"{quantile:.0%}" for quantile in TRUNCATION)
    return "\n\n".join(
        [
            title,
            f"{report.missing} patients have an arm and images but no outcome. The test cases are "
            "weighted by the inverse probability of having one, by logistic regression on arm, "
            f"image features and covariates, stabilised and truncated at the {low} and {high} "
            "quantiles (Cole and Hernan 2008). "
            f"Weights are {report.smallest_weight:.2f} to {report.largest_weight:.2f}; the "
            f"{report.cases} test cases count as {report.effective_sample_size:.0f} (effective "
            "sample size, Kish). The weighted scores hold for all patients with images if nothing "
            "else decided who has an outcome. The intervals leave out the uncertainty of the "
            "weights, and nothing is known of patients who were excluded at conversion.",
            markdown_table(head, rows),
        ]
    )


def _pairs(observed: HeadlineScores, weighted: HeadlineScores) -> list[str]:
    pairs = (
        (observed.auc, weighted.auc),
        (observed.brier, weighted.brier),
        (observed.log_mse, weighted.log_mse),
    )
    return [DASH if score is None else format_estimate(score) for pair in pairs for score in pair]
