"""Job `simulate`: a BIDS trial on real anatomy with known counterfactuals."""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from lesioncast.cluster.connection import ray_cluster
from lesioncast.config import Config
from lesioncast.jobs.command.arguments import SIMULATE
from lesioncast.jobs.command.runner import run_job
from lesioncast.simulation.bids import finalise_dataset, initialise_dataset, write_subjects
from lesioncast.simulation.settings import SimulationSettings

logger = logging.getLogger(__name__)
SUBJECTS_PER_TASK = 8
LOG_INTERVAL_S = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(SIMULATE, simulate, argv)


def simulate(config: Config, args: argparse.Namespace) -> None:
    """Write the missing subjects of the trial, in parallel, then the table of participants."""
    root = (args.bids or config.paths.bids).absolute()
    missing = initialise_dataset(root, config.simulation)
    if missing:
        logger.info("simulating %d of %d subjects", len(missing), config.simulation.subjects)
        with ray_cluster(config.ray, writes=[root]):
            write_in_parallel(root, config.simulation, missing)
    logger.info("%s holds %d subjects", root, finalise_dataset(root, config.simulation))


def write_in_parallel(root: Path, settings: SimulationSettings, indices: Sequence[int]) -> None:
    """Write blocks of subjects as Ray tasks, and log the progress."""
    import ray  # it takes a second, which a trial that is whole need not wait for

    write = ray.remote(write_subjects)
    blocks = [
        indices[first : first + SUBJECTS_PER_TASK]
        for first in range(0, len(indices), SUBJECTS_PER_TASK)
    ]
    cpus = ray.cluster_resources().get("CPU", 1)  # type: ignore[no-untyped-call]
    # Two tasks for each CPU: one runs, one waits, so that no CPU idles between tasks.
    limit = 2 * max(1, int(cpus))
    pending: list[ray.ObjectRef[list[str]]] = []
    start = last_logged = time.monotonic()
    done = 0
    while blocks or pending:
        while blocks and len(pending) < limit:
            pending.append(write.remote(root, settings, blocks.pop(0)))
        finished, pending = ray.wait(pending, timeout=LOG_INTERVAL_S)
        done += sum(map(len, ray.get(finished)))
        now = time.monotonic()
        if done and (now - last_logged >= LOG_INTERVAL_S or done == len(indices)):
            rate = done / (now - start)
            left = (len(indices) - done) / rate
            logger.info("%d/%d subjects, %.1f/s, %.0f s left", done, len(indices), rate, left)
            last_logged = now
