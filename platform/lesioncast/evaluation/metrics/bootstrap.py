"""Bootstrap intervals over cases.

A resample is a vector of case weights: how often each case was drawn. All b resamples together are
`weights` [b, n]. A resampled score maps them to b values and is NaN where a resample leaves it
undefined, for example because it lacks a class. An undefined estimate is None, never 0 or 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.evaluation.metrics.rng import RngStream

ResampledScore = Callable[[Floats], Floats]
"""Case weights [b, n] -> the score in every resample, [b]."""

LEVEL = 0.95
# An interval is reported only if the score exists in this share of the resamples: the others would
# describe a different set of cases.
MIN_DEFINED_SHARE = 0.95


@dataclass(frozen=True)
class Bootstrap:
    """Settings of a bootstrap over cases."""

    #: Number of resamples.
    draws: int
    #: Seed of the resamples.
    seed: int

    def weights(self, cases: int) -> Floats:
        """Return the case weights of all resamples, [draws, cases]."""
        return bootstrap_weights(cases, draws=self.draws, seed=self.seed)


def bootstrap_weights(cases: int, *, draws: int, seed: int) -> Floats:
    """Draw `draws` bootstrap resamples of `cases` cases as case weights, [draws, cases]."""
    probability = np.full(cases, 1 / cases) if cases else np.zeros(0)
    return (
        np.random.default_rng([int(RngStream.BOOTSTRAP), seed])
        .multinomial(cases, probability, draws)
        .astype(np.float64)
    )


def safe_ratio(numerator: Floats, denominator: Floats, *, undefined: float = np.nan) -> Floats:
    """Divide elementwise; return `undefined` where the denominator is not above 0."""
    return np.divide(
        numerator, denominator, out=np.full_like(numerator, undefined), where=denominator > 0
    )


def resampled_mean(values: Floats, weights: Floats) -> Floats:
    """Return the mean of per-case `values` [n] in every resample, [b]."""
    return safe_ratio(weights @ values, weights.sum(axis=1))


def estimate(value: float | None, resampled: ResampledScore, weights: Floats) -> Estimate:
    """Return `value` with the percentile interval of `resampled` over `weights` [b, n].

    `value` is the score on the cases themselves, for example as scikit-learn computes it.
    """
    if value is None:
        return Estimate(None)
    draws = resampled(weights)
    defined = float(np.mean(~np.isnan(draws)))
    if defined < MIN_DEFINED_SHARE:
        return Estimate(value, defined=defined)
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), defined)


def point_estimate(resampled: ResampledScore, cases: int) -> float | None:
    """Return the score with every case weighted 1, or None if it is undefined."""
    value = float(resampled(np.ones((1, cases)))[0])
    return None if np.isnan(value) else value


def estimate_of(resampled: ResampledScore, weights: Floats) -> Estimate:
    """Return the score with every case weighted 1 and its interval over `weights` [b, n]."""
    return estimate(point_estimate(resampled, weights.shape[1]), resampled, weights)


def estimate_mean(values: Floats, weights: Floats) -> Estimate:
    """Estimate the mean of per-case `values` [n]; cases with a NaN are left out."""
    defined = ~np.isnan(values)
    return estimate_of(lambda w: resampled_mean(values[defined], w[:, defined]), weights)


def estimate_rms(values: Floats, weights: Floats) -> Estimate:
    """Estimate the root mean square of per-case `values` [n]."""
    return estimate_of(resampled_rms(values), weights)


def resampled_rms(values: Floats) -> ResampledScore:
    """Return a resampled score: the root mean square of per-case `values` [n]."""
    return lambda weights: np.sqrt(resampled_mean(values**2, weights))


def estimate_ratio(numerator: Floats, denominator: Floats, weights: Floats) -> Estimate:
    """Estimate a ratio of sums of per-case values [n]; None if the denominators sum to 0."""
    return estimate_of(lambda w: safe_ratio(w @ numerator, w @ denominator), weights)


def estimate_difference(first: ResampledScore, second: ResampledScore, weights: Floats) -> Estimate:
    """Estimate first - second on the same cases and resamples, which gives a paired interval."""

    def difference(weights: Floats) -> Floats:
        return first(weights) - second(weights)

    return estimate_of(difference, weights)
