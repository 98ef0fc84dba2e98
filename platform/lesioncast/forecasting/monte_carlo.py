"""Monte Carlo errors of means over the samples of a forecast.

Where a model draws the lesion load first, consecutive seeds give it evenly spread quantiles (see
`lesioncast.seeds`). The mean of K samples is then more precise than that of K
independent ones. With m the mean and s2 the variance of an outcome given the quantile,

    variance of the mean = variance of the mean of m over K points + (mean of s2) / K

The first part is over the sequence's start, which is random. m is a step function, since it depends
on the load class alone. So the part is exact (`deviations_over_starts`) where m is known, as it is
of activity. Otherwise m and s2 are estimated from the samples in each class.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lesioncast.forecasting.ensemble import (
    DrawnCounts,
    active_fraction,
    monte_carlo_error,
    wilson_interval,
)
from lesioncast.seeds import load_quantile

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
MIN_SAMPLES = 2  # of a cell whose variance is estimated


class StepFunction(NamedTuple):
    """Mean and variance of an outcome given the quantile of the lesion load.

    The cells of the quantiles [0, 1) are divided by `edges` [c - 1], which rise. `means` and
    `variances` are [c].
    """

    edges: Floats
    means: Floats
    variances: Floats

    @property
    def variance(self) -> float:
        """Return the mean over the quantiles of the variance within the cells."""
        return float(np.diff(self.edges, prepend=0.0, append=1.0) @ self.variances)


class Deviations(NamedTuple):
    """Distribution of the error of a mean over the starts of the sequence, both [m]."""

    error: Floats
    weight: Floats

    @property
    def variance(self) -> float:
        """Return the variance of the error."""
        return float(self.weight @ self.error**2)

    @property
    def half_width(self) -> float:
        """Return the smallest size that the error exceeds for at most 5 % of the starts."""
        size = np.abs(self.error)
        order = np.argsort(size)
        reached = int(np.searchsorted(np.cumsum(self.weight[order]), LEVEL - 1e-9))
        return float(size[order][min(reached, len(size) - 1)])


def deviations_over_starts(step: StepFunction, samples: int) -> Deviations:
    """Return the exact error of the mean of `step` over consecutive seeds, by their start.

    Let the start move from 0 to 1. The mean jumps where a sample enters the next cell, and is
    constant in between. `weight` is the length of each piece.
    """
    jump = (step.means - np.roll(step.means, 1)) / samples  # from the cell before, in a circle
    offset = np.array([load_quantile(position) for position in range(samples)])
    start = (np.concatenate([[0.0], step.edges])[:, None] - offset) % 1
    order = np.argsort(start, axis=None)
    start, jump = start.ravel()[order], np.repeat(jump, samples)[order]
    weight = np.diff(start, append=start[0] + 1)
    mean = np.cumsum(jump)
    return Deviations(mean - weight @ mean, weight)


def fit_step_function(
    values: npt.NDArray[np.generic], seeds: Sequence[int], edges: Sequence[float]
) -> StepFunction:
    """Estimate mean and variance of `values` [k] in each cell between the `edges`.

    A cell with fewer than two samples is joined with its neighbour. That overstates the error,
    because the spread between joined cells counts as independent.
    """
    outcome, inner = values.astype(np.float64), np.array(edges)
    cell = np.searchsorted(inner, [load_quantile(seed) for seed in seeds], side="right")
    ends = _joined_ends(np.bincount(cell, minlength=len(inner) + 1))
    joined = np.searchsorted(ends, cell, side="left")
    groups = [outcome[joined == group] for group in range(len(ends))]
    return StepFunction(
        inner[ends[:-1]],
        np.array([group.mean() for group in groups]),
        np.array([group.var(ddof=1) for group in groups]),
    )


def _joined_ends(samples: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the last cell of each group of neighbours that together hold two samples."""
    ends, held = list[int](), 0
    for cell, number in enumerate(samples):
        held += int(number)
        if held >= MIN_SAMPLES:
            ends.append(cell)
            held = 0
    ends[-1] = len(samples) - 1  # what remains joins the last group
    return np.array(ends, np.int64)


def active_step_function(edges: Sequence[float]) -> StepFunction:
    """Return activity by the quantile: the first load class alone has no lesion."""
    return StepFunction(np.array(edges[:1]), np.array([0.0, 1.0]), np.zeros(2))


def mean_error(
    values: npt.NDArray[np.generic], seeds: Sequence[int], edges: Sequence[float]
) -> float:
    """Return the Monte Carlo standard error of the mean of `values` [k].

    `seeds` [k] are consecutive. `edges` are the quantiles at which the lesion load class changes,
    of one arm or, for a difference, of both arms; none for a model that draws no load. Its samples
    are independent.
    """
    if not edges:
        return monte_carlo_error(values)
    step = fit_step_function(values, seeds, sorted(edges))
    between = deviations_over_starts(step, len(seeds)).variance
    return float(np.sqrt(between + step.variance / len(seeds)))


def active_fraction_interval(drawn: DrawnCounts, *, opening: bool) -> tuple[float, float]:
    """Return a 95 % interval of P(active) from the share of samples that have a lesion.

    The samples are on consecutive seeds. The interval is Wilson's for a model that draws no load.
    Otherwise the error is that of the load, which is exact, and that of the share of samples that
    keep a lesion after the opening, which is Wilson's. The two are added up, because neither is
    normal where samples are few. The interval reaches at least half a step of the share to either
    side.
    """
    counts = drawn.counts(opening=opening)
    share, samples = active_fraction(counts), len(counts)
    if not drawn.load_edges:
        return wilson_interval(share, samples)
    kept = _kept_share(drawn) if opening else _KeptShare(1.0, 1.0, 1.0)
    load = deviations_over_starts(active_step_function(drawn.load_edges), samples).half_width
    p_active = 1 - drawn.load_edges[0]
    below, above = (
        max(load * kept.high + p_active * error, 0.5 / samples)
        for error in (kept.value - kept.low, kept.high - kept.value)
    )
    return max(0.0, share - below), min(1.0, share + above)


class _KeptShare(NamedTuple):
    """Share of the samples with lesions that keep one after the opening, with its interval."""

    value: float
    low: float
    high: float


def _kept_share(drawn: DrawnCounts) -> _KeptShare:
    kept = drawn.opened[drawn.plain > 0]
    if not len(kept):
        return _KeptShare(0.0, 0.0, 1.0)
    share = active_fraction(kept)
    return _KeptShare(share, *wilson_interval(share, len(kept)))
