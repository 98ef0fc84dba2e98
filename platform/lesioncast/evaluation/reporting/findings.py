"""The findings of an evaluation in plain words, each computed from the report.

No verdict is fixed beforehand: better, worse or not distinguishable follows from the interval.
"""

from dataclasses import dataclass

from lesioncast.evaluation.analysis.activity_by_arm import ArmActivity
from lesioncast.evaluation.analysis.arm_errors import ArmMeanErrors
from lesioncast.evaluation.analysis.performance import POOLED, VariantReport
from lesioncast.evaluation.analysis.regional import RegionalReport
from lesioncast.evaluation.analysis.schema import EvaluationReport
from lesioncast.evaluation.analysis.where import WhereReport
from lesioncast.evaluation.baselines.methods import (
    ARM_RATE,
    PRIOR,
    PRIOR_LOG_MEAN,
    REGRESSION,
    SAMPLED,
    SAMPLED_LOG_MEAN,
    stated_activity,
)
from lesioncast.evaluation.baselines.regional import CLOSED_FORM
from lesioncast.evaluation.metrics.estimate import Estimate, EstimateWithInterval
from lesioncast.evaluation.metrics.names import AUC, AUC_WITHIN_ARM, LOG_MSE
from lesioncast.evaluation.reporting.markdown.effects import describe_sessions
from lesioncast.evaluation.reporting.markdown.reliance import QUESTION, describe_reliance
from lesioncast.evaluation.reporting.markdown.report import describe_monotonicity
from lesioncast.evaluation.reporting.markdown.sections import REGION_NAMES
from lesioncast.evaluation.where.measurements import ATLAS, EXACT, NETWORKS, SPATIAL_PRIOR
from lesioncast.forecasting.ensemble import wilson_interval
from lesioncast.markdown import DASH, format_estimate

ARM_ERROR = "mean absolute error over arms"
HIGHER_IS_BETTER = {AUC: True, AUC_WITHIN_ARM: True, LOG_MSE: False, ARM_ERROR: False}
BASELINES = {
    ARM_RATE: "the rate of the treatment arm",
    REGRESSION: "a regression on a few numbers measured on the images",
}
PARTS = {
    PRIOR: "the prognostic prior, without any sample,",
    SAMPLED: "the share of samples with lesions",
}
NOT_PART = "Not part of this evaluation."


@dataclass(frozen=True)
class Finding:
    """One question and its answer."""

    title: str
    text: str


def findings(report: EvaluationReport) -> tuple[Finding, ...]:
    """Return the findings: who, how reliable, how many, where, and under other treatments.

    What the forecast rests on comes second. It comes first where that is not the patient's images.
    """
    variant = report.headline
    others = (
        _who(variant),
        _calibration(variant),
        _count(variant),
        _where(report),
        _treatments(report),
    )
    if report.reliance is None:
        return others
    reliance = Finding(QUESTION, describe_reliance(report.reliance, report.visits))
    place = 0 if report.reliance.rests_on_images is False else 1
    return (*others[:place], reliance, *others[place:])


def _who(variant: VariantReport) -> Finding:
    pooled = variant.activity[POOLED]
    stated = stated_activity(pooled.methods)
    scores = pooled.methods[stated]
    auc = scores.auc.with_interval
    cases = f"{pooled.positives} of {pooled.cases} patients had new or enlarging lesions"
    title = "Who will have new lesions?"
    if auc is None:
        return Finding(title, f"{cases}: too few of one kind for an answer.")
    chance = "" if auc.low > 0.5 else ", which is not distinguishable from a coin's 50"
    return Finding(
        title,
        f"{cases}. Of two patients, one with and one without, {PARTS[stated]} gives the first the "
        f"higher probability in {_of_hundred(auc)} of 100 pairs{chance}. That is "
        f"{_against_baselines(variant, AUC, method=stated)}."
        f"{_within_words(scores.auc_within_arm)}",
    )


def _within_words(auc_within_arm: Estimate | None) -> str:
    within = None if auc_within_arm is None else auc_within_arm.with_interval
    if within is None:
        return ""
    patient = (
        "so it knows something of the patient beyond the treatment"
        if within.low > 0.5
        else "so it is not shown to know more of the patient than the treatment"
    )
    return f" Among patients on the same treatment it is {_of_hundred(within)}, {patient}."


