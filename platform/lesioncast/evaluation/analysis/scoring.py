"""The forecast and its baselines on the test cases, for one way of counting lesions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.analysis.calibration import Calibration, calibrate
from lesioncast.evaluation.analysis.spatial import f1_of_samples
from lesioncast.evaluation.baselines.methods import (
    MethodPredictions,
    baseline_methods,
    ensemble_methods,
    recalibrated_method,
)
from lesioncast.evaluation.features.outcomes import EvaluationCases, OutcomeTable
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummary, Tallies
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.imaging.regions import REGIONS

Floats = npt.NDArray[np.float64]

PLAIN = "plain"
VARIANTS = {PLAIN: (False, False), "opened": (True, True), "opened_forecast": (True, False)}
"""Name -> whether the opening is applied to the forecast, to the truth."""


@dataclass(frozen=True)
class EvaluationContext:
    """What an evaluation is of: names and digests that its record carries, the index of the arm
    that effects are taken against, and the sessions by whose images arms are compared."""

    arms: tuple[str, ...]
    spacing: tuple[float, float, float]
    bundle: str
    seed: int
    notices: tuple[str, ...] = ()
    reference: int = 0
    compared: Sequence[str] = ()
    warnings: Mapping[str, Any] | None = None
    provenance: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ScoredVariant:
    """The test cases with the lesions of their samples [n, k], and what each method says of them.

    `calibration` is None without validation cases.
    """

    cases: EvaluationCases
    sampled: Floats
    methods: tuple[MethodPredictions, ...]
    calibration: Calibration | None


def factual_summaries(cases: OutcomeTable, tallies: Tallies) -> list[EnsembleSummary]:
    """The tally of each case under the arm that it received, [n]."""
    return [tallies[key] for key in zip(cases.case, cases.arm.tolist(), strict=True)]


def score_variant(
    train: OutcomeTable,
    test: OutcomeTable,
    tallies: Tallies,
    validation: OutcomeTable | None,
    *,
    name: str,
    context: EvaluationContext,
    settings: EvaluationSettings,
) -> ScoredVariant:
    """Every method in the variant called `name`."""
    opening, opening_truth = VARIANTS[name]
    known, asked = (outcomes.cases(opening=opening_truth) for outcomes in (train, test))
    own = factual_summaries(test, tallies)
    sampled = _sampled(own, opening=opening)
    learned = None
    if validation is not None:
        others = factual_summaries(validation, tallies)
        learned = calibrate(
            validation.cases(opening=opening_truth),
            _sampled(others, opening=opening),
            _log_odds(others, opening=opening),
        )
    chance = np.array([tally.p_active(opening=opening) for tally in own])
    log_lesions = np.array([tally.log_lesions(opening=opening) for tally in own])
    methods = (
        *ensemble_methods(sampled, chance, log_lesions, asked.count),
        *_recalibrated(learned, _log_odds(own, opening=opening)),
        *baseline_methods(
            known, asked, arms=context.arms, runs=settings.monte_carlo_runs, seed=context.seed
        ),
    )
    return ScoredVariant(asked, sampled, methods, learned)


def _sampled(tallies: Sequence[EnsembleSummary], *, opening: bool) -> Floats:
    return np.array([tally.counts(opening=opening) for tally in tallies], np.float64)


def _log_odds(tallies: Sequence[EnsembleSummary], *, opening: bool) -> Floats:
    return np.array([tally.log_odds(opening=opening) for tally in tallies], np.float64)


def _recalibrated(learned: Calibration | None, log_odds: Floats) -> tuple[MethodPredictions, ...]:
    if learned is None or learned.activity is None:
        return ()
    return (recalibrated_method(learned.activity.probability(log_odds), learned.cases),)


def case_columns(plain: ScoredVariant, own: Sequence[EnsembleSummary]) -> dict[str, Floats]:
    """Further numbers of each test case for cases.csv, [n] each, NaN where it has none."""
    columns: dict[str, Floats] = {}
    if plain.calibration is not None:
        columns["lesions_low_90"], columns["lesions_high_90"] = plain.calibration.intervals(
            plain.sampled
        )
    found = [tally.spatial for tally in own]
    columns["f1_sample"] = np.array([f1_of_samples(each) if each else np.nan for each in found])
    columns["energy"] = np.array([each.energy if each else np.nan for each in found])
    columns["diversity"] = np.array([each.diversity if each else np.nan for each in found])
    for place, region in enumerate(REGIONS):
        columns[f"p_{region}"] = np.array(
            [
                np.nan if each is None or each.regions is None else each.regions[:, place].mean()
                for each in found
            ]
        )
    return columns
