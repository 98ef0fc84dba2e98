"""Whether probabilities hold, and what makes them hold better."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit
from sklearn.isotonic import isotonic_regression
from sklearn.linear_model import LogisticRegression

from lesioncast.forecasting.ensemble import wilson_interval

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

PARTS = ("reliability", "resolution", "uncertainty")


def brier_decomposition(active: Bools, probability: Floats, weights: Floats) -> Floats:
    """(reliability, resolution, uncertainty) of the Brier score in every resample, [b, 3].

    Murphy's (1973) partition, brier = reliability - resolution + uncertainty, made without bins:
    the share active given the forecast is its isotonic regression (CORP, Dimitriadis, Gneiting and
    Jordan 2021), so the three sum exactly and none is negative. Reliability 0 is perfect; a
    resolution as large as the uncertainty knows everyone's outcome.
    """
    levels, level = np.unique(probability, return_inverse=True)
    at_level = np.eye(len(levels))[level]
    hits, mass = weights @ (at_level * active[:, None]), weights @ at_level
    return np.array([_parts(*row, levels) for row in zip(hits, mass, strict=True)])


def _parts(hits: Floats, mass: Floats, levels: Floats) -> tuple[float, float, float]:
    seen = mass > 0
    if not seen.any():
        return np.nan, np.nan, np.nan
    hits, mass, levels = hits[seen], mass[seen], levels[seen]
    share = hits / mass
    recalibrated = isotonic_regression(share, sample_weight=mass, y_min=0, y_max=1)

    def score(forecast: Floats | float) -> float:
        return float(np.sum(mass * ((forecast - share) ** 2 + share * (1 - share))) / mass.sum())

    uncertainty, best = score(float(hits.sum() / mass.sum())), score(recalibrated)
    return score(levels) - best, uncertainty - best, uncertainty


def reliability_curve(
    active: Bools, probability: Floats, *, bins: int
) -> list[tuple[float, float, float, float]]:
    """(mean probability, share active, its Wilson interval) of about equally many cases a bin.

    Cases with equal probability stay together, so there may be fewer than `bins`.
    """
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, probability, side="left")
    rows = []
    for index in np.unique(place):
        here = place == index
        share = float(active[here].mean())
        mean = float(probability[here].mean())
        rows.append((mean, share, *wilson_interval(share, int(here.sum()))))
    return rows


@dataclass(frozen=True)
class PlattScaling:
    """P(active) = sigmoid(intercept + slope * log odds), fitted on other cases than it is used on.

    The log odds are those of the forecast (`Counted.log_odds`). Logistic rather than isotonic: two
    numbers can be learned from some dozens of cases, a free monotone curve needs about a thousand
    (Niculescu-Mizil and Caruana 2005).
    """

    slope: float
    intercept: float

    def probability(self, log_odds: Floats) -> Floats:
        """Recalibrated P(active) of forecasts with `log_odds` [n], [n]."""
        return np.asarray(expit(self.intercept + self.slope * log_odds), np.float64)


def fit_platt_scaling(active: Bools, log_odds: Floats) -> PlattScaling | None:
    """Platt (1999) on forecasts with `log_odds` [n]; None where the cases lack a class.

    The unit ridge of scikit-learn's default keeps the slope finite where the classes separate.
    """
    if not active.any() or active.all():
        return None
    model = LogisticRegression().fit(log_odds[:, None], active)
    return PlattScaling(float(model.coef_[0, 0]), float(model.intercept_[0]))
