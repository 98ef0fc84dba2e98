"""The whole system on one machine: simulate, convert, train both stages, forecast, evaluate.

    python jobs/demo.py --config jobs/configs/demo.yaml

Each job is run as its own command would; run again, what is finished is kept.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lesioncast.cluster.connection import configure_logging, job_parser, ray_cluster
from lesioncast.config import Config, load_config
from lesioncast.errors import ConfigError
from lesioncast.evaluation.reporting.files import FIGURE, METRICS, REPORT
from lesioncast.evaluation.reporting.json_io import read_report
from lesioncast.evaluation.reporting.summary_page import (
    evaluation_section,
    forecast_section,
    relative_path,
    render_page,
)
from lesioncast.forecasting.output.bids import figure_path, summary_path
from lesioncast.forecasting.output.summary import ForecastSummary, read_summary
from lesioncast.forecasting.runtime import bundle_steps
from lesioncast.jobs import convert, evaluate, finetune, forecast, pretrain, simulate
from storage.atomic import atomic_write

logger = logging.getLogger(__name__)
Job = Callable[[Sequence[str] | None], int]


def steps() -> Iterator[tuple[str, Job]]:
    """Every step's title and job."""
    yield "simulate a trial", simulate.main
    yield "convert it to a store", convert.main
    yield "stage 1: pre-train the UNet", pretrain.main
    yield "stage 2: train the ControlNet", finetune.main
    yield "evaluate on held-out subjects", evaluate.main
    # After the evaluation, whose warnings every forecast carries.
    yield "forecast every arm for a few of them", forecast.main


def main(argv: Sequence[str] | None = None) -> int:
    """Run every step in one local cluster; stops at the first that fails."""
    parser = job_parser(__doc__ or "")
    args = parser.parse_args(argv)
    configure_logging()
    try:
        config = load_config(args.config, args.overrides)
    except ConfigError as error:
        parser.error(str(error))
    given = ["--config", str(args.config), *(f"--set={each}" for each in args.overrides)]
    todo = list(steps())
    with ray_cluster(config.ray):
        for number, (title, job) in enumerate(todo, start=1):
            logger.info("[%d/%d] %s", number, len(todo), title)
            start = time.monotonic()
            code = job(given)
            if code != 0:
                return code
            logger.info("[%d/%d] took %.0f s", number, len(todo), time.monotonic() - start)
    for name, path in write_summary(config):
        logger.info("%s: %s", name, path)
    return 0


def write_summary(config: Config) -> list[tuple[str, Path]]:
    """The one-page summary; returns the figure, the report and the page by name."""
    paths = config.paths
    evaluation = read_report(paths.evaluation / METRICS)
    subject = subject_with_most_lesions(paths.forecasts)
    figure = figure_path(paths.forecasts, subject.subject)
    sections = [
        evaluation_section(
            evaluation,
            heading=f"Held-out subjects of the simulated trial, {bundle_steps(paths.bundle)}",
            figure=relative_path(paths.evaluation / FIGURE, page_folder=paths.root),
        ),
        forecast_section(
            subject,
            heading=f"One subject under {len(config.arms)} arms",
            figure=relative_path(figure, page_folder=paths.root),
        ),
    ]
    notices = [*evaluation.disclaimers, *subject.disclaimers, *subject.notes]
    summary = paths.root / "summary.md"
    atomic_write(
        summary, render_page(f"lesioncast: {config.name}", sections, notices=notices).encode()
    )
    return [("figure", figure), ("report", paths.evaluation / REPORT), ("summary", summary)]


def subject_with_most_lesions(forecasts: Path) -> ForecastSummary:
    """Return the forecast whose subject has the most observed lesions, to have some to show."""
    paths = sorted(forecasts.glob(summary_path(Path(), "sub-*").as_posix()))
    return max(map(read_summary, paths), key=lambda summary: summary.observed_lesions or 0)
