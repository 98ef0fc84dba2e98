"""Predictions of the forecast and of its baselines in one form, so that one code scores them."""

from collections.abc import Iterator, Sequence
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

ENSEMBLE = "ensemble"
LOG_MEAN = "ensemble_log_mean"
RECALIBRATED = "ensemble_recalibrated"
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


def recalibrated_method(probability: Floats, validation: int) -> MethodPredictions:
    """Return the ensemble's P(active) [n], recalibrated on `validation` other cases."""
    label = f"ControlNet ensemble, recalibrated on {validation} validation cases"
    return MethodPredictions(RECALIBRATED, label, scores=probability[None])


def ensemble_methods(
    counts: Floats, probability: Floats, log_lesions: Floats, true: Floats
) -> tuple[MethodPredictions, ...]:
    """Return the forecast's predictions, with two predictions of the count.

    `counts` [n, k] are the lesions of the samples and `probability` [n] is P(active). The paper
    predicts the mean count. The second method is the mean of log(1 + count), `log_lesions` [n],
    which minimises a squared log error. `true` [n] are the observed counts.
    """
    samples = counts.shape[1]
    return (
        MethodPredictions(
            ENSEMBLE,
            f"ControlNet ensemble ({samples} samples)",
            scores=probability[None],
            counts=counts.mean(axis=1),
            crps=crps(true, counts),
        ),
        MethodPredictions(
            LOG_MEAN,
            "ControlNet ensemble, mean of log counts",
            counts=np.expm1(log_lesions),
        ),
    )


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
