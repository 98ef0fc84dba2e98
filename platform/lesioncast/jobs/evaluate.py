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
from lesioncast.cluster.connection import cluster, configure_logging, job_parser
from lesioncast.config import Config, load_config
from lesioncast.errors import (
    BaselineError,
    ConfigError,
    EvaluationCardError,
    ForecastError,
    TrainingError,
)
from lesioncast.evaluation.analysis.scoring import Context
from lesioncast.evaluation.causal.identifiability import warnings_record
from lesioncast.evaluation.evaluate import assess
from lesioncast.evaluation.metrics.scores import Bootstrap
from lesioncast.evaluation.provenance import provenance, this_command
from lesioncast.evaluation.reporting.bundle_card import write_card
from lesioncast.evaluation.reporting.examples import gallery
from lesioncast.evaluation.reporting.files import REPORT, write_assessment
from lesioncast.evaluation.run import (
    draw_tallies,
    held_out,
    measure,
    reference_of,
    true_counts,
)
from lesioncast.forecasting.disclaimers import RESEARCH_USE
from lesioncast.forecasting.runtime import (
    bundle_remark,
    require_fit,
    session_choices,
    sessions_seen,
    trial_remarks,
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
        evaluate(load_config(args.config, args.overrides), args)
    except ConfigError as error:
        parser.error(str(error))
    except (
        StorageError,
        TrainingError,
        ForecastError,
        BaselineError,
        EvaluationCardError,
    ) as error:
        logger.error("%s", error)
        return 1
    return 0


def evaluate(config: Config, args: argparse.Namespace) -> None:
    """Measure outcomes and draw ensembles on Ray, then score and write."""
    store = open_store(args.store or config.paths.store)
    path = (args.bundle or config.paths.bundle).absolute()
    out = (args.out or config.paths.evaluation).absolute()
    bundle = load_bundle(path)
    require_fit(bundle, store)
    settings = config.evaluation
    cases = held_out(store, settings)
    remarks = (bundle_remark(path), *trial_remarks(Path(store.table.bids)))
    context = Context(
        store.spec.arms,
        store.spec.spacing,
        bundle.digest,
        config.seed,
        (RESEARCH_USE, *remarks),
        reference=reference_of(config.forecast.reference_arm, store),
        compared=session_choices(bundle)[-1],
        provenance=provenance(
            this_command(),
            bundle=bundle.digest,
            trained_on=remarks[0],
            store=store.table.inputs,
            config=config.name,
            seed=config.seed,
        ),
    )
    with cluster(config.ray, reads=[store.path, path]):
        train, test, validation = measure(
            store, cases, workers=settings.workers, covariates=settings.covariates
        )
        warnings = warnings_record(
            (train, test),
            [case.trial for case in (*cases.train, *cases.test)],
            arms=store.spec.arms,
            sessions=sessions_seen(bundle),
            bootstrap=Bootstrap(settings.bootstrap, config.seed),
        )
        answers = draw_tallies(store, cases, bundle, settings=settings, seed=config.seed)
        assessment = assess(
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
    write_assessment(assessment, out, forced=cases.forced, case=test.case, sights=sights)
    logger.info("%s", out / REPORT)
    write_card(path, assessment.record)
