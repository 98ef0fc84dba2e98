"""Evaluate the forecast on the test split, beside baselines fitted on the training split.

    python jobs/evaluate.py --config jobs/configs/demo.yaml

Writes report.html to read, tables.md, metrics.json, estimates.csv, cases.csv, evaluation.png, and
beside the bundle its EVALUATION.md, whose warnings every later forecast carries.
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lesioncast.bundle.bundle import load_bundle
from lesioncast.cluster.connection import configure_logging, job_parser, ray_cluster
from lesioncast.config import Config, load_config
from lesioncast.errors import ConfigError, LesioncastError
from lesioncast.evaluation.analysis.scoring import EvaluationContext
from lesioncast.evaluation.causal.identifiability import identifiability_warnings
from lesioncast.evaluation.evaluate import evaluate
from lesioncast.evaluation.metrics.scores import Bootstrap
from lesioncast.evaluation.provenance import provenance, this_command
from lesioncast.evaluation.reporting.bundle_card import write_card
from lesioncast.evaluation.reporting.examples import gallery
from lesioncast.evaluation.reporting.files import REPORT, write_evaluation
from lesioncast.evaluation.run import (
    draw_and_summarise,
    measure,
    reference_arm_index,
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
from storage import StorageError, open_store, parse_location

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
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
    """Measure outcomes and draw ensembles on Ray, then score and write."""
    store = open_store(args.store or config.paths.store)
    path = (args.bundle or config.paths.bundle).absolute()
    out = (args.out or config.paths.evaluation).absolute()
    bundle = load_bundle(path)
    check_compatible(bundle, store)
    settings = config.evaluation
    cases = select_evaluation_cases(store, settings)
    remarks = (training_data_note(path), *simulated_data_notes(Path(store.table.bids)))
    context = EvaluationContext(
        store.spec.arms,
        store.spec.spacing,
        bundle.digest,
        config.seed,
        (RESEARCH_USE, *remarks),
        reference=reference_arm_index(config.forecast.reference_arm, store),
        compared=supported_sessions(bundle)[-1],
        provenance=provenance(
            this_command(),
            bundle=bundle.digest,
            trained_on=remarks[0],
            store=store.table.inputs,
            config=config.name,
            seed=config.seed,
        ),
    )
    with ray_cluster(config.ray, reads=[store.path, path]):
        train, test, validation = measure(
            store, cases, workers=settings.workers, covariates=settings.covariates
        )
        warnings = identifiability_warnings(
            (train, test),
            [case.trial for case in (*cases.train, *cases.test)],
            arms=store.spec.arms,
            sessions=input_sessions(bundle),
            bootstrap=Bootstrap(settings.bootstrap, config.seed),
        )
        answers = draw_and_summarise(store, cases, bundle, settings=settings, seed=config.seed)
        assessment = evaluate(
            train,
            test,
            answers.own,
            forced=cases.forced,
            context=replace(context, warnings=warnings),
            settings=settings,
            under_every_arm=answers.under_every_arm,
            stated=answers.stated,
            truth=true_counts(store, cases),
            validation=validation,
        )
        sights = gallery(store, cases.test, path, assessment, settings=settings, seed=config.seed)
    write_evaluation(assessment, out, forced=cases.forced, case=test.case, sights=sights)
    logger.info("%s", out / REPORT)
    write_card(path, assessment.record)
