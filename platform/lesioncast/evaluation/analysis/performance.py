"""All figures of one evaluation as plain numbers: what scores.json holds.

A group is `pooled` or an arm. Every estimate is {value, low, high, defined}; null is undefined.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.baselines.methods import (
    ARM_RATE,
    COVARIATES,
    ENSEMBLE,
    LOG_MEAN,
    REGRESSION,
    MethodPredictions,
    by_key,
)
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics import scores
from lesioncast.evaluation.metrics.names import AP, AUC, LOG_MSE
from lesioncast.evaluation.metrics.scores import (
    Bootstrap,
    estimate,
    estimate_difference,
    estimate_mean,
    estimate_of,
)
from lesioncast.forecasting.ensemble import stratified_error

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Record = dict[str, Any]

POOLED = "pooled"
AUC_WITHIN_ARM = "auc_within"
BIAS = "bias"  # of the count: mean forecast minus observed
POINT = {AP: scores.average_precision, AUC: scores.roc_auc}
RESAMPLED = {AP: scores.resampled_ap, AUC: scores.resampled_auc}


def groups(cases: EvaluationCases, arms: Sequence[str]) -> Iterator[tuple[str, Bools]]:
    """(name, member [n]) of the pooled cases and of each arm that has any."""
    yield POOLED, np.ones(len(cases.arm), bool)
    for index, name in enumerate(arms):
        if (member := cases.arm == index).any():
            yield name, member


def activity_record(
    cases: EvaluationCases,
    methods: Sequence[MethodPredictions],
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> Record:
    """AP, AUC and Brier score of every method that scores activity, in every group."""
    record: Record = {}
    for name, member in groups(cases, arms):
        weights = bootstrap.weights(int(member.sum()))
        active = cases.active[member]
        record[name] = {
            "cases": len(active),
            "positives": int(active.sum()),
            "methods": {
                method.key: _activity_scores(active, method.scores[:, member], weights)
                for method in methods
                if method.scores is not None
            },
        }
        if name == POOLED:
            _add_within(record[name]["methods"], cases, methods, weights)
    return record


def _activity_scores(active: Bools, scores: Floats, weights: Floats) -> Record:
    record: Record = {
        metric: estimate(
            _run_mean([POINT[metric](active, score) for score in scores]),
            _over_runs(RESAMPLED[metric], active, scores),
            weights,
        ).as_dict()
        for metric in POINT
    }
    squared = np.mean((scores - active) ** 2, axis=0)
    record["brier"] = estimate_mean(squared, weights).as_dict()
    record["mean"] = float(scores.mean())
    return record


def _run_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _over_runs(
    score: Callable[[Bools, Floats, Floats], Floats], active: Bools, runs: Floats
) -> scores.Resampled:
    """The score's mean over the runs of a random method, in every resample."""
    return lambda weights: np.mean([score(active, run, weights) for run in runs], axis=0)


def _add_within(
    record: Record, cases: EvaluationCases, methods: Sequence[MethodPredictions], weights: Floats
) -> None:
    """AUC over pairs of the same arm: chance for whoever knows nothing but the arm."""
    for method in methods:
        if method.scores is None or len(method.scores) > 1:
            continue
        within = _within(cases, method.scores[0])
        record[method.key][AUC_WITHIN_ARM] = estimate_of(within, weights).as_dict()


def _within(cases: EvaluationCases, score: Floats) -> scores.Resampled:
    return lambda weights: scores.resampled_auc_within(cases.active, score, cases.arm, weights)


