"""Effects of arms, checked by hand, by simulation with known effects, by SciPy and by EconML."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import StratifiedKFold

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.evaluation.analysis.arm_errors import arm_mean_errors
from lesioncast.evaluation.analysis.treatment_effects import (
    ArmForecasts,
    EffectInputs,
    EffectVariances,
    TreatmentEffects,
    treatment_effects,
)
from lesioncast.evaluation.baselines.baselines import arm_statistics
from lesioncast.evaluation.causal.effects import (
    kendall_tau_b,
    paired_and_independent_variance,
    policy_value,
)
from lesioncast.evaluation.causal.trial_effects import (
    FOLDS,
    aipw,
    arms_without_common_trial,
    contrasts,
    cross_fitted_aipw,
    fit_outcome_models,
    mean_difference,
)
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.evaluation.metrics.estimate import Estimate
from lesioncast.evaluation.reporting.markdown.effects import NO_FLOOR, effect_sections
from lesioncast.simulation.disease import draw_patient
from lesioncast.simulation.outcome_law.posterior import counterfactual_moments
from lesioncast.simulation.settings import SimulationSettings
from storage import VisitSchedule

ARMS = ("placebo", "avonex", "ocrelizumab")
ALL = range(len(PAPER_ARM_NAMES))
BOOTSTRAP = Bootstrap(200, 0)


def futures(cases: int, seed: int) -> np.ndarray:
    """Simulate true lesions [arm, n]: each arm prevents a share of a patient's lesions."""
    rng = np.random.default_rng(seed)
    lesions = rng.poisson(rng.gamma(0.7, 4.0, cases))
    return np.stack([lesions, rng.binomial(lesions, 0.6), rng.binomial(lesions, 0.1)]) * 1.0


# Means of 90 other patients.
TRAINING = arm_statistics(
    np.arange(90) % 3, futures(90, 9)[np.arange(90) % 3, np.arange(90)], arms=3
)


def effects_of(
    lesions: np.ndarray,
    true: np.ndarray | None,
    *,
    p_active: np.ndarray | None = None,
    unknown: EffectVariances | None = None,
) -> TreatmentEffects:
    """Return the effects against placebo of expected lesions [arm, n]."""
    p_active = (lesions > 0) * 1.0 if p_active is None else p_active
    forecasts = ArmForecasts(tuple(range(lesions.shape[1])), p_active, lesions)
    inputs = EffectInputs(forecasts, TRAINING, true, unknown)
    return treatment_effects(inputs, arms=ARMS, reference=0, bootstrap=BOOTSTRAP)


def test_an_oracle_has_the_true_effects_no_error_and_the_best_choice() -> None:
    true = futures(80, 0)
    effects = effects_of(true, true)
    for rows in (effects.outcomes.activity, effects.outcomes.count):
        for row in rows.values():
            assert row.forecast == row.true
            assert row.forecast_minus_true.value == row.pehe.value == 0
            assert row.pehe_of_arm_means.value > 0.2
            assert row.pehe_minus_that_of_arm_means.value == -row.pehe_of_arm_means.value
    assert effects.outcomes.count["avonex"].true.value == (true[1] - true[0]).mean()
    errors = effects.mean_count_errors
    assert errors.forecast == Estimate(0, 0, 0, 1)
    assert errors.forecast_minus_training_means.value == -errors.training_means.value < 0
    assert effects.ranking.kendall_tau.value == pytest.approx(1)
    assert effects.ranking.kendall_tau_of_means == pytest.approx(1)
    for choice in effects.policies:
        value = choice.count
        assert value.model == value.oracle
        assert value.model.value <= value.best_single_arm.value < value.random_arm.value
    assert [choice.best_single_arm for choice in effects.policies] == ["ocrelizumab", "avonex"]


def test_a_forecast_of_the_training_means_has_their_errors_and_no_more() -> None:
    true = futures(80, 0)
    constant = np.repeat(TRAINING.mean_count[:, None], 80, axis=1)
    rates = np.repeat(TRAINING.activity[:, None], 80, axis=1)
    effects = effects_of(constant, true, p_active=rates)
    for rows in (effects.outcomes.activity, effects.outcomes.count):
        for row in rows.values():
            assert row.pehe.value == pytest.approx(row.pehe_of_arm_means.value)
            assert row.pehe_minus_that_of_arm_means.value == pytest.approx(0)
    errors = effects.mean_count_errors
    assert errors.forecast == errors.training_means
    assert errors.forecast_minus_training_means.value == pytest.approx(0)
    assert errors.forecast.value == pytest.approx(
        np.abs(TRAINING.mean_count - true.mean(axis=1)).mean()
    )
    for choice in effects.policies:
        assert choice.count.model == choice.count.best_single_arm


