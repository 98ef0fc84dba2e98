"""The evaluation as one pure function: outcomes and sampled counts in, the record out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from lesioncast.evaluation.analysis.baseline_table import baseline_characteristics
from lesioncast.evaluation.analysis.calibration import calibration_record, probability_record
from lesioncast.evaluation.analysis.performance import (
    activity_by_forced_arm,
    groups,
    variant_record,
)
from lesioncast.evaluation.analysis.regional import regional_record
from lesioncast.evaluation.analysis.scoring import (
    PLAIN,
    VARIANTS,
    EvaluationContext,
    case_columns,
    factual_summaries,
    score_variant,
)
from lesioncast.evaluation.analysis.spatial import spatial_agreement
from lesioncast.evaluation.analysis.treatment_effects import contrast_record, treatment_effects
from lesioncast.evaluation.baselines.baselines import arm_statistics
from lesioncast.evaluation.baselines.methods import MethodPredictions
from lesioncast.evaluation.features.outcomes import EvaluationCases, OutcomeTable
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummary, Tallies
from lesioncast.evaluation.metrics.scores import Bootstrap
from lesioncast.evaluation.paper_results import BASELINE, PROPOSED, SOURCE
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.imaging.lesions import OPENING_MM, opening_element

Floats = npt.NDArray[np.float64]
CounterfactualCounts = Mapping[tuple[int, int], int]
"""(case, arm) -> the lesions that a simulated patient would have had under the arm, as drawn."""

SCHEMA = 6


@dataclass(frozen=True)
class EvaluationResult:
    """The record of metrics.json; cases and methods of the plain count, for table and figure.

    `columns` [n] are further numbers of each case, NaN where it has none.
    """

    record: dict[str, Any]
    cases: EvaluationCases
    methods: tuple[MethodPredictions, ...]
    forced: Floats | None
    columns: Mapping[str, Floats] = field(default_factory=dict)


def evaluate(
    train: OutcomeTable,
    test: OutcomeTable,
    tallies: Tallies,
    *,
    forced: Sequence[int],
    context: EvaluationContext,
    settings: EvaluationSettings,
    under_every_arm: Tallies | None = None,
    stated: Mapping[int, Sequence[ExpectedOutcomes]] | None = None,
    truth: CounterfactualCounts | None = None,
    validation: OutcomeTable | None = None,
) -> EvaluationResult:
    """Scores the forecast of the test cases beside the baselines fitted on the training cases.

    `tallies` holds every test and validation case under its own arm, `under_every_arm`, or else
    `tallies` too, the cases in `forced` under every arm, from the images of `context.compared`. So
    do, of every test case where they are known, `stated`, what the model states of a case under
    every arm before it draws, and `truth`.
    """
    arms = context.arms
    bootstrap = Bootstrap(settings.bootstrap, context.seed)
    idle = opening_element(context.spacing) == (1, 1, 1)
    ladder, effects, p_forced = _counterfactual_sections(
        train,
        test,
        under_every_arm or tallies,
        forced,
        stated=stated or {},
        truth=truth,
        context=context,
        bootstrap=bootstrap,
    )
    by_variant = {
        name: score_variant(
            train, test, tallies, validation, name=name, context=context, settings=settings
        )
        for name in ([PLAIN] if idle else VARIANTS)
    }
    plain = by_variant[PLAIN]
    own = factual_summaries(test, tallies)
    splits = {"train": train, "test": test} | ({"validation": validation} if validation else {})
    record = {
        "schema": SCHEMA,
        "notices": list(context.notices),
        "warnings": context.warnings,
        "provenance": context.provenance,
        "bundle": context.bundle,
        "seed": context.seed,
        "samples": settings.samples,
        "bootstrap": settings.bootstrap,
        "arms": list(arms),
        "cases": {"train": len(train.case), "test": len(test.case)},
        "opening": {
            "mm": OPENING_MM,
            "element": list(opening_element(context.spacing)),
            "idle": idle,
        },
        "methods": {method.key: method.label for method in plain.methods},
        "cohort": baseline_characteristics(splits, arms),
        "variants": {
            name: variant_record(each.cases, each.methods, arms=arms, bootstrap=bootstrap)
            for name, each in by_variant.items()
        },
        "regional": regional_record(
            train, test, own, arms=len(arms), runs=settings.monte_carlo_runs, bootstrap=bootstrap
        ),
        "masks": _masks(plain.cases, own, arms=arms, bootstrap=bootstrap),
        "probabilities": probability_record(plain.cases, plain.methods, bootstrap=bootstrap),
        "calibration": None
        if plain.calibration is None
        else calibration_record(
            plain.calibration, plain.cases, plain.sampled, arms=arms, bootstrap=bootstrap
        ),
        "compared": list(context.compared),
        "ladder": ladder,
        "effects": effects,
        "contrasts": contrast_record(
            list(splits.values()), arms=arms, reference=context.reference, bootstrap=bootstrap
        ),
        "published": {"source": SOURCE, "proposed": PROPOSED, "baseline": BASELINE},
    }
    return EvaluationResult(record, plain.cases, plain.methods, p_forced, case_columns(plain, own))


def _masks(
    cases: EvaluationCases,
    own: Sequence[EnsembleSummary],
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> dict[str, Any] | None:
    """None where masks were let go before anything was laid beside them."""
    found = [each.spatial for each in own if each.spatial is not None]
    if len(found) < len(own):
        return None
    return spatial_agreement(found, groups(cases, arms), bootstrap=bootstrap)


def _counterfactual_sections(
    train: OutcomeTable,
    test: OutcomeTable,
    tallies: Tallies,
    forced: Sequence[int],
    *,
    stated: Mapping[int, Sequence[ExpectedOutcomes]],
    truth: CounterfactualCounts | None,
    context: EvaluationContext,
    bootstrap: Bootstrap,
) -> tuple[dict[str, Any] | None, dict[str, Any] | None, Floats | None]:
    """The ladder, the effects and P(active) [case, arm] of the forced cases; None without any.

    What is stated needs no draws, so that the ladder is then of all test cases.
    """
    names, arms = context.arms, range(len(context.arms))
    training = arm_statistics(train.arm, train.plain, arms=len(names))
    ladder = effects = p_forced = None
    ladder_of = partial(
        activity_by_forced_arm, arms=names, train_rate=training.activity, bootstrap=bootstrap
    )
    if forced:
        told = [[tallies[case, arm] for case in forced] for arm in arms]
        sampled = np.array([[tally.plain for tally in row] for row in told], np.float64)
        chance = np.array([[tally.p_active(opening=False) for tally in row] for row in told])
        true = _true(truth, forced, arms)
        p_forced, ladder = chance.T, ladder_of(chance, sampled=sampled, true=true)
        effects = treatment_effects(
            sampled,
            chance,
            arms=names,
            reference=context.reference,
            training=training,
            bootstrap=bootstrap,
            true=true,
        )
    if set(test.case) <= set(stated):
        chance = np.array([[each.p_active for each in stated[case]] for case in test.case]).T
        ladder = ladder_of(chance, true=_true(truth, test.case, arms))
    return ladder, effects, p_forced


def _true(
    truth: CounterfactualCounts | None, cases: Sequence[int], arms: Sequence[int]
) -> Floats | None:
    """The true lesions of the cases, [arm, n]."""
    if truth is None:
        return None
    return np.array([[truth[case, arm] for case in cases] for arm in arms], np.float64)
