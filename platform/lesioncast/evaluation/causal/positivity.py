"""Positivity: which patients could have received which arm, by trial and by appearance."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.evaluation.causal.leakage_probe import (
    MIN_CASES_PER_CLASS,
    cross_validated_probabilities,
)
from lesioncast.evaluation.causal.schema import ArmPositivity, Positivity

# A patient is inside the support of an arm if their propensity is at least this quantile of the
# propensities of the patients who received it.
SUPPORT_QUANTILE = 0.05


def positivity(
    arm: Sequence[str],
    trial: Sequence[str | None],
    *,
    arms: Sequence[str],
    overlap: Mapping[str, float | None] | None = None,
) -> Positivity:
    """Count cases by trial and arm, and find the pairs of arms that share no trial.

    `arm` and `trial` [n] are those of each case. Cases without a recorded trial (None) belong to no
    trial. `overlap` is the result of `overlap_by_arm`; None without images.
    """
    cases_by_trial = {
        trial_name: {arm_name: _count_cases(arm, trial, arm_name, trial_name) for arm_name in arms}
        for trial_name in sorted({name for name in trial if name is not None})
    }
    trials_of = {
        arm_name: [name for name, cases in cases_by_trial.items() if cases[arm_name]]
        for arm_name in arms
    }
    given = [arm_name for arm_name in arms if trials_of[arm_name]]
    return Positivity(
        cases=len(arm),
        cases_without_trial=sum(name is None for name in trial),
        cases_by_trial=cases_by_trial,
        arms={
            arm_name: ArmPositivity(
                cases=sum(received == arm_name for received in arm),
                trials=tuple(trials_of[arm_name]),
                overlap=None if overlap is None else overlap[arm_name],
                offered_share=_share(name in trials_of[arm_name] for name in trial)
                if cases_by_trial
                else None,
            )
            for arm_name in arms
        },
        pairs_without_common_trial=tuple(
            (first, second)
            for first, second in combinations(given, 2)
            if not set(trials_of[first]) & set(trials_of[second])
        ),
    )


def _count_cases(
    arm: Sequence[str], trial: Sequence[str | None], arm_name: str, trial_name: str
) -> int:
    """Count the cases of one arm in one trial."""
    return sum(pair == (arm_name, trial_name) for pair in zip(arm, trial, strict=True))


def _share(members: Iterable[bool]) -> float | None:
    """Return the fraction of True; None if there are no members."""
    flags = list(members)
    return float(np.mean(flags)) if flags else None


def overlap_by_arm(
    features: Floats, arm: Sequence[str], *, arms: Sequence[str], seed: int
) -> dict[str, float | None]:
    """Return, by arm, the share of the patients of other arms who are inside the arm's support.

    A patient is inside if their propensity for the arm is at least the 5th percentile of those who
    received it. Propensities are estimated from `features` [n, feature] by cross-validation. The
    share is about 0.95 if the patients of all arms are exchangeable. It is None for an arm with too
    few cases, and for every arm if fewer than two have enough.
    """
    label = np.array(arm)
    tested = [name for name in arms if (label == name).sum() >= MIN_CASES_PER_CLASS]
    share_by_arm: dict[str, float | None] = dict.fromkeys(arms)
    if len(tested) < 2:
        return share_by_arm
    is_tested = np.isin(label, tested)
    index = np.array([tested.index(name) for name in label[is_tested]], np.int64)
    propensity = cross_validated_probabilities(features[is_tested], index, seed=seed).probability
    for column, name in enumerate(tested):
        received = index == column
        own, others = propensity[received, column], propensity[~received, column]
        share_by_arm[name] = float(np.mean(others >= np.quantile(own, SUPPORT_QUANTILE)))
    return share_by_arm
