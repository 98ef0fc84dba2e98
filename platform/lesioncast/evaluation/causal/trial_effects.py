"""Estimate effects from observed outcomes of arms that share a trial.

Within a trial, arms were assigned at random, so a difference of outcomes estimates an effect.
Between trials it does not: scanner, site and patients differ as well, and no method here corrects
for that. Only values measured before treatment may be adjusted for; later images already show the
effect of the arm.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedKFold

from lesioncast.arrays import Bools, Floats, Ints
from lesioncast.evaluation.baselines.baselines import fit_regression_baseline
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.imaging.features.image_features import BASELINE_FEATURES

OutcomeModel = Callable[[Floats], Floats]
"""Features [n, feature] -> expected activity and expected count, [2, n]."""
FitOutcomeModel = Callable[[Floats, Floats], OutcomeModel]
"""Features [m, feature] and counts [m] of training cases -> the fitted model."""

FOLDS = 5


@dataclass(frozen=True)
class TrialContrast:
    """Two arms of one trial and the cases that received either."""

    trial: str
    arm: int
    reference: int
    #: Rows of the cases that received `arm` or `reference`, [m].
    rows: Ints
    #: True for the cases of these rows that received `arm`, [m].
    treated: Bools


def contrasts(trial: Sequence[str | None], arm: Ints, reference: int) -> Iterator[TrialContrast]:
    """Yield the contrast of each arm with the reference arm within each trial.

    A trial without the `reference` arm uses its first arm instead. Arms with fewer than FOLDS cases
    in a trial are left out, because cross-fitting needs a case in every fold.
    """
    for name in sorted({name for name in trial if name is not None}):
        in_trial = np.array([case_trial == name for case_trial in trial])
        arms = [a for a in np.unique(arm[in_trial]).tolist() if (arm[in_trial] == a).sum() >= FOLDS]
        if not arms:
            continue
        trial_reference = reference if reference in arms else arms[0]
        for other in arms:
            if other != trial_reference:
                rows = np.flatnonzero(in_trial & np.isin(arm, [other, trial_reference]))
                yield TrialContrast(name, other, trial_reference, rows, arm[rows] == other)


def arms_without_common_trial(
    trial: Sequence[str | None], arm: Ints, arms: int
) -> list[tuple[int, int]]:
    """Return the pairs of arms that have cases but no trial in common."""
    arms_by_trial: dict[str, set[int]] = {}
    for name, received in zip(trial, arm.tolist(), strict=True):
        if name is not None:
            arms_by_trial.setdefault(name, set()).add(received)
    present = [a for a in range(arms) if (arm == a).any()]
    return [
        (a, b)
        for a in present
        for b in present
        if a < b and not any({a, b} <= together for together in arms_by_trial.values())
    ]


def mean_difference(outcome: Floats, treated: Bools) -> Callable[[Floats], Floats]:
    """Return a resampled score: mean outcome [n] of the treated minus that of the others.

    The score takes case weights [b, n] and returns [b]; NaN if a resample lacks a side.
    """

    def resampled(weights: Floats) -> Floats:
        sides = []
        for side in (treated, ~treated):
            mass = weights[:, side].sum(axis=1)
            total = weights[:, side] @ outcome[side]
            sides.append(np.divide(total, mass, out=np.full_like(mass, np.nan), where=mass > 0))
        return np.asarray(sides[0] - sides[1], np.float64)

    return resampled


def aipw(
    outcome: Floats,
    treated: Bools,
    *,
    treated_mean: Floats,
    other_mean: Floats,
    propensity: Floats,
) -> Floats:
    """Return each case's term of the augmented inverse-probability-weighted (AIPW) effect, [n].

    The mean of the terms estimates the effect (Robins, Rotnitzky and Zhao 1994). `treated_mean` and
    `other_mean` [n] are the expected outcomes with and without treatment. If they come from other
    folds, the estimate is cross-fitted (Chernozhukov et al. 2018). `propensity` [n] is the
    probability of treatment. The estimate is consistent if the expected outcomes or the
    propensities are right.
    """
    treated_residual = treated / propensity * (outcome - treated_mean)
    other_residual = (1 - treated) / (1 - propensity) * (outcome - other_mean)
    return np.asarray(treated_mean - other_mean + treated_residual - other_residual, np.float64)


def cross_fitted_aipw(
    features: Floats, count: Floats, treated: Bools, *, fit: FitOutcomeModel, seed: int
) -> tuple[Floats, Floats]:
    """Return the `aipw` terms of activity and of the count, both [n], cross-fitted over folds.

    The propensity is the share of treated cases in the other folds. Within a trial, treatment is
    assigned at random, so the propensity does not depend on features.
    """
    means = np.zeros((2, 2, len(count)))  # [outcome, other or treated, n]
    propensity = np.zeros(len(count))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(features, treated):
        propensity[test] = treated[train].mean()
        for side in (0, 1):
            of_side = train[treated[train] == bool(side)]
            means[:, side, test] = fit(features[of_side], count[of_side])(features[test])
    outcomes = ((count > 0).astype(np.float64), count)
    activity_terms, count_terms = (
        aipw(
            outcome,
            treated,
            treated_mean=treated_mean,
            other_mean=other_mean,
            propensity=propensity,
        )
        for outcome, (other_mean, treated_mean) in zip(outcomes, means, strict=True)
    )
    return activity_terms, count_terms


def fit_outcome_models(features: Floats, count: Floats) -> OutcomeModel:
    """Fit the regression baseline of activity and count on the cases of one arm."""

    def single_arm(rows: Floats) -> Ints:
        return np.zeros(len(rows), np.int64)

    model = fit_regression_baseline(features, single_arm(features), count, arms=1)
    return lambda test: np.stack(
        [model.probability(test, single_arm(test)), model.count(test, single_arm(test))]
    )


class PooledCases(NamedTuple):
    """Cases of several outcome tables in one, with the features measured before treatment."""

    #: Trial of each case; None if it is not recorded.
    trial: tuple[str | None, ...]
    #: Index of the arm that each case received, [n].
    arm: Ints
    #: Columns `BASELINE_FEATURES` of the image features, [n, feature].
    baseline_features: Floats
    #: Number of NET2 lesions at outcome without the opening, [n].
    counts: Floats


def concatenate_outcomes(tables: Sequence[OutcomeTable]) -> PooledCases:
    """Concatenate the cases of all tables."""
    return PooledCases(
        trial=tuple(name for table in tables for name in table.trial),
        arm=np.concatenate([table.arm for table in tables]),
        baseline_features=np.concatenate(
            [table.image_features[:, BASELINE_FEATURES] for table in tables if len(table.case)]
        ),
        counts=np.concatenate([table.plain for table in tables]),
    )
