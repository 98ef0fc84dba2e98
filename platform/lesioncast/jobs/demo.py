"""Job `demo`: run the whole pipeline on one machine, one job after the other."""

import argparse
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from lesioncast.cluster.connection import ray_cluster
from lesioncast.config import Config
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
from lesioncast.forecasting.training_data import bundle_steps
from lesioncast.jobs import convert, evaluate, finetune, forecast, pretrain, simulate
from lesioncast.jobs.command.arguments import DEMO
from lesioncast.jobs.command.runner import run_job
from lesioncast.warning_list import severe
from storage.atomic import atomic_write

logger = logging.getLogger(__name__)
Job = Callable[[Sequence[str] | None], int]


def steps() -> Iterator[tuple[str, Job]]:
    """Yield the title and the main function of each step."""
    yield "simulate a trial", simulate.main
    yield "convert it to a store", convert.main
    yield "stage 1: pre-train the UNet", pretrain.main
    yield "stage 2: train the ControlNet", finetune.main
    yield "evaluate on held-out subjects", evaluate.main
    # Forecasts come after the evaluation because each of them carries its warnings.
    yield "forecast every arm for a few of them", forecast.main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(DEMO, run_all_steps, argv)


def run_all_steps(config: Config, args: argparse.Namespace) -> int:
    """Run every step in one local cluster and return the first exit code that is not 0."""
    given = ["--config", str(args.config), *(f"--set={override}" for override in args.overrides)]
    all_steps = list(steps())
    with ray_cluster(config.ray):
        for number, (title, job) in enumerate(all_steps, start=1):
            logger.info("[%d/%d] %s", number, len(all_steps), title)
            start = time.monotonic()
            if code := job(given):
                return code
            logger.info("[%d/%d] took %.0f s", number, len(all_steps), time.monotonic() - start)
    for name, path in write_summary_page(config):
        logger.info("%s: %s", name, path)
    return 0


def write_summary_page(config: Config) -> list[tuple[str, Path]]:
    """Write the one-page summary; return the figure, the report and the page by name."""
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
    disclaimers = [
        *severe(subject.warnings),
        *evaluation.disclaimers,
        *subject.disclaimers,
        *subject.notes,
    ]
    summary = paths.root / "summary.md"
    atomic_write(
        summary,
        render_page(f"lesioncast: {config.name}", sections, disclaimers=disclaimers).encode(),
    )
    return [("figure", figure), ("report", paths.evaluation / REPORT), ("summary", summary)]


def subject_with_most_lesions(forecasts: Path) -> ForecastSummary:
    """Return the forecast whose subject has the most observed lesions, to have some to show."""
    paths = sorted(forecasts.glob(summary_path(Path(), "sub-*").as_posix()))
    return max(map(read_summary, paths), key=lambda summary: summary.observed_lesions or 0)
