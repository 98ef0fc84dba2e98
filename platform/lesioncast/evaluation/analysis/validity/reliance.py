"""What the forecast rests on: its scores from parts of its inputs, and from another patient's.

The forecast is P(active) and E[log(1 + n)] of the prognostic prior in closed form. No mask is
sampled, so the diffusion networks have no part in these scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from lesioncast.arrays import Floats, Ints
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics import scores
from lesioncast.evaluation.metrics.bootstrap import (
    Bootstrap,
    ResampledScore,
    estimate,
    point_estimate,
    resampled_mean,
)
from lesioncast.evaluation.metrics.estimate import ByGroup, CaseCount, Estimate, PositiveCount

ALL_INPUTS = "all_inputs"
WITHOUT_GADOLINIUM = "without_gadolinium"
WITHOUT_MASKS = "without_masks"
BASELINE_FLAIR = "baseline_flair_alone"
WITHOUT_COVARIATES = "without_covariates"
OTHER_PATIENT = "images_of_another_patient"
ARM_ALONE = "arm_alone"


@dataclass(frozen=True)
class InputPredictions:
    """Predictions from one choice of inputs, for some of the test cases under their own arm."""

    #: One of the keys above.
    inputs: str
    #: Rows of the test cases that are predicted, [m].
    rows: Ints
    #: P(active), [m].
    p_active: Floats
    #: E[log(1 + n)] of the number n of lesions, [m].
    log_lesions: Floats


@dataclass(frozen=True)
class RelianceScores:
    """Scores from one choice of inputs, or their difference from those of all inputs.

    The log-count MSE is that of E[log(1 + n)].
    """

    auc: Estimate
    auc_within_arm: Estimate
    average_precision: Estimate
    brier: Estimate
    log_mse: Estimate


@dataclass(frozen=True)
class RelianceRow:
    """Scores of the forecast from one choice of inputs.

    `minus_all_inputs` is paired, on the same cases; None for all inputs themselves.
    """

    cases: CaseCount
    positives: PositiveCount
    mean_probability: float
    scores: RelianceScores
    minus_all_inputs: RelianceScores | None


@dataclass(frozen=True)
class RelianceReport:
    """The choices of inputs by their keys, all inputs first."""

    inputs: ByGroup[RelianceRow]

    @property
    def loss_by_permutation(self) -> Estimate | None:
        """Return AUC within arms with another patient's images minus that with the patient's own.

        None if no arm has two test cases.
        """
        row = self.inputs.get(OTHER_PATIENT)
        return None if row is None or row.minus_all_inputs is None else _within(row)

    @property
    def rests_on_images(self) -> bool | None:
        """Return whether another patient's images lower the AUC within arms by more than chance.

        None where this is undefined.
        """
        loss = self.loss_by_permutation
        interval = None if loss is None else loss.with_interval
        return None if interval is None else interval.high < 0


def _within(row: RelianceRow) -> Estimate | None:
    return None if row.minus_all_inputs is None else row.minus_all_inputs.auc_within_arm


def reliance_report(
    predictions: Sequence[InputPredictions], cases: EvaluationCases, *, bootstrap: Bootstrap
) -> RelianceReport | None:
    """Score every choice of inputs on the test `cases`; None without predictions.

    The first prediction is that from all inputs, for all cases.
    """
    if not predictions:
        return None
    everything, *others = predictions
    rows = {everything.inputs: _row(everything, None, cases, bootstrap)}
    rows |= {one.inputs: _row(one, everything, cases, bootstrap) for one in others}
    return RelianceReport(rows)


def _row(
    given: InputPredictions,
    everything: InputPredictions | None,
    cases: EvaluationCases,
    bootstrap: Bootstrap,
) -> RelianceRow:
    weights = bootstrap.weights(len(given.rows))
    own = _resample(_score_functions(given, cases), weights)
    differences = None
    if everything is not None:
        restricted = InputPredictions(
            everything.inputs,
            given.rows,
            everything.p_active[given.rows],
            everything.log_lesions[given.rows],
        )
        reference = _resample(_score_functions(restricted, cases), weights)
        differences = {name: own[name].minus(reference[name]) for name in own}
    return RelianceRow(
        cases=len(given.rows),
        positives=int(cases.active[given.rows].sum()),
        mean_probability=float(given.p_active.mean()),
        scores=_estimates(own, weights),
        minus_all_inputs=None if differences is None else _estimates(differences, weights),
    )


def _score_functions(given: InputPredictions, cases: EvaluationCases) -> dict[str, ResampledScore]:
    """Return the fields of `RelianceScores` as functions of the resamples."""
    active, arm, p = cases.active[given.rows], cases.arm[given.rows], given.p_active
    log_errors = (given.log_lesions - np.log1p(cases.count[given.rows])) ** 2
    return {
        "auc": lambda weights: scores.resampled_auc(active, p, weights),
        "auc_within_arm": lambda weights: scores.resampled_auc_within(active, p, arm, weights),
        "average_precision": lambda weights: scores.resampled_ap(active, p, weights),
        "brier": lambda weights: resampled_mean((p - active) ** 2, weights),
        "log_mse": lambda weights: resampled_mean(log_errors, weights),
    }


class _Resampled(NamedTuple):
    """A score on the cases themselves, and in every resample, [b]."""

    value: float | None
    draws: Floats

    def minus(self, other: "_Resampled") -> "_Resampled":
        """Return the paired difference."""
        if self.value is None or other.value is None:
            return _Resampled(None, self.draws - other.draws)
        return _Resampled(self.value - other.value, self.draws - other.draws)


def _resample(functions: Mapping[str, ResampledScore], weights: Floats) -> dict[str, _Resampled]:
    """Compute each score once; its own interval and that of its difference share the resamples."""
    return {
        name: _Resampled(point_estimate(score, weights.shape[1]), score(weights))
        for name, score in functions.items()
    }


def _estimates(resampled: Mapping[str, _Resampled], weights: Floats) -> RelianceScores:
    by_name = {
        name: estimate(one.value, _constant(one.draws), weights) for name, one in resampled.items()
    }
    return RelianceScores(**{field.name: by_name[field.name] for field in fields(RelianceScores)})


def _constant(draws: Floats) -> ResampledScore:
    """Return a score that was computed before, as a function of the resamples."""
    return lambda _: draws
