"""Exact distributions of simulated counts, against SciPy's normal law and the simulation itself."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import multivariate_normal

from lesioncast.arms import PAPER_ARM_NAMES as ARMS
from lesioncast.simulation.disease import (
    ARM_MODELS,
    Patient,
    count_cdf,
    draw_patient,
    score_weights,
    standardised_age,
)
from lesioncast.simulation.outcome_law.posterior import (
    FRAILTY,
    CounterfactualMoments,
    counterfactual_moments,
    frailty_posterior,
)
from lesioncast.simulation.settings import SimulationSettings

H = SimulationSettings.predictability
SIZE = 200


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    settings = SimulationSettings(subjects=SIZE, seed=5)
    return [draw_patient(settings, index) for index in range(SIZE)]


@pytest.fixture(scope="module")
def moments(patients: list[Patient]) -> list[CounterfactualMoments]:
    return [counterfactual_moments(patient, H, arms=ARMS) for patient in patients]


def test_moments_of_activity_equal_scipys_bivariate_normal_law(patients: list[Patient]) -> None:
    """Without predictability the record says nothing, so that scores are normal given the age."""
    patient = patients[0]
    law = counterfactual_moments(patient, 0.0, arms=ARMS).activity
    weights = [score_weights(arm, 0.0) for arm in ARMS]
    centre = np.array([each.age for each in weights]) * standardised_age(patient.age)
    bound = ndtri([count_cdf(arm, 1)[0] for arm in ARMS])
    for one, name in enumerate(ARMS):
        for other in range(one + 1):
            severity = weights[one].severity * weights[other].severity
            response = weights[one].response * weights[other].response
            shared = ARM_MODELS[name].channel == ARM_MODELS[ARMS[other]].channel
            covariance = severity + response * shared
            size = [w.severity**2 + w.response**2 for w in (weights[one], weights[other])]
            pair = [one, other]
            # Both are active if both scores exceed their bounds: by symmetry a lower tail.
            both = (
                multivariate_normal.cdf(
                    centre[pair] - bound[pair],
                    cov=[[size[0], covariance], [covariance, size[1]]],
                )
                if one != other
                else law.mean[one]
            )
            product = law.covariance[one, other] + law.mean[one] * law.mean[other]
            assert product == pytest.approx(both, abs=2e-3), (name, ARMS[other])


def test_without_predictability_placebo_has_the_mean_of_table_1(patients: list[Patient]) -> None:
    law = counterfactual_moments(patients[0], 0.0, arms=("placebo",))
    assert law.activity.mean == pytest.approx(ARM_MODELS["placebo"].activity[1], abs=1e-3)
    assert law.count.mean == pytest.approx(ARM_MODELS["placebo"].mean_count[1], abs=5e-3)


def test_frailty_rises_with_every_sign_of_it(patients: list[Patient]) -> None:
    patient = replace(patients[0], gad_count=1, t2_count=14, relapses=1)
    mean = [
        frailty_posterior(each) @ FRAILTY
        for each in (
            patient,
            replace(patient, gad_count=4),
            replace(patient, gad_count=4, t2_count=40),
            replace(patient, gad_count=4, t2_count=40, relapses=4),
        )
    ]
    assert mean == sorted(mean)
    assert frailty_posterior(patient).sum() == pytest.approx(1)


@pytest.mark.parametrize("outcome", ["activity", "count"])
def test_means_and_variances_of_effects_are_those_of_simulated_patients(
    patients: list[Patient], moments: list[CounterfactualMoments], outcome: str
) -> None:
    counts = np.array([patient.counts[1] for patient in patients], np.float64)
    true = (counts > 0) * 1.0 if outcome == "activity" else counts
    laws = [getattr(each, outcome) for each in moments]
    for reference in (ARMS.index("placebo"), ARMS.index("avonex")):
        for arm in range(len(ARMS)):
            if arm == reference:
                continue
            expected = [law.mean[arm] - law.mean[reference] for law in laws]
            error = true[:, arm] - true[:, reference] - expected
            variance = np.array([law.effect_variance(arm, reference) for law in laws])
            for surplus in (error, error**2 - variance):
                assert abs(surplus.mean()) < 4 * surplus.std() / np.sqrt(SIZE)


def test_the_record_of_w000_tells_patients_apart(
    patients: list[Patient], moments: list[CounterfactualMoments]
) -> None:
    """The exact effect of the strongest arm is nearer to the true one than any constant is."""
    effect = np.array([patient.counts[1, -1] - patient.counts[1, 0] for patient in patients])
    exact = np.array([each.count.mean[-1] - each.count.mean[0] for each in moments])
    assert ((effect - exact) ** 2).mean() < 0.8 * effect.var()


def test_no_effect_of_an_arm_against_itself(moments: list[CounterfactualMoments]) -> None:
    assert moments[0].count.effect_variance(2, 2) == 0
