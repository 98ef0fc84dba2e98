"""What the observed outcomes alone say of arms that share a trial.

Within a trial, arms were assigned by chance, so a difference of outcomes is an effect. Between
trials it is not: scanner, site and patients differ as well, and no method here mends that. Only
what was known before treatment may be adjusted for: images of w048 show what the arm did already.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedKFold

from lesioncast.evaluation.baselines.baselines import fit_regression_baseline
from lesioncast.evaluation.features.image_features import BASELINE_FEATURES
from lesioncast.evaluation.features.outcomes import OutcomeTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Fit = Callable[[Floats, Floats], Callable[[Floats], Floats]]
"""(scalars [m, scalar], count [m]) -> expected activity and count at other scalars, [2, n]."""

FOLDS = 5


@dataclass(frozen=True)
class TrialContrast:
    """Two arms of one trial: the rows that belong to either, and which of them had `arm`."""

    trial: str
    arm: int
    reference: int
    rows: Ints
    treated: Bools


def contrasts(trial: Sequence[str | None], arm: Ints, reference: int) -> Iterator[TrialContrast]:
    """Every arm against the `reference` in each trial that has both, or else its first arm.

    Arms with fewer than FOLDS cases in a trial are left out.
    """
    for name in sorted({each for each in trial if each is not None}):
        member = np.array([each == name for each in trial])
        arms = [a for a in np.unique(arm[member]).tolist() if (arm[member] == a).sum() >= FOLDS]
        if not arms:
            continue
        against = reference if reference in arms else arms[0]
        for other in arms:
            if other != against:
                rows = np.flatnonzero(member & np.isin(arm, [other, against]))
                yield TrialContrast(name, other, against, rows, arm[rows] == other)


def arms_without_common_trial(
    trial: Sequence[str | None], arm: Ints, arms: int
) -> list[tuple[int, int]]:
    """Pairs of arms, each of which has cases, that no trial holds together."""
    shared = {
        pair
        for name in {each for each in trial if each is not None}
        for here in [np.unique(arm[[each == name for each in trial]]).tolist()]
        for pair in ((a, b) for a in here for b in here)
    }
    present = [a for a in range(arms) if (arm == a).any()]
    return [(a, b) for a in present for b in present if a < b and (a, b) not in shared]


def mean_difference(outcome: Floats, treated: Bools) -> Callable[[Floats], Floats]:
    """Mean outcome [n] of the treated minus that of the others, in every resample."""

    def resampled(weights: Floats) -> Floats:
        sides = []
        for side in (treated, ~treated):
            mass = weights[:, side].sum(axis=1)
            total = weights[:, side] @ outcome[side]
            sides.append(np.divide(total, mass, out=np.full_like(mass, np.nan), where=mass > 0))
        return np.asarray(sides[0] - sides[1], np.float64)

    return resampled


def aipw(
    outcome: Floats, treated: Bools, *, treated_mean: Floats, other_mean: Floats, chance: Floats
) -> Floats:
    """Each case's part of the augmented inverse-probability-weighted effect, [n]; its mean is it.

    Robins, Rotnitzky and Zhao 1994; cross-fitting as in Chernozhukov et al. 2018 where the
    expected outcomes [n] under either arm come from other folds. `chance` [n] is that of being
    treated. Right where either the expected outcomes or the chances are.
    """
    gained = treated / chance * (outcome - treated_mean)
    spared = (1 - treated) / (1 - chance) * (outcome - other_mean)
    return np.asarray(treated_mean - other_mean + gained - spared, np.float64)


def cross_fitted_aipw(
    scalars: Floats, count: Floats, treated: Bools, *, fit: Fit, seed: int
) -> tuple[Floats, Floats]:
    """`aipw` of (activity, count), both [n], with expectations from folds that a case is not in.

    The chance of treatment is the share of treated in those folds: within a trial it depends on
    nothing else.
    """
    means = np.zeros((2, 2, len(count)))  # [outcome, side, n]
    chance = np.zeros(len(count))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    for known, asked in folds.split(scalars, treated):
        chance[asked] = treated[known].mean()
        for side in (0, 1):
            of_side = known[treated[known] == bool(side)]
            means[:, side, asked] = fit(scalars[of_side], count[of_side])(scalars[asked])
    outcomes = ((count > 0).astype(np.float64), count)
    active, lesions = (
        aipw(outcome, treated, treated_mean=after, other_mean=before, chance=chance)
        for outcome, (before, after) in zip(outcomes, means, strict=True)
    )
    return active, lesions


def fit_outcome_models(scalars: Floats, count: Floats) -> Callable[[Floats], Floats]:
    """Expected (activity, count) by the regressions that a baseline has, of one arm."""

    def of_one(rows: Floats) -> Ints:
        return np.zeros(len(rows), np.int64)

    model = fit_regression_baseline(scalars, of_one(scalars), count, arms=1)
    return lambda asked: np.stack(
        [model.probability(asked, of_one(asked)), model.count(asked, of_one(asked))]
    )


def concatenate_outcomes(
    parts: Sequence[OutcomeTable],
) -> tuple[tuple[str | None, ...], Ints, Floats, Floats]:
    """(trial [n], arm [n], scalars from before treatment [n, scalar], count [n]) of all parts."""
    return (
        tuple(each for part in parts for each in part.trial),
        np.concatenate([part.arm for part in parts]),
        np.concatenate(
            [part.image_features[:, BASELINE_FEATURES] for part in parts if len(part.case)]
        ),
        np.concatenate([part.plain for part in parts]),
    )
