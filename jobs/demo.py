"""The whole system on one machine: simulate, convert, train both stages, forecast, evaluate.

    python jobs/demo.py --config jobs/configs/demo.yaml

Each job is run as its own command would; run again, what is finished is kept. The bundle of
jobs/longer, which the same commands trained for longer on other subjects, forecasts beside it.
"""

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import convert, evaluate, finetune, forecast, pretrain, simulate
from lesioncast.config import Config, Paths, load_config
from lesioncast.errors import ConfigError
from lesioncast.evaluation.output import FIGURE, METRICS
from lesioncast.forecasting.derivative import figure_path, summary_path
from lesioncast.forecasting.engine import bundle_steps
from lesioncast.forecasting.page import evaluation_section, forecast_section, page, relative_path
from lesioncast.start import cluster, configure_logging, job_parser
from storage.nifti import write_atomic

logger = logging.getLogger(__name__)
Job = Callable[[Sequence[str] | None], int]
LONGER = Path(__file__).resolve().parent / "longer"


@dataclass(frozen=True)
class Trained:
    """A bundle that forecasts in the demo, and the folders that its results go to."""

    title: str
    bundle: Path
    paths: Paths

    def flags(self, out: Path) -> list[str]:
        """What `forecast` and `evaluate` are told of it."""
        return ["--bundle", str(self.bundle), "--out", str(out)]


def bundles(config: Config) -> tuple[Trained, Trained]:
    """The bundle of this run, and the one trained longer."""
    own, kept = config.paths, Paths(config.paths.root / "longer")
    return (
        Trained("trained in this run", own.bundle, own),
        Trained("trained longer, beforehand", kept.bundle, kept),
    )


def steps(config: Config) -> Iterator[tuple[str, Job, list[str]]]:
    """Every step's title, job and flags."""
    yield "simulate a trial", simulate.main, []
    yield "convert it to a store", convert.main, []
    yield "stage 1: pre-train the UNet", pretrain.main, []
    yield "stage 2: train the ControlNet", finetune.main, []
    for each in bundles(config):
        forecasts, scores = each.flags(each.paths.forecasts), each.flags(each.paths.evaluation)
        yield f"evaluate on held-out subjects: bundle {each.title}", evaluate.main, scores
        # After the evaluation, whose warnings every forecast carries.
        yield f"forecast every arm: bundle {each.title}", forecast.main, forecasts


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
    todo = list(steps(config))
    # A copy, since an evaluation leaves its warnings beside the bundle.
    shutil.copytree(LONGER, bundles(config)[1].bundle, dirs_exist_ok=True)
    with cluster(config.ray):
        for number, (title, job, flags) in enumerate(todo, start=1):
            logger.info("[%d/%d] %s", number, len(todo), title)
            start = time.monotonic()
            code = job([*given, *flags])
            if code != 0:
                return code
            logger.info("[%d/%d] took %.0f s", number, len(todo), time.monotonic() - start)
    for name, path in write_summary(config):
        logger.info("%s: %s", name, path)
    return 0


def write_summary(config: Config) -> list[tuple[str, Path]]:
    """The one-page summary; returns the figures and the page by name."""
    folder = config.paths.root
    sections, notices, figures = [], [], []
    for each in bundles(config):
        words = f"{each.title} ({bundle_steps(each.bundle)})"
        evaluation = json.loads((each.paths.evaluation / METRICS).read_text())
        subject = leading(each.paths.forecasts)
        figure = figure_path(each.paths.forecasts, subject["subject"])
        sections += [
            evaluation_section(
                evaluation,
                heading=f"Held-out subjects of the simulated trial: bundle {words}",
                figure=relative_path(each.paths.evaluation / FIGURE, page_folder=folder),
            ),
            forecast_section(
                subject,
                heading=f"One subject under {len(config.arms)} arms: bundle {words}",
                figure=relative_path(figure, page_folder=folder),
            ),
        ]
        notices += [*evaluation["notices"], *subject["notices"]]
        figures.append((f"figure, {each.title}", figure))
    summary = folder / "summary.md"
    write_atomic(summary, page(f"lesioncast: {config.name}", sections, notices=notices).encode())
    return [*figures, ("summary", summary)]


def leading(forecasts: Path) -> dict[str, Any]:
    """The record of the forecast subject with the most lesions: there is something to see."""
    paths = sorted(forecasts.glob(summary_path(Path(), "sub-*").as_posix()))
    records: list[dict[str, Any]] = [json.loads(path.read_text()) for path in paths]
    return max(records, key=lambda record: record["observed_lesions"] or 0)


if __name__ == "__main__":
    sys.exit(main())
