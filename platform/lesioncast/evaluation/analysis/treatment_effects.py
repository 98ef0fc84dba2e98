"""Effects of arms on the same cases: as forecast, and true where the trial is simulated.

An effect of a simulated patient includes the patient's own luck, which no forecast can know.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.evaluation.analysis.arm_errors import ArmMeanErrors, arm_mean_errors
from lesioncast.evaluation.baselines.baselines import ArmStatistics
from lesioncast.evaluation.causal.effects import (
    best_arm,
    drop_arm,
    individual_effects,
    is_active,
    kendall_tau_b,
    paired_and_independent_variance,
    policy_value,
)
from lesioncast.evaluation.metrics.bootstrap import (
    Bootstrap,
    estimate_difference,
    estimate_mean,
    estimate_ratio,
    estimate_rms,
    resampled_rms,
)
from lesioncast.evaluation.metrics.estimate import ByGroup, CaseCount, Estimate


@dataclass(frozen=True)
class MeanCount:
    """Mean lesion count of the same cases under one arm, as forecast and in truth.

    `training` is the mean of the training cases who received the arm; None if there are none. What
    needs the truth is None where it is not known.
    """

    forecast: Estimate
    forecast_minus_true: Estimate | None
    true: float | None
    training: float | None


@dataclass(frozen=True)
class ArmEffect:
    """Effect of one arm against the reference arm.

    `pehe` is the root mean square error of individual effects (Hill 2011), `pehe_of_arm_means` that
    of one effect for everyone, from the means of the training cases. `pehe_floor` is the root mean
    square of what nobody can know of a patient's effect at week 0, by the law of the simulation.
    `variance_reduction` is how many times the samples independent seeds would need for the same
    Monte Carlo error; None where nothing is sampled. What needs the truth is None where it is not
    known.
    """

    forecast: Estimate
    variance_reduction: Estimate | None = None
    true: Estimate | None = None
    forecast_minus_true: Estimate | None = None
    pehe: Estimate | None = None
    pehe_of_arm_means: Estimate | None = None
    pehe_minus_that_of_arm_means: Estimate | None = None
    pehe_floor: Estimate | None = None


@dataclass(frozen=True)
class EffectsByOutcome:
    """Effects of every arm but the reference, on activity and on the lesion count."""

    activity: ByGroup[ArmEffect]
    count: ByGroup[ArmEffect]


@dataclass(frozen=True)
class ArmRanking:
    """Kendall's tau-b between forecast and true counts over the arms.

    `kendall_tau` is the mean over the cases whose arms differ in both, of which there are `cases`.
    `kendall_tau_of_means` is between the arms' means; None where either has no order.
    """

    cases: CaseCount
    kendall_tau: Estimate
    kendall_tau_of_means: float | None


@dataclass(frozen=True)
class PolicyValues:
    """Mean true outcome of the cases, by how their arm is chosen; lower is better.

    `best_single_arm` is the arm with the fewest lesions in training, for everyone; None without
    training cases.
    """

    model: Estimate
    best_single_arm: Estimate | None
    random_arm: Estimate
    oracle: Estimate
    model_minus_best_single_arm: Estimate | None


@dataclass(frozen=True)
class Policy:
    """The value of choosing among `arms` by the fewest expected lesions."""

    arms: tuple[str, ...]
    best_single_arm: str | None
    activity: PolicyValues
    count: PolicyValues

    @property
    def group(self) -> str:
        """Return the arms to choose from as a label."""
        return f"among {', '.join(self.arms)}"


@dataclass(frozen=True)
class TreatmentEffects:
    """Effects of every arm against `reference_arm` on the same cases.

    `samples` is None where the lesion-load prior states what is expected, without sampling. Without
    a known truth `mean_count_errors` and `ranking` are None and `policies` is empty.
    """

    cases: CaseCount
    samples: int | None
    reference_arm: str
    mean_count: ByGroup[MeanCount]
    mean_count_errors: ArmMeanErrors | None
    outcomes: EffectsByOutcome
    ranking: ArmRanking | None
    policies: tuple[Policy, ...]

    @property
    def has_floor(self) -> bool:
        """Return whether the law of the simulation gave the floor of the PEHE."""
        return any(effect.pehe_floor is not None for effect in self.outcomes.count.values())


@dataclass(frozen=True)
class EffectVariances:
    """Variance of what nobody can know of each case's effects against the reference, [arm, n]."""

    activity: Floats
    count: Floats


