"""Score the forecast and its baselines on the test cases, for one way of counting lesions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.calibration.conformal import LogCountForecast
from lesioncast.calibration.fit import Calibration, calibrate
from lesioncast.evaluation.analysis.spatial import f1_of_samples
from lesioncast.evaluation.analysis.validity.participants import Participant
from lesioncast.evaluation.analysis.validity.reliance import InputPredictions
from lesioncast.evaluation.baselines.methods import (
    MethodPredictions,
    baseline_methods,
    by_key,
    prior_methods,
    recalibrated_method,
    sampled_methods,
    stated_activity,
)
from lesioncast.evaluation.causal.schema import IdentifiabilityWarnings
from lesioncast.evaluation.features.censoring_table import CensoringTable
from lesioncast.evaluation.features.outcomes import EvaluationCases, OutcomeTable
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummaries, EnsembleSummary
from lesioncast.evaluation.provenance import Provenance
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.evaluation.where.measurements import WhereMeasurements
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.imaging.regions import REGIONS
from lesioncast.simulation.outcome_law.posterior import CounterfactualMoments
from storage import VisitSchedule

if TYPE_CHECKING:  # which needs pydantic: GPU benchmarks evaluate without it
    from lesioncast.bundle.calibration import BundleCalibration

CounterfactualCounts = Mapping[tuple[int, int], int]
"""(case, arm) -> the lesions that a simulated patient would have had under the arm."""


@dataclass(frozen=True)
class Variant:
    """One way of counting lesions: whether forecast and truth pass the morphological opening."""

    name: str
    open_forecast: bool
    open_truth: bool


PLAIN = Variant("plain", open_forecast=False, open_truth=False)
OPENED = Variant("opened", open_forecast=True, open_truth=True)
VARIANTS = (
    PLAIN,
    OPENED,
    Variant("opened_forecast", open_forecast=True, open_truth=False),
)


def headline_variant(*, applied: bool) -> Variant:
    """Return the variant that headline, findings, calibration and effects are about.

    It counts lesions as forecasts do: after the opening if that is `applied`.
    """
    return OPENED if applied else PLAIN


@dataclass(frozen=True)
class EvaluationContext:
    """What an evaluation is about: names, digests and sentences that its report carries.

    `spacing` (s, h, w) is in mm. `reference` is the index of the arm that effects are taken
    against. Arms are compared from the images of `comparison_sessions`. `visits` gives the trial's
    own labels and nominal days of the sessions. `opening` is true where forecasts count lesions
    after the opening. `calibration` is that of the bundle.
    """

    arms: tuple[str, ...]
    spacing: tuple[float, float, float]
    bundle: str
    seed: int
    disclaimers: tuple[str, ...] = ()
    reference: int = 0
    comparison_sessions: Sequence[str] = ()
    identifiability_warnings: IdentifiabilityWarnings | None = None
    provenance: Provenance | None = None
    visits: VisitSchedule = VisitSchedule()
    opening: bool = False
    calibration: "BundleCalibration | None" = None


@dataclass(frozen=True)
class EvaluationInputs:
    """Measured outcomes and sampled ensembles: all that an evaluation computes from.

    - `train` fits the baselines, `test` is scored, `validation` calibrates the forecast.
    - `factual` holds the ensemble of every test and validation case under its factual arm.
    - `counterfactual` holds that of every case in `counterfactual_cases` under every arm, from the
      images of the comparison sessions. `factual` is read where it is None.
    - `expected` gives, by case, what the prognostic prior expects under each arm, from the same
      images. It is empty for models that only sample.
    - `ground_truth` counts lesions as forecasts do. It is None for a trial that is not simulated.
    - `law` gives, by case, the exact moments of the outcomes under each arm given the record of
      w000. It is empty where the law of a simulation is not known.
    - `by_inputs` predicts the test cases from parts of their inputs; empty for models that only
      sample.
    - `subgroups` gives, by variable, the subgroup of each test case; None where it is unknown.
    - `participants` are all of the trial; empty where they are not known. `censoring` describes
      the cases with and without an outcome, the test cases first.
    - `where` holds the scores of maps and sampled masks, case by case.
    """

    train: OutcomeTable
    test: OutcomeTable
    factual: EnsembleSummaries
    counterfactual_cases: Sequence[int] = ()
    counterfactual: EnsembleSummaries | None = None
    expected: Mapping[int, Sequence[ExpectedOutcomes]] = field(default_factory=dict)
    ground_truth: CounterfactualCounts | None = None
    law: Mapping[int, CounterfactualMoments] = field(default_factory=dict)
    validation: OutcomeTable | None = None
    by_inputs: Sequence[InputPredictions] = ()
    subgroups: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    participants: Sequence[Participant] = ()
    censoring: CensoringTable | None = None
    where: WhereMeasurements | None = None


@dataclass(frozen=True)
class ScoredVariant:
    """Test cases, the forecast of their log counts, and every method's predictions for them.

    `calibration` is None without validation cases. It is also None where the validation cases were
    not sampled and the model does not state this variant's count in closed form.
    """

    cases: EvaluationCases
    log_counts: LogCountForecast
    methods: tuple[MethodPredictions, ...]
    calibration: Calibration | None


def factual_summaries(cases: OutcomeTable, summaries: EnsembleSummaries) -> list[EnsembleSummary]:
    """Return the summary of each case under the arm that it received, [n]."""
    return [summaries[key] for key in zip(cases.case, cases.arm.tolist(), strict=True)]


def score_variant(
    inputs: EvaluationInputs,
    variant: Variant,
    *,
    context: EvaluationContext,
    settings: EvaluationSettings,
) -> ScoredVariant:
    """Let every method predict the test cases, with lesions counted as in `variant`."""
    train, test = (table.cases(opening=variant.open_truth) for table in (inputs.train, inputs.test))
    summaries = factual_summaries(inputs.test, inputs.factual)
    opening = variant.open_forecast
    sampled = _sampled(summaries, opening=opening)
    calibration = _calibration(inputs, variant)
    forecast = (
        *_prior(summaries, opening=opening),
        *sampled_methods(sampled, test.count, has_prior=has_prior(summaries)),
    )
    methods = (
        *forecast,
        *_recalibrated(forecast, calibration, _log_odds(summaries, opening=opening)),
        *baseline_methods(
            train, test, arms=context.arms, runs=settings.monte_carlo_runs, seed=context.seed
        ),
    )
    return ScoredVariant(
        test, _log_count_forecast(summaries, opening=opening), methods, calibration
    )


def has_prior(summaries: Sequence[EnsembleSummary]) -> bool:
    """Return whether a prior drew the lesion load of the samples."""
    return all(summary.expected is not None for summary in summaries)


def _prior(summaries: Sequence[EnsembleSummary], *, opening: bool) -> tuple[MethodPredictions, ...]:
    """Return the prior's predictions; none after the opening, for which it has none."""
    stated = [summary.expected_outcomes(opening=opening) for summary in summaries]
    known = [one for one in stated if one is not None]
    return prior_methods(known) if len(known) == len(summaries) else ()


