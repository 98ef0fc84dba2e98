"""Who could have received which arm: trials and arms counted, and what never met in one trial."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.causal.leakage_probe import (
    MIN_CASES_PER_CLASS,
    cross_validated_probabilities,
)
from lesioncast.evaluation.causal.schema import ArmPositivity, Positivity

Floats = npt.NDArray[np.float64]

SUPPORT_QUANTILE = (
    0.05  # the share of an arm's own patients below whose propensities is outside its support
)


def positivity(
    arm: Sequence[str],
    trial: Sequence[str | None],
    *,
    arms: Sequence[str],
    overlap: Mapping[str, float | None] | None = None,
) -> Positivity:
    """Cases by trial and arm, which arms a trial offered, and the pairs of arms that share none.

    `arm` and `trial` [n] are what each case received and took part in; a trial that is not named
    counts for nothing. `overlap` is what `overlap_by_arm` returns; None without images.
    """
    table = {
        name: {each: _count(arm, trial, each, name) for each in arms}
        for name in sorted({name for name in trial if name is not None})
    }
    gave = {each: [name for name, row in table.items() if row[each]] for each in arms}
    return Positivity(
        cases=len(arm),
        cases_without_trial=sum(name is None for name in trial),
        cases_by_trial=table,
        arms={
            each: ArmPositivity(
                cases=sum(name == each for name in arm),
                trials=tuple(gave[each]),
                overlap=None if overlap is None else overlap[each],
                offered_share=_share(name in gave[each] for name in trial) if table else None,
            )
            for each in arms
        },
        pairs_without_common_trial=tuple(
            (first, second)
            for first, second in combinations([each for each in arms if gave[each]], 2)
            if not set(gave[first]) & set(gave[second])
        ),
    )


def _count(arm: Sequence[str], trial: Sequence[str | None], which: str, where: str) -> int:
    return sum(pair == (which, where) for pair in zip(arm, trial, strict=True))


def _share(members: Iterable[bool]) -> float | None:
    flags = list(members)
    return float(np.mean(flags)) if flags else None


def overlap_by_arm(
    features: Floats, arm: Sequence[str], *, arms: Sequence[str], seed: int
) -> dict[str, float | None]:
    """By arm, the share of those who did not receive it that look like someone who did.

    Alike is a propensity for the arm, estimated from `features` [n, feature] on other cases, of at
    least the 5th percentile of those who did receive it: about 0.95 where patients are
    exchangeable. None for an arm of too few cases, and where there is one arm only.
    """
    label = np.array(arm)
    known = [each for each in arms if (label == each).sum() >= MIN_CASES_PER_CLASS]
    found: dict[str, float | None] = dict.fromkeys(arms)
    if len(known) < 2:
        return found
    kept = np.isin(label, known)
    index = np.array([known.index(each) for each in label[kept]], np.int64)
    chance, _ = cross_validated_probabilities(features[kept], index, seed=seed)
    for which, each in enumerate(known):
        own, others = chance[index == which, which], chance[index != which, which]
        found[each] = float(np.mean(others >= np.quantile(own, SUPPORT_QUANTILE)))
    return found
