"""The forecast and its baselines, brought to one form so that one code scores them all."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.baselines.baselines import (
    ArmStatistics,
    arm_statistics,
    fit_regression_baseline,
    lookup_by_arm,
    monte_carlo,
)
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics.scores import crps

Floats = npt.NDArray[np.float64]

ENSEMBLE = "ensemble"
LOG_MEAN = "ensemble_log_mean"
RECALIBRATED = "ensemble_recalibrated"
ARM_RATE = "arm_rate"
REGRESSION = "regression"
COVARIATES = "regression_covariates"


@dataclass(frozen=True)
class MethodPredictions:
    """What one method says of each case; None where it does not answer.

    `scores` [run, n] for activity (more than one run only for a random method, whose metrics are
    averaged over its runs), `counts` [n] expected lesions, `crps` [n] of its count distribution.
    """

    key: str
    label: str
    scores: Floats | None = None
    counts: Floats | None = None
    crps: Floats | None = None


def recalibrated_method(chance: Floats, validation: int) -> MethodPredictions:
    """The ensemble's P(active) [n] as `validation` other cases have taught it to be."""
    label = f"ControlNet ensemble, recalibrated on {validation} validation cases"
    return MethodPredictions(RECALIBRATED, label, scores=chance[None])


def ensemble_methods(
    counts: Floats, chance: Floats, log_lesions: Floats, true: Floats
) -> tuple[MethodPredictions, ...]:
    """The forecast: P(active), `chance` [n], and from the lesions of its samples, `counts` [n, k],
    how many (paper: the mean count).

    The second takes the mean of log(1 + count), `log_lesions` [n], which is what a squared log
    error asks for.
    """
    samples = counts.shape[1]
    return (
        MethodPredictions(
            ENSEMBLE,
            f"ControlNet ensemble ({samples} samples)",
            scores=chance[None],
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
    """The paper's Monte Carlo, the training statistics of the arm, and the regressions."""
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
    """CRPS with the arm's training counts as the forecast; None where an arm has fewer than 2."""
    score = np.zeros(len(test.count))
    for arm in np.unique(test.arm):
        known, asked = train.count[train.arm == arm], test.arm == arm
        if len(known) < 2:
            return None
        score[asked] = crps(test.count[asked], np.tile(known, (asked.sum(), 1)))
    return score


def _regressions(
    train: EvaluationCases, test: EvaluationCases, *, arms: int
) -> Iterator[MethodPredictions]:
    label = "Logistic and ridge regression on image scalars"
    yield _regression(
        REGRESSION, label, train, test, train.image_features, test.image_features, arms=arms
    )
    if train.covariates is not None and test.covariates is not None:
        known = np.column_stack([train.image_features, train.covariates])
        asked = np.column_stack([test.image_features, test.covariates])
        label = f"{label} and covariates"
        yield _regression(COVARIATES, label, train, test, known, asked, arms=arms)


def _regression(
    key: str,
    label: str,
    train: EvaluationCases,
    test: EvaluationCases,
    known: Floats,
    asked: Floats,
    *,
    arms: int,
) -> MethodPredictions:
    """Fitted on what is `known` of the training cases, told what is `asked` of the test cases."""
    model = fit_regression_baseline(known, train.arm, train.count, arms=arms)
    return MethodPredictions(
        key,
        label,
        scores=model.probability(asked, test.arm)[None],
        counts=model.count(asked, test.arm),
    )


def by_key(methods: Sequence[MethodPredictions], key: str) -> MethodPredictions:
    """The method called `key`."""
    return next(method for method in methods if method.key == key)
