"""What a forecast has to beat: population statistics of the arm, and a regression on scalars.

Everything is fitted on training cases and asked about others. Rows are cases; `arm` [n] holds arm
indices, `count` [n] lesion counts, `scalars` [n, scalar] image scalars with NaN where absent.
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

from lesioncast.errors import BaselineError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

STREAM = 102  # of random numbers: the bootstrap draws from another


@dataclass(frozen=True)
class ArmStatistics:
    """Training statistics of each arm, all [arm]; NaN where an arm has no training case."""

    cases: Ints
    activity: Floats
    mean_count: Floats
    mean_log_count: Floats


def arm_statistics(arm: Ints, count: Floats, *, arms: int) -> ArmStatistics:
    """Cases, share active, mean count and mean log(1 + count) of each of `arms` arms."""
    cases = np.bincount(arm, minlength=arms)

    def mean(values: npt.NDArray[np.generic]) -> Floats:
        total = np.bincount(arm, weights=values.astype(np.float64), minlength=arms)
        return np.where(cases > 0, total / np.maximum(cases, 1), np.nan)

    return ArmStatistics(cases, mean(count > 0), mean(count), mean(np.log1p(count)))


def lookup_by_arm(statistic: Floats, arm: Ints, names: tuple[str, ...]) -> Floats:
    """`statistic` [arm] of each case, [n]. BaselineError names arms without training cases."""
    unknown = sorted({names[index] for index in arm if np.isnan(statistic[index])})
    if unknown:
        raise BaselineError(
            f"expected training cases of every arm that is tested, got none of {unknown}; "
            "convert more subjects or leave these arms out of the test split"
        )
    return np.asarray(statistic[arm], np.float64)


def monte_carlo(rate: Floats, *, runs: int, seed: int) -> Floats:
    """The paper's baseline: `runs` Bernoulli draws of each case's `rate` [n], [runs, n]."""
    draws = np.random.default_rng([STREAM, seed]).random((runs, len(rate)))
    return (draws < rate).astype(np.float64)


def _features(scalars: Floats, arm: Ints) -> Floats:
    return np.column_stack([scalars, arm])


def _encoder(arms: int) -> ColumnTransformer:
    """Standardised scalars, a flag for each that is absent, and the arm one-hot."""
    filled = SimpleImputer(
        strategy="constant", fill_value=0.0, add_indicator=True, keep_empty_features=True
    )
    one_hot = OneHotEncoder(categories=[np.arange(arms)], sparse_output=False)
    return ColumnTransformer(
        [("scalars", make_pipeline(filled, StandardScaler()), slice(0, -1)), ("arm", one_hot, [-1])]
    )


@dataclass(frozen=True)
class RegressionBaseline:
    """Logistic regression for activity and ridge regression for log(1 + count)."""

    activity: Pipeline
    log_count: Pipeline

    def probability(self, scalars: Floats, arm: Ints) -> Floats:
        """P(active) of each case, [n]."""
        classes = list(self.activity.classes_)
        chance = self.activity.predict_proba(_features(scalars, arm))
        return np.asarray(
            chance[:, classes.index(True)] if True in classes else np.zeros(len(arm)), np.float64
        )

    def count(self, scalars: Floats, arm: Ints) -> Floats:
        """Predicted count of each case, [n], from the mean of log(1 + count)."""
        log_count = self.log_count.predict(_features(scalars, arm))
        return np.asarray(np.expm1(np.clip(log_count, 0, None)), np.float64)


def fit_regression_baseline(
    scalars: Floats, arm: Ints, count: Floats, *, arms: int
) -> RegressionBaseline:
    """Both regressions on the training cases; a training set of one class predicts that class."""
    features, active = _features(scalars, arm), count > 0
    both = active.any() and not active.all()
    classifier = LogisticRegression(max_iter=2000) if both else DummyClassifier(strategy="prior")
    return RegressionBaseline(
        activity=make_pipeline(_encoder(arms), classifier).fit(features, active),
        log_count=make_pipeline(_encoder(arms), Ridge()).fit(features, np.log1p(count)),
    )
