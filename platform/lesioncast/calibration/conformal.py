"""Prediction intervals of the lesion count with nominal coverage: split conformal prediction.

Vovk, Gammerman and Shafer 2005; Lei et al. 2018. If calibration and test cases are exchangeable,
the intervals cover at least the nominal share of test cases, whatever the model. Coverage can be
above nominal because counts are discrete and tie. The guarantee holds for all cases together; it
does not hold for each arm.
"""

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import numpy as np

from lesioncast.arrays import Floats

# Distance between no lesion and one lesion on the scale log(1 + count).
ONE_LESION = float(np.log(2))


@dataclass(frozen=True)
class ConformalQuantile:
    """Finite-sample quantile of the nonconformity scores of the calibration cases."""

    #: Nominal coverage.
    level: float
    #: Number of calibration cases.
    cases: int
    #: Rank of the quantile among the sorted scores, from 1; above `cases` if these are too few.
    rank: int
    #: The score of that rank; infinite if the cases are too few for the level.
    score: float

    def coverage_range(self, tested: int) -> tuple[float, float]:
        """Return the central 95 % range of the coverage on `tested` cases, without ties.

        Coverage depends on the calibration set: it is Beta(rank, cases + 1 - rank) distributed
        (Vovk 2012). The finite number of test cases adds binomial noise.
        """
        # scipy.stats takes a second to import, and forecasts have no use for it.
        from scipy.stats import betabinom

        if self.rank > self.cases:
            return 1.0, 1.0
        low, high = betabinom.ppf([0.025, 0.975], tested, self.rank, self.cases + 1 - self.rank)
        return float(low / tested), float(high / tested)


def conformal_quantile(scores: Floats, level: float) -> ConformalQuantile:
    """Return the quantile of calibration `scores` [n] with rank ceil((n + 1) level)."""
    # The small number keeps rounding from lifting an exact product to the next rank.
    rank = ceil((len(scores) + 1) * level - 1e-9)
    score = float(np.sort(scores)[rank - 1]) if rank <= len(scores) else np.inf
    return ConformalQuantile(level, len(scores), rank, score)


class LogCountForecast(NamedTuple):
    """Forecast mean and standard deviation of log(1 + count) of each case, both [n]."""

    mean: Floats
    sd: Floats

    @property
    def scale(self) -> Floats:
        """Return the unit of the nonconformity scores, sd + log 2, [n]."""
        return self.sd + ONE_LESION


def nonconformity_scores(true: Floats, forecast: LogCountForecast) -> Floats:
    """Return the distance of each count `true` [n] from its forecast, [n].

    |log(1 + count) - mean| / (sd + log 2) on the log scale. Residuals are normalised by the
    forecast's own spread (Papadopoulos, Gammerman and Vovk 2008), so that a forecast with little
    spread gets a narrow interval.
    """
    return np.asarray(np.abs(np.log1p(true) - forecast.mean) / forecast.scale, np.float64)


def prediction_intervals(forecast: LogCountForecast, score: float) -> tuple[Floats, Floats]:
    """Return the lowest and highest whole count within `score` of each forecast, both [n].

    If no whole count is that near, the interval is the two counts around the forecast mean. An
    infinite `score` gives the interval from 0 to infinity.
    """
    centre, scale = forecast.mean, forecast.scale
    if np.isinf(score):
        return np.zeros(len(centre)), np.full(len(centre), np.inf)
    tolerance = 1e-9  # a count exactly at the threshold belongs to the interval
    low = np.ceil(np.expm1(np.maximum(centre - score * scale, 0)) - tolerance)
    high = np.floor(np.expm1(centre + score * scale) + tolerance)
    return np.minimum(low, high), np.maximum(low, high)
