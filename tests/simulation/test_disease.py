"""Simulated patients: the activity and counts of Table 1, and exact potential outcomes."""

from collections import Counter

import numpy as np
import pytest

from lesioncast.arms import PAPER_ARM_NAMES
from lesioncast.simulation.disease import (
    ARM_MODELS,
    ENROLMENT,
    MAX_COUNT,
    PERIODS,
    Patient,
    count_cdf,
    draw_patient,
)
from lesioncast.simulation.settings import SimulationSettings

SIZE = 2131
SETTINGS = SimulationSettings(subjects=SIZE)


@pytest.fixture(scope="module")
def patients() -> list[Patient]:
    return [draw_patient(SETTINGS, index) for index in range(SIZE)]


def moments(arm: str, period: int) -> tuple[float, float]:
    """Return mean and standard deviation of the count that Table 1 implies."""
    pmf = np.diff(count_cdf(arm, period), prepend=0)
    counts = np.arange(MAX_COUNT + 1)
    mean = float(pmf @ counts)
    return mean, float(np.sqrt(pmf @ counts**2 - mean**2))


def assert_table_1(counts: np.ndarray, arm: str, period: int) -> None:
    """Check activity and mean count to within 4 standard errors of the table's."""
    model = ARM_MODELS[arm]
    activity, n = model.activity[period], len(counts)
    error = np.sqrt(activity * (1 - activity) / n)
    assert abs((counts > 0).mean() - activity) < 4 * error, (arm, PERIODS[period])
    error = moments(arm, period)[1] / np.sqrt(n)
    assert abs(counts.mean() - model.mean_count[period]) < 4 * error, (arm, PERIODS[period])


@pytest.mark.parametrize("arm", PAPER_ARM_NAMES)
@pytest.mark.parametrize("period", [0, 1])
def test_the_count_model_has_table_1_as_its_expectation(arm: str, period: int) -> None:
    cdf, model = count_cdf(arm, period), ARM_MODELS[arm]
    assert 1 - cdf[0] == pytest.approx(model.activity[period], abs=1e-12)
    assert moments(arm, period)[0] == pytest.approx(model.mean_count[period], abs=1e-9)
    assert cdf[-1] == pytest.approx(1)


@pytest.mark.parametrize("arm", PAPER_ARM_NAMES)
@pytest.mark.parametrize("period", [0, 1])
def test_the_assigned_patients_show_table_1(patients: list[Patient], arm: str, period: int) -> None:
    column = PAPER_ARM_NAMES.index(arm)
    assert_table_1(
        np.array([p.counts[period, column] for p in patients if p.arm == arm]), arm, period
    )


@pytest.mark.parametrize("arm", PAPER_ARM_NAMES)
@pytest.mark.parametrize("period", [0, 1])
def test_all_patients_under_one_arm_show_table_1(
    patients: list[Patient], arm: str, period: int
) -> None:
    column = PAPER_ARM_NAMES.index(arm)
    assert_table_1(np.array([p.counts[period, column] for p in patients]), arm, period)


def test_arms_and_trials_are_enrolled_and_confounded_as_in_the_paper(
    patients: list[Patient],
) -> None:
    enrolled = Counter((p.trial, p.arm) for p in patients)
    assert set(enrolled) == {(trial, arm) for trial, arm, _ in ENROLMENT}
    assert sum(n for *_, n in ENROLMENT) == SIZE
    for trial, arm, expected in ENROLMENT:
        error = np.sqrt(expected * (1 - expected / SIZE))
        assert abs(enrolled[trial, arm] - expected) < 4 * error, (trial, arm)


def under_placebo(predictability: float) -> tuple[np.ndarray, np.ndarray]:
    """Return frailty and w096 counts under placebo, whose score has no response noise."""
    settings = SimulationSettings(subjects=1, predictability=predictability)
    drawn = [draw_patient(settings, index) for index in range(2000)]
    return np.array([p.frailty for p in drawn]), np.array([p.counts[1, 0] for p in drawn])


def test_full_predictability_makes_counts_a_function_of_frailty() -> None:
    frailty, counts = under_placebo(1.0)
    assert (np.diff(counts[np.argsort(frailty)]) >= 0).all()


def test_no_predictability_makes_counts_pure_chance() -> None:
    frailty, counts = under_placebo(0.0)
    assert abs(np.corrcoef(frailty, counts)[0, 1]) < 4 / np.sqrt(2000)


def test_the_interferons_share_their_response_noise(patients: list[Patient]) -> None:
    """Activity under one interferon predicts the other better than it predicts fumarate."""
    active = np.array([p.counts[1] > 0 for p in patients])
    avonex, interferon, fumarate = (
        active[:, PAPER_ARM_NAMES.index(arm)] for arm in ("avonex", "interferon", "fumarate")
    )
    assert interferon[~avonex].mean() < fumarate[~avonex].mean()


def test_baseline_findings_predict_activity_at_w096(patients: list[Patient]) -> None:
    placebo = np.array([p.counts[1, 0] for p in patients]) > 0
    for name in ("gad_count", "t2_count", "relapses"):
        values = np.array([getattr(p, name) for p in patients])
        assert values[placebo].mean() > 1.15 * values[~placebo].mean(), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subjects": 0}, "simulation.subjects must be at least 1, got 0"),
        ({"predictability": 1.2}, r"simulation.predictability must lie in \[0, 1\], got 1.2"),
        ({"shape": (0, 64, 64)}, "simulation.shape must be three positive numbers"),
        ({"spacing": (3.0, 0.1, 0.1)}, "simulation.spacing must be three sizes"),
        ({"seed": -1}, "simulation.seed must not be negative"),
    ],
)
def test_settings_out_of_range_raise(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulationSettings(**{"subjects": 1, **change})  # type: ignore[arg-type]