@dataclass(frozen=True)
class ArmForecasts:
    """Forecasts of `cases`, n of them, under every arm.

    `p_active` and `lesions` [arm, n] are P(active) and the expected number of lesions.
    `sampled_counts` [arm, n, k] are the lesions of sample k, on the same seeds for all arms of a
    case and on other seeds for each case, from which both were computed; None where the lesion-load
    prior states both in closed form.
    """

    cases: tuple[int, ...]
    p_active: Floats
    lesions: Floats
    sampled_counts: Floats | None = None


@dataclass(frozen=True)
class EffectInputs:
    """Forecasts under every arm, and what they are compared with.

    `training` holds the arms' means in the training cases. `true_counts` [arm, n] are the lesions
    that the patients would have had, and `unknown` is the part of the effects that nobody can know;
    both are None where no simulation knows them.
    """

    forecasts: ArmForecasts
    training: ArmStatistics
    true_counts: Floats | None = None
    unknown: EffectVariances | None = None


def treatment_effects(
    inputs: EffectInputs, *, arms: Sequence[str], reference: int, bootstrap: Bootstrap
) -> TreatmentEffects:
    """Return the effects of every arm against the arm at index `reference`."""
    forecasts, training, true = inputs.forecasts, inputs.training, inputs.true_counts
    sampled, unknown = forecasts.sampled_counts, inputs.unknown
    weights = bootstrap.weights(len(forecasts.cases))
    activity = _OutcomeByArm(
        expected=forecasts.p_active,
        training_mean=training.activity,
        true=None if true is None else is_active(true),
        samples=None if sampled is None else is_active(sampled),
        unknown=None if unknown is None else unknown.activity,
    )
    count = _OutcomeByArm(
        expected=forecasts.lesions,
        training_mean=training.mean_count,
        true=true,
        samples=sampled,
        unknown=None if unknown is None else unknown.count,
    )
    return TreatmentEffects(
        cases=len(forecasts.cases),
        samples=None if sampled is None else sampled.shape[2],
        reference_arm=arms[reference],
        mean_count={name: _mean_count(count, arm, weights) for arm, name in enumerate(arms)},
        mean_count_errors=None
        if true is None
        else arm_mean_errors(count.expected, true, count.training_mean, weights),
        outcomes=EffectsByOutcome(
            activity=_effects(activity, arms, reference, weights),
            count=_effects(count, arms, reference, weights),
        ),
        ranking=None if true is None else _ranking(count.expected, true, weights),
        policies=()
        if true is None
        else _policies(count.expected, true, training, arms=arms, weights=weights),
    )


@dataclass(frozen=True)
class _OutcomeByArm:
    """One outcome under every arm, as in `ArmForecasts` and `EffectInputs`.

    `expected`, `true` and `unknown` are [arm, n], `samples` [arm, n, k], `training_mean` [arm].
    """

    expected: Floats
    training_mean: Floats
    true: Floats | None
    samples: Floats | None
    unknown: Floats | None


def _mean_count(count: _OutcomeByArm, arm: int, weights: Floats) -> MeanCount:
    training = count.training_mean[arm]
    return MeanCount(
        forecast=estimate_mean(count.expected[arm], weights),
        forecast_minus_true=None
        if count.true is None
        else estimate_mean(count.expected[arm] - count.true[arm], weights),
        true=None if count.true is None else float(count.true[arm].mean()),
        training=None if np.isnan(training) else float(training),
    )


