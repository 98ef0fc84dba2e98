"""Performance of the forecast and its baselines: who becomes active, and how many lesions.

A group is `POOLED`, all cases together, or an arm.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools, Floats, Ints
from lesioncast.evaluation.baselines.methods import (
    ARM_RATE,
    COVARIATES,
    PRIOR,
    PRIOR_LOG_MEAN,
    REGRESSION,
    SAMPLED,
    SAMPLED_LOG_MEAN,
    MethodPredictions,
)
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics import scores
from lesioncast.evaluation.metrics.bootstrap import (
    Bootstrap,
    ResampledScore,
    estimate,
    estimate_mean,
    estimate_of,
    resampled_mean,
)
from lesioncast.evaluation.metrics.estimate import (
    ByGroup,
    ByMethod,
    CaseCount,
    Estimate,
    PositiveCount,
)
from lesioncast.evaluation.metrics.names import (
    AUC,
    AUC_WITHIN_ARM,
    AVERAGE_PRECISION,
    LOG_MSE,
)

POOLED = "pooled"
COMPARED = (
    (PRIOR, ARM_RATE),
    (PRIOR, REGRESSION),
    (PRIOR_LOG_MEAN, REGRESSION),
    (PRIOR, COVARIATES),
    (SAMPLED, ARM_RATE),
    (SAMPLED, REGRESSION),
    (SAMPLED_LOG_MEAN, REGRESSION),
    (SAMPLED, COVARIATES),
    (SAMPLED, PRIOR),
    (COVARIATES, REGRESSION),
)
"""Pairs of methods, of which the first minus the second is reported."""


@dataclass(frozen=True)
class ActivityScores:
    """Scores of one method's P(active) in one group.

    `auc_within_arm` counts pairs of cases on the same arm only. It is given for the pooled cases
    and for methods that are not random, and is None elsewhere.
    """

    average_precision: Estimate
    auc: Estimate
    brier: Estimate
    mean_probability: float
    auc_within_arm: Estimate | None = None


@dataclass(frozen=True)
class ActivityGroup:
    """Scores of activity in one group of cases; the positives are active."""

    cases: CaseCount
    positives: PositiveCount
    methods: ByMethod[ActivityScores]


@dataclass(frozen=True)
class CountScores:
    """Scores of one method's lesion count in one group.

    `bias` is the mean forecast minus the mean observed count. `crps` is None for methods without a
    distribution of counts.
    """

    log_mse: Estimate
    mean_count: float
    bias: Estimate
    crps: Estimate | None


@dataclass(frozen=True)
class CountGroup:
    """Scores of the lesion count in one group of cases."""

    cases: CaseCount
    observed_mean: float
    methods: ByMethod[CountScores]


@dataclass(frozen=True)
class PairedDifference:
    """One metric of `method` minus that of `minus_method`, on the same cases and resamples."""

    metric: str
    method: str
    minus_method: str
    difference: Estimate


@dataclass(frozen=True)
class VariantReport:
    """Performance under one way of counting lesions."""

    activity: ByGroup[ActivityGroup]
    count: ByGroup[CountGroup]
    differences: tuple[PairedDifference, ...]


def groups(cases: EvaluationCases, arms: Sequence[str]) -> Iterator[tuple[str, Bools]]:
    """Yield (name, member [n]) of the pooled cases and of each arm that has any."""
    yield POOLED, np.ones(len(cases.arm), bool)
    for index, name in enumerate(arms):
        if (member := cases.arm == index).any():
            yield name, member


def activity_by_group(
    cases: EvaluationCases,
    methods: Sequence[MethodPredictions],
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> dict[str, ActivityGroup]:
    """Score every method that forecasts activity, in every group."""
    by_group = {}
    for name, member in groups(cases, arms):
        weights = bootstrap.weights(int(member.sum()))
        active = cases.active[member]
        by_group[name] = ActivityGroup(
            cases=len(active),
            positives=int(active.sum()),
            methods={
                method.key: _activity_scores(
                    active,
                    method.scores[:, member],
                    weights,
                    # Within one arm this would be the AUC again.
                    arm=cases.arm if name == POOLED else None,
                )
                for method in methods
                if method.scores is not None
            },
        )
    return by_group


def _activity_scores(
    active: Bools, runs: Floats, weights: Floats, *, arm: Ints | None
) -> ActivityScores:
    """Score P(active) of `runs` [run, n]; `arm` [n] is given where pairs within arms count."""
    return ActivityScores(
        average_precision=scores.estimate_over_runs(scores.AP_RANKING, active, runs, weights),
        auc=scores.estimate_over_runs(scores.AUC_RANKING, active, runs, weights),
        brier=estimate_mean(np.mean((runs - active) ** 2, axis=0), weights),
        mean_probability=float(runs.mean()),
        auc_within_arm=None
        if arm is None or len(runs) > 1
        else estimate_of(_within_arm(active, runs[0], arm), weights),
    )


def _within_arm(active: Bools, score: Floats, arm: Ints) -> ResampledScore:
    """Return the AUC over pairs on the same arm: 0.5 for a method that knows the arm alone."""
    return lambda weights: scores.resampled_auc_within(active, score, arm, weights)


def counts_by_group(
    cases: EvaluationCases,
    methods: Sequence[MethodPredictions],
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> dict[str, CountGroup]:
    """Score every method that forecasts a lesion count, in every group."""
    by_group = {}
    for name, member in groups(cases, arms):
        weights = bootstrap.weights(int(member.sum()))
        observed = cases.count[member]
        by_group[name] = CountGroup(
            cases=len(observed),
            observed_mean=float(observed.mean()),
            methods={
                method.key: _count_scores(observed, method, member, weights)
                for method in methods
                if method.counts is not None
            },
        )
    return by_group


def _count_scores(
    observed: Floats, method: MethodPredictions, member: Bools, weights: Floats
) -> CountScores:
    assert method.counts is not None
    counts = method.counts[member]
    errors = scores.log_count_errors(observed, counts)
    return CountScores(
        log_mse=estimate_mean(errors, weights),
        mean_count=float(counts.mean()),
        bias=estimate_mean(counts - observed, weights),
        crps=None if method.crps is None else estimate_mean(method.crps[member], weights),
    )


def paired_differences(
    cases: EvaluationCases, methods: Sequence[MethodPredictions], *, bootstrap: Bootstrap
) -> tuple[PairedDifference, ...]:
    """Return each part of the forecast minus each baseline over all cases, where both are present.

    The regression predicts a log count, so means of log counts are compared with it too. Two more
    pairs show what sampling costs the prior, and what covariates add to the regression.
    """
    weights = bootstrap.weights(len(cases.arm))
    compared = {key for pair in COMPARED for key in pair}
    # Each method is scored once, and takes part in several pairs.
    draws = {
        method.key: _metric_draws(cases, method, weights)
        for method in methods
        if method.key in compared
    }
    return tuple(
        PairedDifference(
            metric, key, minus_key, _difference(values - draws[minus_key][metric], weights)
        )
        for key, minus_key in COMPARED
        if key in draws and minus_key in draws
        for metric, values in draws[key].items()
        if metric in draws[minus_key]
    )


def _metric_draws(
    cases: EvaluationCases, method: MethodPredictions, weights: Floats
) -> dict[str, Floats]:
    """Return every metric of `method` on the cases and then in every resample, [1 + b]."""
    ones = np.ones((1, weights.shape[1]))
    return {
        metric: np.concatenate([score(ones), score(weights)])
        for metric, score in _resampled_metrics(cases, method).items()
    }


def _difference(values: Floats, weights: Floats) -> Estimate:
    """Estimate a difference from its `values` on the cases and in every resample, [1 + b]."""
    point = None if np.isnan(values[0]) else float(values[0])
    return estimate(point, lambda _: values[1:], weights)


def _resampled_metrics(
    cases: EvaluationCases, method: MethodPredictions
) -> Mapping[str, ResampledScore]:
    """Return every metric that `method` has over all cases, as a function of the resamples."""
    assert method.counts is not None
    errors = scores.log_count_errors(cases.count, method.counts)
    of_count = {LOG_MSE: lambda weights: resampled_mean(errors, weights)}
    if method.scores is None:
        return of_count
    return {
        AUC: scores.over_runs(scores.AUC_RANKING, cases.active, method.scores),
        AVERAGE_PRECISION: scores.over_runs(scores.AP_RANKING, cases.active, method.scores),
        AUC_WITHIN_ARM: _within_arm(cases.active, method.scores[0], cases.arm),
        **of_count,
    }


def variant_report(
    cases: EvaluationCases,
    methods: Sequence[MethodPredictions],
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> VariantReport:
    """Score one way of counting lesions in full."""
    return VariantReport(
        activity=activity_by_group(cases, methods, arms=arms, bootstrap=bootstrap),
        count=counts_by_group(cases, methods, arms=arms, bootstrap=bootstrap),
        differences=paired_differences(cases, methods, bootstrap=bootstrap),
    )
