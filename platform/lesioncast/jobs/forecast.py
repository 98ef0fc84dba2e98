"""Job `forecast`: probability maps, a summary and a figure of subjects under every arm."""

import argparse
import logging
from collections.abc import Sequence

from lesioncast.bundle.bundle import load_bundle
from lesioncast.cluster.connection import ray_cluster
from lesioncast.config import Config
from lesioncast.forecasting.output.bids import figure_path, write_forecast_root
from lesioncast.forecasting.pipeline import (
    ForecastRun,
    background_source,
    draw_forecast,
    run_provenance,
    subjects_to_forecast,
    write_forecasts,
)
from lesioncast.forecasting.runtime import check_compatible
from lesioncast.jobs.arguments import FORECAST
from lesioncast.jobs.runner import run_job
from lesioncast.jobs.trial_folder import trial_folder
from storage import open_store

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(FORECAST, forecast, argv)


def forecast(config: Config, args: argparse.Namespace) -> None:
    """Draw every subject under every arm on Ray, and write each as soon as it is whole."""
    store = open_store(args.store or config.paths.store)
    path = (args.bundle or config.paths.bundle).absolute()
    out = (args.out or config.paths.forecasts).absolute()
    bids = trial_folder(store, args.bids)
    settings, seed = config.forecast, config.seed
    bundle = load_bundle(path)
    check_compatible(bundle, store)
    names = [name for name in args.subjects.split(",") if name]
    cases = subjects_to_forecast(store, names, number=settings.subjects)
    run = ForecastRun(
        settings=settings,
        provenance=run_provenance(bundle, store, seed=seed, sessions=settings.sessions),
        out=out,
        background=background_source(store, bids),
    )
    write_forecast_root(out, source=bids)
    with ray_cluster(config.ray, reads=[store.path, path]):
        drawn = draw_forecast(cases, store, path, settings=settings, seed=seed)
        for summary in write_forecasts(store, cases, drawn, run):
            logger.info("%s", figure_path(out, summary.subject))
