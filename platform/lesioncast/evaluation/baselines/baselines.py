"""Baselines that a forecast has to beat: arm statistics, and a regression on image features.

All are fitted on training cases and applied to others. Rows are cases: `arm` [n] holds arm indices,
`count` [n] lesion counts and `image_features` [n, feature] features, NaN where absent.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.compose import ColumnTransformer
from sklearn.dummy import DummyClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from lesioncast.arrays import Floats, Ints
from lesioncast.errors import BaselineError
from lesioncast.evaluation.metrics.rng import RngStream


@dataclass(frozen=True)
class ArmStatistics:
    """Training statistics of each arm, all [arm]; NaN for an arm without training cases."""

    #: Number of training cases.
    cases: Ints
    #: Fraction of the cases with at least one lesion.
    activity: Floats
    mean_count: Floats
    #: Mean of log(1 + count).
    mean_log_count: Floats


def arm_statistics(arm: Ints, count: Floats, *, arms: int) -> ArmStatistics:
    """Compute the statistics of each of `arms` arms from training cases."""
    cases = np.bincount(arm, minlength=arms)

    def mean(values: npt.NDArray[np.generic]) -> Floats:
        total = np.bincount(arm, weights=values.astype(np.float64), minlength=arms)
        return np.where(cases > 0, total / np.maximum(cases, 1), np.nan)

    return ArmStatistics(cases, mean(count > 0), mean(count), mean(np.log1p(count)))


def lookup_by_arm(statistic: Floats, arm: Ints, names: tuple[str, ...]) -> Floats:
    """Return `statistic` [arm] of the arm of each case, [n].

    Raises BaselineError, which names the arms, if an arm has no training case.
    """
    missing = sorted({names[index] for index in arm if np.isnan(statistic[index])})
    if missing:
        raise BaselineError(
            f"expected training cases of every arm that is tested, got none of {missing}; "
            "convert more subjects or leave these arms out of the test split"
        )
    return np.asarray(statistic[arm], np.float64)


def monte_carlo(rate: Floats, *, runs: int, seed: int) -> Floats:
    """Draw the paper's baseline: `runs` Bernoulli draws of each case's `rate` [n], [runs, n]."""
    rng = np.random.default_rng([int(RngStream.MONTE_CARLO_BASELINE), seed])
    draws = rng.random((runs, len(rate)))
    return (draws < rate).astype(np.float64)


def _design_matrix(image_features: Floats, arm: Ints) -> Floats:
    """Append the arm index as the last column, [n, feature + 1]."""
    return np.column_stack([image_features, arm])


def _encoder(arms: int) -> ColumnTransformer:
    """Build the encoder: standardised features, a flag for each missing one, one-hot arm."""
    filled = SimpleImputer(
        strategy="constant", fill_value=0.0, add_indicator=True, keep_empty_features=True
    )
    features = make_pipeline(filled, StandardScaler())
    one_hot = OneHotEncoder(categories=[np.arange(arms)], sparse_output=False)
    return ColumnTransformer([("features", features, slice(0, -1)), ("arm", one_hot, [-1])])


@dataclass(frozen=True)
class RegressionBaseline:
    """Logistic regression of activity and ridge regression of log(1 + count)."""

    activity: Pipeline
    log_count: Pipeline

    def probability(self, image_features: Floats, arm: Ints) -> Floats:
        """Return P(active) of each case, [n]."""
        classes = list(self.activity.classes_)
        probability = self.activity.predict_proba(_design_matrix(image_features, arm))
        return np.asarray(
            probability[:, classes.index(True)] if True in classes else np.zeros(len(arm)),
            np.float64,
        )

    def count(self, image_features: Floats, arm: Ints) -> Floats:
        """Return the predicted lesion count of each case, [n], from the mean of log(1 + count)."""
        log_count = self.log_count.predict(_design_matrix(image_features, arm))
        return np.asarray(np.expm1(np.clip(log_count, 0, None)), np.float64)


def fit_regression_baseline(
    image_features: Floats, arm: Ints, count: Floats, *, arms: int
) -> RegressionBaseline:
    """Fit both regressions; if all training cases are of one class, that class is predicted."""
    design, active = _design_matrix(image_features, arm), count > 0
    both_classes = active.any() and not active.all()
    # Logistic regression cannot be fitted on one class.
    classifier = (
        LogisticRegression(max_iter=2000) if both_classes else DummyClassifier(strategy="prior")
    )
    return RegressionBaseline(
        activity=make_pipeline(_encoder(arms), classifier).fit(design, active),
        log_count=make_pipeline(_encoder(arms), Ridge()).fit(design, np.log1p(count)),
    )