def _calibration(inputs: EvaluationInputs, variant: Variant) -> Calibration | None:
    if inputs.validation is None:
        return None
    opening = variant.open_forecast
    summaries = factual_summaries(inputs.validation, inputs.factual)
    if not all(summary.has_count_forecast(opening=opening) for summary in summaries):
        return None
    return calibrate(
        inputs.validation.cases(opening=variant.open_truth).count,
        _log_count_forecast(summaries, opening=opening),
        _log_odds(summaries, opening=opening),
    )


def _sampled(summaries: Sequence[EnsembleSummary], *, opening: bool) -> Floats:
    return np.array([summary.counts(opening=opening) for summary in summaries], np.float64)


def _log_count_forecast(summaries: Sequence[EnsembleSummary], *, opening: bool) -> LogCountForecast:
    """Return the mean and spread of log(1 + count) that each forecast states."""
    return LogCountForecast(
        np.array([summary.log_lesions(opening=opening) for summary in summaries], np.float64),
        np.array([summary.log_sd(opening=opening) for summary in summaries], np.float64),
    )


def _log_odds(summaries: Sequence[EnsembleSummary], *, opening: bool) -> Floats:
    return np.array([summary.log_odds(opening=opening) for summary in summaries], np.float64)


def _recalibrated(
    forecast: Sequence[MethodPredictions], calibration: Calibration | None, log_odds: Floats
) -> tuple[MethodPredictions, ...]:
    """Return the P(active) that a forecast states, recalibrated, if that is possible."""
    if calibration is None or calibration.platt_scaling is None:
        return ()
    stated = by_key(forecast, stated_activity([method.key for method in forecast]))
    probability = calibration.platt_scaling.probability(log_odds)
    return (recalibrated_method(stated, probability, calibration.cases),)


def case_columns(scored: ScoredVariant, summaries: Sequence[EnsembleSummary]) -> dict[str, Floats]:
    """Return further columns of cases.csv, [n] each, NaN where a case has no value."""
    columns: dict[str, Floats] = {}
    if scored.calibration is not None:
        columns["lesions_low_90"], columns["lesions_high_90"] = scored.calibration.intervals(
            scored.log_counts
        )
    comparisons = [summary.spatial for summary in summaries]
    columns["f1_sample"] = np.array([f1_of_samples(one) if one else np.nan for one in comparisons])
    columns["energy"] = np.array([one.energy if one else np.nan for one in comparisons])
    columns["diversity"] = np.array([one.diversity if one else np.nan for one in comparisons])
    for index, region in enumerate(REGIONS):
        columns[f"p_{region}"] = np.array(
            [
                np.nan if one is None or one.regions is None else one.regions[:, index].mean()
                for one in comparisons
            ]
        )
    return columns
