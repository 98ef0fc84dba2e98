"""Simulate a trial on real anatomy, with known counterfactuals, as a BIDS dataset.

    python jobs/simulate.py --config jobs/configs/demo.yaml [--bids FOLDER]

Run again: nothing is done. With more subjects (--set simulation.subjects=2131) only the missing
ones are added; with other settings the folder is refused.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import ray

from lesioncast.cluster.connection import configure_logging, job_parser, ray_cluster
from lesioncast.config import Config, load_config
from lesioncast.errors import ConfigError, SimulationError
from lesioncast.simulation.bids import finalise_dataset, initialise_dataset, write_subjects
from lesioncast.simulation.settings import SimulationSettings
from storage import StorageError

logger = logging.getLogger(__name__)
SUBJECTS_PER_TASK = 8  # subjects a task
LOG_INTERVAL_S = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    parser = job_parser(__doc__ or "")
    parser.add_argument("--bids", type=Path, help="the trial (default: the configuration's)")
    args = parser.parse_args(argv)
    configure_logging()
    try:
        config = load_config(args.config, args.overrides)
        simulate(config, (args.bids or config.paths.bids).absolute())
    except ConfigError as error:
        parser.error(str(error))
    except (SimulationError, StorageError) as error:
        logger.error("%s", getattr(error, "cause", error))  # without Ray's remote traceback
        return 1
    return 0


def simulate(config: Config, root: Path) -> None:
    """Write the subjects that `root` lacks, in parallel, then the table of participants."""
    missing = initialise_dataset(root, config.simulation)
    if missing:
        logger.info("simulating %d of %d subjects", len(missing), config.simulation.subjects)
        with ray_cluster(config.ray, writes=[root]):
            write_in_parallel(root, config.simulation, missing)
    logger.info("%s holds %d subjects", root, finalise_dataset(root, config.simulation))


def write_in_parallel(root: Path, settings: SimulationSettings, indices: Sequence[int]) -> None:
    """Blocks of subjects as Ray tasks, two in flight for each CPU, with a progress line."""
    write = ray.remote(write_subjects)
    blocks = [
        indices[first : first + SUBJECTS_PER_TASK]
        for first in range(0, len(indices), SUBJECTS_PER_TASK)
    ]
    cpus = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    limit = 2 * max(1, int(cpus))
    flying: list[ray.ObjectRef[list[str]]] = []
    start = said = time.monotonic()
    done = 0
    while blocks or flying:
        while blocks and len(flying) < limit:
            flying.append(write.remote(root, settings, blocks.pop(0)))
        landed, flying = ray.wait(flying, timeout=LOG_INTERVAL_S)
        done += sum(map(len, ray.get(landed)))
        now = time.monotonic()
        if done and (now - said >= LOG_INTERVAL_S or done == len(indices)):
            rate = done / (now - start)
            left = (len(indices) - done) / rate
            logger.info("%d/%d subjects, %.1f/s, %.0f s left", done, len(indices), rate, left)
            said = now
