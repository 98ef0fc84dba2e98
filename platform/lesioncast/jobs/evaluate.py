"""Job `evaluate`: score forecasts on the test split beside baselines, and write the report."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lesioncast.bundle.bundle import Bundle, load_bundle
from lesioncast.bundle.compatibility import check_compatible, input_sessions, supported_sessions
from lesioncast.bundle.pretrained import PRETRAINED, is_pretrained
from lesioncast.cluster.connection import ray_cluster
from lesioncast.config import Config
from lesioncast.errors import ConfigError
from lesioncast.evaluation.analysis.scoring import EvaluationContext, EvaluationInputs
from lesioncast.evaluation.causal.identifiability import identifiability_warnings
from lesioncast.evaluation.evaluate import evaluate
from lesioncast.evaluation.features.outcomes import source_lesions
from lesioncast.evaluation.features.subgroup_labels import subgroup_labels
from lesioncast.evaluation.guidance import (
    GuidanceTrial,
    choose_guidance,
    guidance_lines,
    record_guidance,
)
from lesioncast.evaluation.input_ablation import predict_from_parts
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.evaluation.outcome_law import outcome_law
from lesioncast.evaluation.provenance import EvaluationSources, current_command, provenance
from lesioncast.evaluation.reporting.bundle_card import write_card
from lesioncast.evaluation.reporting.drawings.patients import patients_picture
from lesioncast.evaluation.reporting.examples import example_cases
from lesioncast.evaluation.reporting.files import MAPS, PATIENTS, REPORT, write_evaluation
from lesioncast.evaluation.reporting.where_figure import median_picture
from lesioncast.evaluation.run import (
    EvaluationSplit,
    measure_outcomes,
    reference_arm_index,
    sample_and_summarise,
    select_evaluation_cases,
    true_counts,
)
from lesioncast.evaluation.trial_participants import trial_participants
from lesioncast.evaluation.where.run import WhereInputs, measure_where
from lesioncast.forecasting.disclaimers import RESEARCH_USE
from lesioncast.forecasting.training_data import (
    check_not_calibrated_on,
    check_unseen,
    data_notes,
    simulated_bundle_warnings,
    training_data_note,
)
from lesioncast.jobs.command.arguments import EVALUATE
from lesioncast.jobs.command.runner import run_job
from lesioncast.simulation.ground_truth import has_ground_truth
from lesioncast.simulation.outcome_law.patients import simulation_settings
from lesioncast.warning_list import texts
from storage import Store, open_store
from storage.store.trial_folder import trial_folder

logger = logging.getLogger(__name__)

NO_GROUND_TRUTH = (
    "The true counterfactuals of the simulated subjects were not in the trial's folder: forecasts "
    "under other arms are not compared with them."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(EVALUATE, run_evaluation, argv)


def run_evaluation(config: Config, args: argparse.Namespace) -> None:
    """Measure outcomes and sample ensembles on Ray, then score them and write the files."""
    store = open_store(args.store or config.paths.store)
    path = (args.bundle or config.paths.bundle).absolute()
    out = (args.out or config.paths.evaluation).absolute()
    if args.choose_guidance and is_pretrained(path):
        raise ConfigError(
            f"--choose-guidance: expected a bundle that may be written to, got {PRETRAINED}; copy "
            f"{path} and name the copy"
        )
    bundle = load_bundle(path)
    check_compatible(bundle, store)
    settings = config.evaluation
    cases = select_evaluation_cases(store, settings)
    check_unseen(bundle, cases.forecast)
    check_not_calibrated_on(bundle, cases.test)
    if args.choose_guidance:
        bundle = with_chosen_guidance(config, store, bundle, cases)
    bids = trial_folder(store, args.bids)
    context = evaluation_context(config, store, bundle, bids)
    with ray_cluster(config.ray, reads=[store.path, path]):
        tables = measure_outcomes(
            store, cases, workers=settings.workers, covariates=settings.covariates
        )
        warnings = identifiability_warnings(
            (tables.train, tables.test),
            [case.trial for case in (*cases.train, *cases.test)],
            arms=store.spec.arms,
            sessions=input_sessions(bundle),
            bootstrap=Bootstrap(settings.bootstrap, config.seed),
            visits=store.spec.visits,
        )
        summaries = sample_and_summarise(
            store,
            cases,
            bundle,
            settings=settings,
            seed=config.seed,
            opening=config.forecast.apply_opening,
        )
        where_inputs = WhereInputs(
            train=tables.train,
            test=tables.test,
            factual=summaries.factual,
            simulation=simulation_settings(bids) if store.table.trial.simulated else None,
            seed=config.seed,
            opening=config.forecast.apply_opening,
        )
        where = measure_where(store, bundle, where_inputs, settings)
        inputs = EvaluationInputs(
            train=tables.train,
            test=tables.test,
            validation=tables.validation,
            factual=summaries.factual,
            counterfactual_cases=cases.counterfactual,
            counterfactual=summaries.counterfactual,
            expected=summaries.expected,
            ground_truth=true_counts(store, cases, bids, opening=config.forecast.apply_opening),
            law=outcome_law(store, cases.test, bids),
            by_inputs=predict_from_parts(store, cases.test, bundle, seed=config.seed),
            subgroups=subgroup_labels(cases.train, cases.test),
            participants=trial_participants(store, set(tables.test.case), bids),
            censoring=tables.censoring,
            where=where,
        )
        context = replace(context, identifiability_warnings=warnings)
        result = evaluate(inputs, context, settings)
        columns = {**result.columns, "lesions_in_source": source_lesions(cases.test)}
        result = replace(result, columns=columns)
        examples = example_cases(store, cases.test, path, result, settings=settings)
    pictures = {MAPS: median_picture(store, where), PATIENTS: patients_picture(store, where)}
    shown = {name: picture for name, picture in pictures.items() if picture is not None}
    write_evaluation(result, out, examples, shown)
    logger.info("%s", out / REPORT)
    if is_pretrained(path):
        logger.info("%s keeps the evaluation that it came with", path)
    else:
        write_card(path, result.report)


def with_chosen_guidance(
    config: Config, store: Store, bundle: Bundle, cases: EvaluationSplit
) -> Bundle:
    """Choose the guidance on the validation cases, record it, and return the changed bundle."""
    trial = GuidanceTrial(
        cases.validation, config.evaluation, config.seed, config.forecast.apply_opening
    )
    with ray_cluster(config.ray, reads=[store.path, bundle.path]):
        choice = choose_guidance(store, bundle, trial)
    for line in guidance_lines(choice):
        logger.info("%s", line)
    record_guidance(bundle, choice)
    return load_bundle(bundle.path)


def evaluation_context(
    config: Config, store: Store, bundle: Bundle, bids: Path
) -> EvaluationContext:
    """Return the names, digests and sentences that the report carries."""
    disclaimers = (
        RESEARCH_USE,
        *texts(simulated_bundle_warnings(bundle, store)),
        *data_notes(bundle, store),
    )
    if store.table.trial.simulated and not has_ground_truth(bids):
        disclaimers += (NO_GROUND_TRUTH,)
    return EvaluationContext(
        arms=store.spec.arms,
        spacing=store.spec.spacing,
        bundle=bundle.digest,
        seed=config.seed,
        disclaimers=disclaimers,
        reference=reference_arm_index(config.forecast.reference_arm, store),
        comparison_sessions=supported_sessions(bundle)[-1],
        visits=store.spec.visits,
        opening=config.forecast.apply_opening,
        calibration=bundle.calibration,
        provenance=provenance(
            current_command(),
            EvaluationSources(
                bundle=bundle.digest,
                trained_on=training_data_note(bundle.path),
                store=store.table.inputs,
                configuration=config.name,
                seed=config.seed,
            ),
        ),
    )
