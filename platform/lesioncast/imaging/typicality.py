"""Judge from features of the images how much a patient resembles those of a model's training.

A Gaussian of the features gives the Mahalanobis distance of a patient, of all features and of each
group of them. The group in which a patient lies farthest out counts. Its rank among those of
patients who did not fit the Gaussian is a conformal p-value: of patients like those of training, a
share of at most alpha has p <= alpha, whatever the distribution of the features (Vovk, Gammerman
and Shafer 2005, section 2.5; Laxhammar and Falkman 2010). A patient may lack features: the Gaussian
is reduced to those that are known, and so are the patients of the ranking.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools, Float32s, Floats, Ints

# Fewer patients than this give no p-value below 0.01.
MIN_RANKED = 100
# Range of a feature in words: quantiles of the ranked patients.
RANGE = (0.005, 0.995)
# Smallest standard deviation of a feature. All features are logarithms or lie on a scale of about
# 1; one that is the same in all patients of training must not give an infinite distance.
MIN_SD = 0.02


@dataclass(frozen=True)
class FeatureGaussian:
    """Mean, scale and correlation of features, and the mean of each arm's patients."""

    #: Mean [feature].
    mean: Floats
    #: Standard deviation, at least `MIN_SD`, [feature].
    scale: Floats
    #: Shrunk covariance of the standardised features, [feature, feature].
    covariance: Floats
    #: Standardised mean of the patients who received each arm, [arm, feature]; NaN without any.
    arm_means: Floats


@dataclass(frozen=True)
class TypicalityReference:
    """What a patient is compared with: a Gaussian, and patients who did not fit it."""

    gaussian: FeatureGaussian
    #: Features of the ranked patients, [patient, feature]; NaN if missing.
    ranked: Float32s
    #: Index of the arm that each of them received, [patient]; -1 if unknown.
    arm: Ints


@dataclass(frozen=True)
class UnusualFeature:
    """A feature of a patient, and its range among the patients of training."""

    #: Column of the feature.
    column: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ArmSupport:
    """Whether patients like this one received an arm.

    `p_value` is the share of the arm's own patients whose propensity for the arm is as low as this
    patient's; None for an arm with fewer patients than `MIN_ARM`. `cases` are the arm's patients.
    """

    p_value: float | None
    cases: int


# An arm with fewer ranked patients has no p-value: it could not fall below the limit.
MIN_ARM = 20


@dataclass(frozen=True)
class Typicality:
    """Judgement of one patient."""

    #: Conformal p-value; None if too few patients have the features that this one has.
    p_value: float | None
    #: Number of patients that gave the ranks.
    ranked: int
    #: The features that lie farthest from the mean, in standard deviations; farthest first.
    unusual: tuple[UnusualFeature, ...]
    #: Support of each arm, [arm].
    arms: tuple[ArmSupport, ...]


def fit_gaussian(features: Floats, arm: Ints, *, arms: int) -> FeatureGaussian:
    """Fit the Gaussian to patients, features [patient, feature] with NaN where missing.

    `arm` [patient] holds indices below `arms`, -1 if unknown. A missing value counts as the mean in
    the covariance, which is shrunk towards a multiple of the identity by Ledoit and Wolf (2004).
    """
    from sklearn.covariance import ledoit_wolf  # noqa: PLC0415  # only training needs it

    known = np.isfinite(features)
    number = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, features, 0).sum(axis=0) / number
    centred = np.where(known, features - mean, 0)
    scale = np.maximum(np.sqrt((centred**2).sum(axis=0) / number), MIN_SD)
    standardised = centred / scale
    # One patient has no covariance.
    covariance = (
        ledoit_wolf(standardised, assume_centered=True)[0]
        if len(standardised) > 1
        else np.eye(standardised.shape[1])
    )
    arm_means = np.stack(
        [
            standardised[arm == index].mean(axis=0)
            if (arm == index).any()
            else np.full(features.shape[1], np.nan)
            for index in range(arms)
        ]
    )
    return FeatureGaussian(mean, scale, covariance, arm_means)


def distances(gaussian: FeatureGaussian, features: Floats, columns: Ints) -> Floats:
    """Return squared Mahalanobis distances in some columns of the features, [patient].

    `features` [patient, feature] are finite in these columns.
    """
    offset = (features[:, columns] - gaussian.mean[columns]) / gaussian.scale[columns]
    covariance = gaussian.covariance[np.ix_(columns, columns)]
    squared: Floats = np.einsum("ij,ij->i", offset, np.linalg.solve(covariance, offset.T).T)
    return squared


