"""The evaluation reports how the intervals that forecasts state hold, by arm and by images."""

import numpy as np
import pytest

from lesioncast.bundle.calibration import (
    BundleCalibration,
    CalibrationCohort,
    PatternCalibration,
)
from lesioncast.calibration.conformal import LogCountForecast
from lesioncast.calibration.fit import calibrate
from lesioncast.evaluation.analysis.stated_intervals import stated_calibration
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.evaluation.reporting.markdown.sections import stated_section
from lesioncast.forecasting.ensemble import ExpectedOutcomes

ARMS = ("placebo", "avonex")
IMAGES = ("all images", "FLAIR alone")
COHORT = CalibrationCohort("400 cases of a trial", {"placebo": 400}, True, "s", ())
BOOTSTRAP = Bootstrap(50, 0)


def draw(cases: int, seed: int) -> tuple[np.ndarray, list[ExpectedOutcomes]]:
    """Draw counts and forecasts that know the rate; images alternate between two patterns."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(1.0, 2.0, cases)
    expected = [
        ExpectedOutcomes(1 - np.exp(-one), one, np.log1p(one), 0.3, pattern=IMAGES[index % 2])
        for index, one in enumerate(rate)
    ]
    return rng.poisson(rate).astype(float), expected


def learned(patterns: tuple[str, ...] = IMAGES) -> BundleCalibration:
    count, expected = draw(400, 0)
    forecast = LogCountForecast(
        np.array([one.log_lesions for one in expected]), np.full(len(expected), 0.3)
    )
    of_all = calibrate(count, forecast, np.zeros(len(count)))
    return BundleCalibration(COHORT, tuple(PatternCalibration(one, of_all) for one in patterns))


def cases_of(count: np.ndarray) -> EvaluationCases:
    arm = np.arange(len(count)) // 2 % 2
    return EvaluationCases(("",) * len(count), arm, np.zeros((len(count), 1)), count)


def test_coverage_is_nominal_and_each_case_is_in_one_arm_and_one_pattern() -> None:
    count, expected = draw(2000, 1)
    found = stated_calibration(learned(), expected, cases_of(count), arms=ARMS, bootstrap=BOOTSTRAP)
    assert found.cases == 2000
    assert found.cohort == "400 cases of a trial (400 on placebo)"
    for one in found.levels:
        assert one.coverage.value == pytest.approx(one.level, abs=0.04)
        for groups in (one.arms, one.images):
            assert [group.cases for group in groups.values()] == [1000, 1000]
            pooled = np.mean([group.coverage for group in groups.values()])
            assert pooled == pytest.approx(one.coverage.value)
    assert tuple(found.levels[0].arms) == ARMS
    assert tuple(found.levels[0].images) == IMAGES
    (text,) = stated_section(found)
    assert "For 2000 test cases forecasts state an interval." in text
    assert "| FLAIR alone | 1000 |" in text


def test_cases_without_an_interval_are_left_out() -> None:
    count, expected = draw(100, 2)
    some = stated_calibration(
        learned(IMAGES[:1]), expected, cases_of(count), arms=ARMS, bootstrap=BOOTSTRAP
    )
    assert some.cases == 50
    assert tuple(some.levels[0].images) == IMAGES[:1]
    none = [None] * 100  # after the opening
    for calibration, stated in ((None, expected), (learned(), none), (learned(()), expected)):
        assert (
            stated_calibration(calibration, stated, cases_of(count), arms=ARMS, bootstrap=BOOTSTRAP)
            is None
        )
