"""Scores of P(active) in subgroups of the test cases, such as by sex, age and trial."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools, Floats
from lesioncast.evaluation.baselines.methods import MethodPredictions
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics import scores
from lesioncast.evaluation.metrics.bootstrap import Bootstrap, estimate, estimate_mean
from lesioncast.evaluation.metrics.estimate import (
    ByGroup,
    ByMethod,
    CaseCount,
    Estimate,
    PositiveCount,
)


@dataclass(frozen=True)
class SubgroupScores:
    """Scores of one method in one subgroup.

    `calibration_in_the_large` is the mean P(active) minus the share that is active: 0 is best,
    above 0 the forecast is too high.
    """

    auc: Estimate
    brier: Estimate
    calibration_in_the_large: Estimate


@dataclass(frozen=True)
class Subgroup:
    """Cases of one subgroup and the scores of every method; the positives are active."""

    cases: CaseCount
    positives: PositiveCount
    methods: ByMethod[SubgroupScores]


@dataclass(frozen=True)
class SubgroupVariable:
    """The subgroups of one variable. Cases whose value is unknown are in none."""

    groups: ByGroup[Subgroup]


def subgroup_report(
    labels: Mapping[str, Sequence[str | None]],
    cases: EvaluationCases,
    methods: Sequence[MethodPredictions],
    *,
    bootstrap: Bootstrap,
) -> dict[str, SubgroupVariable]:
    """Score every method that gives one P(active) a case, in every subgroup.

    `labels` holds the subgroup of each case [n] by variable, None where it is unknown.
    """
    report = {}
    for variable, label in labels.items():
        names = sorted({name for name in label if name is not None})
        members = {name: np.array([one == name for one in label], bool) for name in names}
        report[variable] = SubgroupVariable(
            {
                name: _subgroup(cases.active[member], methods, member, bootstrap)
                for name, member in members.items()
            }
        )
    return report


def _subgroup(
    active: Bools, methods: Sequence[MethodPredictions], member: Bools, bootstrap: Bootstrap
) -> Subgroup:
    weights = bootstrap.weights(len(active))
    return Subgroup(
        cases=len(active),
        positives=int(active.sum()),
        methods={
            method.key: _scores(active, method.scores[0][member], weights)
            for method in methods
            if method.scores is not None and len(method.scores) == 1
        },
    )


def _scores(active: Bools, probability: Floats, weights: Floats) -> SubgroupScores:
    return SubgroupScores(
        auc=estimate(
            scores.roc_auc(active, probability),
            lambda resamples: scores.resampled_auc(active, probability, resamples),
            weights,
        ),
        brier=estimate_mean((probability - active) ** 2, weights),
        calibration_in_the_large=estimate_mean(probability - active, weights),
    )
