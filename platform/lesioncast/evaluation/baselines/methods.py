"""Predictions of the forecast and of its baselines in one form, so that one code scores them."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.evaluation.baselines.baselines import (
    ArmStatistics,
    arm_statistics,
    fit_regression_baseline,
    lookup_by_arm,
    monte_carlo,
)
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics.scores import crps
from lesioncast.forecasting.ensemble import ExpectedOutcomes

PRIOR = "prognostic_prior"
PRIOR_LOG_MEAN = "prognostic_prior_log_mean"
SAMPLED = "sampled"
SAMPLED_LOG_MEAN = "sampled_log_mean"
ARM_RATE = "arm_rate"
REGRESSION = "regression"
COVARIATES = "regression_covariates"


@dataclass(frozen=True)
class MethodPredictions:
    """Predictions of one method for all cases; None where a method does not predict."""

    #: Name of the method in files.
    key: str
    #: Name of the method for readers.
    label: str
    #: Scores for activity, [run, n]. Only a random method has several runs; its metrics are
    #: averaged over them.
    scores: Floats | None = None
    #: Expected number of lesions, [n].
    counts: Floats | None = None
    #: CRPS of the predicted distribution of counts, [n].
    crps: Floats | None = None


def stated_activity(methods: Container[str]) -> str:
    """Return the key of the method whose P(active) a forecast states: the prior's if there is one.

    `methods` holds the keys of the methods.
    """
    return PRIOR if PRIOR in methods else SAMPLED


def recalibrated_method(
    stated: MethodPredictions, probability: Floats, validation: int
) -> MethodPredictions:
    """Return the P(active) of `stated` after recalibration, `probability` [n].

    It was recalibrated on `validation` other cases.
    """
    label = f"{stated.label}, recalibrated on {validation} validation cases"
    return MethodPredictions(f"{stated.key}_recalibrated", label, scores=probability[None])


def prior_methods(expected: Sequence[ExpectedOutcomes]) -> tuple[MethodPredictions, ...]:
    """Return what the prognostic prior predicts in closed form, `expected` [n], without a sample.

    The second method is its expectation of log(1 + count), which minimises a squared log error.
    """
    p_active, lesions, log_lesions = np.array(
        [(one.p_active, one.lesions, one.log_lesions) for one in expected], np.float64
    ).T
    return (
        MethodPredictions(
            PRIOR, "prognostic prior (closed form)", scores=p_active[None], counts=lesions
        ),
        MethodPredictions(
            PRIOR_LOG_MEAN, "prognostic prior, mean of log counts", counts=np.expm1(log_lesions)
        ),
    )


def sampled_methods(
    counts: Floats, true: Floats, *, has_prior: bool
) -> tuple[MethodPredictions, ...]:
    """Return what the drawn masks predict, with two predictions of the count.

    `counts` [n, k] are the lesions of the samples and `true` [n] those observed. P(active) is the
    share of samples with a lesion. The paper predicts the mean count. The second method is the mean
    of log(1 + count). The label says whether a prior drew the lesion load of each sample.
    """
    maker = sampled_label(has_prior=has_prior)
    return (
        MethodPredictions(
            SAMPLED,
            f"{maker} ({counts.shape[1]} samples)",
            scores=(counts > 0).mean(axis=1)[None],
            counts=counts.mean(axis=1),
            crps=crps(true, counts),
        ),
        MethodPredictions(
            SAMPLED_LOG_MEAN,
            f"{maker}, mean of log counts",
            counts=np.expm1(np.log1p(counts).mean(axis=1)),
        ),
    )


def sampled_label(*, has_prior: bool) -> str:
    """Return who made the drawn masks: the networks, after the prior if there is one."""
    return "prior and networks as sampled" if has_prior else "networks as sampled"


def baseline_methods(
    train: EvaluationCases, test: EvaluationCases, *, arms: tuple[str, ...], runs: int, seed: int
) -> tuple[MethodPredictions, ...]:
    """Return the paper's Monte Carlo, the training statistics of the arm, and the regressions."""
    statistics = arm_statistics(train.arm, train.count, arms=len(arms))
    rate = lookup_by_arm(statistics.activity, test.arm, arms)
    return (
        MethodPredictions(
            "monte_carlo",
            f"Monte Carlo from the arm's rate (mean of {runs} runs)",
            scores=monte_carlo(rate, runs=runs, seed=seed),
        ),
        *_arm_methods(statistics, train, test, arms=arms),
        *_regressions(train, test, arms=len(arms)),
    )


def _arm_methods(
    statistics: ArmStatistics,
    train: EvaluationCases,
    test: EvaluationCases,
    *,
    arms: tuple[str, ...],
) -> tuple[MethodPredictions, ...]:
    """Return the predictions that depend on the arm alone."""
    return (
        MethodPredictions(
            ARM_RATE,
            "Arm rate and arm mean",
            scores=lookup_by_arm(statistics.activity, test.arm, arms)[None],
            counts=lookup_by_arm(statistics.mean_count, test.arm, arms),
            crps=_climatology_crps(train, test),
        ),
        MethodPredictions(
            "arm_log_mean",
            "Arm mean of log counts",
            counts=np.expm1(lookup_by_arm(statistics.mean_log_count, test.arm, arms)),
        ),
    )


def _climatology_crps(train: EvaluationCases, test: EvaluationCases) -> Floats | None:
    """Return the CRPS of the arm's training counts as an ensemble, [n].

    None if an arm has fewer than two training cases, because the fair CRPS needs pairs.
    """
    score = np.zeros(len(test.count))
    for arm in np.unique(test.arm):
        train_counts, of_arm = train.count[train.arm == arm], test.arm == arm
        if len(train_counts) < 2:
            return None
        score[of_arm] = crps(test.count[of_arm], np.tile(train_counts, (of_arm.sum(), 1)))
    return score


def _regressions(
    train: EvaluationCases, test: EvaluationCases, *, arms: int
) -> Iterator[MethodPredictions]:
    """Yield the regression on image features and, if there are covariates, one that adds them."""
    label = "Logistic and ridge regression on image features"
    yield _regression(REGRESSION, label, train, test, arms=arms)
    if train.covariates is not None and test.covariates is not None:
        train, test = _with_covariates(train), _with_covariates(test)
        yield _regression(COVARIATES, f"{label} and covariates", train, test, arms=arms)


def _with_covariates(cases: EvaluationCases) -> EvaluationCases:
    """Append the covariates to the image features."""
    assert cases.covariates is not None
    features = np.column_stack([cases.image_features, cases.covariates])
    return replace(cases, image_features=features)


def _regression(
    key: str, label: str, train: EvaluationCases, test: EvaluationCases, *, arms: int
) -> MethodPredictions:
    """Fit the regression baseline on the training cases and predict the test cases."""
    model = fit_regression_baseline(train.image_features, train.arm, train.count, arms=arms)
    return MethodPredictions(
        key,
        label,
        scores=model.probability(test.image_features, test.arm)[None],
        counts=model.count(test.image_features, test.arm),
    )


def by_key(methods: Sequence[MethodPredictions], key: str) -> MethodPredictions:
    """Return the method with this key."""
    return next(method for method in methods if method.key == key)
