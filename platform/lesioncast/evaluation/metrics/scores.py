"""Scores of forecasts against observed outcomes.

Point estimates of AP and AUC are scikit-learn's. The `resampled_*` functions compute a score in
all bootstrap resamples at once; see `metrics.bootstrap` for their case weights `weights` [b, n].
A score that is undefined for a group of cases is None or NaN, never 0 or 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from lesioncast.arrays import Bools, Floats, Ints
from lesioncast.evaluation.metrics.bootstrap import ResampledScore, estimate, safe_ratio
from lesioncast.evaluation.metrics.estimate import Estimate


def average_precision(active: Bools, score: Floats) -> float | None:
    """Return the average precision of `score` [n] for `active` [n]; None if a class is missing."""
    return float(average_precision_score(active, score)) if _both_classes(active) else None


def roc_auc(active: Bools, score: Floats) -> float | None:
    """Return the area under the ROC curve of `score` [n]; None if a class is missing."""
    return float(roc_auc_score(active, score)) if _both_classes(active) else None


def _both_classes(active: Bools) -> bool:
    return bool(active.any() and not active.all())


def log_count_errors(true: Floats, predicted: Floats) -> Floats:
    """Return the squared error of log(1 + count) of each case, [n] (paper, table 4)."""
    return np.asarray((np.log1p(predicted) - np.log1p(true)) ** 2, np.float64)


def crps(true: Floats, ensemble: Floats) -> Floats:
    """Return the continuous ranked probability score of `ensemble` [n, k] for `true` [n], [n].

    The score is E|X - y| - E|X - X'| / 2, in units of a count; lower is better. The second mean is
    over distinct pairs (the fair form), so that ensembles of different size compare (Ferro 2014).
    """
    k = ensemble.shape[1]
    # In a sorted ensemble the sum of |X - X'| over pairs is a sum with these rank weights.
    rank = 2 * np.arange(1, k + 1) - k - 1
    spread = (np.sort(ensemble, axis=1) * rank).sum(axis=1) / (k * (k - 1))
    return np.asarray(np.abs(ensemble - true[:, None]).mean(axis=1) - spread, np.float64)


class _LevelWeights(NamedTuple):
    """Weight of the cases at each distinct score in every resample, both [b, level]."""

    active: Floats
    inactive: Floats


def _weights_by_level(active: Bools, score: Floats, weights: Floats) -> _LevelWeights:
    """Sum the case weights at each distinct score, in ascending order, for either class."""
    levels, level = np.unique(score, return_inverse=True)
    at_level = np.eye(len(levels))[level]
    return _LevelWeights(
        weights @ (at_level * active[:, None]), weights @ (at_level * ~active[:, None])
    )


class _PairCounts(NamedTuple):
    """Active-inactive pairs in every resample, both [b]."""

    concordant: Floats
    total: Floats


def _concordant_pairs(active: Bools, score: Floats, weights: Floats) -> _PairCounts:
    """Count the pairs in which the active case has the higher score; a tie counts half."""
    by_level = _weights_by_level(active, score, weights)
    inactive_below = by_level.inactive.cumsum(axis=1) - by_level.inactive / 2
    return _PairCounts(
        concordant=(by_level.active * inactive_below).sum(axis=1),
        total=by_level.active.sum(axis=1) * by_level.inactive.sum(axis=1),
    )


def resampled_auc(active: Bools, score: Floats, weights: Floats) -> Floats:
    """Return `roc_auc` in every resample, [b]."""
    pairs = _concordant_pairs(active, score, weights)
    return safe_ratio(pairs.concordant, pairs.total)


def resampled_auc_within(active: Bools, score: Floats, group: Ints, weights: Floats) -> Floats:
    """Return the AUC over pairs of cases of the same group (arm) in every resample, [b].

    A score that depends on the arm alone has 0.5 on average. A higher value shows that the score
    tells patients of one arm apart.
    """
    pairs = [
        _concordant_pairs(active[group == g], score[group == g], weights[:, group == g])
        for g in np.unique(group)
    ]
    return safe_ratio(
        np.sum([pair.concordant for pair in pairs], axis=0),
        np.sum([pair.total for pair in pairs], axis=0),
    )


def resampled_ap(active: Bools, score: Floats, weights: Floats) -> Floats:
    """Return `average_precision` in every resample, [b]."""
    # From the highest score down, each level is a threshold: precision is hits over flagged cases.
    by_level = _weights_by_level(active, score, weights)
    hits, misses = by_level.active[:, ::-1], by_level.inactive[:, ::-1]
    precision = safe_ratio(hits.cumsum(axis=1), (hits + misses).cumsum(axis=1), undefined=0.0)
    defined = misses.sum(axis=1) > 0
    total = np.where(defined, hits.sum(axis=1), 0.0)
    return safe_ratio((hits * precision).sum(axis=1), total)


class Ranking(NamedTuple):
    """One score of a ranking, on the cases themselves and in every resample."""

    point: Callable[[Bools, Floats], float | None]
    resampled: Callable[[Bools, Floats, Floats], Floats]


AUC_RANKING = Ranking(roc_auc, resampled_auc)
AP_RANKING = Ranking(average_precision, resampled_ap)


def over_runs(ranking: Ranking, active: Bools, runs: Floats) -> ResampledScore:
    """Return the mean score over `runs` [run, n] of a random method, for `active` [n]."""
    return lambda weights: np.mean([ranking.resampled(active, run, weights) for run in runs], 0)


def estimate_over_runs(ranking: Ranking, active: Bools, runs: Floats, weights: Floats) -> Estimate:
    """Estimate the mean score over `runs` [run, n]; a method that is not random has one run."""
    values = [ranking.point(active, run) for run in runs]
    defined = [value for value in values if value is not None]
    mean = sum(defined) / len(defined) if defined else None
    return estimate(mean, over_runs(ranking, active, runs), weights)