def _of_hundred(share: EstimateWithInterval) -> str:
    return f"{100 * share.value:.0f} ({100 * share.low:.0f} to {100 * share.high:.0f})"


def _against_baselines(variant: VariantReport, metric: str, *, method: str) -> str:
    """Compare one part of the forecast, `method`, with each baseline by the paired interval."""
    differences = {
        row.minus_method: row.difference
        for row in variant.differences
        if (row.method, row.metric) == (method, metric)
    }
    return " and ".join(
        f"{_verdict(differences[key], metric)} {label}"
        for key, label in BASELINES.items()
        if key in differences
    )


def _verdict(estimate: Estimate, metric: str) -> str:
    difference = estimate.with_interval
    if difference is None:
        return "not comparable with"
    if difference.contains(0):
        return "not distinguishable from"
    better = (difference.low > 0) == HIGHER_IS_BETTER[metric]
    return "better than" if better else "worse than"


def _calibration(variant: VariantReport) -> Finding:
    pooled = variant.activity[POOLED]
    stated = stated_activity(pooled.methods)
    observed, forecast = pooled.positives / pooled.cases, pooled.methods[stated].mean_probability
    low, high = wilson_interval(observed, pooled.cases)
    verdict = (
        "too high"
        if forecast > high
        else "too low"
        if forecast < low
        else "within what chance allows"
    )
    return Finding(
        "Is the probability reliable?",
        f"By {PARTS[stated]} {forecast:.0%} of the patients are predicted to have new lesions, "
        f"{observed:.0%} ({low:.0%} to {high:.0%}) were observed to have some. The forecast is "
        f"{verdict}. The reliability curve below shows whether low and high probabilities are "
        "reliable too.",
    )


def _bias_words(estimate: Estimate) -> str:
    bias = estimate.with_interval
    if bias is None or bias.contains(0):
        return "within what chance allows"
    return "too many" if bias.low > 0 else "too few"


def _count(variant: VariantReport) -> Finding:
    pooled = variant.count[POOLED]
    own = pooled.methods[SAMPLED]
    return Finding(
        "How many new lesions?",
        f"{own.mean_count:.2f} lesions a sample, {pooled.observed_mean:.2f} observed. "
        f"That is {_bias_words(own.bias)}. The squared error of the log of the samples' mean count "
        f"is {format_estimate(own.log_mse, digits=2)}, "
        f"{_against_baselines(variant, LOG_MSE, method=SAMPLED)}; 0 would be perfect."
        f"{_log_means(variant)}",
    )


def _log_means(variant: VariantReport) -> str:
    """Compare the mean of log counts of each part of the forecast with the regression."""
    makers = {SAMPLED_LOG_MEAN: "the samples", PRIOR_LOG_MEAN: "the prognostic prior"}
    methods = variant.count[POOLED].methods
    return "".join(
        f" By the mean of log counts of {maker} it is "
        f"{format_estimate(methods[key].log_mse, digits=2)}, "
        f"{_against_baselines(variant, LOG_MSE, method=key)}."
        for key, maker in makers.items()
        if key in methods
    )


def _where(report: EvaluationReport) -> Finding:
    title = "Where will they lie?"
    if report.masks is None:
        return Finding(title, NOT_PART)
    pooled = report.masks.groups[POOLED]
    energy, empty = pooled.energy_distance, pooled.energy_distance_of_empty
    closer = energy.high is not None and empty.low is not None and energy.high < empty.low
    return Finding(
        title,
        f"The lesions of one sample detect the observed lesions with an F1 of "
        f"{format_estimate(pooled.f1_sample)} by the rule of MSSEG-2{_best_f1(report.where)}. "
        f"Together, the samples are {'closer' if closer else 'not shown to be closer'} to the "
        "observed masks than masks without lesions: their energy distance is "
        f"{format_estimate(energy)}, that of empty masks {format_estimate(empty)}."
        f"{_map_words(report.where)}{_regions(report.regional)}",
    )


def _best_f1(where: WhereReport | None) -> str:
    """Say which F1 a perfect forecast would have, since nobody can name the voxels of a lesion."""
    exact = None if where is None else where.samples.methods.get(EXACT)
    if exact is None:
        return "; what a perfect forecast would reach is not known"
    return f", where samples of the exact law of the simulation have {format_estimate(exact.f1)}"


