"""What a forecast states by the calibration of its bundle: intervals, and a second P(active)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.bundle.calibration import BundleCalibration
from lesioncast.calibration.conformal import LogCountForecast, prediction_intervals
from lesioncast.calibration.fit import REPORTED_LEVEL, Calibration
from lesioncast.calibration.recalibration import finite_log_odds
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.forecasting.output.record import Record

NOT_CALIBRATED = (
    "Not calibrated: the range of the number of lesions is that of the samples, and was not "
    "compared with the outcomes of patients."
)


@dataclass(frozen=True, kw_only=True)
class CountInterval(Record):
    """Conformal interval of the number of lesions, both ends included.

    A share `level` of the calibration cohort had its number of lesions inside, under the arm that
    each case received.
    """

    level: float
    low: int
    high: int


@dataclass(frozen=True, kw_only=True)
class CalibratedArm(Record):
    """Forecast under one arm, as the calibration cohort corrects it.

    `p_active` is recalibrated by a logistic curve; None where the cohort had active cases alone, or
    none. `count_intervals` lacks the levels for which the cohort was too small. `cohort_cases` is
    the number of its cases that received this arm.
    """

    p_active: float | None
    count_intervals: tuple[CountInterval, ...]
    cohort_cases: int

    @property
    def reported_interval(self) -> CountInterval | None:
        """Return the interval that figures and pages show, if there is one."""
        levels = (one for one in self.count_intervals if one.level == REPORTED_LEVEL)
        return next(levels, None)


@dataclass(frozen=True, kw_only=True)
class CalibrationSummary(Record):
    """The cohort that taught the intervals and the recalibrated P(active) of a forecast."""

    #: The cohort in words.
    cohort: str
    #: Number of its cases that had the images of this patient, or more.
    cases: int
    #: The images of this patient, in words.
    images: str
    #: Whether the cohort is simulated.
    simulated: bool


def calibration_of(
    calibration: BundleCalibration | None, expected: ExpectedOutcomes | None
) -> Calibration | None:
    """Return what was learned for the images behind a forecast.

    `expected` is what the bundle states in closed form. None where it states nothing, or where no
    case of the cohort had these images.
    """
    if calibration is None or expected is None:
        return None
    return calibration.of_pattern(expected.pattern)


def summarise_calibration(
    calibration: BundleCalibration | None, expected: ExpectedOutcomes | None
) -> CalibrationSummary | None:
    """Return the cohort that a forecast's calibration comes from, None if it has none."""
    learned = calibration_of(calibration, expected)
    if calibration is None or expected is None or learned is None:
        return None
    return CalibrationSummary(
        cohort=calibration.cohort.name,
        cases=learned.cases,
        images=expected.pattern,
        simulated=calibration.cohort.simulated,
    )


def calibrated_arm(
    calibration: BundleCalibration | None, expected: ExpectedOutcomes | None, arm: str
) -> CalibratedArm | None:
    """Return the calibrated forecast under one arm, None without a calibration for it."""
    learned = calibration_of(calibration, expected)
    if calibration is None or expected is None or learned is None:
        return None
    forecast = LogCountForecast(np.array([expected.log_lesions]), np.array([expected.log_sd]))
    curve, odds = learned.platt_scaling, finite_log_odds(np.array([expected.p_active]))
    intervals = []
    for quantile in learned.quantiles:
        low, high = prediction_intervals(forecast, quantile.score)
        intervals.append(CountInterval(level=quantile.level, low=int(low[0]), high=int(high[0])))
    return CalibratedArm(
        p_active=None if curve is None else float(curve.probability(odds)[0]),
        count_intervals=tuple(intervals),
        cohort_cases=calibration.cohort.arms.get(arm, 0),
    )


def calibration_notes(
    calibration: BundleCalibration | None,
    expected: ExpectedOutcomes | None,
    arms: Sequence[str],
) -> tuple[str, ...]:
    """Return the notes on what the calibration of a forecast under `arms` does not cover."""
    if calibration is None or calibration_of(calibration, expected) is None:
        return (NOT_CALIBRATED,)
    missing = [arm for arm in arms if arm not in calibration.cohort.arms]
    if not missing:
        return ()
    return (
        f"No case of the calibration cohort received {', '.join(missing)}: intervals and "
        "recalibrated P(active) there are learned on other arms.",
    )
