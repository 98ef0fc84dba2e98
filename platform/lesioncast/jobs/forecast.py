"""Forecast subjects under every arm: probability maps, a summary and a figure for each.

    python jobs/forecast.py --config jobs/configs/demo.yaml [--subjects sub-0001,sub-0002]

Without --subjects: the first of the test split, or all of a store without outcomes. To compare arms
as if taken from the start, show the images before treatment alone: --set forecast.sessions=[w000]
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from lesioncast.bundle.bundle import load_bundle
from lesioncast.cluster.connection import configure_logging, job_parser, ray_cluster
from lesioncast.config import Config, load_config
from lesioncast.errors import ConfigError, LesioncastError
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
from storage import StorageError, open_store, parse_location

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    parser = job_parser(__doc__ or "")
    parser.add_argument(
        "--store", type=parse_location, help="the Zarr store (default: <root>/store.zarr)"
    )
    parser.add_argument("--bundle", type=Path, help="the bundle (default: <root>/bundle)")
    parser.add_argument("--bids", type=Path, help="the store's BIDS folder, where it has moved")
    parser.add_argument("--mapping", type=Path, help="the file that the store was made with")
    parser.add_argument("--out", type=Path, help="where forecasts go (default: <root>/forecasts)")
    parser.add_argument("--subjects", default="", help="such as sub-0001,sub-0002")
    args = parser.parse_args(argv)
    configure_logging()
    try:
        forecast(load_config(args.config, args.overrides, mapping=args.mapping), args)
    except ConfigError as error:
        parser.error(str(error))
    except (StorageError, LesioncastError) as error:
        logger.error("%s", error)
        return 1
    return 0


def forecast(config: Config, args: argparse.Namespace) -> None:
    """Draw every subject under every arm on Ray, and write each as soon as it is whole."""
    store = open_store(args.store or config.paths.store)
    path = (args.bundle or config.paths.bundle).absolute()
    out = (args.out or config.paths.forecasts).absolute()
    bids = (args.bids or Path(store.table.bids)).absolute()
    settings, seed = config.forecast, config.seed
    bundle = load_bundle(path)
    check_compatible(bundle, store)
    names = [name for name in args.subjects.split(",") if name]
    cases = subjects_to_forecast(store, names, number=settings.subjects)
    run = ForecastRun(
        settings=settings,
        provenance=run_provenance(bundle, seed=seed, sessions=settings.sessions, bids=bids),
        out=out,
        background=background_source(store, bids, config.store.layout),
    )
    write_forecast_root(out, source=bids)
    with ray_cluster(config.ray, reads=[store.path, path]):
        drawn = draw_forecast(cases, store, path, settings=settings, seed=seed)
        for summary in write_forecasts(store, cases, drawn, run):
            logger.info("%s", figure_path(out, summary.subject))
