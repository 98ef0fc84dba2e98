"""Effects of arms on the same patients: forecast, and true where the trial is simulated.

`sampled` [arm, n, k] are lesions of sample k of case n forced onto an arm, on the same seeds for
all arms of a case; `true` [arm, n] are the lesions that the patient would have had. Either may be
of counts, or of activity as 0 and 1. A true individual effect holds the patient's own luck as the
simulation drew it, which nobody can forecast.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau

Floats = npt.NDArray[np.float64]


def is_active(counts: Floats) -> Floats:
    """1 where there is at least one lesion, else 0; of counts of any shape."""
    return (counts > 0).astype(np.float64)


def individual_effects(outcome: Floats, arm: int, reference: int) -> Floats:
    """Outcome under `arm` minus under `reference` of each case, [n], of `outcome` [arm, n]."""
    return np.asarray(outcome[arm] - outcome[reference], np.float64)


def policy_value(expected: Floats, true: Floats) -> Floats:
    """True outcome of each case under the arm with the lowest `expected` outcome, [n].

    Both [arm, n]; cases with several lowest arms get the mean over these, as if drawn by lot.
    """
    best = np.isclose(expected, expected.min(axis=0))
    return np.asarray((true * best).sum(axis=0) / best.sum(axis=0), np.float64)


def kendall_tau_b(forecast: Floats, true: Floats) -> Floats:
    """Kendall's tau-b between the arms' outcomes as forecast and as true, for each case, [n].

    Both [arm, n]. NaN where either puts all arms equal: then there is no order to agree on.
    """
    return np.array(
        [
            kendalltau(told, held).statistic if np.ptp(told) and np.ptp(held) else np.nan
            for told, held in zip(forecast.T, true.T, strict=True)
        ],
        np.float64,
    )


def paired_and_independent_variance(
    sampled: Floats, arm: int, reference: int
) -> tuple[Floats, Floats]:
    """Variance over samples of arm minus reference: (on seeds of their own, on common seeds), [n].

    The first is the sum of the arms' own variances; their ratio is how many times the samples
    independent seeds would need for the same Monte Carlo error (common random numbers).
    """
    apart = sampled[[arm, reference]].var(axis=2, ddof=1).sum(axis=0)
    together = (sampled[arm] - sampled[reference]).var(axis=1, ddof=1)
    return np.asarray(apart, np.float64), np.asarray(together, np.float64)


def drop_arm(values: Floats, arm: int) -> Floats:
    """`values` [arm, ...] of all arms but one."""
    return np.delete(values, arm, axis=0)


def best_arm(mean_count: Sequence[float] | Floats) -> int | None:
    """The arm with the lowest mean count of the training patients who received it."""
    known = np.asarray(mean_count, np.float64)
    return None if np.isnan(known).all() else int(np.nanargmin(known))
