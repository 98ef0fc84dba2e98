"""The whole system on one machine: simulate, convert, train both stages, forecast, evaluate.

    python jobs/demo.py --config jobs/configs/demo.yaml

Each job is run as its own command would; run again, what is finished is kept.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs import convert, evaluate, finetune, forecast, pretrain, simulate
from lesioncast.config import Config, load_config
from lesioncast.errors import ConfigError
from lesioncast.evaluation.output import FIGURE, METRICS
from lesioncast.forecasting.derivative import figure_path, summary_path
from lesioncast.forecasting.page import evaluation_section, forecast_section, page, relative_figure
from lesioncast.start import cluster, configure_logging, job_parser
from storage.nifti import write_atomic

logger = logging.getLogger(__name__)
Job = Callable[[Sequence[str] | None], int]
STEPS: tuple[tuple[str, Job], ...] = (
    ("simulate a trial", simulate.main),
    ("convert it to a store", convert.main),
    ("stage 1: pre-train the UNet", pretrain.main),
    ("stage 2: train the ControlNet", finetune.main),
    ("forecast every arm", forecast.main),
    ("evaluate on held-out subjects", evaluate.main),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run every step in one local cluster; stops at the first that fails."""
    parser = job_parser(__doc__ or "")
    args = parser.parse_args(argv)
    configure_logging()
    try:
        config = load_config(args.config, args.overrides)
    except ConfigError as error:
        parser.error(str(error))
    flags = ["--config", str(args.config), *(f"--set={each}" for each in args.overrides)]
    with cluster(config.ray):
        for number, (title, job) in enumerate(STEPS, start=1):
            logger.info("[%d/%d] %s", number, len(STEPS), title)
            start = time.monotonic()
            code = job(flags)
            if code != 0:
                return code
            logger.info("[%d/%d] took %.0f s", number, len(STEPS), time.monotonic() - start)
    subject, summary = write_summary(config)
    logger.info("figure:  %s", figure_path(config.paths.forecasts, subject))
    logger.info("summary: %s", summary)
    return 0


def write_summary(config: Config) -> tuple[str, Path]:
    """The one-page summary; returns the subject whose figure leads it, and the page's path."""
    paths = config.paths
    evaluation = json.loads((paths.evaluation / METRICS).read_text())
    records = [json.loads(path.read_text()) for path in summaries(paths.forecasts)]
    leading = max(records, key=lambda record: record["observed_lesions"] or 0)
    subject = leading["subject"]
    text = page(
        f"lesioncast: {config.name}",
        [
            evaluation_section(
                evaluation,
                heading="Held-out subjects of the simulated trial",
                figure=(paths.evaluation / FIGURE).relative_to(paths.root).as_posix(),
            ),
            forecast_section(
                leading,
                heading=f"One subject under {len(config.arms)} arms",
                figure=relative_figure(paths.forecasts, subject, page_folder=paths.root),
            ),
        ],
        notices=[*evaluation["notices"], *leading["notices"]],
    )
    summary = paths.root / "summary.md"
    write_atomic(summary, text.encode())
    return subject, summary


def summaries(forecasts: Path) -> list[Path]:
    """The numbers of every subject forecast so far."""
    return sorted(forecasts.glob(summary_path(Path(), "sub-*").as_posix()))


if __name__ == "__main__":
    sys.exit(main())
