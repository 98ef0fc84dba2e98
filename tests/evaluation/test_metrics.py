"""Scores against values by hand and scikit-learn, and bootstrap intervals."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from lesioncast.evaluation.metrics import bootstrap, scores
from lesioncast.forecasting.ensemble import (
    active_fraction,
    monte_carlo_error,
    paired_difference,
    wilson_interval,
)

ACTIVE = np.array([True, False, True, False])
SCORE = np.array([0.9, 0.8, 0.7, 0.1])


def tied_scores(seed: int, cases: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return outcomes and scores with only six distinct values."""
    rng = np.random.default_rng(seed)
    return rng.random(cases) < 0.3, rng.integers(0, 6, cases) / 5


def test_auc_is_the_share_of_concordant_pairs() -> None:
    assert scores.roc_auc(ACTIVE, SCORE) == pytest.approx(3 / 4)


def test_average_precision_is_the_mean_precision_at_each_hit() -> None:
    assert scores.average_precision(ACTIVE, SCORE) == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_a_tie_is_half_a_pair() -> None:
    assert scores.roc_auc(np.array([True, False]), np.array([0.5, 0.5])) == 0.5


@pytest.mark.parametrize("active", [np.zeros(4, bool), np.ones(4, bool), np.zeros(0, bool)])
def test_without_both_classes_ap_and_auc_are_undefined(active: np.ndarray) -> None:
    score = SCORE[: len(active)]
    assert scores.roc_auc(active, score) is None
    assert scores.average_precision(active, score) is None
    assert np.isnan(scores.resampled_auc(active, score, np.ones((2, len(active))))).all()
    assert np.isnan(scores.resampled_ap(active, score, np.ones((2, len(active))))).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_resampled_score_is_scikit_learns_on_the_repeated_cases(seed: int) -> None:
    active, score = tied_scores(seed)
    weights = bootstrap.bootstrap_weights(len(active), draws=20, seed=seed)
    drawn = [np.repeat(np.arange(len(active)), row.astype(int)) for row in weights]
    assert np.allclose(
        scores.resampled_auc(active, score, weights),
        [roc_auc_score(active[rows], score[rows]) for rows in drawn],
    )
    assert np.allclose(
        scores.resampled_ap(active, score, weights),
        [average_precision_score(active[rows], score[rows]) for rows in drawn],
    )


def test_a_resample_draws_as_many_cases_as_there_are() -> None:
    weights = bootstrap.bootstrap_weights(7, draws=50, seed=1)
    assert (weights.sum(axis=1) == 7).all()
    assert np.array_equal(weights, bootstrap.bootstrap_weights(7, draws=50, seed=1))
    assert not np.array_equal(weights, bootstrap.bootstrap_weights(7, draws=50, seed=2))


def test_auc_within_arms_ignores_differences_between_arms() -> None:
    arm = np.repeat([0, 1], 50)
    active = np.random.default_rng(0).random(100) < np.where(arm == 0, 0.8, 0.1)
    ones = np.ones((1, 100))
    arm_alone = np.where(arm == 0, 0.8, 0.1)
    assert scores.roc_auc(active, arm_alone) > 0.75
    assert scores.resampled_auc_within(active, arm_alone, arm, ones) == pytest.approx(0.5)
    oracle = active * 1.0
    assert scores.resampled_auc_within(active, oracle, arm, ones) == pytest.approx(1.0)


def test_log_count_error_is_the_squared_error_of_log_one_plus_count() -> None:
    errors = scores.log_count_errors(np.array([0.0, 1.0]), np.array([np.e - 1, 1.0]))
    assert errors == pytest.approx([1.0, 0.0])


def test_crps_of_one_certain_value_is_the_absolute_error() -> None:
    assert scores.crps(np.array([3.0]), np.full((1, 4), 5.0)) == pytest.approx([2.0])


def test_crps_of_a_fair_coin_by_hand() -> None:
    """E|X - 0| = 1/2; over the six pairs of {0, 0, 1, 1} E|X - X'| = 4/6; 1/2 - 1/3 = 1/6."""
    assert scores.crps(np.array([0.0]), np.array([[1.0, 0, 1, 0]])) == pytest.approx([1 / 6])


def test_the_bootstrap_interval_has_nominal_coverage() -> None:
    """The interval of a mean of 80 cases covers in 90 to 98 % of 300 trials."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        values = rng.normal(0.3, 1.0, 80)
        weights = bootstrap.bootstrap_weights(80, draws=400, seed=trial)
        estimate = bootstrap.estimate(
            float(values.mean()), lambda w, v=values: bootstrap.resampled_mean(v, w), weights
        )
        covered += estimate.low < 0.3 < estimate.high
    assert 0.90 < covered / 300 < 0.98


def test_a_paired_interval_is_much_narrower_than_that_of_either_score() -> None:
    active, _ = tied_scores(3, 200)
    rng = np.random.default_rng(1)
    first = active + rng.normal(0, 1.0, 200)
    second = first + rng.normal(0, 0.05, 200)
    weights = bootstrap.bootstrap_weights(200, draws=300, seed=0)

    def auc_of(score: np.ndarray) -> bootstrap.ResampledScore:
        return lambda w: scores.resampled_auc(active, score, w)

    alone = bootstrap.estimate(scores.roc_auc(active, first), auc_of(first), weights)
    gap = bootstrap.estimate_difference(auc_of(first), auc_of(second), weights)
    assert gap.value == pytest.approx(
        scores.roc_auc(active, first) - scores.roc_auc(active, second)
    )
    assert gap.high - gap.low < 0.3 * (alone.high - alone.low)


def test_one_positive_case_gives_a_value_but_no_interval() -> None:
    active = np.zeros(30, bool)
    active[4] = True
    score = np.linspace(0, 1, 30)
    weights = bootstrap.bootstrap_weights(30, draws=500, seed=0)
    estimate = bootstrap.estimate(
        scores.roc_auc(active, score), lambda w: scores.resampled_auc(active, score, w), weights
    )
    assert estimate.value == pytest.approx(4 / 29)
    assert estimate.low is None
    assert estimate.defined == pytest.approx(1 - (29 / 30) ** 30, abs=0.07)


def test_the_active_fraction_is_the_share_of_samples_with_a_lesion() -> None:
    assert active_fraction(np.array([0, 3, 1, 0])) == 0.5


def test_the_wilson_interval_by_hand() -> None:
    """Newcombe 1998: 81 of 263 gives .2553 to .3662; none of 20 gives 0 to .1611."""
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_paired_differences_use_the_common_seeds() -> None:
    """Differences 1, 0, 1, 0: mean 1/2, standard error sqrt(1/3) / 2."""
    values, reference = np.array([3, 2, 5, 0]), np.array([2, 2, 4, 0])
    mean, error = paired_difference(values, reference)
    assert (mean, error) == (pytest.approx(0.5), pytest.approx(np.sqrt(1 / 3) / 2))
    independent = np.hypot(monte_carlo_error(values), monte_carlo_error(reference))
    assert error < independent / 4


def test_the_paired_error_is_the_spread_of_repeated_forecasts() -> None:
    rng = np.random.default_rng(5)
    shared = rng.poisson(3, (2000, 32))
    values = rng.binomial(shared, 0.6)
    differences = [paired_difference(v, s) for v, s in zip(values, shared, strict=True)]
    means, errors = np.transpose(differences)
    assert means.std() == pytest.approx(errors.mean(), rel=0.06)
