"""Decision curve: the net benefit of acting on P(active) (Vickers and Elkin 2006).

A reader acts where P(active) reaches a threshold t. Acting on an active patient counts 1, acting on
any other costs t / (1 - t): whoever acts from t = 0.2 on takes one active patient for four others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools, Floats
from lesioncast.evaluation.baselines.methods import MethodPredictions
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics.bootstrap import Bootstrap, estimate_of
from lesioncast.evaluation.metrics.estimate import ByMethod, CaseCount, Estimate, PositiveCount

THRESHOLDS = tuple(percent / 100 for percent in range(1, 100))
# Thresholds that get intervals.
TABLE_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class NetBenefitAt:
    """Net benefit of a method at one threshold.

    `minus_best_default` is paired, against the better of treating all and treating none.
    """

    threshold: float
    net_benefit: Estimate
    minus_best_default: Estimate

    @property
    def group(self) -> str:
        """Return the threshold as a label."""
        return f"threshold {self.threshold:.2f}"


@dataclass(frozen=True)
class MethodNetBenefit:
    """Net benefit of a method: at each of the curve's thresholds, and with intervals at a few."""

    curve: tuple[float, ...]
    at: tuple[NetBenefitAt, ...]


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit of every method at `thresholds`, and of treating all; treating none has 0."""

    cases: CaseCount
    positives: PositiveCount
    thresholds: tuple[float, ...]
    treat_all: tuple[float, ...]
    methods: ByMethod[MethodNetBenefit]


def decision_curve(
    cases: EvaluationCases, methods: Sequence[MethodPredictions], *, bootstrap: Bootstrap
) -> DecisionCurve:
    """Return the net benefit of every method that gives one P(active) a case."""
    active, everyone = cases.active, np.ones(len(cases.arm), bool)
    weights = bootstrap.weights(len(cases.arm))
    return DecisionCurve(
        cases=len(active),
        positives=int(active.sum()),
        thresholds=THRESHOLDS,
        treat_all=tuple(float(net_benefit(active, everyone, t)) for t in THRESHOLDS),
        methods={
            method.key: MethodNetBenefit(
                curve=tuple(
                    float(net_benefit(active, method.scores[0] >= t, t)) for t in THRESHOLDS
                ),
                at=tuple(_at(active, method.scores[0], t, weights) for t in TABLE_THRESHOLDS),
            )
            for method in methods
            if method.scores is not None and len(method.scores) == 1
        },
    )


def net_benefit(
    active: Bools, treated: Bools, threshold: float, weights: Floats | None = None
) -> Floats:
    """Return the net benefit of treating the cases `treated` [n] at `threshold`.

    It is the share of cases treated rightly minus the odds of the threshold times the share treated
    wrongly. With case weights [b, n] there is one value for each resample, [b].
    """
    gain = treated * np.where(active, 1.0, -threshold / (1 - threshold))
    return np.asarray(gain.mean() if weights is None else weights @ gain / weights.sum(axis=1))


def _at(active: Bools, probability: Floats, threshold: float, weights: Floats) -> NetBenefitAt:
    treated, everyone = probability >= threshold, np.ones(len(active), bool)

    def own(resamples: Floats) -> Floats:
        return net_benefit(active, treated, threshold, resamples)

    def over_default(resamples: Floats) -> Floats:
        treat_all = net_benefit(active, everyone, threshold, resamples)
        return own(resamples) - np.maximum(treat_all, 0)

    return NetBenefitAt(threshold, estimate_of(own, weights), estimate_of(over_default, weights))