def count_record(
    cases: EvaluationCases,
    methods: Sequence[MethodPredictions],
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> Record:
    """Log-count MSE, CRPS, mean count and its error of every method that counts, in every group."""
    record: Record = {}
    for name, member in groups(cases, arms):
        weights = bootstrap.weights(int(member.sum()))
        true = cases.count[member]
        record[name] = {
            "cases": len(true),
            "true_mean": float(true.mean()),
            "methods": {
                method.key: _count_scores(true, method, member, weights)
                for method in methods
                if method.counts is not None
            },
        }
    return record


def _count_scores(
    true: Floats, method: MethodPredictions, member: Bools, weights: Floats
) -> Record:
    assert method.counts is not None
    counts = method.counts[member]
    errors = scores.log_count_errors(true, counts)
    record: Record = {
        LOG_MSE: estimate_mean(errors, weights).as_dict(),
        "mean": float(counts.mean()),
        BIAS: estimate_mean(counts - true, weights).as_dict(),
    }
    if method.crps is not None:
        record["crps"] = estimate_mean(method.crps[member], weights).as_dict()
    return record


def difference_record(
    cases: EvaluationCases, methods: Sequence[MethodPredictions], *, bootstrap: Bootstrap
) -> list[Record]:
    """Pooled paired differences: forecast minus each baseline, and what covariates add to one.

    The regression predicts a log count, so the forecast's mean of log counts stands beside it too.
    """
    weights = bootstrap.weights(len(cases.arm))
    pairs = [(ENSEMBLE, ARM_RATE), (ENSEMBLE, REGRESSION), (LOG_MEAN, REGRESSION)]
    if any(method.key == COVARIATES for method in methods):
        pairs += [(ENSEMBLE, COVARIATES), (COVARIATES, REGRESSION)]
    rows = []
    for of, minus in pairs:
        scored, against = (_pooled(cases, by_key(methods, key)) for key in (of, minus))
        for metric, resampled in scored.items():
            gap = estimate_difference(resampled, against[metric], weights)
            rows.append({"metric": metric, "of": of, "minus": minus, **gap.as_dict()})
    return rows


def _pooled(cases: EvaluationCases, method: MethodPredictions) -> dict[str, scores.Resampled]:
    assert method.counts is not None
    errors = scores.log_count_errors(cases.count, method.counts)
    of_count = {LOG_MSE: lambda weights: scores.resampled_mean(errors, weights)}
    if method.scores is None:
        return of_count
    return {
        AUC: _over_runs(scores.resampled_auc, cases.active, method.scores),
        AP: _over_runs(scores.resampled_ap, cases.active, method.scores),
        AUC_WITHIN_ARM: _within(cases, method.scores[0]),
        **of_count,
    }


def variant_record(
    cases: EvaluationCases,
    methods: Sequence[MethodPredictions],
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> Record:
    """One way of counting, scored in full."""
    return {
        "activity": activity_record(cases, methods, arms=arms, bootstrap=bootstrap),
        "count": count_record(cases, methods, arms=arms, bootstrap=bootstrap),
        "differences": difference_record(cases, methods, bootstrap=bootstrap),
    }


def activity_by_forced_arm(
    chance: Floats,
    *,
    arms: Sequence[str],
    train_rate: Floats,
    bootstrap: Bootstrap,
    sampled: Floats | None = None,
    true: Floats | None = None,
) -> Record:
    """Mean P(active) of the same cases forced onto every arm.

    `chance` [arm, n] is stated, or else the share of k samples whose lesions are `sampled`
    [arm, n, k], on the same seeds for all arms of a case and on others for each case; `train_rate`
    [arm] is what was observed of the patients who received the arm; `true` [arm, n] are the lesions
    that a simulated patient would have had, where that is known. Intervals are over cases, whose
    draws differ, so they hold the Monte Carlo error too: `mc_error` is that share of it.
    `minus_previous` is paired, against the arm before; `rising` names the arms that stand above the
    one before by more than chance.
    """
    weights = bootstrap.weights(chance.shape[1])
    record: Record = {
        "cases": chance.shape[1],
        "samples": None if sampled is None else sampled.shape[2],
        "arms": {},
    }
    for index, name in enumerate(arms):
        observed = float(train_rate[index])
        record["arms"][name] = {
            "p_active": estimate_mean(chance[index], weights).as_dict(),
            "minus_previous": estimate_mean(chance[index] - chance[index - 1], weights).as_dict()
            if index
            else None,
            "mc_error": None
            if sampled is None
            else stratified_error((sampled[index] > 0).astype(np.float64)),
            "train_rate": None if np.isnan(observed) else observed,
            "true_rate": None if true is None else float((true[index] > 0).mean()),
        }
    rates = [row["p_active"]["value"] for row in record["arms"].values()]
    record["falling"] = all(first > last for first, last in zip(rates, rates[1:], strict=False))
    record["rising"] = [
        name
        for name, row in record["arms"].items()
        if row["minus_previous"] and (row["minus_previous"]["low"] or 0) > 0
    ]
    record["first_minus_last"] = estimate_mean(chance[0] - chance[-1], weights).as_dict()
    return record
