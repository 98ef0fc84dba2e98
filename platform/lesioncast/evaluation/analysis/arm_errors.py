"""Errors of mean outcomes by arm, on the same cases under every arm."""

from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.evaluation.metrics.bootstrap import (
    ResampledScore,
    estimate_difference,
    estimate_of,
    safe_ratio,
)
from lesioncast.evaluation.metrics.estimate import Estimate


@dataclass(frozen=True)
class ArmMeanErrors:
    """Mean over arms of the absolute error of the mean outcome under the arm.

    `training_means` is the error of the means of the training cases who received each arm; it is
    None where an arm has none. An interval may lie above its value: a resample adds chance errors
    to each arm, which absolute values do not let cancel.
    """

    forecast: Estimate
    training_means: Estimate | None
    forecast_minus_training_means: Estimate | None


def arm_mean_errors(
    forecast: Floats, true: Floats, training: Floats, weights: Floats
) -> ArmMeanErrors:
    """Compare mean outcomes with the truth.

    `forecast` and `true` are [arm, n], the means of training cases `training` [arm], NaN where an
    arm has none, and the case weights of the resamples `weights` [b, n].
    """
    of_forecast = _mean_absolute_error(forecast - true)
    if np.isnan(training).any():
        return ArmMeanErrors(estimate_of(of_forecast, weights), None, None)
    of_training = _mean_absolute_error(training[:, None] - true)
    return ArmMeanErrors(
        forecast=estimate_of(of_forecast, weights),
        training_means=estimate_of(of_training, weights),
        forecast_minus_training_means=estimate_difference(of_forecast, of_training, weights),
    )


def _mean_absolute_error(errors: Floats) -> ResampledScore:
    """Return a resampled score of `errors` [arm, n]: the mean over arms of |mean error|."""

    def resampled(weights: Floats) -> Floats:
        by_arm = [safe_ratio(weights @ of_arm, weights.sum(axis=1)) for of_arm in errors]
        return np.asarray(np.abs(by_arm).mean(axis=0), np.float64)

    return resampled
