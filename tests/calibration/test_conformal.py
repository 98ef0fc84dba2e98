"""Calibration on cases with known outcomes: conformal intervals and Platt scaling."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lesioncast.calibration.conformal import (
    LogCountForecast,
    conformal_quantile,
    nonconformity_scores,
    prediction_intervals,
)
from lesioncast.calibration.recalibration import fit_platt_scaling
from lesioncast.evaluation.metrics.calibration import brier_decomposition
from lesioncast.forecasting.ensemble import SampledCounts


def parts(active: np.ndarray, probability: np.ndarray) -> list[float]:
    """Return reliability, resolution and uncertainty."""
    return brier_decomposition(active, probability, np.ones((1, len(active))))[0].tolist()


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


def test_platt_scaling_of_many_cases_is_logistic_regression_on_the_log_odds() -> None:
    true, samples = ensembles(20_000, 2, bias=2.0)
    odds = log_odds(samples)
    expected = LogisticRegression(C=np.inf).fit(odds[:, None], true > 0)
    scaling = fit_platt_scaling(true > 0, odds)
    assert scaling.slope == pytest.approx(expected.coef_[0, 0], abs=1e-3)
    assert scaling.intercept == pytest.approx(expected.intercept_[0], abs=1e-3)


@pytest.mark.parametrize("cases", [2, 10, 200])
def test_platt_scaling_has_the_largest_posterior_density(cases: int) -> None:
    rng = np.random.default_rng(3)
    odds = rng.normal(-1, 2, cases)
    active = np.arange(cases) % 3 == 0
    scaling = fit_platt_scaling(active, odds)
    error = active - scaling.probability(odds)
    # The gradient of the log density: the errors balance the pull of the prior.
    assert error.sum() == pytest.approx(scaling.intercept, abs=1e-6)
    assert (error * odds).sum() == pytest.approx(scaling.slope - 1, abs=1e-6)


def test_few_cases_change_p_active_little_and_classes_that_separate_are_no_problem() -> None:
    few = fit_platt_scaling(np.array([True, False]), np.array([0.5, -0.5]))
    assert few.probability(np.array([0.0])) == pytest.approx([0.5])
    assert 1 < few.slope < 1.5
    odds = np.concatenate([np.full(500, 13.8), np.full(500, -13.8)])
    separated = fit_platt_scaling(odds > 0, odds)
    assert 0.5 < separated.slope < 2


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
