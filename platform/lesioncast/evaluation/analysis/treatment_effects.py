"""Effects of arms on the same cases: as forecast, and true where the trial is simulated."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Floats
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
    estimate_mean,
    estimate_ratio,
    estimate_rms,
)
from lesioncast.evaluation.metrics.estimate import ByGroup, CaseCount, Estimate


@dataclass(frozen=True)
class MeanCount:
    """Mean lesion count of one arm as forecast and in truth; `true` is None where not known."""

    forecast: float
    true: float | None


@dataclass(frozen=True)
class ArmEffect:
    """Effect of one arm against the reference arm.

    `variance_reduction` is how many times the samples independent seeds would need for the same
    Monte Carlo error. `pehe` is the root mean square error of individual effects (Hill 2011);
    `pehe_of_arm_means` is that of one effect for everyone, from the means of the training cases.
    What needs the truth is None where it is not known.
    """

    forecast: Estimate
    variance_reduction: Estimate
    true: Estimate | None = None
    forecast_minus_true: Estimate | None = None
    pehe: Estimate | None = None
    pehe_of_arm_means: Estimate | None = None


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
    """Effects of every arm against `reference_arm` on the counterfactual cases.

    `ranking` is None and `policies` is empty where the truth is not known.
    """

    cases: CaseCount
    samples: int
    reference_arm: str
    mean_count: ByGroup[MeanCount]
    outcomes: EffectsByOutcome
    ranking: ArmRanking | None
    policies: tuple[Policy, ...]


@dataclass(frozen=True)
class EffectInputs:
    """Forecasts of n cases under every arm, and the truth where a simulation knows it.

    `sampled_counts` [arm, n, k] are lesions of sample k, on the same seeds for all arms of a case.
    `p_active` [arm, n] is P(active). `true_counts` [arm, n] are the lesions that the patients would
    have had. `training` holds the arms' means in the training cases.
    """

    sampled_counts: Floats
    p_active: Floats
    training: ArmStatistics
    true_counts: Floats | None = None


def treatment_effects(
    inputs: EffectInputs, *, arms: Sequence[str], reference: int, bootstrap: Bootstrap
) -> TreatmentEffects:
    """Return the effects of every arm against the arm at index `reference`."""
    sampled, true, training = inputs.sampled_counts, inputs.true_counts, inputs.training
    weights = bootstrap.weights(sampled.shape[1])
    activity = _OutcomeByArm(
        samples=is_active(sampled),
        expected=inputs.p_active,
        true=None if true is None else is_active(true),
        training_mean=training.activity,
    )
    count = _OutcomeByArm(sampled, sampled.mean(axis=2), true, training.mean_count)
    return TreatmentEffects(
        cases=sampled.shape[1],
        samples=sampled.shape[2],
        reference_arm=arms[reference],
        mean_count={
            name: MeanCount(
                forecast=float(sampled[arm].mean()),
                true=None if true is None else float(true[arm].mean()),
            )
            for arm, name in enumerate(arms)
        },
        outcomes=EffectsByOutcome(
            activity=_effects(activity, arms, reference, weights),
            count=_effects(count, arms, reference, weights),
        ),
        ranking=None if true is None else _ranking(sampled, true, weights),
        policies=()
        if true is None
        else _policies(sampled.mean(axis=2), true, training, arms=arms, weights=weights),
    )


@dataclass(frozen=True)
class _OutcomeByArm:
    """One outcome under every arm: `samples` [arm, n, k], `expected` and `true` [arm, n]."""

    samples: Floats
    expected: Floats
    true: Floats | None
    training_mean: Floats


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
    independent, paired = paired_and_independent_variance(outcome.samples, arm, reference)
    variance_reduction = estimate_ratio(independent, paired, weights)
    if outcome.true is None:
        return ArmEffect(estimate_mean(forecast, weights), variance_reduction)
    true = individual_effects(outcome.true, arm, reference)
    constant = float(outcome.training_mean[arm] - outcome.training_mean[reference])
    return ArmEffect(
        forecast=estimate_mean(forecast, weights),
        variance_reduction=variance_reduction,
        true=estimate_mean(true, weights),
        forecast_minus_true=estimate_mean(forecast - true, weights),
        pehe=estimate_rms(forecast - true, weights),
        pehe_of_arm_means=None if np.isnan(constant) else estimate_rms(constant - true, weights),
    )


def _ranking(sampled: Floats, true: Floats, weights: Floats) -> ArmRanking:
    forecast = sampled.mean(axis=2)
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
