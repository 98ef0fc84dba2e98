"""Probe for leakage: can a simple classifier predict the trial or the arm from image features?

If it can, a model may use the scanner or the enrolment of a trial as a shortcut for the treatment.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lesioncast.arrays import Floats, Ints
from lesioncast.evaluation.causal.schema import LeakageAuc
from lesioncast.evaluation.metrics.bootstrap import (
    Bootstrap,
    estimate,
    point_estimate,
)
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.evaluation.metrics.rng import RngStream
from lesioncast.evaluation.metrics.scores import resampled_auc_within

FOLDS = 5
# Every fold then has at least two cases of the class.
MIN_CASES_PER_CLASS = 2 * FOLDS
# More cases only narrow the interval.
MAX_CASES = 2000
# Folds share their training cases, so a score varies more than a bootstrap over cases shows. This
# is the factor (Nadeau and Bengio 2003, doi:10.1023/A:1024068626366).
CV_STD_INFLATION = (1 + FOLDS / (FOLDS - 1)) ** 0.5


class CrossValidation(NamedTuple):
    """Predictions for each case by a classifier that was fitted on other folds."""

    #: Probability of each class, [n, class].
    probability: Floats
    #: Index of the fold that contains the case, [n].
    fold: Ints


def cross_validated_probabilities(features: Floats, label: Ints, *, seed: int) -> CrossValidation:
    """Predict `label` [n] from `features` [n, feature] by cross-validation.

    Labels count from 0 without gaps, each occurring at least `FOLDS` times. Features may be NaN;
    the classifier also gets a flag for each missing value, because missing values can identify a
    trial.
    """
    classifier = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(C=0.3, max_iter=2000),
    )
    random_state = (RngStream.LEAKAGE_PROBE + seed) % 2**32
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=random_state)
    fold = np.zeros(len(label), np.int64)
    for number, (_, test) in enumerate(folds.split(features, label)):
        fold[test] = number
    probability = cross_val_predict(classifier, features, label, cv=folds, method="predict_proba")
    return CrossValidation(np.asarray(probability, np.float64), fold)


def leakage_auc(features: Floats, label: Sequence[str | None], bootstrap: Bootstrap) -> LeakageAuc:
    """Return the mean one-against-rest AUC of predicting `label` [n] from `features` [n, feature].

    0.5 is chance, 1 is certainty. The AUC compares cases of the same fold only, whose scores come
    from the same classifier. The interval is a bootstrap over cases, widened by `CV_STD_INFLATION`.
    Classes with fewer than `MIN_CASES_PER_CLASS` cases are excluded. `auc` is None if fewer than
    two classes remain.
    """
    probed = _classes_with_enough_cases(label)
    if len(probed.names) < 2:
        return LeakageAuc(
            probed.names, len(probed.rows), probed.excluded, auc=None, auc_by_class={}
        )
    rows = _evenly_spaced(probed.rows, MAX_CASES)
    index = np.array([probed.names.index(str(label[row])) for row in rows], np.int64)
    predicted = cross_validated_probabilities(features[rows], index, seed=bootstrap.seed)
    weights = bootstrap.weights(len(rows))

    def one_against_rest(column: int, weights: Floats) -> Floats:
        score = predicted.probability[:, column]
        return resampled_auc_within(index == column, score, predicted.fold, weights)

    def mean(weights: Floats) -> Floats:
        aucs = [one_against_rest(column, weights) for column in range(len(probed.names))]
        return np.asarray(np.mean(aucs, axis=0), np.float64)

    value = point_estimate(mean, len(rows))
    by_class = {
        name: point_estimate(partial(one_against_rest, column), len(rows))
        for column, name in enumerate(probed.names)
    }
    auc = _inflate_interval(estimate(value, mean, weights))
    return LeakageAuc(probed.names, len(rows), probed.excluded, auc, by_class)


def _evenly_spaced(rows: Ints, limit: int) -> Ints:
    """Return at most `limit` of the rows, evenly spaced."""
    size = min(limit, len(rows))
    return rows[np.arange(size) * len(rows) // size]


def _inflate_interval(auc: Estimate) -> Estimate:
    """Widen the interval for the dependence between folds, within [0, 1]."""
    if auc.value is None or auc.low is None or auc.high is None:
        return auc
    low, high = (auc.value + CV_STD_INFLATION * (side - auc.value) for side in (auc.low, auc.high))
    return Estimate(auc.value, max(0.0, low), min(1.0, high), auc.defined)


class _ProbedClasses(NamedTuple):
    """Classes with enough cases for the probe."""

    names: tuple[str, ...]
    #: Rows of the cases of these classes.
    rows: Ints
    #: Classes with too few cases.
    excluded: tuple[str, ...]


def _classes_with_enough_cases(label: Sequence[str | None]) -> _ProbedClasses:
    """Divide the classes by their number of cases; None is not a class."""
    classes, counts = np.unique([name for name in label if name is not None], return_counts=True)
    is_large = counts >= MIN_CASES_PER_CLASS
    names = tuple(str(name) for name in classes[is_large])
    rows = np.flatnonzero([name in names for name in label])
    return _ProbedClasses(names, rows, tuple(str(name) for name in classes[~is_large]))
