"""Scores of the forecast by brain region (paper, table 2)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Bools, Floats
from lesioncast.evaluation.baselines.baselines import fit_regression_baseline, monte_carlo
from lesioncast.evaluation.baselines.methods import SAMPLED
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
from lesioncast.imaging.regions import REGIONS


@dataclass(frozen=True)
class RegionalScores:
    """Scores of one method in one region."""

    balanced_accuracy: Estimate
    precision: Estimate
    recall: Estimate
    f1: Estimate


@dataclass(frozen=True)
class RegionReport:
    """Scores of every method in one region; a case is positive with a lesion voxel in it."""

    positives: PositiveCount
    methods: ByMethod[RegionalScores]


@dataclass(frozen=True)
class RegionalReport:
    """Scores by region, and the label of each method."""

    cases: CaseCount
    methods: Mapping[str, str]
    regions: ByGroup[RegionReport]


@dataclass(frozen=True)
class ResampledScores:
    """The fields of `RegionalScores` in every resample, each [b]."""

    balanced_accuracy: Floats
    precision: Floats
    recall: Floats
    f1: Floats


@dataclass(frozen=True)
class RegionalPrediction:
    """The regions that one method forecasts, `present` [run, n]; scores are means over runs."""

    key: str
    label: str
    present: Bools


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


@dataclass(frozen=True)
class RegionalInputs:
    """Training and test cases, and the factual ensembles `summaries` [n] of the test cases."""

    train: OutcomeTable
    test: OutcomeTable
    summaries: Sequence[EnsembleSummary]


def regional_report(
    inputs: RegionalInputs, *, arms: int, monte_carlo_runs: int, bootstrap: Bootstrap
) -> RegionalReport | None:
    """Return table 2 of the test cases; None where no case has a parcellation.

    A region is positive where any voxel of a lesion lies in it, in truth and forecast alike. The
    Monte Carlo baseline knows the region's share of the training cases, as in the paper.
    """
    test = inputs.test
    regions = [None if one.spatial is None else one.spatial.regions for one in inputs.summaries]
    usable = np.array([one is not None for one in regions]) & ~np.isnan(test.regions).any(axis=1)
    if not usable.any():
        return None
    samples = np.stack([one for one in regions if one is not None], axis=1)  # [k, m, region]
    samples = samples[:, usable[[one is not None for one in regions]]]
    weights = bootstrap.weights(int(usable.sum()))
    labels: dict[str, str] = {}
    reports = {}
    for index, region in enumerate(REGIONS):
        true = test.regions[usable, index] == 1
        baselines = _RegionalBaselines(inputs.train, index, arms, monte_carlo_runs, bootstrap.seed)
        predictions = [*_forecasts(samples[:, :, index]), *baselines.predict(test, usable)]
        labels |= {one.key: one.label for one in predictions}
        reports[region] = RegionReport(
            positives=int(true.sum()),
            methods={one.key: _scores(true, one.present, weights) for one in predictions},
        )
    return RegionalReport(cases=int(usable.sum()), methods=labels, regions=reports)


def _forecasts(samples: Bools) -> list[RegionalPrediction]:
    share = samples.mean(axis=0)
    return [
        RegionalPrediction(SAMPLED, "half of the samples or more", share[None] >= 0.5),
        RegionalPrediction("sample", f"one sample (mean of {len(samples)})", samples),
    ]


@dataclass(frozen=True)
class _RegionalBaselines:
    """Baselines of the region at `index`, fitted on the training cases whose regions are known."""

    train: OutcomeTable
    index: int
    arms: int
    runs: int
    seed: int

    def predict(self, test: OutcomeTable, usable: Bools) -> list[RegionalPrediction]:
        """Return the predictions for the `usable` [n] test cases; none without training cases."""
        train = self.train
        has_regions = ~np.isnan(train.regions[:, self.index])
        if not has_regions.any():
            return []
        observed = train.regions[has_regions, self.index]
        rate = np.full(int(usable.sum()), observed.mean())
        model = fit_regression_baseline(
            train.image_features[has_regions], train.arm[has_regions], observed, arms=self.arms
        )
        probability = model.probability(test.image_features[usable], test.arm[usable])
        return [
            RegionalPrediction(
                "monte_carlo",
                f"Monte Carlo from the region's rate (mean of {self.runs} runs)",
                monte_carlo(rate, runs=self.runs, seed=self.seed) > 0,
            ),
            RegionalPrediction(
                "regression",
                "Logistic regression on image features, 0.5 or more",
                probability[None] >= 0.5,
            ),
        ]


def _scores(true: Bools, present: Bools, weights: Floats) -> RegionalScores:
    def score(of: Callable[[ResampledScores], Floats]) -> Estimate:
        return estimate_of(lambda weights: of(binary_scores(true, present, weights)), weights)

    return RegionalScores(
        balanced_accuracy=score(lambda scores: scores.balanced_accuracy),
        precision=score(lambda scores: scores.precision),
        recall=score(lambda scores: scores.recall),
        f1=score(lambda scores: scores.f1),
    )
