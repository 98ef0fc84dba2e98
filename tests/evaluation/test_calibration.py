"""Calibration: the parts of the Brier score."""

import numpy as np
import pytest

from lesioncast.evaluation.metrics.bootstrap import bootstrap_weights
from lesioncast.evaluation.metrics.calibration import brier_decomposition

ACTIVE = np.array([True, True, False, False])


def parts(active: np.ndarray, probability: np.ndarray) -> list[float]:
    """Return reliability, resolution and uncertainty."""
    return brier_decomposition(active, probability, np.ones((1, len(active))))[0].tolist()


def test_the_parts_of_the_brier_score_by_hand() -> None:
    """Levels .8 (one of two active) and .2 (one of two): reliability .09, resolution 0."""
    active = np.array([True, False, True, False])
    assert parts(active, np.array([0.8, 0.8, 0.2, 0.2])) == pytest.approx([0.09, 0, 0.25])


def test_the_parts_are_murphys_if_the_active_fraction_rises_with_the_forecast() -> None:
    rng = np.random.default_rng(0)
    probability = rng.choice([0.1, 0.4, 0.9], 600)
    active = rng.random(600) < probability
    levels = [(probability == p, p) for p in (0.1, 0.4, 0.9)]
    rate = active.mean()
    reliability = sum(at.sum() * (p - active[at].mean()) ** 2 for at, p in levels) / 600
    resolution = sum(at.sum() * (active[at].mean() - rate) ** 2 for at, _ in levels) / 600
    expected = [reliability, resolution, rate * (1 - rate)]
    assert parts(active, probability) == pytest.approx(expected)


def test_the_parts_sum_to_the_brier_score_in_every_resample_and_none_is_negative() -> None:
    rng = np.random.default_rng(1)
    active, probability = rng.random(80) < 0.3, rng.random(80)
    weights = bootstrap_weights(80, draws=30, seed=0)
    resampled = brier_decomposition(active, probability, weights)
    brier = weights @ (probability - active) ** 2 / 80
    reliability, resolution, uncertainty = resampled.T
    assert reliability - resolution + uncertainty == pytest.approx(brier)
    assert (resampled > -1e-12).all()


def test_an_oracle_resolves_all_uncertainty_and_a_constant_none() -> None:
    assert parts(ACTIVE, ACTIVE.astype(float)) == pytest.approx([0, 0.25, 0.25])
    assert parts(ACTIVE, np.full(4, 0.5)) == pytest.approx([0, 0, 0.25])
