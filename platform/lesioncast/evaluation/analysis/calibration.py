"""Calibration as plain numbers: of every probability, and of intervals fitted on validation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.baselines.methods import MethodPredictions
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics.calibration import (
    PARTS,
    PlattScaling,
    brier_decomposition,
    fit_platt_scaling,
    reliability_curve,
)
from lesioncast.evaluation.metrics.conformal import (
    ConformalQuantile,
    conformal_quantile,
    nonconformity_scores,
    prediction_intervals,
)
from lesioncast.evaluation.metrics.scores import Bootstrap, estimate, estimate_mean
from lesioncast.forecasting.ensemble import wilson_interval

Floats = npt.NDArray[np.float64]
Record = dict[str, Any]

LEVELS = (0.8, 0.9)
REPORTED_LEVEL = 0.9  # the level that cases.csv lists
BINS = 8


@dataclass(frozen=True)
class Calibration:
    """What the validation cases teach: `thresholds` of count intervals, a curve for P(active).

    `activity` is None where the validation cases lack a class.
    """

    cases: int
    positives: int
    thresholds: tuple[ConformalQuantile, ...]
    activity: PlattScaling | None

    def intervals(self, sampled: Floats) -> tuple[Floats, Floats]:
        """(lowest, highest) count at the level SHOWN of ensembles [n, k]."""
        shown = next(each for each in self.thresholds if each.level == REPORTED_LEVEL)
        return prediction_intervals(sampled, shown.score)


def calibrate(validation: EvaluationCases, sampled: Floats, log_odds: Floats) -> Calibration:
    """Learns from validation cases, the lesions of their samples `sampled` [n, k] and the
    `log_odds` [n] of their P(active), and from nothing else."""
    scores = nonconformity_scores(validation.count, sampled)
    return Calibration(
        cases=len(scores),
        positives=int(validation.active.sum()),
        thresholds=tuple(conformal_quantile(scores, level) for level in LEVELS),
        activity=fit_platt_scaling(validation.active, log_odds),
    )


def probability_record(
    cases: EvaluationCases, methods: Sequence[MethodPredictions], *, bootstrap: Bootstrap
) -> Record:
    """Brier score of P(active) in its parts and the reliability curve, pooled, for every method
    that is not random."""
    weights = bootstrap.weights(len(cases.arm))
    scored = [m for m in methods if m.scores is not None and len(m.scores) == 1]
    return {method.key: _probability(cases, method, weights) for method in scored}


def _probability(cases: EvaluationCases, method: MethodPredictions, weights: Floats) -> Record:
    assert method.scores is not None
    chance = method.scores[0]
    here = brier_decomposition(cases.active, chance, np.ones((1, len(chance))))[0]
    drawn = brier_decomposition(cases.active, chance, weights)
    rows = reliability_curve(cases.active, chance, bins=BINS)
    return {
        "brier": estimate_mean((chance - cases.active) ** 2, weights).as_dict(),
        **{
            part: estimate(float(here[i]), lambda _, i=i: drawn[:, i], weights).as_dict()  # type: ignore[misc]
            for i, part in enumerate(PARTS)
        },
        "curve": [dict(zip(("mean", "share", "low", "high"), row, strict=True)) for row in rows],
    }


def calibration_record(
    learned: Calibration,
    cases: EvaluationCases,
    sampled: Floats,
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> Record:
    """What was learned, and how often the intervals of the test ensembles [n, k] hold."""
    return {
        "validation": {"cases": learned.cases, "positives": learned.positives},
        "activity": None if learned.activity is None else asdict(learned.activity),
        "counts": [
            _coverage(each, cases, sampled, arms=arms, bootstrap=bootstrap)
            for each in learned.thresholds
        ],
    }


def _coverage(
    learned: ConformalQuantile,
    cases: EvaluationCases,
    sampled: Floats,
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> Record:
    """`likely` is where 95 % of coverages lie for calibration and test sets of these sizes."""
    low, high = prediction_intervals(sampled, learned.score)
    holds = (low <= cases.count) & (cases.count <= high)
    finite = bool(np.isfinite(learned.score))
    weights = bootstrap.weights(len(holds))
    return {
        "level": learned.level,
        "rank": learned.rank,
        "score": learned.score if finite else None,
        "coverage": estimate_mean(holds.astype(np.float64), weights).as_dict(),
        "likely": list(learned.coverage_range(len(holds))),
        "mean_width": float(np.mean(high - low)) if finite else None,
        "arms": {
            name: _of_arm(holds[cases.arm == place], (high - low)[cases.arm == place])
            for place, name in enumerate(arms)
            if (cases.arm == place).any()
        },
    }


def _of_arm(holds: npt.NDArray[np.bool_], width: Floats) -> Record:
    share = float(holds.mean())
    low, high = wilson_interval(share, len(holds))
    mean = float(width.mean())
    return {
        "cases": len(holds),
        "coverage": share,
        "low": low,
        "high": high,
        "mean_width": mean if np.isfinite(mean) else None,
    }