def test_effects_of_shuffled_arms_are_chance() -> None:
    true = futures(400, 1)
    shuffled = np.random.default_rng(2).permuted(true, axis=0)
    effects = effects_of(shuffled, true)
    tau, value = effects.ranking.kendall_tau, effects.policies[0].count
    assert tau.low < 0 < tau.high
    assert value.model.value == pytest.approx(value.random_arm.value, abs=0.25)
    assert value.model_minus_best_single_arm.low > 0
    row = effects.outcomes.count["ocrelizumab"]
    assert row.pehe_minus_that_of_arm_means.low > 0
    assert effects.mean_count_errors.forecast_minus_training_means.low > 0


def test_effects_of_shuffled_patients_have_the_right_means_and_a_larger_pehe() -> None:
    true = futures(400, 1)
    shuffled = np.random.default_rng(3).permutation(true, axis=1)
    effects = effects_of(shuffled, true)
    assert effects.mean_count_errors.forecast.value == pytest.approx(0)
    row = effects.outcomes.count["ocrelizumab"]
    assert row.forecast_minus_true.value == pytest.approx(0)
    assert row.pehe_minus_that_of_arm_means.low > 0


def test_the_exact_forecast_of_simulated_patients_reaches_the_floor_and_others_do_not() -> None:
    settings = SimulationSettings(subjects=1, seed=21)
    patients = [draw_patient(settings, index) for index in range(300)]
    laws = [
        counterfactual_moments(patient, settings.predictability, arms=PAPER_ARM_NAMES)
        for patient in patients
    ]
    true = np.array([patient.counts[1] for patient in patients], np.float64).T
    exact, p_active = (
        np.array([getattr(law, name).mean for law in laws]).T for name in ("count", "activity")
    )
    unknown = EffectVariances(
        *(
            np.array([[getattr(law, name).effect_variance(arm, 0) for law in laws] for arm in ALL])
            for name in ("activity", "count")
        )
    )
    # The means of all patients take the place of the training means: no constant is better.
    arm = np.repeat(ALL, 300)
    training = arm_statistics(arm, true.reshape(-1), arms=len(ALL))

    def effects(lesions: np.ndarray, chance: np.ndarray) -> TreatmentEffects:
        forecasts = ArmForecasts(tuple(range(300)), chance, lesions)
        return treatment_effects(
            EffectInputs(forecasts, training, true, unknown),
            arms=PAPER_ARM_NAMES, reference=0, bootstrap=BOOTSTRAP,
        )  # fmt: skip

    mixed = np.random.default_rng(5).permutation(300)
    for name in ("activity", "count"):
        best = getattr(effects(exact, p_active).outcomes, name)
        shuffled = getattr(effects(exact[:, mixed], p_active[:, mixed]).outcomes, name)
        for arm_name in PAPER_ARM_NAMES[1:]:
            row = best[arm_name]
            # The interval of the squared error is that of the PEHE: within Monte Carlo error.
            half = (row.pehe.high - row.pehe.low) / 2
            assert row.pehe.value == pytest.approx(row.pehe_floor.value, abs=2.5 * half)
        # Only a strong effect differs enough between patients to tell them apart.
        assert best["ocrelizumab"].pehe_minus_that_of_arm_means.high < 0
        assert shuffled["ocrelizumab"].pehe_minus_that_of_arm_means.low > 0


def test_the_error_of_individual_effects_by_hand() -> None:
    # Forecast effects -1 and -1, true effects -3 and +1: errors 2 and -2, mean 0, root mean
    # square 2.
    lesions = np.array([[2, 2], [1, 1]], np.float64)
    true = np.array([[4, 0], [1, 1]], np.float64)
    training = arm_statistics(np.array([0, 1]), np.array([2.0, 1.0]), arms=2)
    forecasts = ArmForecasts((0, 1), np.array([[0.9, 0.9], [0.6, 0.4]]), lesions)
    unknown = EffectVariances(np.zeros((2, 2)), np.array([[0.0, 0.0], [1.0, 7.0]]))
    inputs = EffectInputs(forecasts, training, true, unknown)
    effects = treatment_effects(inputs, arms=ARMS[:2], reference=0, bootstrap=BOOTSTRAP)
    row = effects.outcomes.activity["avonex"]
    assert row.forecast.value == pytest.approx(-0.4)  # as stated, not as counted
    row = effects.outcomes.count["avonex"]
    assert (row.forecast.value, row.true.value) == (-1, -1)
    assert row.forecast_minus_true.value == 0
    assert row.pehe.value == row.pehe_of_arm_means.value == 2
    assert row.pehe_floor.value == pytest.approx(2)  # root of the mean of 1 and 7
    assert row.variance_reduction is None
    assert len(effects.policies) == 1  # with two arms there is nothing left without the best
    text = effect_sections(effects, ("w000",), VisitSchedule())[0]
    assert "as the prognostic prior states it" in text
    assert "by the law of the simulation" in text


