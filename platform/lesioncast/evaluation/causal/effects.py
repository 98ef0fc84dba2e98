"""Treatment effects on the same patients: as forecast, and as true in a simulated trial.

`expected` [arm, n] are expected outcomes of case n under each arm. `sampled` [arm, n, k] are those
of sample k; the arms of a case share their seeds. `true` [arm, n] are the outcomes that a simulated
patient would have had. All may hold counts, or activity as 0 and 1. A true individual effect
includes the random part of the patient's outcome, which no forecast can know.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import kendalltau

from lesioncast.arrays import Floats


def is_active(counts: Floats) -> Floats:
    """Return 1 where a count is above 0, else 0; `counts` may have any shape."""
    return (counts > 0).astype(np.float64)


def individual_effects(outcome: Floats, arm: int, reference: int) -> Floats:
    """Return each case's outcome under `arm` minus that under `reference`, [n].

    `outcome` is [arm, n].
    """
    return np.asarray(outcome[arm] - outcome[reference], np.float64)


def policy_value(expected: Floats, true: Floats) -> Floats:
    """Return each case's true outcome under the arm with the lowest `expected` outcome, [n].

    Both arguments are [arm, n]. If several arms are lowest, their true outcomes are averaged, as if
    one of them was drawn at random.
    """
    best = np.isclose(expected, expected.min(axis=0))
    return np.asarray((true * best).sum(axis=0) / best.sum(axis=0), np.float64)


def kendall_tau_b(forecast: Floats, true: Floats) -> Floats:
    """Return Kendall's tau-b between forecast and true outcomes over the arms of each case, [n].

    Both arguments are [arm, n]. NaN for a case whose arms all have the same forecast or the same
    true outcome, because the arms then have no order.
    """
    return np.array(
        [
            kendalltau(predicted, observed).statistic
            if np.ptp(predicted) and np.ptp(observed)
            else np.nan
            for predicted, observed in zip(forecast.T, true.T, strict=True)
        ],
        np.float64,
    )


def paired_and_independent_variance(
    sampled: Floats, arm: int, reference: int
) -> tuple[Floats, Floats]:
    """Return the variance over samples of arm minus reference on independent and on common seeds.

    Both are [n], the independent one first: it is the sum of the two arms' variances. Divided by
    the second, it says how many times more samples independent seeds would need for the same Monte
    Carlo error (common random numbers).
    """
    independent = sampled[[arm, reference]].var(axis=2, ddof=1).sum(axis=0)
    paired = (sampled[arm] - sampled[reference]).var(axis=1, ddof=1)
    return np.asarray(independent, np.float64), np.asarray(paired, np.float64)


def drop_arm(values: Floats, arm: int) -> Floats:
    """Return `values` [arm, ...] without one arm."""
    return np.delete(values, arm, axis=0)


def best_arm(mean_count: Sequence[float] | Floats) -> int | None:
    """Return the arm with the lowest mean count in training; None if no arm has training cases.

    `mean_count` [arm] is NaN for an arm without training cases.
    """
    counts = np.asarray(mean_count, np.float64)
    return None if np.isnan(counts).all() else int(np.nanargmin(counts))
