"""Effects of arms as plain numbers: beside the truth where it is known, within trials where not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

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
from lesioncast.evaluation.causal.trial_effects import (
    TrialContrast,
    arms_without_common_trial,
    concatenate_outcomes,
    contrasts,
    cross_fitted_aipw,
    fit_outcome_models,
    mean_difference,
)
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.scores import (
    Bootstrap,
    estimate_mean,
    estimate_of,
    estimate_ratio,
    estimate_rms,
)

Floats = npt.NDArray[np.float64]
Record = dict[str, Any]

OUTCOMES = ("activity", "count")


def treatment_effects(
    sampled: Floats,
    chance: Floats,
    *,
    arms: Sequence[str],
    reference: int,
    training: ArmStatistics,
    bootstrap: Bootstrap,
    true: Floats | None = None,
) -> Record:
    """Effects of every arm against `reference` on the forced cases, by outcome.

    `sampled` [arm, n, k], `chance` [arm, n], P(active), and `true` [arm, n] as in `effects`;
    `training` gives what an estimate that is the same for everyone would say. Without `true`, what
    needs it is null. `mean_count` is that of every arm.
    """
    weights = bootstrap.weights(sampled.shape[1])
    draws = {"activity": is_active(sampled), "count": sampled}
    expected = {"activity": chance, "count": sampled.mean(axis=2)}
    known = None if true is None else {"activity": is_active(true), "count": true}
    constant = {"activity": training.activity, "count": training.mean_count}
    return {
        "cases": sampled.shape[1],
        "samples": sampled.shape[2],
        "reference": arms[reference],
        "mean_count": {
            name: {
                "forecast": float(sampled[arm].mean()),
                "true": None if true is None else float(true[arm].mean()),
            }
            for arm, name in enumerate(arms)
        },
        "outcomes": {
            name: {
                arms[arm]: _effect(
                    draws[name],
                    expected[name],
                    None if known is None else known[name],
                    constant[name],
                    arm=arm,
                    reference=reference,
                    weights=weights,
                )
                for arm in range(len(arms))
                if arm != reference
            }
            for name in OUTCOMES
        },
        "ranking": None if true is None else _ranking(sampled, true, weights),
        "policy": None
        if true is None
        else _policies(sampled.mean(axis=2), true, training, arms=arms, weights=weights),
    }


def _effect(
    draws: Floats,
    expected: Floats,
    true: Floats | None,
    constant: Floats,
    *,
    arm: int,
    reference: int,
    weights: Floats,
) -> Record:
    """`pehe`: root mean square error of individual effects (Hill 2011), beside that of one effect
    for everyone; `seeds_saved`: samples that independent seeds would need, times those drawn."""
    told = individual_effects(expected, arm, reference)
    apart, paired = paired_and_independent_variance(draws, arm, reference)
    record: Record = {
        "forecast": estimate_mean(told, weights).as_dict(),
        "seeds_saved": estimate_ratio(apart, paired, weights).as_dict(),
        "true": None,
        "forecast_minus_true": None,
        "pehe": None,
        "pehe_of_arm_means": None,
    }
    if true is None:
        return record
    held = individual_effects(true, arm, reference)
    same = float(constant[arm] - constant[reference])
    return record | {
        "true": estimate_mean(held, weights).as_dict(),
        "forecast_minus_true": estimate_mean(told - held, weights).as_dict(),
        "pehe": estimate_rms(told - held, weights).as_dict(),
        "pehe_of_arm_means": None
        if np.isnan(same)
        else estimate_rms(same - held, weights).as_dict(),
    }


def _ranking(sampled: Floats, true: Floats, weights: Floats) -> Record:
    """Kendall's tau-b between forecast and true counts over arms: mean over patients, and of the
    arms' means."""
    told = sampled.mean(axis=2)
    tau = kendall_tau_b(told, true)
    (pooled,) = kendall_tau_b(told.mean(axis=1)[:, None], true.mean(axis=1)[:, None])
    return {
        "patients": int((~np.isnan(tau)).sum()),
        "tau": estimate_mean(tau, weights).as_dict(),
        "tau_of_means": None if np.isnan(pooled) else float(pooled),
    }


def _policies(
    expected: Floats,
    true: Floats,
    training: ArmStatistics,
    *,
    arms: Sequence[str],
    weights: Floats,
) -> list[Record]:
    """With all arms to choose from, and, as one arm may be best for everybody, without the best."""
    best = best_arm(training.mean_count)
    rows = [_policy(expected, true, training.mean_count, arms=arms, weights=weights)]
    if best is not None and len(arms) > 2:
        names = [name for place, name in enumerate(arms) if place != best]
        rest = (drop_arm(values, best) for values in (expected, true, training.mean_count))
        rows.append(_policy(*rest, arms=names, weights=weights))
    return rows


def _policy(
    expected: Floats, true: Floats, mean_count: Floats, *, arms: Sequence[str], weights: Floats
) -> Record:
    best = best_arm(mean_count)
    values: Record = {}
    for name, outcome in (("activity", is_active(true)), ("count", true)):
        chosen = policy_value(expected, outcome)
        single = None if best is None else outcome[best]
        values[name] = {
            "model": estimate_mean(chosen, weights).as_dict(),
            "best_single": None if single is None else estimate_mean(single, weights).as_dict(),
            "random": estimate_mean(outcome.mean(axis=0), weights).as_dict(),
            "oracle": estimate_mean(outcome.min(axis=0), weights).as_dict(),
            "model_minus_best_single": None
            if single is None
            else estimate_mean(chosen - single, weights).as_dict(),
        }
    return {
        "arms": list(arms),
        "best_single": None if best is None else arms[best],
        "value": values,
    }


def contrast_record(
    parts: Sequence[OutcomeTable], *, arms: Sequence[str], reference: int, bootstrap: Bootstrap
) -> Record:
    """Observed effects within each trial, and the pairs of arms that no trial holds together."""
    trial, arm, scalars, count = concatenate_outcomes(parts)
    rows = [
        _contrast(each, scalars[each.rows], count[each.rows], arms=arms, bootstrap=bootstrap)
        for each in contrasts(trial, arm, reference)
    ]
    apart = arms_without_common_trial(trial, arm, len(arms))
    return {"rows": rows, "not_identified": [[arms[a], arms[b]] for a, b in apart]}


def _contrast(
    each: TrialContrast,
    scalars: Floats,
    count: Floats,
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> Record:
    weights = bootstrap.weights(len(count))
    activity = is_active(count)
    record: Record = {
        "trial": each.trial,
        "arm": arms[each.arm],
        "reference": arms[each.reference],
        "cases": [int(each.treated.sum()), int((~each.treated).sum())],
    }
    parts = cross_fitted_aipw(
        scalars, count, each.treated, fit=fit_outcome_models, seed=bootstrap.seed
    )
    for name, outcome, adjusted in zip(OUTCOMES, (activity, count), parts, strict=True):
        record[name] = {
            "difference": estimate_of(mean_difference(outcome, each.treated), weights).as_dict(),
            "aipw": estimate_mean(adjusted, weights).as_dict(),
        }
    return record
