"""Whether the right region is forecast: the paper's table 2."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.baselines.baselines import fit_regression_baseline, monte_carlo
from lesioncast.evaluation.features.outcomes import OutcomeTable
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummary
from lesioncast.evaluation.metrics.scores import Bootstrap, Resampled, estimate_of
from lesioncast.imaging.regions import REGIONS

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Record = dict[str, Any]

BA, PRECISION, RECALL, F1 = "balanced_accuracy", "precision", "recall", "f1"
SCORES = (BA, PRECISION, RECALL, F1)


@dataclass(frozen=True)
class RegionalPrediction:
    """What one method says of each case, `present` [run, n]; its scores are means over runs."""

    key: str
    label: str
    present: Bools


def binary_scores(true: Bools, present: Bools, weights: Floats) -> dict[str, Floats]:
    """`SCORES` of the answers `present` [run, n] in every resample, each [b].

    NaN where a class, or any positive answer, is missing; runs without an answer are left out.
    """
    said = present.T.astype(np.float64)
    hit, alarm = ((weights * side) @ said for side in (true, ~true))  # [b, run]
    positives, negatives = ((weights * side).sum(axis=1)[:, None] for side in (true, ~true))
    recall = _share(hit, positives)
    specificity = _share(negatives - alarm, negatives)
    return {
        BA: _over_runs((recall + specificity) / 2),
        PRECISION: _over_runs(_share(hit, hit + alarm)),
        RECALL: _over_runs(recall),
        F1: _over_runs(_share(2 * hit, hit + alarm + positives)),
    }


def _share(part: Floats, whole: Floats) -> Floats:
    part, whole = np.broadcast_arrays(part, whole)
    share = np.full(part.shape, np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share


def _over_runs(values: Floats) -> Floats:
    known = ~np.isnan(values)
    return _share(np.where(known, values, 0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def regional_record(
    train: OutcomeTable,
    test: OutcomeTable,
    tallies: Sequence[EnsembleSummary],
    *,
    arms: int,
    runs: int,
    bootstrap: Bootstrap,
) -> Record | None:
    """Table 2 of the test cases, `tallies` [n]; None where no case has a parcellation.

    A region is positive where any voxel of a lesion lies in it, in truth and forecast alike. The
    Monte Carlo baseline knows the region's share of the training cases, as in the paper.
    """
    drawn = [None if each.spatial is None else each.spatial.regions for each in tallies]
    known = np.array([each is not None for each in drawn]) & ~np.isnan(test.regions).any(axis=1)
    if not known.any():
        return None
    samples = np.stack([each for each in drawn if each is not None], axis=1)  # [k, m, region]
    samples = samples[:, known[[each is not None for each in drawn]]]
    weights = bootstrap.weights(int(known.sum()))
    record: Record = {"cases": int(known.sum()), "methods": {}, "regions": {}}
    for place, region in enumerate(REGIONS):
        true = test.regions[known, place] == 1
        answers = [
            *_forecast(samples[:, :, place]),
            *_baselines(train, test, known, place, arms=arms, runs=runs, seed=bootstrap.seed),
        ]
        record["methods"] |= {answer.key: answer.label for answer in answers}
        record["regions"][region] = {
            "positives": int(true.sum()),
            "methods": {answer.key: _scores(true, answer.present, weights) for answer in answers},
        }
    return record


def _forecast(samples: Bools) -> list[RegionalPrediction]:
    share = samples.mean(axis=0)
    return [
        RegionalPrediction(
            "ensemble", "ControlNet ensemble, half of the samples or more", share[None] >= 0.5
        ),
        RegionalPrediction("sample", f"one sample (mean of {len(samples)})", samples),
    ]


def _baselines(
    train: OutcomeTable,
    test: OutcomeTable,
    asked: Bools,
    place: int,
    *,
    arms: int,
    runs: int,
    seed: int,
) -> list[RegionalPrediction]:
    known = ~np.isnan(train.regions[:, place])
    if not known.any():
        return []
    seen = train.regions[known, place]
    rate = np.full(int(asked.sum()), seen.mean())
    model = fit_regression_baseline(train.scalars[known], train.arm[known], seen, arms=arms)
    chance = model.probability(test.scalars[asked], test.arm[asked])
    drawn = monte_carlo(rate, runs=runs, seed=seed) > 0
    return [
        RegionalPrediction(
            "monte_carlo", f"Monte Carlo from the region's rate (mean of {runs} runs)", drawn
        ),
        RegionalPrediction(
            "regression", "Logistic regression on image scalars, 0.5 or more", chance[None] >= 0.5
        ),
    ]


def _scores(true: Bools, present: Bools, weights: Floats) -> Record:
    def resampled(name: str) -> Resampled:
        return lambda weights: binary_scores(true, present, weights)[name]

    return {name: estimate_of(resampled(name), weights).as_dict() for name in SCORES}
