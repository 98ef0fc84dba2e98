"""Measure the calibration of probabilities and recalibrate them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from lesioncast.arrays import Bools, Floats
from lesioncast.forecasting.ensemble import wilson_interval

PARTS = ("reliability", "resolution", "uncertainty")


def brier_decomposition(active: Bools, probability: Floats, weights: Floats) -> Floats:
    """Return reliability, resolution and uncertainty of the Brier score in every resample, [b, 3].

    Murphy's (1973) partition: brier = reliability - resolution + uncertainty. It is made without
    bins: the active fraction given the forecast is its isotonic regression (CORP, Dimitriadis,
    Gneiting and Jordan 2021), so the three parts add up exactly and none is negative. Reliability
    0 is perfect. Resolution equals uncertainty if the forecast separates all outcomes.
    """
    levels, level = np.unique(probability, return_inverse=True)
    at_level = np.eye(len(levels))[level]
    hits, mass = weights @ (at_level * active[:, None]), weights @ at_level
    return np.array([_parts(*row, levels) for row in zip(hits, mass, strict=True)])


def _parts(hits: Floats, mass: Floats, levels: Floats) -> tuple[float, float, float]:
    """Return the three parts in one resample, given active and total weight of each level."""
    present = mass > 0
    if not present.any():
        return np.nan, np.nan, np.nan
    hits, mass, levels = hits[present], mass[present], levels[present]
    share = hits / mass
    recalibrated = isotonic_regression(share, weights=mass).x

    def score(forecast: Floats | float) -> float:
        return float(np.sum(mass * ((forecast - share) ** 2 + share * (1 - share))) / mass.sum())

    uncertainty, best = score(float(hits.sum() / mass.sum())), score(recalibrated)
    return score(levels) - best, uncertainty - best, uncertainty


class ReliabilityBin(NamedTuple):
    """Cases of similar forecast probability."""

    mean_probability: float
    active_fraction: float
    low: float
    """Lower end of the Wilson interval of the active fraction."""
    high: float


def reliability_curve(active: Bools, probability: Floats, *, bins: int) -> list[ReliabilityBin]:
    """Return bins of about equally many cases, in order of the forecast probability.

    Cases with equal probability stay together, so there may be fewer than `bins`.
    """
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_of_case = np.searchsorted(edges, probability, side="left")
    curve = []
    for index in np.unique(bin_of_case):
        in_bin = bin_of_case == index
        share = float(active[in_bin].mean())
        mean = float(probability[in_bin].mean())
        curve.append(ReliabilityBin(mean, share, *wilson_interval(share, int(in_bin.sum()))))
    return curve


@dataclass(frozen=True)
class PlattScaling:
    """Recalibration P(active) = sigmoid(intercept + slope * log odds), fitted on other cases.

    The log odds are those of the forecast (`SampledCounts.log_odds`). The map is logistic and not
    isotonic, because its two numbers can be learned from some dozens of cases. A free monotone
    curve needs about a thousand (Niculescu-Mizil and Caruana 2005).
    """

    slope: float
    intercept: float

    def probability(self, log_odds: Floats) -> Floats:
        """Return the recalibrated P(active) of forecasts with `log_odds` [n], [n]."""
        return np.asarray(expit(self.intercept + self.slope * log_odds), np.float64)


def fit_platt_scaling(active: Bools, log_odds: Floats) -> PlattScaling | None:
    """Fit Platt scaling (1999) on forecasts with `log_odds` [n]; None if a class is missing.

    scikit-learn's default ridge penalty keeps the slope finite if the classes separate.
    """
    if not active.any() or active.all():
        return None
    model = LogisticRegression().fit(log_odds[:, None], active)
    return PlattScaling(float(model.coef_[0, 0]), float(model.intercept_[0]))