def nonconformity(gaussian: FeatureGaussian, patients: Floats, groups: Sequence[Ints]) -> Floats:
    """Return how far out each patient lies in the group of features where that is most, [patient].

    The squared distance in a group is counted in units of its 99 % quantile over all patients, from
    its median on, so that a group with long tails does not decide alone. All patients [patient,
    feature] are treated alike, which makes ranks of the result conformal.
    """
    scores = np.full(len(patients), -np.inf)
    for columns in groups:
        if len(columns):
            squared = distances(gaussian, patients, columns)
            centre, tail = np.quantile(squared, (0.5, 0.99))
            scores = np.maximum(scores, (squared - centre) / max(float(tail - centre), MIN_SD))
    return scores


def judge(
    reference: TypicalityReference,
    features: Floats,
    *,
    groups: Sequence[Ints],
    before_treatment: Bools,
    shown: int = 3,
) -> Typicality:
    """Judge a patient by their features [feature], NaN where missing.

    The p-value uses the features of all `groups`, each the columns of features that are judged
    together. The support of the arms uses those of `before_treatment` [feature] alone, because
    later images show what the arm received did. The `shown` most unusual features are returned.
    """
    columns = _usable(reference, features)
    ranked = reference.ranked.astype(np.float64)
    complete = _comparable(ranked, features, columns)
    p_value = None
    if len(columns) and len(complete) >= MIN_RANKED:
        patients = np.vstack([features, complete])
        known = [np.intersect1d(group, columns) for group in groups]
        own, *others = nonconformity(reference.gaussian, patients, known)
        p_value = float((1 + (np.array(others) >= own).sum()) / (1 + len(others)))
    return Typicality(
        p_value,
        len(complete),
        _most_unusual(reference, features, columns, shown),
        _arm_support(reference, features, columns[before_treatment[columns]]),
    )


def _comparable(ranked: Floats, features: Floats, columns: Ints) -> Floats:
    """Return the ranked patients who have the columns; if enough, those who lack the others, too.

    Who has no new lesion lacks features of it. Such patients are ranked among themselves.
    """
    known = np.isfinite(ranked)
    same = (known == np.isfinite(features)).all(axis=1)
    return ranked[same if same.sum() >= MIN_RANKED else known[:, columns].all(axis=1)]


def _usable(reference: TypicalityReference, features: Floats) -> Ints:
    """Return the columns that the patient has and, together, enough of the ranked patients have.

    A column that too few of them have is left out, the rarest first.
    """
    known = np.isfinite(reference.ranked)
    columns = np.flatnonzero(np.isfinite(features))
    while len(columns) and known[:, columns].all(axis=1).sum() < MIN_RANKED:
        columns = np.delete(columns, int(known[:, columns].sum(axis=0).argmin()))
    return columns


def _most_unusual(
    reference: TypicalityReference, features: Floats, columns: Ints, number: int
) -> tuple[UnusualFeature, ...]:
    gaussian = reference.gaussian
    offset = np.abs(features[columns] - gaussian.mean[columns]) / gaussian.scale[columns]
    farthest = columns[np.argsort(-offset, kind="stable")[:number]]
    ranges = np.nanquantile(reference.ranked[:, farthest].astype(np.float64), RANGE, axis=0)
    return tuple(
        UnusualFeature(int(column), float(features[column]), float(low), float(high))
        for column, low, high in zip(farthest, *ranges, strict=True)
    )


def _arm_support(
    reference: TypicalityReference, features: Floats, columns: Ints
) -> tuple[ArmSupport, ...]:
    """Return the support of each arm by the propensity of linear discriminant analysis.

    All arms have the same covariance and the same prior probability (Hastie, Tibshirani and
    Friedman 2009, section 4.3).
    """
    ranked = reference.ranked.astype(np.float64)
    complete = np.isfinite(ranked[:, columns]).all(axis=1)
    own = _propensity(reference.gaussian, features[None], columns)[0]
    others = _propensity(reference.gaussian, ranked[complete], columns)
    support = []
    for index in range(len(reference.gaussian.arm_means)):
        received = others[reference.arm[complete] == index, index]
        cases = int((reference.arm == index).sum())
        if len(received) < MIN_ARM or not len(columns):
            support.append(ArmSupport(None, cases))
            continue
        lower = (received <= own[index]).sum()
        support.append(ArmSupport(float((1 + lower) / (1 + len(received))), cases))
    return tuple(support)


def _propensity(gaussian: FeatureGaussian, features: Floats, columns: Ints) -> Floats:
    """Return the log probability of each arm given the features, [patient, arm]."""
    offset = (features[:, columns] - gaussian.mean[columns]) / gaussian.scale[columns]
    covariance = gaussian.covariance[np.ix_(columns, columns)]
    means = np.nan_to_num(gaussian.arm_means[:, columns])
    weights = np.linalg.solve(covariance, means.T)  # [feature, arm]
    score = offset @ weights - 0.5 * np.einsum("af,fa->a", means, weights)
    score[:, np.isnan(gaussian.arm_means).all(axis=1)] = -np.inf
    top = score.max(axis=1, keepdims=True)
    log_odds: Floats = score - top - np.log(np.exp(score - top).sum(axis=1, keepdims=True))
    return log_odds