def _effects(
    outcome: _OutcomeByArm, arms: Sequence[str], reference: int, weights: Floats
) -> dict[str, ArmEffect]:
    return {
        name: _effect(outcome, arm, reference, weights)
        for arm, name in enumerate(arms)
        if arm != reference
    }


def _effect(outcome: _OutcomeByArm, arm: int, reference: int, weights: Floats) -> ArmEffect:
    forecast = individual_effects(outcome.expected, arm, reference)
    variance_reduction = None
    if outcome.samples is not None:
        variances = paired_and_independent_variance(outcome.samples, arm, reference)
        variance_reduction = estimate_ratio(*variances, weights)
    if outcome.true is None:
        return ArmEffect(estimate_mean(forecast, weights), variance_reduction)
    true = individual_effects(outcome.true, arm, reference)
    constant = float(outcome.training_mean[arm] - outcome.training_mean[reference])
    errors, constant_errors = forecast - true, constant - true
    known_means = not np.isnan(constant)
    return ArmEffect(
        forecast=estimate_mean(forecast, weights),
        variance_reduction=variance_reduction,
        true=estimate_mean(true, weights),
        forecast_minus_true=estimate_mean(errors, weights),
        pehe=estimate_rms(errors, weights),
        pehe_of_arm_means=estimate_rms(constant_errors, weights) if known_means else None,
        pehe_minus_that_of_arm_means=estimate_difference(
            resampled_rms(errors), resampled_rms(constant_errors), weights
        )
        if known_means
        else None,
        pehe_floor=None
        if outcome.unknown is None
        else estimate_rms(np.sqrt(outcome.unknown[arm]), weights),
    )


def _ranking(forecast: Floats, true: Floats, weights: Floats) -> ArmRanking:
    tau = kendall_tau_b(forecast, true)
    (of_means,) = kendall_tau_b(forecast.mean(axis=1)[:, None], true.mean(axis=1)[:, None])
    return ArmRanking(
        cases=int((~np.isnan(tau)).sum()),
        kendall_tau=estimate_mean(tau, weights),
        kendall_tau_of_means=None if np.isnan(of_means) else float(of_means),
    )


def _policies(
    expected: Floats,
    true: Floats,
    training: ArmStatistics,
    *,
    arms: Sequence[str],
    weights: Floats,
) -> tuple[Policy, ...]:
    """Return the policy among all arms, and that without the best arm of the training cases.

    One arm may be best for everybody. The second policy shows what the model adds then.
    """
    best = best_arm(training.mean_count)
    policies = [_policy(expected, true, training.mean_count, arms=arms, weights=weights)]
    if best is not None and len(arms) > 2:
        names = [name for index, name in enumerate(arms) if index != best]
        rest = (drop_arm(values, best) for values in (expected, true, training.mean_count))
        policies.append(_policy(*rest, arms=names, weights=weights))
    return tuple(policies)


def _policy(
    expected: Floats, true: Floats, mean_count: Floats, *, arms: Sequence[str], weights: Floats
) -> Policy:
    best = best_arm(mean_count)

    def values(outcome: Floats) -> PolicyValues:
        chosen = policy_value(expected, outcome)
        single = None if best is None else outcome[best]
        return PolicyValues(
            model=estimate_mean(chosen, weights),
            best_single_arm=None if single is None else estimate_mean(single, weights),
            random_arm=estimate_mean(outcome.mean(axis=0), weights),
            oracle=estimate_mean(outcome.min(axis=0), weights),
            model_minus_best_single_arm=None
            if single is None
            else estimate_mean(chosen - single, weights),
        )

    return Policy(
        arms=tuple(arms),
        best_single_arm=None if best is None else arms[best],
        activity=values(is_active(true)),
        count=values(true),
    )
