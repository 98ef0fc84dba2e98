"""The evaluation as one pure function: outcomes and sampled counts in, the report out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lesioncast.arrays import Floats
from lesioncast.evaluation.analysis.activity_by_arm import ActivityByArm, activity_by_arm
from lesioncast.evaluation.analysis.baseline_table import baseline_characteristics
from lesioncast.evaluation.analysis.calibration import calibration_report, probability_calibration
from lesioncast.evaluation.analysis.performance import groups, variant_report
from lesioncast.evaluation.analysis.regional import RegionalInputs, regional_report
from lesioncast.evaluation.analysis.schema import (
    SCHEMA,
    EvaluationReport,
    OpeningReport,
    SplitSizes,
)
from lesioncast.evaluation.analysis.scoring import (
    PLAIN,
    VARIANTS,
    EvaluationContext,
    EvaluationInputs,
    case_columns,
    factual_summaries,
    has_prior,
    headline_variant,
    score_variant,
)
from lesioncast.evaluation.analysis.spatial import SpatialAgreement, spatial_agreement
from lesioncast.evaluation.analysis.stated_intervals import stated_calibration
from lesioncast.evaluation.analysis.treatment_effects import (
    ArmForecasts,
    EffectInputs,
    EffectVariances,
    TreatmentEffects,
    treatment_effects,
)
from lesioncast.evaluation.analysis.trial_contrasts import trial_contrasts
from lesioncast.evaluation.analysis.validity.censoring import censoring_report
from lesioncast.evaluation.analysis.validity.decision_curve import decision_curve
from lesioncast.evaluation.analysis.validity.participants import participant_flow
from lesioncast.evaluation.analysis.validity.reliance import reliance_report
from lesioncast.evaluation.analysis.validity.subgroups import subgroup_report
from lesioncast.evaluation.analysis.where import closed_form_risks, where_report
from lesioncast.evaluation.baselines.baselines import arm_statistics
from lesioncast.evaluation.baselines.methods import MethodPredictions
from lesioncast.evaluation.features.outcomes import EvaluationCases
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.evaluation.metrics.ensemble_summary import EnsembleSummary
from lesioncast.evaluation.paper_results import PAPER_RESULTS
from lesioncast.evaluation.settings import EvaluationSettings
from lesioncast.imaging.lesions import OPENING_MM, opening_element


@dataclass(frozen=True)
class EvaluationResult:
    """The report, and the cases and predictions behind it for tables and figures.

    `cases` and `methods` count lesions as forecasts do. `counterfactual_p_active` [n, arm] is
    P(active) of the test cases under every arm, NaN for a case that was not forecast under every
    arm. `columns` are further values of each case, [n] each, NaN where it has none.
    """

    report: EvaluationReport
    cases: EvaluationCases
    methods: tuple[MethodPredictions, ...]
    counterfactual_p_active: Floats
    columns: Mapping[str, Floats] = field(default_factory=dict)


def evaluate(
    inputs: EvaluationInputs, context: EvaluationContext, settings: EvaluationSettings
) -> EvaluationResult:
    """Score the forecast of the test cases beside baselines fitted on the training cases."""
    arms = context.arms
    bootstrap = Bootstrap(settings.bootstrap, context.seed)
    element = opening_element(context.spacing)
    no_op = element == (1, 1, 1)
    applied = context.opening and not no_op
    counterfactual = _counterfactual_sections(inputs, context, bootstrap)
    scored = {
        variant.name: score_variant(inputs, variant, context=context, settings=settings)
        for variant in ([PLAIN] if no_op else VARIANTS)
    }
    headline = scored[headline_variant(applied=applied).name]
    summaries = factual_summaries(inputs.test, inputs.factual)
    tables = {"train": inputs.train, "test": inputs.test}
    if inputs.validation is not None:
        tables["validation"] = inputs.validation
    report = EvaluationReport(
        schema=SCHEMA,
        disclaimers=context.disclaimers,
        identifiability_warnings=context.identifiability_warnings,
        provenance=context.provenance,
        bundle=context.bundle,
        seed=context.seed,
        samples=settings.samples,
        bootstrap_resamples=settings.bootstrap,
        arms=arms,
        cases=SplitSizes(train=len(inputs.train.case), test=len(inputs.test.case)),
        opening=OpeningReport(
            in_plane_mm=OPENING_MM, element=element, no_op=no_op, applied=applied
        ),
        methods={
            method.key: method.label for variant in scored.values() for method in variant.methods
        },
        baseline_characteristics=baseline_characteristics(tables, arms),
        variants={
            name: variant_report(variant.cases, variant.methods, arms=arms, bootstrap=bootstrap)
            for name, variant in scored.items()
        },
        regional=regional_report(
            RegionalInputs(
                inputs.train,
                inputs.test,
                summaries,
                validation=inputs.validation,
                validation_summaries=[]
                if inputs.validation is None
                else factual_summaries(inputs.validation, inputs.factual),
                has_prior=has_prior(summaries),
                closed_form=closed_form_risks(inputs.where),
            ),
            arms=len(arms),
            monte_carlo_runs=settings.monte_carlo_runs,
            bootstrap=bootstrap,
        ),
        masks=_masks(headline.cases, summaries, arms=arms, bootstrap=bootstrap),
        where=where_report(inputs.where, bootstrap=bootstrap),
        probability_calibration=probability_calibration(
            headline.cases, headline.methods, bootstrap=bootstrap
        ),
        calibration=None
        if headline.calibration is None
        else calibration_report(
            headline.calibration,
            headline.cases,
            headline.log_counts,
            arms=arms,
            bootstrap=bootstrap,
        ),
        stated_calibration=stated_calibration(
            context.calibration,
            [one.expected_outcomes(opening=context.opening) for one in summaries],
            headline.cases,
            arms=arms,
            bootstrap=bootstrap,
        ),
        visits=context.visits,
        comparison_sessions=tuple(map(context.visits.label, context.comparison_sessions)),
        participants=participant_flow(inputs.participants, arms, seed=context.seed),
        censoring=censoring_report(
            inputs.censoring, headline.cases, headline.methods, arms=len(arms), bootstrap=bootstrap
        ),
        reliance=reliance_report(inputs.by_inputs, headline.cases, bootstrap=bootstrap),
        subgroups=subgroup_report(
            inputs.subgroups, headline.cases, headline.methods, bootstrap=bootstrap
        ),
        decision_curve=decision_curve(headline.cases, headline.methods, bootstrap=bootstrap),
        activity_by_arm=counterfactual.activity,
        effects=counterfactual.effects,
        trial_contrasts=trial_contrasts(
            list(tables.values()), arms=arms, reference=context.reference, bootstrap=bootstrap
        ),
        paper_results=PAPER_RESULTS,
    )
    return EvaluationResult(
        report,
        headline.cases,
        headline.methods,
        counterfactual.p_active,
        case_columns(headline, summaries),
    )


def _masks(
    cases: EvaluationCases,
    summaries: Sequence[EnsembleSummary],
    *,
    arms: Sequence[str],
    bootstrap: Bootstrap,
) -> SpatialAgreement | None:
    """Return the agreement of masks; None where a case has no mask comparison."""
    comparisons = [one.spatial for one in summaries if one.spatial is not None]
    if len(comparisons) < len(summaries):
        return None
    return spatial_agreement(comparisons, groups(cases, arms), bootstrap=bootstrap)


@dataclass(frozen=True)
class _CounterfactualSections:
    """Report sections on every arm, None without forecasts, and P(active) [n, arm] (see above)."""

    activity: ActivityByArm | None
    effects: TreatmentEffects | None
    p_active: Floats


def _counterfactual_sections(
    inputs: EvaluationInputs, context: EvaluationContext, bootstrap: Bootstrap
) -> _CounterfactualSections:
    """Compare the arms on the same cases."""
    arms, test = context.arms, inputs.test.case
    p_active = np.full((len(test), len(arms)), np.nan)
    forecasts = _arm_forecasts(inputs, len(arms), opening=context.opening)
    if forecasts is None:
        return _CounterfactualSections(None, None, p_active)
    p_active[[test.index(case) for case in forecasts.cases]] = forecasts.p_active.T
    training = arm_statistics(
        inputs.train.arm, inputs.train.cases(opening=context.opening).count, arms=len(arms)
    )
    true = _true_counts(inputs, forecasts.cases, len(arms))
    unknown = None if true is None else _unknown(inputs, forecasts.cases, context)
    return _CounterfactualSections(
        activity=activity_by_arm(
            forecasts, true, arms=arms, training_rate=training.activity, bootstrap=bootstrap
        ),
        effects=treatment_effects(
            EffectInputs(forecasts, training, true, unknown),
            arms=arms,
            reference=context.reference,
            bootstrap=bootstrap,
        ),
        p_active=p_active,
    )


def _arm_forecasts(inputs: EvaluationInputs, arms: int, *, opening: bool) -> ArmForecasts | None:
    """Return the forecasts of cases under every arm; None if no case has them.

    Expected outcomes need no sampling and cover all test cases. Without them, or after the opening,
    for which there are none, samples cover the counterfactual cases.
    """
    test, chosen = inputs.test.case, tuple(inputs.counterfactual_cases)
    if not opening and set(test) <= set(inputs.expected):
        expected = [inputs.expected[case] for case in test]
        p_active = np.array([[of_arm.p_active for of_arm in of_case] for of_case in expected])
        lesions = np.array([[of_arm.lesions for of_arm in of_case] for of_case in expected])
        return ArmForecasts(test, p_active.T, lesions.T)
    if not chosen:
        return None
    ensembles = inputs.counterfactual or inputs.factual
    summaries = [[ensembles[case, arm] for case in chosen] for arm in range(arms)]
    sampled = np.array(
        [[one.counts(opening=opening) for one in row] for row in summaries], np.float64
    )
    p_active = np.array([[one.p_active(opening=opening) for one in row] for row in summaries])
    return ArmForecasts(chosen, p_active, sampled.mean(axis=2), sampled)


def _true_counts(inputs: EvaluationInputs, cases: Sequence[int], arms: int) -> Floats | None:
    """Return the true lesions of the cases under every arm, [arm, n]."""
    truth = inputs.ground_truth
    if truth is None:
        return None
    return np.array([[truth[case, arm] for case in cases] for arm in range(arms)], np.float64)


def _unknown(
    inputs: EvaluationInputs, cases: Sequence[int], context: EvaluationContext
) -> EffectVariances | None:
    """Return what nobody can know of the cases' effects; None where their law is not known."""
    if not set(cases) <= set(inputs.law):
        return None
    laws, reference = [inputs.law[case] for case in cases], context.reference
    arms = range(len(context.arms))
    return EffectVariances(
        *(
            np.array([[law.effect_variance(arm, reference) for law in moments] for arm in arms])
            for moments in ([law.activity for law in laws], [law.count for law in laws])
        )
    )
