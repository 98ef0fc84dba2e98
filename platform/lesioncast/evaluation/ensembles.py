"""The samples of one case under one arm, and what they say together."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.spatial import Spatial

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ensemble:
    """K samples of one case under one arm; sample k has seed `seeds[k]`.

    `plain` and `opened` [k] are lesion counts without and with the opening, `volume` [k] is in
    mm3, `probability` [s, h, w] is the share of samples with a lesion at each voxel.
    """

    case: int
    arm: int
    seeds: tuple[int, ...]
    plain: Counts
    opened: Counts
    volume: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float32]

    def counts(self, *, opening: bool) -> Counts:
        """Lesions of each sample, [k]."""
        return self.opened if opening else self.plain


@dataclass(frozen=True)
class Tally:
    """What an evaluation keeps of an ensemble once its masks are let go.

    `plain` and `opened` [k] as in `Ensemble`; `spatial` where the observed mask is the outcome of
    the very arm that was drawn, and so can be laid beside it.
    """

    plain: Counts
    opened: Counts
    spatial: Spatial | None = None

    def counts(self, *, opening: bool) -> Counts:
        """Lesions of each sample, [k]."""
        return self.opened if opening else self.plain


Tallies = Mapping[tuple[int, int], Tally]
"""(case, arm) -> what is kept of the ensemble."""


def p_active(counts: Counts) -> float:
    """P(active): the share of samples with at least one lesion."""
    return float(np.mean(counts > 0))


def wilson_interval(share: float, trials: int, *, z: float = 1.959964) -> tuple[float, float]:
    """95 % Wilson score interval of a share of `trials`; it stays honest at 0 and at 1."""
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = np.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    half = float(z * spread / (1 + z * z / trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def monte_carlo_error(values: npt.NDArray[np.generic]) -> float:
    """Standard error of the mean of independent draws `values` [k]."""
    return float(np.std(values.astype(np.float64), ddof=1) / np.sqrt(len(values)))


def stratified_error(values: npt.NDArray[np.float64]) -> float:
    """Standard error, from the draws alone, of the mean over the cases of `values` [n, k].

    Each case has k independent draws of its own; the cases are taken as given.
    """
    cases, draws = values.shape
    return float(np.sqrt(np.mean(np.var(values, axis=1, ddof=1)) / (draws * cases)))


def paired_difference(
    values: npt.NDArray[np.generic], reference: npt.NDArray[np.generic]
) -> tuple[float, float]:
    """(mean of values - reference, its Monte Carlo standard error), both [k] on the same seeds.

    Common random numbers: the error is that of the differences, far below that of two
    independent ensembles where the arms move together.
    """
    difference = values.astype(np.float64) - reference.astype(np.float64)
    return float(difference.mean()), monte_carlo_error(difference)
