"""How the intervals that forecasts state, by the bundle's calibration, hold on the test cases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.bundle.calibration import BundleCalibration
from lesioncast.evaluation.analysis.calibration import GroupCoverage, group_coverage
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics.bootstrap import Bootstrap, estimate_mean
from lesioncast.evaluation.metrics.estimate import ByGroup, CaseCount, Estimate
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.forecasting.output.calibrated import CountInterval, calibrated_arm


@dataclass(frozen=True)
class StatedIntervals:
    """How often the stated intervals of one nominal `level` hold.

    `mean_width` is in lesions. `images` groups the cases by the images that they have.
    """

    level: float
    coverage: Estimate
    mean_width: float
    arms: ByGroup[GroupCoverage]
    images: ByGroup[GroupCoverage]

    @property
    def group(self) -> str:
        """Return the nominal level as a label."""
        return f"{self.level:.0%}"


@dataclass(frozen=True)
class StatedCalibration:
    """The calibration of the bundle on the test cases.

    `cohort` says which cases it was learned on. `cases` are the test cases with an interval of
    every level; cases whose images no case of the cohort had are left out.
    """

    cohort: str
    cases: CaseCount
    levels: tuple[StatedIntervals, ...]


def stated_calibration(
    calibration: BundleCalibration | None,
    expected: Sequence[ExpectedOutcomes | None],
    cases: EvaluationCases,
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> StatedCalibration | None:
    """Return the coverage of the intervals that forecasts state; None where they state none.

    `expected` [n] are the outcomes that the bundle expects of each case under the arm received.
    """
    stated = [
        calibrated_arm(calibration, one, arms[arm])
        for one, arm in zip(expected, cases.arm, strict=True)
    ]
    intervals = [() if one is None else one.count_intervals for one in stated]
    complete = max(map(len, intervals), default=0)
    rows = [row for row, one in enumerate(intervals) if complete and len(one) == complete]
    if calibration is None or not rows:
        return None
    images = [one.pattern if one is not None else "" for one in expected]

    def at_level(of_level: Sequence[CountInterval]) -> StatedIntervals:
        low, high = (np.array([getattr(one, end) for one in of_level]) for end in ("low", "high"))
        count, arm = cases.count[rows], cases.arm[rows]
        covered = (low <= count) & (count <= high)
        pattern = np.array([images[row] for row in rows])
        return StatedIntervals(
            level=of_level[0].level,
            coverage=estimate_mean(covered.astype(np.float64), bootstrap.weights(len(rows))),
            mean_width=float(np.mean(high - low)),
            arms={
                name: group_coverage(covered[arm == index], (high - low)[arm == index])
                for index, name in enumerate(arms)
                if (arm == index).any()
            },
            images={
                name: group_coverage(covered[pattern == name], (high - low)[pattern == name])
                for name in dict.fromkeys(pattern.tolist())
            },
        )

    by_level = zip(*(intervals[row] for row in rows), strict=True)
    return StatedCalibration(
        calibration.description, len(rows), tuple(at_level(one) for one in by_level)
    )
