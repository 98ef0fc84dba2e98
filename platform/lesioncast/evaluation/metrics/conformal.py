"""Intervals of the lesion count that hold as often as they say: split conformal prediction.

Vovk, Gammerman and Shafer 2005; Lei et al. 2018. If calibration and test cases are exchangeable,
an interval holds for at least the nominal share of test cases, whatever the model: at least, for
counts are discrete and tie. That is a promise about all cases together and none about an arm.
"""

from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
from scipy.stats import betabinom

Floats = npt.NDArray[np.float64]

ONE_LESION = float(np.log(2))  # from no lesion to one, on the scale log(1 + count)


@dataclass(frozen=True)
class ConformalQuantile:
    """The score that a share `level` of cases stays below: the `rank`-th of `cases` of them.

    Infinite where so few cases cannot support the level.
    """

    level: float
    cases: int
    rank: int
    score: float

    def coverage_range(self, tested: int) -> tuple[float, float]:
        """Between which shares 95 % of the coverages on `tested` cases fall, without ties.

        One calibration set is one draw: its coverage is Beta(rank, cases + 1 - rank) distributed
        (Vovk 2012), and the tested cases add their own luck.
        """
        if self.rank > self.cases:
            return 1.0, 1.0
        low, high = betabinom.ppf([0.025, 0.975], tested, self.rank, self.cases + 1 - self.rank)
        return float(low / tested), float(high / tested)


def conformal_quantile(scores: Floats, level: float) -> ConformalQuantile:
    """The finite-sample quantile of calibration `scores` [n]: rank ceil((n + 1) level)."""
    rank = ceil((len(scores) + 1) * level - 1e-9)
    known = rank <= len(scores)
    return ConformalQuantile(
        level, len(scores), rank, float(np.sort(scores)[rank - 1]) if known else np.inf
    )


def _centre_and_scale(samples: Floats) -> tuple[Floats, Floats]:
    logs = np.log1p(samples)
    return logs.mean(axis=1), logs.std(axis=1) + ONE_LESION


def nonconformity_scores(true: Floats, samples: Floats) -> Floats:
    """How far each count `true` [n] lies from its ensemble `samples` [n, k], [n].

    |log(1 + count) - mean| / (sd + log 2) on the log scale: residuals normalised by the ensemble's
    own spread (Papadopoulos, Gammerman and Vovk 2008), so a sure ensemble has a narrow interval.
    """
    centre, scale = _centre_and_scale(samples)
    return np.asarray(np.abs(np.log1p(true) - centre) / scale, np.float64)


def prediction_intervals(samples: Floats, score: float) -> tuple[Floats, Floats]:
    """(lowest, highest) whole count within `score` of each ensemble [n, k], both [n].

    Where no whole count is that near, the two around the ensemble's centre. `inf` has no end.
    """
    centre, scale = _centre_and_scale(samples)
    if np.isinf(score):
        return np.zeros(len(samples)), np.full(len(samples), np.inf)
    nearness = 1e-9  # a count exactly at the threshold is in
    low = np.ceil(np.expm1(np.maximum(centre - score * scale, 0)) - nearness)
    high = np.floor(np.expm1(centre + score * scale) + nearness)
    return np.minimum(low, high), np.maximum(low, high)
