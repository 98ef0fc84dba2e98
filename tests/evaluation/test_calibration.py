"""Calibration: the parts of the Brier score, Platt scaling and conformal intervals."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lesioncast.evaluation.metrics.bootstrap import bootstrap_weights
from lesioncast.evaluation.metrics.calibration import brier_decomposition, fit_platt_scaling
from lesioncast.evaluation.metrics.conformal import (
    LogCountForecast,
    conformal_quantile,
    nonconformity_scores,
    prediction_intervals,
)
from lesioncast.forecasting.ensemble import SampledCounts

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


def ensembles(cases: int, seed: int, *, bias: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return true counts, and samples from the same distribution with its rate times `bias`."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.5, 3.0, cases)
    return rng.poisson(rate).astype(float), rng.poisson(bias * rate[:, None], (cases, 8)) * 1.0


def log_odds(samples: np.ndarray) -> np.ndarray:
    """Return the log odds of the forecasts with these samples [n, k], [n]."""
    counts = samples.astype(int)
    return np.array(
        [SampledCounts(plain=row, opened=row).log_odds(opening=False) for row in counts]
    )


def log_counts(samples: np.ndarray) -> LogCountForecast:
    """Return mean and standard deviation of the log counts of the samples [n, k]."""
    ensembles = [SampledCounts(plain=row, opened=row) for row in samples]
    return LogCountForecast(
        np.array([each.log_lesions(opening=False) for each in ensembles]),
        np.array([each.log_sd(opening=False) for each in ensembles]),
    )


def test_platt_scaling_corrects_a_forecast_that_overestimates_activity() -> None:
    validation_true, validation_samples = ensembles(400, 0, bias=4.0)
    true, samples = ensembles(4000, 1, bias=4.0)
    scaling = fit_platt_scaling(validation_true > 0, log_odds(validation_samples))
    raw, scaled = (samples > 0).mean(axis=1), scaling.probability(log_odds(samples))
    assert raw.mean() > (true > 0).mean() + 0.15
    assert scaled.mean() == pytest.approx((true > 0).mean(), abs=0.05)
    before, after = (parts(true > 0, probability) for probability in (raw, scaled))
    assert after[0] < before[0] / 4
    assert after[1] == pytest.approx(before[1])  # the order of cases stays


def test_platt_scaling_is_scikit_learns_logistic_regression_on_the_logit() -> None:
    true, samples = ensembles(100, 2)
    active_samples = (samples > 0).sum(axis=1)
    logit = np.log((active_samples + 0.5) / (8.5 - active_samples))[:, None]
    expected = LogisticRegression().fit(logit, true > 0).predict_proba(logit)[:, 1]
    scaling = fit_platt_scaling(true > 0, log_odds(samples))
    assert scaling.probability(log_odds(samples)) == pytest.approx(expected)


def test_platt_scaling_is_none_if_a_class_is_missing() -> None:
    assert fit_platt_scaling(np.zeros(5, bool), np.zeros(5)) is None


def test_the_rank_of_the_quantile_counts_one_more_case() -> None:
    """Nine scores: 80 % is rank 8, 90 % rank 9, 95 % needs more cases."""
    scores = np.arange(9.0, 0, -1)
    assert (conformal_quantile(scores, 0.8).rank, conformal_quantile(scores, 0.8).score) == (8, 8.0)
    assert (conformal_quantile(scores, 0.9).rank, conformal_quantile(scores, 0.9).score) == (9, 9.0)
    assert conformal_quantile(scores, 0.95).score == np.inf
    assert conformal_quantile(scores, 0.95).coverage_range(50) == (1.0, 1.0)


@pytest.mark.parametrize("bias", [0.3, 1.0, 3.0])
def test_intervals_have_nominal_coverage_whatever_the_forecast(bias: float) -> None:
    """The mean coverage over 150 calibration sets of 64 cases is 90 % or slightly more."""
    shares = []
    for trial in range(150):
        validation_true, validation_samples = ensembles(64, 2 * trial, bias=bias)
        true, samples = ensembles(100, 2 * trial + 1, bias=bias)
        scores = nonconformity_scores(validation_true, log_counts(validation_samples))
        low, high = prediction_intervals(log_counts(samples), conformal_quantile(scores, 0.9).score)
        shares.append(np.mean((low <= true) & (true <= high)))
    assert 0.895 < np.mean(shares) < 0.95


def test_the_coverage_range_contains_95_percent_of_coverages_without_ties() -> None:
    rng = np.random.default_rng(5)
    shares = []
    for _ in range(2000):
        quantile = conformal_quantile(rng.random(64), 0.9)
        shares.append(np.mean(rng.random(100) <= quantile.score))
    low, high = quantile.coverage_range(100)
    assert np.mean([low <= share <= high for share in shares]) == pytest.approx(0.955, abs=0.02)


def test_an_interval_contains_exactly_the_counts_within_the_score() -> None:
    _, samples = ensembles(60, 3)
    low, high = prediction_intervals(log_counts(samples), 1.2)
    for count in range(30):
        within = nonconformity_scores(np.full(60, float(count)), log_counts(samples)) <= 1.2
        assert np.array_equal(within, (low <= count) & (count <= high))


def test_an_interval_without_a_whole_count_is_the_two_counts_around_it() -> None:
    low, high = prediction_intervals(log_counts(np.array([[0.0, 1.0], [2.0, 2.0]])), 0.0)
    assert low.tolist() == [0, 2]
    assert high.tolist() == [1, 2]


def test_an_oracles_intervals_are_the_counts_themselves() -> None:
    true, _ = ensembles(80, 4)
    samples = np.tile(true[:, None], 4)
    scores = nonconformity_scores(true, log_counts(samples))
    low, high = prediction_intervals(log_counts(samples), conformal_quantile(scores, 0.9).score)
    assert np.array_equal(low, true)
    assert np.array_equal(high, true)