def _map_words(where: WhereReport | None) -> str:
    """Compare the networks' map with the atlas, and with the law of a simulation."""
    if where is None:
        return ""
    scores, exact = where.maps[NETWORKS], where.maps.get(EXACT)
    gain = scores.nats_case.with_interval
    verdict = (
        "not comparable with"
        if gain is None
        else "not distinguishable from"
        if gain.contains(0)
        else "better than"
        if gain.low > 0
        else "worse than"
    )
    best = (
        ""
        if exact is None
        else f" The exact law of the simulation gains {format_estimate(exact.nats_case, digits=1)}."
    )
    return (
        f" As a map, the networks are {verdict} an average of the training patients' new lesions: "
        f"they gain {format_estimate(scores.nats_case, digits=1)} nats a patient over it."
        f"{_prior_words(where)}{best} "
        f"The likeliest 5 % of the brain hold {_percent(scores.top_5)} of the new lesion by the "
        f"networks' map and {_percent(where.maps[ATLAS].top_5)} by the average."
    )


def _prior_words(where: WhereReport) -> str:
    """Say what the spatial prior alone gains, and what the networks add to it or lose."""
    prior = where.maps.get(SPATIAL_PRIOR)
    if prior is None:
        return ""
    networks = next(
        row.difference
        for row in where.differences
        if (row.method, row.minus_method) == (NETWORKS, SPATIAL_PRIOR)
    )
    return (
        " The spatial prior from which they start gains "
        f"{format_estimate(prior.nats_case, digits=1)} by itself; networks minus prior: "
        f"{format_estimate(networks, digits=2)}."
    )


def _percent(share: Estimate) -> str:
    return DASH if share.value is None else f"{share.value:.0%}"


def _regions(report: RegionalReport | None) -> str:
    if report is None:
        return ""
    stated = CLOSED_FORM if CLOSED_FORM in report.methods else SAMPLED
    scores = [
        f"{REGION_NAMES[name]} {format_estimate(region.methods[stated].auc)}"
        for name, region in report.regions.items()
    ]
    maker = "closed form" if stated == CLOSED_FORM else "share of samples with a lesion in it"
    return (
        f" By the {maker}, the AUC of whether a region will have one "
        f"is: {', '.join(scores)}; 0.5 is chance."
    )


def _treatments(report: EvaluationReport) -> Finding:
    activity, sentences = report.activity_by_arm, report.warning_sentences
    title = "What would another treatment have done?"
    warning = f" {sentences[0]}" if sentences else ""
    if activity is None:
        return Finding(title, f"{NOT_PART}{warning}")
    (first, first_row), *_, (last, last_row) = activity.arms.items()
    difference = activity.first_minus_last
    interval = difference.with_interval
    size = (
        "an interval is not defined"
        if interval is None
        else f"{interval.low:.2f} to {interval.high:.2f}, {_sign_words(interval)}"
    )
    return Finding(
        title,
        f"{activity.cases} patients were forecast under every arm, "
        f"{describe_sessions(report.comparison_sessions, report.visits)}. "
        f"{describe_monotonicity(activity)} "
        f"{first.capitalize()} minus {last}: {difference.value:.2f} ({size})."
        f"{_truth_words(first_row, last_row)}{_arm_error_words(activity.errors)}{warning}",
    )


def _sign_words(difference: EstimateWithInterval) -> str:
    if difference.contains(0):
        return "not distinguishable from none"
    more = "fewer" if difference.low > 0 else "more"
    return f"{more} active under the last"


def _truth_words(first: ArmActivity, last: ArmActivity) -> str:
    if first.true_rate is None or last.true_rate is None:
        return " The true difference is not known."
    return (
        f" The true difference for the same patients, which the simulation knows, is "
        f"{first.true_rate - last.true_rate:.2f}."
    )


def _arm_error_words(errors: ArmMeanErrors | None) -> str:
    if errors is None:
        return ""
    text = f" On average over the treatments the share is off by {format_estimate(errors.forecast)}"
    if errors.training_means is None or errors.forecast_minus_training_means is None:
        return f"{text}."
    verdict = _verdict(errors.forecast_minus_training_means, ARM_ERROR)
    return (
        f"{text}, that of the training patients on each treatment by "
        f"{format_estimate(errors.training_means)}: the forecast is {verdict} it."
    )
