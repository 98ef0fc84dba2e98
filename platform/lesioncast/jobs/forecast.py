"""Job `forecast`: probability maps, a summary and a figure of subjects under every arm."""

import argparse
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lesioncast.bundle.bundle import load_bundle
from lesioncast.bundle.compatibility import check_compatible
from lesioncast.cluster.connection import ray_cluster
from lesioncast.config import Config
from lesioncast.forecasting.output.bids import figure_path, write_forecast_root
from lesioncast.forecasting.output.summary import ForecastSummary
from lesioncast.forecasting.pipeline import (
    ForecastRun,
    background_source,
    draw_forecast,
    plan_forecast,
    run_provenance,
    subjects_to_forecast,
    write_forecasts,
)
from lesioncast.forecasting.runtime import build_forecast_sampler, device_of
from lesioncast.forecasting.sampling import SampleBatch
from lesioncast.forecasting.settings import ForecastSettings
from lesioncast.jobs.command.arguments import FORECAST
from lesioncast.jobs.command.runner import run_job
from lesioncast.warning_list import severe
from storage import Case, Store, open_store
from storage.store.trial_folder import trial_folder

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(FORECAST, forecast, argv)


def forecast(config: Config, args: argparse.Namespace) -> None:
    """Draw every subject under every arm, and write each as soon as it is whole.

    Ray actors draw the samples or, with --local, this process does. A seed names the same
    samples in both.
    """
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
    if args.local:
        drawn = draw_in_process(cases, store, path, settings=settings, seed=seed)
        log_figures(write_forecasts(store, cases, drawn, run), out)
        return
    with ray_cluster(config.ray, reads=[store.path, path]):
        drawn = draw_forecast(cases, store, path, settings=settings, seed=seed)
        log_figures(write_forecasts(store, cases, drawn, run), out)


def draw_in_process(
    cases: Sequence[Case], store: Store, bundle: Path, *, settings: ForecastSettings, seed: int
) -> Iterator[SampleBatch]:
    """Draw the batches of `plan_forecast` in order, in this process and without Ray."""
    batches = plan_forecast(store, cases, settings=settings, seed=seed).batches(settings.batch_size)
    device = device_of(settings.gpus_per_worker)
    draw = build_forecast_sampler(bundle, store.path, device=device, inputs=store.table.inputs)
    return map(draw, batches)


def log_figures(written: Iterable[ForecastSummary], out: Path) -> None:
    """Log the figure and the severe warnings of each forecast as soon as it is written."""
    for summary in written:
        for text in severe(summary.warnings):
            logger.warning("%s: %s", summary.subject, text)
        logger.info("%s", figure_path(out, summary.subject))
