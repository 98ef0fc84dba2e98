"""P(active) of the same cases under every arm, factual and counterfactual."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.evaluation.analysis.arm_errors import ArmMeanErrors, arm_mean_errors
from lesioncast.evaluation.analysis.treatment_effects import ArmForecasts
from lesioncast.evaluation.causal.effects import is_active
from lesioncast.evaluation.metrics.bootstrap import Bootstrap, estimate_mean
from lesioncast.evaluation.metrics.estimate import ByGroup, CaseCount, Estimate
from lesioncast.forecasting.ensemble import stratified_error


@dataclass(frozen=True)
class ArmActivity:
    """Mean P(active) of the cases under one arm.

    `minus_previous` is paired, against the arm before; None for the first arm. Intervals are over
    cases. Samples differ between cases, so the intervals include the Monte Carlo error, whose own
    size is `monte_carlo_error`; None where P(active) was not sampled. `training_rate` is the share
    active of the training patients who received the arm. `true_rate` is the share of these cases
    that would have been active, and `forecast_minus_true` is paired with it; both are None where no
    simulation knows the truth.
    """

    p_active: Estimate
    minus_previous: Estimate | None
    monte_carlo_error: float | None
    training_rate: float | None
    true_rate: float | None
    forecast_minus_true: Estimate | None = None


@dataclass(frozen=True)
class ActivityByArm:
    """P(active) of the same `cases` under every arm, from `samples` a case.

    `samples` is None where the lesion-load prior states P(active) without sampling.
    `arms_above_previous` names the arms whose P(active) exceeds that of the arm before by more than
    chance. `errors` compares all arms with the truth; None where it is not known.
    """

    cases: CaseCount
    samples: int | None
    arms: ByGroup[ArmActivity]
    falls_at_every_step: bool
    arms_above_previous: tuple[str, ...]
    first_minus_last: Estimate
    errors: ArmMeanErrors | None = None


def activity_by_arm(
    forecasts: ArmForecasts,
    true_counts: Floats | None,
    *,
    arms: Sequence[str],
    training_rate: Floats,
    bootstrap: Bootstrap,
) -> ActivityByArm:
    """Return mean P(active) by arm.

    `true_counts` [arm, n] are the lesions that simulated patients would have had; None where they
    are not known. `training_rate` [arm] is NaN for arms without patients.
    """
    p_active, sampled = forecasts.p_active, forecasts.sampled_counts
    weights = bootstrap.weights(len(forecasts.cases))
    true = None if true_counts is None else is_active(true_counts)
    rows = {
        name: ArmActivity(
            p_active=estimate_mean(p_active[index], weights),
            minus_previous=estimate_mean(p_active[index] - p_active[index - 1], weights)
            if index
            else None,
            monte_carlo_error=None
            if sampled is None
            else stratified_error(is_active(sampled[index])),
            training_rate=None if np.isnan(training_rate[index]) else float(training_rate[index]),
            true_rate=None if true is None else float(true[index].mean()),
            forecast_minus_true=None
            if true is None
            else estimate_mean(p_active[index] - true[index], weights),
        )
        for index, name in enumerate(arms)
    }
    means = [row.p_active.value or 0.0 for row in rows.values()]
    return ActivityByArm(
        cases=len(forecasts.cases),
        samples=None if sampled is None else sampled.shape[2],
        arms=rows,
        falls_at_every_step=all(
            before > after for before, after in zip(means, means[1:], strict=False)
        ),
        arms_above_previous=tuple(
            name
            for name, row in rows.items()
            if row.minus_previous is not None and (row.minus_previous.low or 0) > 0
        ),
        first_minus_last=estimate_mean(p_active[0] - p_active[-1], weights),
        errors=None if true is None else arm_mean_errors(p_active, true, training_rate, weights),
    )
