"""Measure the calibration of probabilities."""

from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

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
