"""Recalibrate P(active) by a logistic curve (Platt 1999), shrunk towards no change."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from lesioncast.arrays import Bools, Floats

MIN_PROBABILITY = 1e-6  # probabilities are kept this far from 0 and 1 so that log odds are finite
# Standard deviation of the normal prior of the intercept around 0 and of the slope around 1. Some
# dozens of cases outweigh it.
PRIOR_SD = 1.0
TOLERANCE = 1e-8  # of the gradient
IDENTITY = np.array([0.0, 1.0])  # intercept and slope that change nothing


def finite_log_odds(probability: Floats) -> Floats:
    """Return the log odds of probabilities, of any shape; those of 0 and 1 are finite, too."""
    return np.asarray(logit(np.clip(probability, MIN_PROBABILITY, 1 - MIN_PROBABILITY)), np.float64)


@dataclass(frozen=True)
class PlattScaling:
    """Recalibration P(active) = sigmoid(intercept + slope * log odds), fitted on other cases.

    The log odds are those of the forecast. The map is logistic and not isotonic, because its two
    numbers can be learned from some dozens of cases. A free monotone curve needs about a thousand
    (Niculescu-Mizil and Caruana 2005).
    """

    slope: float
    intercept: float

    def probability(self, log_odds: Floats) -> Floats:
        """Return the recalibrated P(active) of forecasts with `log_odds` [n], [n]."""
        return np.asarray(expit(self.intercept + self.slope * log_odds), np.float64)


def fit_platt_scaling(active: Bools, log_odds: Floats) -> PlattScaling | None:
    """Fit the curve to forecasts with `log_odds` [n]; None if a class is missing.

    It has the largest posterior density under independent normal priors of the intercept around 0
    and of the slope around 1. So few cases change little (Steyerberg 2019, section 20.3), and the
    slope stays finite where the classes separate.
    """
    if not active.any() or active.all():
        return None
    features = np.stack([np.ones(len(log_odds)), log_odds], axis=1)

    def loss(curve: Floats) -> float:
        linear = features @ curve
        likelihood = np.logaddexp(0, linear).sum() - linear[active].sum()
        return float(likelihood + ((curve - IDENTITY) ** 2).sum() / (2 * PRIOR_SD**2))

    def gradient(curve: Floats) -> Floats:
        error = expit(features @ curve) - active
        return np.asarray(features.T @ error + (curve - IDENTITY) / PRIOR_SD**2, np.float64)

    found = minimize(loss, IDENTITY, jac=gradient, method="BFGS", options={"gtol": TOLERANCE})
    intercept, slope = found.x
    return PlattScaling(slope=float(slope), intercept=float(intercept))
