"""Scores of forecasts against outcomes, with bootstrap intervals over cases.

The point estimates are scikit-learn's. The resampled forms take each resample as case weights,
`weights` [b, n] (how often case n was drawn), and give all b values at once; a value is NaN where
a resample lacks a class. A score that a group leaves undefined is None, never 0 or 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from lesioncast.evaluation.metrics.estimate import Estimate

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Resampled = Callable[[Floats], Floats]

LEVEL = 0.95
MIN_DEFINED_SHARE = 0.95
RNG_STREAM = 101  # of random numbers, so that no other use of the same seed is correlated with this


def average_precision(active: Bools, score: Floats) -> float | None:
    """Average precision of `score` [n] for `active` [n]; None where a class is missing."""
    return float(average_precision_score(active, score)) if _both_classes(active) else None


def roc_auc(active: Bools, score: Floats) -> float | None:
    """Area under the ROC curve of `score` [n] for `active` [n]; None where a class is missing."""
    return float(roc_auc_score(active, score)) if _both_classes(active) else None


def brier(active: Bools, probability: Floats) -> float | None:
    """Mean squared error of `probability` [n]; None without cases."""
    return float(np.mean((probability - active) ** 2)) if len(active) else None


def log_count_errors(true: Floats, predicted: Floats) -> Floats:
    """Squared error of log(1 + count), [n] (paper, table 4)."""
    return np.asarray((np.log1p(predicted) - np.log1p(true)) ** 2, np.float64)


def crps(true: Floats, ensemble: Floats) -> Floats:
    """Continuous ranked probability score of `ensemble` [n, k] for `true` [n], fair form, [n].

    E|X - y| - E|X - X'| / 2 with the second mean over distinct pairs, so that ensembles of
    different size compare (Ferro 2014). In units of a count; lower is better.
    """
    k = ensemble.shape[1]
    rank = 2 * np.arange(1, k + 1) - k - 1
    spread = (np.sort(ensemble, axis=1) * rank).sum(axis=1) / (k * (k - 1))
    return np.asarray(np.abs(ensemble - true[:, None]).mean(axis=1) - spread, np.float64)


def _both_classes(active: Bools) -> bool:
    return bool(active.any() and not active.all())


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: `draws` resamples of the cases, seeded."""

    draws: int
    seed: int

    def weights(self, cases: int) -> Floats:
        return bootstrap_weights(cases, draws=self.draws, seed=self.seed)


def bootstrap_weights(cases: int, *, draws: int, seed: int) -> Floats:
    """Case weights of `draws` bootstrap resamples of `cases` cases, [draws, cases]."""
    chance = np.full(cases, 1 / cases) if cases else np.zeros(0)
    return (
        np.random.default_rng([RNG_STREAM, seed])
        .multinomial(cases, chance, draws)
        .astype(np.float64)
    )


def _by_level(active: Bools, score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weight of the active and of the inactive cases at each distinct score, both [b, level]."""
    levels, level = np.unique(score, return_inverse=True)
    at_level = np.eye(len(levels))[level]
    return weights @ (at_level * active[:, None]), weights @ (at_level * ~active[:, None])


def _share(part: Floats, whole: Floats, *, empty: float = np.nan) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, empty), where=whole > 0)


def _concordant_pairs(active: Bools, score: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """(pairs that the active case wins, all active-inactive pairs), both [b]; ties are half."""
    hit, miss = _by_level(active, score, weights)
    below = miss.cumsum(axis=1) - miss / 2
    return (hit * below).sum(axis=1), hit.sum(axis=1) * miss.sum(axis=1)


def resampled_auc(active: Bools, score: Floats, weights: Floats) -> Floats:
    """`roc_auc` in every resample, [b]."""
    return _share(*_concordant_pairs(active, score, weights))


def resampled_auc_within(
    active: Bools, score: Floats, group: npt.NDArray[np.int64], weights: Floats
) -> Floats:
    """AUC over the pairs of one and the same group (arm) only, [b].

    Chance is 0.5 for any score that knows the arm alone: what is above it is patient signal.
    """
    pairs = [
        _concordant_pairs(active[group == g], score[group == g], weights[:, group == g])
        for g in np.unique(group)
    ]
    return _share(
        np.sum([won for won, _ in pairs], axis=0), np.sum([pair for _, pair in pairs], axis=0)
    )


def resampled_ap(active: Bools, score: Floats, weights: Floats) -> Floats:
    """`average_precision` in every resample, [b]."""
    hit, miss = (side[:, ::-1] for side in _by_level(active, score, weights))
    found, flagged = hit.cumsum(axis=1), (hit + miss).cumsum(axis=1)
    defined = miss.sum(axis=1) > 0
    total = np.where(defined, hit.sum(axis=1), 0.0)
    return _share((hit * _share(found, flagged, empty=0.0)).sum(axis=1), total)


def resampled_mean(values: Floats, weights: Floats) -> Floats:
    """Mean of per-case `values` [n] in every resample, [b]."""
    return _share(weights @ values, weights.sum(axis=1))


def estimate(value: float | None, resampled: Resampled, weights: Floats) -> Estimate:
    """`value` on the cases as they are, with its percentile interval over `weights` [b, n]."""
    if value is None:
        return Estimate(None)
    draws = resampled(weights)
    defined = float(np.mean(~np.isnan(draws)))
    if defined < MIN_DEFINED_SHARE:
        return Estimate(value, defined=defined)
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), defined)


def point_estimate(resampled: Resampled, cases: int) -> float | None:
    """The resampled score on the cases as they are; None where undefined."""
    value = float(resampled(np.ones((1, cases)))[0])
    return None if np.isnan(value) else value


def estimate_of(resampled: Resampled, weights: Floats) -> Estimate:
    """The resampled score on the cases as they are, with its interval over `weights` [b, n]."""
    return estimate(point_estimate(resampled, weights.shape[1]), resampled, weights)


def estimate_mean(values: Floats, weights: Floats) -> Estimate:
    """Mean of per-case `values` [n]; a case whose value is NaN is left out."""
    known = ~np.isnan(values)
    return estimate_of(lambda w: resampled_mean(values[known], w[:, known]), weights)


def estimate_rms(values: Floats, weights: Floats) -> Estimate:
    """Root of the mean square of per-case `values` [n]."""
    return estimate_of(lambda w: np.sqrt(resampled_mean(values**2, w)), weights)


def estimate_ratio(above: Floats, below: Floats, weights: Floats) -> Estimate:
    """Sum of per-case `above` [n] over that of `below` [n]; None where the latter is 0."""
    return estimate_of(lambda w: _share(w @ above, w @ below), weights)


def estimate_difference(first: Resampled, second: Resampled, weights: Floats) -> Estimate:
    """first - second on the same cases and the same resamples: a paired interval."""

    def difference(weights: Floats) -> Floats:
        return first(weights) - second(weights)

    return estimate_of(difference, weights)
