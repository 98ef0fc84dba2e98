"""P(active) of the same cases under every arm, factual and counterfactual."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Floats
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
    that would have been active; None where no simulation knows it.
    """

    p_active: Estimate
    minus_previous: Estimate | None
    monte_carlo_error: float | None
    training_rate: float | None
    true_rate: float | None


@dataclass(frozen=True)
class ActivityByArm:
    """P(active) of the same `cases` under every arm, from `samples` a case.

    `samples` is None where the networks give P(active) without sampling. `arms_above_previous`
    names the arms whose P(active) exceeds that of the arm before by more than chance.
    """

    cases: CaseCount
    samples: int | None
    arms: ByGroup[ArmActivity]
    falls_at_every_step: bool
    arms_above_previous: tuple[str, ...]
    first_minus_last: Estimate


@dataclass(frozen=True)
class ActivityInputs:
    """P(active) of n cases under every arm, `p_active` [arm, n], and what it is compared with.

    `sampled_counts` [arm, n, k] are the lesion counts of the samples from which P(active) was
    counted, on the same seeds for all arms of a case and on other seeds for each case; None where
    the networks give P(active) themselves. `true_counts` [arm, n] are the lesions that simulated
    patients would have had; None where they are not known.
    """

    p_active: Floats
    sampled_counts: Floats | None = None
    true_counts: Floats | None = None


def activity_by_arm(
    inputs: ActivityInputs, *, arms: Sequence[str], training_rate: Floats, bootstrap: Bootstrap
) -> ActivityByArm:
    """Return mean P(active) by arm; `training_rate` [arm] is NaN for arms without patients."""
    p_active = inputs.p_active
    weights = bootstrap.weights(p_active.shape[1])
    rows = {
        name: ArmActivity(
            p_active=estimate_mean(p_active[index], weights),
            minus_previous=estimate_mean(p_active[index] - p_active[index - 1], weights)
            if index
            else None,
            monte_carlo_error=None
            if inputs.sampled_counts is None
            else stratified_error((inputs.sampled_counts[index] > 0).astype(np.float64)),
            training_rate=None if np.isnan(training_rate[index]) else float(training_rate[index]),
            true_rate=None
            if inputs.true_counts is None
            else float((inputs.true_counts[index] > 0).mean()),
        )
        for index, name in enumerate(arms)
    }
    means = [row.p_active.value or 0.0 for row in rows.values()]
    return ActivityByArm(
        cases=p_active.shape[1],
        samples=None if inputs.sampled_counts is None else inputs.sampled_counts.shape[2],
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
    )
