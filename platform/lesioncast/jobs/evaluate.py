"""Evaluate the forecast on the test split, beside baselines fitted on the training split.

    python jobs/evaluate.py --config jobs/configs/demo.yaml

Writes report.html for readers, tables.md, metrics.json, estimates.csv, cases.csv and
evaluation.png. Writes EVALUATION.md and evaluation.json beside the bundle; every later forecast
carries their warnings.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lesioncast.bundle.bundle import Bundle, load_bundle
from lesioncast.cluster.connection import configure_logging, job_parser, ray_cluster
from lesioncast.config import Config, load_config
from lesioncast.errors import ConfigError, LesioncastError
from lesioncast.evaluation.analysis.scoring import EvaluationContext, EvaluationInputs
from lesioncast.evaluation.causal.identifiability import identifiability_warnings
from lesioncast.evaluation.evaluate import evaluate
from lesioncast.evaluation.metrics.bootstrap import Bootstrap
from lesioncast.evaluation.provenance import EvaluationSources, current_command, provenance
from lesioncast.evaluation.reporting.bundle_card import write_card
from lesioncast.evaluation.reporting.examples import example_cases
from lesioncast.evaluation.reporting.files import REPORT, write_evaluation
from lesioncast.evaluation.run import (
    measure_outcomes,
    reference_arm_index,
    sample_and_summarise,
    select_evaluation_cases,
    true_counts,
)
from lesioncast.forecasting.disclaimers import RESEARCH_USE
from lesioncast.forecasting.runtime import (
    check_compatible,
    input_sessions,
    simulated_data_notes,
    supported_sessions,
    training_data_note,
)
from storage import StorageError, Store, open_store, parse_location

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    parser = job_parser(__doc__ or "")
    parser.add_argument(
        "--store", type=parse_location, help="the Zarr store (default: <root>/store.zarr)"
    )
    parser.add_argument("--bundle", type=Path, help="the bundle (default: <root>/bundle)")
    parser.add_argument("--out", type=Path, help="where files go (default: <root>/evaluation)")
    args = parser.parse_args(argv)
    configure_logging()
    try:
        run_evaluation(load_config(args.config, args.overrides), args)
    except ConfigError as error:
        parser.error(str(error))
    except (StorageError, LesioncastError) as error:
        logger.error("%s", error)
        return 1
    return 0


def run_evaluation(config: Config, args: argparse.Namespace) -> None:
    """Measure outcomes and sample ensembles on Ray, then score them and write the files."""
    store = open_store(args.store or config.paths.store)
    path = (args.bundle or config.paths.bundle).absolute()
    out = (args.out or config.paths.evaluation).absolute()
    bundle = load_bundle(path)
    check_compatible(bundle, store)
    settings = config.evaluation
    cases = select_evaluation_cases(store, settings)
    context = evaluation_context(config, store, bundle)
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
        )
        summaries = sample_and_summarise(store, cases, bundle, settings=settings, seed=config.seed)
        inputs = EvaluationInputs(
            train=tables.train,
            test=tables.test,
            validation=tables.validation,
            factual=summaries.factual,
            counterfactual_cases=cases.counterfactual,
            counterfactual=summaries.counterfactual,
            expected=summaries.expected,
            ground_truth=true_counts(store, cases),
        )
        context = replace(context, identifiability_warnings=warnings)
        result = evaluate(inputs, context, settings)
        examples = example_cases(store, cases.test, path, result, settings=settings)
    write_evaluation(
        result,
        out,
        counterfactual_cases=cases.counterfactual,
        test_cases=tables.test.case,
        examples=examples,
    )
    logger.info("%s", out / REPORT)
    write_card(path, result.report)


def evaluation_context(config: Config, store: Store, bundle: Bundle) -> EvaluationContext:
    """Return the names, digests and sentences that the report carries."""
    trained_on = training_data_note(bundle.path)
    return EvaluationContext(
        arms=store.spec.arms,
        spacing=store.spec.spacing,
        bundle=bundle.digest,
        seed=config.seed,
        disclaimers=(RESEARCH_USE, trained_on, *simulated_data_notes(Path(store.table.bids))),
        reference=reference_arm_index(config.forecast.reference_arm, store),
        comparison_sessions=supported_sessions(bundle)[-1],
        provenance=provenance(
            current_command(),
            EvaluationSources(
                bundle=bundle.digest,
                trained_on=trained_on,
                store=store.table.inputs,
                configuration=config.name,
                seed=config.seed,
            ),
        ),
    )
