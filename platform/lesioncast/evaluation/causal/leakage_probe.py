"""Whether trial or arm can be read off the images: a classifier on other cases, and its AUC."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lesioncast.evaluation.causal.schema import LeakageAuc
from lesioncast.evaluation.metrics.bootstrap import (
    Bootstrap,
    estimate,
    point_estimate,
)
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.evaluation.metrics.rng import RngStream
from lesioncast.evaluation.metrics.scores import resampled_auc_within

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FOLDS = 5
MIN_CASES_PER_CLASS = 2 * FOLDS  # cases of a class: fewer say nothing on either side of a fold
MAX_CASES = 2000  # cases: more only narrow the interval
CV_STD_INFLATION = (1 + FOLDS / (FOLDS - 1)) ** 0.5
"""Folds share their training cases, so a score varies more than its bootstrap over cases shows, by
this factor (Nadeau and Bengio 2003, doi:10.1023/A:1024068626366)."""


def cross_validated_probabilities(
    features: Floats, label: Ints, *, seed: int
) -> tuple[Floats, Ints]:
    """(P(label) of each case from a classifier that saw other folds only, its fold), [n, class]
    and [n]. `label` [n] counts from 0 without gaps, each at least `FOLDS` times.

    `features` [n, feature] may be NaN: that a value is absent is told too, for it can give away a
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
    for number, (_, held) in enumerate(folds.split(features, label)):
        fold[held] = number
    chance = cross_val_predict(classifier, features, label, cv=folds, method="predict_proba")
    return np.asarray(chance, np.float64), fold


def leakage_auc(features: Floats, label: Sequence[str | None], bootstrap: Bootstrap) -> LeakageAuc:
    """How well `label` [n] is told from `features` [n, feature]: the mean one-against-rest AUC.

    0.5 is chance, 1 is certainty. Pairs are of one fold, where one and the same classifier gave
    the scores; the interval is over cases, `CV_STD_INFLATION` times as wide. Labels of fewer than
    `MIN_CASES_PER_CLASS` cases are left out and named. `auc` is None where fewer than two are left.
    """
    names, kept, left_out = _enough(label)
    if len(names) < 2:
        return LeakageAuc(tuple(names), len(kept), tuple(left_out), auc=None, auc_by_class={})
    kept = kept[np.arange(min(MAX_CASES, len(kept))) * len(kept) // min(MAX_CASES, len(kept))]
    index = np.array([names.index(str(label[row])) for row in kept], np.int64)
    chance, fold = cross_validated_probabilities(features[kept], index, seed=bootstrap.seed)
    weights = bootstrap.weights(len(kept))

    def one_against_rest(which: int, weights: Floats) -> Floats:
        return resampled_auc_within(index == which, chance[:, which], fold, weights)

    def mean(weights: Floats) -> Floats:
        aucs = [one_against_rest(which, weights) for which in range(len(names))]
        return np.asarray(np.mean(aucs, axis=0), np.float64)

    value = point_estimate(mean, len(kept))
    by_class = {
        name: point_estimate(partial(one_against_rest, which), len(kept))
        for which, name in enumerate(names)
    }
    auc = _inflate_interval(estimate(value, mean, weights))
    return LeakageAuc(tuple(names), len(kept), tuple(left_out), auc, by_class)


def _inflate_interval(auc: Estimate) -> Estimate:
    if auc.value is None or auc.low is None or auc.high is None:
        return auc
    low, high = (auc.value + CV_STD_INFLATION * (side - auc.value) for side in (auc.low, auc.high))
    return Estimate(auc.value, max(0.0, low), min(1.0, high), auc.defined)


def _enough(label: Sequence[str | None]) -> tuple[list[str], Ints, list[str]]:
    """(labels of enough cases, the rows that carry one, labels of too few)."""
    known, count = np.unique([name for name in label if name is not None], return_counts=True)
    names = [
        str(name)
        for name, number in zip(known, count, strict=True)
        if number >= MIN_CASES_PER_CLASS
    ]
    rows = np.flatnonzero([name in names for name in label])
    return names, rows, sorted({str(name) for name in known} - set(names))