def test_without_a_truth_only_forecast_effects_are_reported() -> None:
    effects = effects_of(futures(30, 3), None)
    row = effects.outcomes.activity["avonex"]
    assert row.forecast.value < 0
    assert (row.true, row.pehe, effects.ranking, effects.policies) == (None, None, None, ())
    assert effects.mean_count_errors is None
    assert "No truth is known here" in effect_sections(effects, ("w000",), VisitSchedule())[0]


def test_without_the_law_the_report_says_that_the_floor_is_not_known() -> None:
    effects = effects_of(futures(30, 3), futures(30, 3))
    assert effects.outcomes.count["avonex"].pehe_floor is None
    assert NO_FLOOR in effect_sections(effects, ("w000",), VisitSchedule())[0]


def test_sampled_effects_report_the_variance_reduction_of_common_seeds() -> None:
    luck = np.random.default_rng(6).random((40, 8))
    sampled = np.stack([luck < 0.6, luck < 0.5, luck < 0.1]) * 1.0
    forecasts = ArmForecasts(tuple(range(40)), sampled.mean(axis=2), sampled.mean(axis=2), sampled)
    inputs = EffectInputs(forecasts, TRAINING)
    effects = treatment_effects(inputs, arms=ARMS, reference=0, bootstrap=BOOTSTRAP)
    assert effects.samples == 8
    assert effects.outcomes.activity["avonex"].variance_reduction.low > 1
    assert "variance reduction" in effect_sections(effects, ("w000",), VisitSchedule())[0]


def test_the_mean_absolute_error_over_arms_by_hand() -> None:
    # Means forecast 0.5 and 0.5, true 1 and 0.25, of training cases 1 and 0: errors -0.5 and 0.25
    # of the forecast, 0 and -0.25 of the training means.
    forecast, true = np.full((2, 4), 0.5), np.array([[1, 1, 1, 1], [0, 0, 0, 1]], np.float64)
    weights = BOOTSTRAP.weights(4)
    errors = arm_mean_errors(forecast, true, np.array([1.0, 0.0]), weights)
    assert errors.forecast.value == pytest.approx(0.375)
    assert errors.training_means.value == pytest.approx(0.125)
    assert errors.forecast_minus_training_means.value == pytest.approx(0.25)
    without = arm_mean_errors(forecast, true, np.array([1.0, np.nan]), weights)
    assert (without.training_means, without.forecast_minus_training_means) == (None, None)


def test_arms_with_equal_expectation_are_averaged() -> None:
    expected = np.array([[1.0, 0.0], [1.0, 2.0]])
    assert policy_value(expected, np.array([[4.0, 7.0], [2.0, 9.0]])).tolist() == [3.0, 7.0]


def test_kendall_tau_equals_scipy_and_is_undefined_without_an_order() -> None:
    rng = np.random.default_rng(4)
    forecast, true = rng.integers(0, 4, (5, 30)) * 1.0, rng.integers(0, 3, (5, 30)) * 1.0
    forecast[:2], true[:2] = [[0.0], [3.0]], [[2.0], [0.0]]  # no patient has all arms alike
    true[:, 0] = 1.0
    tau = kendall_tau_b(forecast, true)
    assert np.isnan(tau[0])
    for case in range(1, 30):
        assert tau[case] == pytest.approx(kendalltau(forecast[:, case], true[:, case]).statistic)


def test_variance_reduction_by_common_seeds_equals_the_ratio_of_variances() -> None:
    # Nested arms on common seeds against the spread of runs on independent seeds.
    rng = np.random.default_rng(5)
    luck = rng.random((3000, 16))
    other = rng.random((3000, 16))
    sampled = np.stack([luck < 0.5, luck < 0.4]).astype(np.float64)
    independent_variance, paired_variance = paired_and_independent_variance(sampled, 1, 0)
    independent = (other < 0.4).mean(axis=1) - (luck < 0.5).mean(axis=1)
    paired = (sampled[1] - sampled[0]).mean(axis=1)
    assert independent_variance.mean() / paired_variance.mean() == pytest.approx(
        independent.var() / paired.var(), rel=0.1
    )
    assert independent_variance.mean() / paired_variance.mean() == pytest.approx(
        0.49 / 0.09, rel=0.1
    )


TRIAL = ("a", "a", "b", "b", None)


def test_only_arms_that_share_a_trial_are_compared() -> None:
    trial, arm = TRIAL * 12, np.array([0, 1, 1, 2, 2] * 12)
    pairs = [(one.trial, one.arm, one.reference) for one in contrasts(trial, arm, 0)]
    assert pairs == [("a", 1, 0), ("b", 2, 1)]
    assert arms_without_common_trial(trial, arm, 3) == [(0, 2)]
    (first, _) = contrasts(trial, arm, 0)
    assert first.treated.sum() == 12
    assert not list(contrasts((None,) * 60, arm, 0))


