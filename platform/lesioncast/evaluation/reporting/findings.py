"""The findings of an evaluation in plain words, each computed from the record.

No word is fixed beforehand: above, below or not told apart follows from the interval.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lesioncast.evaluation.analysis.performance import AUC_WITHIN_ARM, BIAS, POOLED
from lesioncast.evaluation.baselines.methods import ARM_RATE, ENSEMBLE, LOG_MEAN, REGRESSION
from lesioncast.evaluation.metrics.names import AUC, LOG_MSE
from lesioncast.evaluation.reporting.markdown.effects import describe_sessions
from lesioncast.evaluation.reporting.markdown.report import describe_monotonicity
from lesioncast.evaluation.reporting.markdown.sections import REGION_NAMES
from lesioncast.forecasting.ensemble import wilson_interval
from lesioncast.markdown import format_estimate

Record = Mapping[str, Any]

HIGHER_IS_BETTER = {AUC: True, AUC_WITHIN_ARM: True, LOG_MSE: False}
RIVALS = {
    ARM_RATE: "what the treatment arm alone tells",
    REGRESSION: "a regression on a few numbers read off the images",
}


@dataclass(frozen=True)
class Finding:
    """One question and its answer."""

    title: str
    text: str


def findings(record: Record) -> tuple[Finding, ...]:
    """Who becomes active, whether the probability holds, how many lesions, where, and under
    treatments."""
    variant = record["variants"]["plain"]
    return (
        _who(variant),
        _calibration(variant),
        _count(variant),
        _where(record),
        _treatments(record),
    )


def _who(variant: Record) -> Finding:
    pooled = variant["activity"][POOLED]
    auc = pooled["methods"][ENSEMBLE][AUC]
    cases = f"{pooled['positives']} of {pooled['cases']} patients had new or enlarging lesions"
    title = "Who will have new lesions?"
    if auc["low"] is None:
        return Finding(title, f"{cases}: too few of one kind for an answer.")
    within = pooled["methods"][ENSEMBLE][AUC_WITHIN_ARM]
    return Finding(
        title,
        f"{cases}. Of two patients, one with and one without, the forecast gives the first the "
        f"higher probability in {_of_hundred(auc)} of 100 pairs{_chance(auc)}. That is "
        f"{_against(variant, AUC)}.{_within_words(within)}",
    )


def _chance(auc: Record) -> str:
    return "" if auc["low"] > 0.5 else ", which is not told apart from a coin's 50"


def _within_words(within: Record) -> str:
    if within["low"] is None:
        return ""
    patient = (
        "so it knows something of the patient beyond the treatment"
        if within["low"] > 0.5
        else "so it is not shown to know more of the patient than the treatment"
    )
    return f" Among patients on the same treatment it is {_of_hundred(within)}, {patient}."


def _of_hundred(share: Record) -> str:
    return f"{100 * share['value']:.0f} ({100 * share['low']:.0f} to {100 * share['high']:.0f})"


def _against(variant: Record, metric: str, *, of: str = ENSEMBLE) -> str:
    """How the forecast, by the method `of`, stands to each rival, by the paired interval."""
    gaps = {
        row["minus"]: row
        for row in variant["differences"]
        if row["of"] == of and row["metric"] == metric
    }
    words = [
        f"{_stands(gaps[key], metric)} {label}" for key, label in RIVALS.items() if key in gaps
    ]
    return " and ".join(words)


def _stands(gap: Record, metric: str) -> str:
    if gap["low"] is None:
        return "not comparable with"
    if gap["low"] <= 0 <= gap["high"]:
        return "not told apart from"
    better = (gap["low"] > 0) == HIGHER_IS_BETTER[metric]
    return "better than" if better else "worse than"


def _calibration(variant: Record) -> Finding:
    pooled = variant["activity"][POOLED]
    share, said = pooled["positives"] / pooled["cases"], pooled["methods"][ENSEMBLE]["mean"]
    low, high = wilson_interval(share, pooled["cases"])
    verdict = (
        "too high" if said > high else "too low" if said < low else "within what chance allows"
    )
    return Finding(
        "Can the probability be taken at its word?",
        f"On average the forecast says {said:.0%}; {share:.0%} ({low:.0%} to {high:.0%}) of the "
        f"patients had new lesions. That is {verdict}. The figure below shows whether it holds "
        "for low and for high probabilities.",
    )


def _off(bias: Record) -> str:
    """Whether a mean error has a sign."""
    if bias["low"] is None or bias["low"] <= 0 <= bias["high"]:
        return "within what chance allows"
    return "too many" if bias["low"] > 0 else "too few"


def _count(variant: Record) -> Finding:
    pooled = variant["count"][POOLED]
    own = pooled["methods"][ENSEMBLE]
    error = own[LOG_MSE]
    interval = "" if error["low"] is None else f" ({error['low']:.2f} to {error['high']:.2f})"
    return Finding(
        "How many new lesions?",
        f"The forecast expects {own['mean']:.2f} lesions a patient where {pooled['true_mean']:.2f} "
        f"were observed. That is {_off(own[BIAS])}. Its squared error of the log count is "
        f"{error['value']:.2f}{interval}, {_against(variant, LOG_MSE)}; 0 would be perfect. By the "
        f"mean of log counts it is {pooled['methods'][LOG_MEAN][LOG_MSE]['value']:.2f}, "
        f"{_against(variant, LOG_MSE, of=LOG_MEAN)}.",
    )


def _where(record: Record) -> Finding:
    title = "Where will they lie?"
    if record["masks"] is None:
        return Finding(title, "Not asked in this evaluation.")
    pooled = record["masks"]["groups"][POOLED]
    energy, empty = pooled["energy"], pooled["energy_of_empty"]
    nearer = energy["low"] is not None and energy["high"] < empty["low"]
    return Finding(
        title,
        "Laid on the observed lesions, those of one sample are detected with an F1 of "
        f"{format_estimate(pooled['f1_sample'])} by the rule of MSSEG-2, where 1 would be perfect. "
        f"The samples together are {'nearer' if nearer else 'not shown to be nearer'} to the "
        "observed masks than masks without lesions would be (energy distance "
        f"{format_estimate(energy)} for {format_estimate(empty)}).{_regions(record['regional'])}",
    )


def _regions(record: Record | None) -> str:
    if record is None:
        return ""
    told = [
        f"{REGION_NAMES[name]} {format_estimate(group['methods'][ENSEMBLE]['balanced_accuracy'])}"
        for name, group in record["regions"].items()
    ]
    return f" Balanced accuracy by region, where 0.5 is chance: {', '.join(told)}."


def _treatments(record: Record) -> Finding:
    ladder, warnings = record["ladder"], record["warnings"]
    title = "What would another treatment have done?"
    caution = f" {warnings['sentences'][0]}" if warnings and warnings["sentences"] else ""
    if ladder is None:
        return Finding(title, f"Not asked in this evaluation.{caution}")
    arms = list(ladder["arms"])
    gap = ladder["first_minus_last"]
    size = (
        "an interval is not defined"
        if gap["low"] is None
        else f"{gap['low']:.2f} to {gap['high']:.2f}, {_sign(gap)}"
    )
    truth = _truth_words(ladder["arms"][arms[0]], ladder["arms"][arms[-1]])
    return Finding(
        title,
        f"{ladder['cases']} patients were forecast under every arm, "
        f"{describe_sessions(record['compared'])}. {describe_monotonicity(ladder)} "
        f"{arms[0].capitalize()} minus {arms[-1]}: {gap['value']:.2f} ({size}).{truth}{caution}",
    )


def _sign(gap: Record) -> str:
    if gap["low"] <= 0 <= gap["high"]:
        return "not told apart from none"
    return "fewer active under the last" if gap["low"] > 0 else "more active under the last"


def _truth_words(first: Record, last: Record) -> str:
    if first["true_rate"] is None or last["true_rate"] is None:
        return " What would truly have happened is not known."
    return (
        f" In truth, which the simulation knows, it is {first['true_rate'] - last['true_rate']:.2f}"
        " for the same patients."
    )
