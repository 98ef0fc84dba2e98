"""Scores of the forecast by brain region (paper, table 2).

Every method gives a probability that a region will have a new lesion. AUC and average precision
score it without a threshold. The other scores need one, which every method takes by the same rule
(`matching_threshold`) and without the outcome of any test case.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools, Floats
from lesioncast.evaluation.baselines.methods import sampled_label
from lesioncast.evaluation.baselines.regional import (
    RegionalPrediction,
    RegionMethods,
    sampled_cases,
)
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.bootstrap import Bootstrap, estimate_of
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummary
from lesioncast.evaluation.metrics.estimate import (
    ByGroup,
    ByMethod,
    CaseCount,
    Estimate,
    PositiveCount,
)
from lesioncast.evaluation.metrics.scores import AP_RANKING, AUC_RANKING, estimate_over_runs
from lesioncast.imaging.regions import REGIONS


@dataclass(frozen=True)
class RegionalScores:
    """Scores of one method in one region.

    `auc` and `average_precision` are those of its probability. The others are of the yes or no at
    `threshold`: yes from this probability on. It is None where the method says no of every case,
    and for methods that draw yes or no.
    """

    auc: Estimate
    average_precision: Estimate
    threshold: float | None
    balanced_accuracy: Estimate
    precision: Estimate
    recall: Estimate
    f1: Estimate


@dataclass(frozen=True)
class RegionReport:
    """Scores of every method in one region; a case is positive with a lesion voxel in it.

    `training_share` is the share of positive training cases; None without any.
    """

    positives: PositiveCount
    training_share: float | None
    methods: ByMethod[RegionalScores]


@dataclass(frozen=True)
class RegionalReport:
    """Scores by region, and the label of each method.

    Thresholds come from the methods' probabilities for `threshold_cases` validation cases; where
    there are none (0), from those for the test cases.
    """

    cases: CaseCount
    threshold_cases: int
    methods: Mapping[str, str]
    regions: ByGroup[RegionReport]


@dataclass(frozen=True)
class ResampledScores:
    """The fields of `RegionalScores` in every resample, each [b]."""

    balanced_accuracy: Floats
    precision: Floats
    recall: Floats
    f1: Floats


def binary_scores(true: Bools, present: Bools, weights: Floats) -> ResampledScores:
    """Score the predictions `present` [run, n] of `true` [n] in every resample.

    A score is NaN where a class or any positive prediction is missing. Runs without a score are
    left out of the mean.
    """
    predicted = present.T.astype(np.float64)
    hit, alarm = ((weights * side) @ predicted for side in (true, ~true))  # [b, run]
    positives, negatives = ((weights * side).sum(axis=1)[:, None] for side in (true, ~true))
    recall = _share(hit, positives)
    specificity = _share(negatives - alarm, negatives)
    return ResampledScores(
        balanced_accuracy=_over_runs((recall + specificity) / 2),
        precision=_over_runs(_share(hit, hit + alarm)),
        recall=_over_runs(recall),
        f1=_over_runs(_share(2 * hit, hit + alarm + positives)),
    )


def _share(part: Floats, whole: Floats) -> Floats:
    part, whole = np.broadcast_arrays(part, whole)
    share = np.full(part.shape, np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share


def _over_runs(values: Floats) -> Floats:
    defined = ~np.isnan(values)
    return _share(np.where(defined, values, 0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


def matching_threshold(probability: Floats, share: float) -> float:
    """Return the threshold from which on about a `share` of the `probability` [m] lies.

    Among the values of `probability`, and infinity for none, it is that whose share is nearest; of
    two as near, the higher. A rule such as 0.5 would say no of every rare region, whatever the
    method knows.
    """
    levels = np.append(np.unique(probability), np.inf)[::-1]
    above = np.array([np.mean(probability >= level) for level in levels])
    return float(levels[np.argmin(np.abs(above - share))])


@dataclass(frozen=True)
class RegionalInputs:
    """Training and test cases, and the factual ensembles `summaries` [n] of the test cases.

    The same of the validation cases, which give the thresholds; None without any. `has_prior` as in
    `sampled_label`. `closed_form` [n, region] are the risks that forecasts of the test cases state
    without samples, NaN for a case that has none; None for a bundle that states none.
    """

    train: OutcomeTable
    test: OutcomeTable
    summaries: Sequence[EnsembleSummary]
    validation: OutcomeTable | None = None
    validation_summaries: Sequence[EnsembleSummary] = ()
    has_prior: bool = False
    closed_form: Floats | None = None


def regional_report(
    inputs: RegionalInputs, *, arms: int, monte_carlo_runs: int, bootstrap: Bootstrap
) -> RegionalReport | None:
    """Return table 2 of the test cases; None where no case has a parcellation.

    A region is positive where any voxel of a lesion lies in it, in truth and forecast alike. The
    Monte Carlo baseline knows the region's share of the training cases, as in the paper.
    """
    scored = sampled_cases(inputs.test, inputs.summaries)
    if scored is None:
        return None
    validation = (
        None
        if inputs.validation is None
        else sampled_cases(inputs.validation, inputs.validation_summaries)
    )
    closed_form = None if inputs.closed_form is None else inputs.closed_form[scored.rows]
    if closed_form is not None and np.isnan(closed_form).any():
        closed_form = None
    weights = bootstrap.weights(int(scored.rows.sum()))
    labels: dict[str, str] = {}
    reports = {}
    for index, region in enumerate(REGIONS):
        true = scored.table.regions[scored.rows, index] == 1
        region_of = RegionMethods(inputs.train, scored, validation or scored, index, closed_form)
        predictions = [
            *region_of.stated(),
            *region_of.sampled(sampled_label(has_prior=inputs.has_prior)),
            *region_of.baselines(arms, runs=monte_carlo_runs, seed=bootstrap.seed),
        ]
        labels |= {one.key: one.label for one in predictions}
        share = region_of.training_share
        reports[region] = RegionReport(
            positives=int(true.sum()),
            training_share=share,
            methods={one.key: _scores(true, one, share, weights) for one in predictions},
        )
    return RegionalReport(
        cases=int(scored.rows.sum()),
        threshold_cases=0 if validation is None else int(validation.rows.sum()),
        methods=labels,
        regions=reports,
    )


def _scores(
    true: Bools, prediction: RegionalPrediction, share: float | None, weights: Floats
) -> RegionalScores:
    runs, reference = prediction.probability, prediction.reference
    # Without training cases of known regions only the samples are scored, at half of them.
    threshold = 0.5 if reference is None or share is None else matching_threshold(reference, share)
    present = runs >= threshold
    has_threshold = reference is not None and np.isfinite(threshold)

    def score(of: Callable[[ResampledScores], Floats]) -> Estimate:
        return estimate_of(lambda weights: of(binary_scores(true, present, weights)), weights)

    return RegionalScores(
        auc=estimate_over_runs(AUC_RANKING, true, runs, weights),
        average_precision=estimate_over_runs(AP_RANKING, true, runs, weights),
        threshold=threshold if has_threshold else None,
        balanced_accuracy=score(lambda scores: scores.balanced_accuracy),
        precision=score(lambda scores: scores.precision),
        recall=score(lambda scores: scores.recall),
        f1=score(lambda scores: scores.f1),
    )
