"""Calibration: of every method's probability, and of count intervals fitted on validation cases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools, Floats
from lesioncast.calibration.conformal import (
    ConformalQuantile,
    LogCountForecast,
    prediction_intervals,
)
from lesioncast.calibration.fit import Calibration
from lesioncast.calibration.recalibration import PlattScaling
from lesioncast.evaluation.baselines.methods import MethodPredictions
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics.bootstrap import (
    Bootstrap,
    estimate,
    estimate_mean,
)
from lesioncast.evaluation.metrics.calibration import (
    brier_decomposition,
    reliability_curve,
)
from lesioncast.evaluation.metrics.estimate import ByGroup, CaseCount, Estimate, PositiveCount
from lesioncast.forecasting.ensemble import wilson_interval

RELIABILITY_BINS = 8


@dataclass(frozen=True)
class ReliabilityPoint:
    """One bin of a reliability curve: mean forecast, share active, 95 % Wilson interval of it."""

    mean_probability: float
    active_share: float
    low: float
    high: float


@dataclass(frozen=True)
class ProbabilityCalibration:
    """The Brier score of P(active), its parts (Murphy 1973), and the reliability curve."""

    brier: Estimate
    reliability: Estimate
    resolution: Estimate
    uncertainty: Estimate
    curve: tuple[ReliabilityPoint, ...]


@dataclass(frozen=True)
class ValidationCases:
    """How many validation cases the calibration was fitted on, and how many of them are active."""

    cases: CaseCount
    positives: PositiveCount


@dataclass(frozen=True)
class GroupCoverage:
    """The share of a group's counts that lie in their intervals, with its 95 % Wilson interval.

    `mean_width` is in lesions; None where an interval has no upper end.
    """

    cases: CaseCount
    coverage: float
    low: float
    high: float
    mean_width: float | None


@dataclass(frozen=True)
class IntervalCoverage:
    """How often the conformal count intervals of one nominal `level` hold on the test cases.

    `quantile` is the `rank`-th smallest nonconformity score of the validation cases. It is None
    where these are too few for the level, and so is `mean_width`, in lesions. 95 % of the coverages
    lie in `coverage_range` for calibration and test sets of these sizes.
    """

    level: float
    rank: int
    quantile: float | None
    coverage: Estimate
    coverage_range: tuple[float, float]
    mean_width: float | None
    arms: ByGroup[GroupCoverage]

    @property
    def group(self) -> str:
        """Return the nominal level as a label."""
        return f"{self.level:.0%}"


@dataclass(frozen=True)
class CalibrationReport:
    """What the validation cases taught, and how the intervals hold on the test cases.

    `platt_scaling` is None where the validation cases lack a class.
    """

    validation: ValidationCases
    platt_scaling: PlattScaling | None
    count_intervals: tuple[IntervalCoverage, ...]


def probability_calibration(
    cases: EvaluationCases, methods: Sequence[MethodPredictions], *, bootstrap: Bootstrap
) -> dict[str, ProbabilityCalibration]:
    """Return the calibration of P(active) over all cases, by the key of each method.

    Methods without P(active) and random methods, which have several runs, are left out.
    """
    weights = bootstrap.weights(len(cases.arm))
    return {
        method.key: _probability(cases, method.scores[0], weights)
        for method in methods
        if method.scores is not None and len(method.scores) == 1
    }


def _probability(
    cases: EvaluationCases, probability: Floats, weights: Floats
) -> ProbabilityCalibration:
    parts = brier_decomposition(cases.active, probability, np.ones((1, len(probability))))[0]
    resampled = brier_decomposition(cases.active, probability, weights)

    def part(index: int) -> Estimate:
        return estimate(float(parts[index]), lambda _: resampled[:, index], weights)

    curve = reliability_curve(cases.active, probability, bins=RELIABILITY_BINS)
    return ProbabilityCalibration(
        brier=estimate_mean((probability - cases.active) ** 2, weights),
        reliability=part(0),
        resolution=part(1),
        uncertainty=part(2),
        curve=tuple(ReliabilityPoint(*point) for point in curve),
    )


def calibration_report(
    calibration: Calibration,
    cases: EvaluationCases,
    forecast: LogCountForecast,
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> CalibrationReport:
    """Report the fitted calibration and its coverage on the test cases."""
    return CalibrationReport(
        validation=ValidationCases(calibration.cases, calibration.positives),
        platt_scaling=calibration.platt_scaling,
        count_intervals=tuple(
            _coverage(quantile, cases, forecast, arms=arms, bootstrap=bootstrap)
            for quantile in calibration.quantiles
        ),
    )


def _coverage(
    quantile: ConformalQuantile,
    cases: EvaluationCases,
    forecast: LogCountForecast,
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> IntervalCoverage:
    low, high = prediction_intervals(forecast, quantile.score)
    covered = (low <= cases.count) & (cases.count <= high)
    finite = bool(np.isfinite(quantile.score))
    weights = bootstrap.weights(len(covered))
    return IntervalCoverage(
        level=quantile.level,
        rank=quantile.rank,
        quantile=quantile.score if finite else None,
        coverage=estimate_mean(covered.astype(np.float64), weights),
        coverage_range=quantile.coverage_range(len(covered)),
        mean_width=float(np.mean(high - low)) if finite else None,
        arms={
            name: group_coverage(covered[cases.arm == index], (high - low)[cases.arm == index])
            for index, name in enumerate(arms)
            if (cases.arm == index).any()
        },
    )


def group_coverage(covered: Bools, width: Floats) -> GroupCoverage:
    """Return how often intervals hold for the cases of a group, given for each case, [n]."""
    share = float(covered.mean())
    low, high = wilson_interval(share, len(covered))
    mean_width = float(width.mean())
    return GroupCoverage(
        cases=len(covered),
        coverage=share,
        low=low,
        high=high,
        mean_width=mean_width if np.isfinite(mean_width) else None,
    )