def test_an_arm_of_four_cases_in_a_trial_is_left_out() -> None:
    assert not list(contrasts(("a",) * 14, np.array([0] * 10 + [1] * 4), 0))


def test_the_difference_of_means_by_hand() -> None:
    difference = mean_difference(np.array([1.0, 3, 4, 8]), np.array([True, True, False, False]))
    assert difference(np.array([[1.0, 1, 1, 1], [2, 0, 0, 2], [0, 0, 2, 2]])) == pytest.approx(
        [-4, -7, np.nan], nan_ok=True
    )


def test_aipw_without_covariates_is_the_difference_of_means() -> None:
    rng = np.random.default_rng(6)
    treated, outcome = rng.random(200) < 0.3, rng.normal(size=200)
    after, before = outcome[treated].mean(), outcome[~treated].mean()
    parts = aipw(
        outcome, treated, treated_mean=np.full(200, after), other_mean=np.full(200, before),
        propensity=np.full(200, treated.mean()),
    )  # fmt: skip
    assert parts.mean() == pytest.approx(after - before)


class OneOfEachArm(RegressorMixin, BaseEstimator):
    """A linear regression for each treatment, which EconML passes as the last feature."""

    def fit(self, features: np.ndarray, outcome: np.ndarray) -> "OneOfEachArm":
        self.sides_ = [
            LinearRegression().fit(features[side, :-1], outcome[side])
            for side in (features[:, -1] == 0, features[:, -1] == 1)
        ]
        return self

    def predict(self, features: np.ndarray) -> np.ndarray:
        others, treated = (side.predict(features[:, :-1]) for side in self.sides_)
        return np.where(features[:, -1] == 1, treated, others)


def test_cross_fitted_aipw_equals_econml() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from econml.dr import LinearDRLearner

    rng = np.random.default_rng(0)
    features, treated = rng.normal(size=(400, 3)), rng.random(400) < 0.4
    count = rng.poisson(np.exp(0.3 * features[:, 0] - 0.5 * treated)).astype(float)

    def fit(rows: np.ndarray, lesions: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        lines = [
            LinearRegression().fit(rows, outcome) for outcome in ((lesions > 0) * 1.0, lesions)
        ]
        return lambda asked: np.stack([line.predict(asked) for line in lines])

    ours = cross_fitted_aipw(features, count, treated, fit=fit, seed=3)
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=3).split(features, treated))
    for parts, outcome in zip(ours, ((count > 0) * 1.0, count), strict=True):
        theirs = LinearDRLearner(
            model_propensity=DummyClassifier(), model_regression=OneOfEachArm(), cv=folds
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.fit(outcome, treated.astype(int), X=None, W=features)
        assert parts.mean() == pytest.approx(theirs.intercept_(T=1), abs=1e-12)


def test_aipw_is_doubly_robust() -> None:
    # Sicker patients are treated more often. The true effect is -1.
    rng = np.random.default_rng(7)
    sick = rng.random(40000)
    treated = rng.random(40000) < 0.2 + 0.6 * sick
    outcome = 4 * sick - treated + rng.normal(size=40000)
    nothing, half = np.zeros(40000), np.full(40000, 0.5)
    by_chance = aipw(
        outcome, treated, treated_mean=nothing, other_mean=nothing, propensity=0.2 + 0.6 * sick
    )
    by_mean = aipw(
        outcome, treated, treated_mean=4 * sick - 1, other_mean=4 * sick, propensity=half
    )
    assert by_chance.mean() == pytest.approx(-1, abs=0.06)
    assert by_mean.mean() == pytest.approx(-1, abs=0.03)
    assert mean_difference(outcome, treated)(np.ones((1, 40000)))[0] > -0.5  # confounded


def test_cross_fitting_recovers_a_known_effect_with_less_spread_than_the_difference() -> None:
    rng = np.random.default_rng(8)
    parts, gaps = [], []
    for seed in range(6):
        burden = rng.normal(size=150)
        treated = rng.random(150) < 0.5
        count = rng.poisson(np.exp(1.0 * burden) * np.where(treated, 0.5, 1.0)) * 1.0
        active, lesions = cross_fitted_aipw(
            burden[:, None], count, treated, fit=fit_outcome_models, seed=seed
        )
        parts.append((active.mean(), lesions.mean()))
        gaps.append(mean_difference(count, treated)(np.ones((1, 150)))[0])
    true = -0.5 * np.exp(0.5)
    assert np.mean(parts, axis=0)[1] == pytest.approx(true, abs=0.35)
    assert -0.4 < np.mean(parts, axis=0)[0] < -0.05
    assert np.std(np.array(parts)[:, 1]) < np.std(gaps) * 1.1
