"""Tables of whole-mask scores: each method, paired differences, and the share of the way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.evaluation.metrics.bootstrap import (
    Bootstrap,
    ResampledScore,
    estimate_difference,
    estimate_of,
    resampled_mean,
    safe_ratio,
)
from lesioncast.markdown import format_estimate, markdown_table
from tests.benchmarks.whole_masks.classifier import classifier_auc
from tests.benchmarks.whole_masks.draws import EXACT, NETWORKS, PLACES, STORED, VOXELS
from tests.benchmarks.whole_masks.scores import (
    CASE_SCORES,
    DISTRIBUTIONS,
    MaskSummary,
    histograms,
    wasserstein,
)

COMPARED = (
    (NETWORKS, VOXELS), (NETWORKS, STORED), (PLACES, STORED), (EXACT, STORED),
)  # fmt: skip
SHARES = ((PLACES, STORED), (EXACT, STORED), (PLACES, VOXELS))
BOOTSTRAP = Bootstrap(draws=300, seed=0)


@dataclass(frozen=True)
class Scored:
    """Scores of n cases by method."""

    #: `CASE_SCORES` of each method, [n, score].
    by_case: Mapping[str, Floats]
    #: Kernel scores of a forecast without lesions, [n, width].
    of_empty: Floats
    #: Summaries of each method's masks, by case and sample.
    summaries: Mapping[str, Sequence[Sequence[MaskSummary]]]
    #: Summary of the observed mask of each case.
    observed: Sequence[MaskSummary]
    #: Features of the lesions of each method's masks, [lesion, feature] of each case.
    features: Mapping[str, Sequence[Floats]]
    #: The same of the observed masks.
    observed_features: Sequence[Floats]

    def resampled(self) -> dict[str, dict[str, ResampledScore]]:
        """Return each score of each method, by score and method; lower is better."""
        scores: dict[str, dict[str, ResampledScore]] = {}
        for place, name in enumerate(CASE_SCORES):
            scores[name] = {
                method: self._mean(values[:, place], place)
                for method, values in self.by_case.items()
            }
        for name in DISTRIBUTIONS:
            observed = histograms([[one] for one in self.observed], name)
            scores[f"W1 {name}"] = {
                method: wasserstein(histograms(masks, name), observed, name)
                for method, masks in self.summaries.items()
            }
        scores["classifier AUC"] = {
            method: classifier_auc(self.observed_features, features)
            for method, features in self.features.items()
        }
        return scores

    def _mean(self, values: Floats, place: int) -> ResampledScore:
        """Return a mean over cases; kernel scores are relative to empty masks."""
        if place >= self.of_empty.shape[1]:
            return lambda weights: resampled_mean(values, weights)
        empty = self.of_empty[:, place]
        return lambda weights: safe_ratio(weights @ values, weights @ empty)


def tables(scored: Scored) -> list[str]:
    """Return the tables: scores, paired differences, shares of the way."""
    weights = BOOTSTRAP.weights(len(scored.observed))
    scores = scored.resampled()
    methods = list(scored.by_case)
    parts = [
        markdown_table(
            ["score", *methods],
            [
                [name, *(format_estimate(estimate_of(by[method], weights)) for method in methods)]
                for name, by in scores.items()
            ],
        )
    ]
    pairs = [pair for pair in COMPARED if set(pair) <= set(methods)]
    differences = [
        [name, *(estimate_difference(by[one], by[other], weights) for one, other in pairs)]
        for name, by in scores.items()
    ]
    parts.append(
        markdown_table(
            ["score", *(f"{one} - {other}" for one, other in pairs)],
            [[name, *map(format_estimate, row)] for name, *row in differences],
        )
    )
    ends = [pair for pair in SHARES if set(pair) <= set(methods)]
    return [*parts, shares_of_the_way(scores, ends, weights)] if ends else parts


def shares_of_the_way(
    scores: Mapping[str, Mapping[str, ResampledScore]],
    ends: Sequence[tuple[str, str]],
    weights: Floats,
) -> str:
    """Return the table of how far the networks come from each start to each end."""
    rows = [
        [
            name,
            *(
                format_estimate(
                    estimate_of(share(by[NETWORKS], by[start], by[end]), weights), digits=2
                )
                for end, start in ends
            ),
        ]
        for name, by in scores.items()
    ]
    return markdown_table(["share of the way", *(f"{start} to {end}" for end, start in ends)], rows)


def share(one: ResampledScore, start: ResampledScore, end: ResampledScore) -> ResampledScore:
    """Return which share of the way from `start` to `end` a score lies, 1 at the end."""

    def score(weights: Floats) -> Floats:
        way = start(weights) - end(weights)
        gone = start(weights) - one(weights)
        return np.divide(gone, way, out=np.full_like(way, np.nan), where=way != 0)

    return score
