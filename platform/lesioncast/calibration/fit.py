"""Learn count intervals and the recalibration of P(active) from cases with known outcomes."""

from dataclasses import dataclass

from lesioncast.arrays import Floats
from lesioncast.calibration.conformal import (
    ConformalQuantile,
    LogCountForecast,
    conformal_quantile,
    nonconformity_scores,
    prediction_intervals,
)
from lesioncast.calibration.recalibration import PlattScaling, fit_platt_scaling

LEVELS = (0.8, 0.9)
REPORTED_LEVEL = 0.9  # the level that figures, pages and cases.csv show


@dataclass(frozen=True)
class Calibration:
    """Calibration learned on cases with known outcomes.

    `quantiles` has one entry for each of `LEVELS`. `platt_scaling` is None where the cases lack a
    class.
    """

    #: Number of cases, and how many of them are active.
    cases: int
    positives: int
    quantiles: tuple[ConformalQuantile, ...]
    platt_scaling: PlattScaling | None

    def intervals(self, forecast: LogCountForecast) -> tuple[Floats, Floats]:
        """Return (lowest, highest) count at `REPORTED_LEVEL` of each forecast, both [n]."""
        reported = next(one for one in self.quantiles if one.level == REPORTED_LEVEL)
        return prediction_intervals(forecast, reported.score)


def calibrate(count: Floats, forecast: LogCountForecast, log_odds: Floats) -> Calibration:
    """Learn the calibration from the observed numbers of lesions `count` [n].

    `forecast` is that of their log counts, `log_odds` [n] are those of P(active).
    """
    scores = nonconformity_scores(count, forecast)
    return Calibration(
        cases=len(scores),
        positives=int((count > 0).sum()),
        quantiles=tuple(conformal_quantile(scores, level) for level in LEVELS),
        platt_scaling=fit_platt_scaling(count > 0, log_odds),
    )
