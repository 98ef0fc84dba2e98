"""Job `qc`: a table and a page that show each subject of a store."""

import argparse
import logging
from collections.abc import Callable, Sequence
from functools import partial

from lesioncast.cluster.actor_map import ordered_actor_map, with_progress
from lesioncast.cluster.connection import ray_cluster
from lesioncast.config import Config
from lesioncast.jobs.command.arguments import QC
from lesioncast.jobs.command.runner import run_job
from storage import Location, open_store
from storage.qc.inspection import Inspection, inspect_case
from storage.qc.report import write_qc_report

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(QC, write_qc, argv)


def write_qc(config: Config, args: argparse.Namespace) -> None:
    """Inspect every case of the store on Ray, and write page, table and pictures."""
    store = open_store(args.store or config.paths.store)
    with ray_cluster(config.ray, reads=[store.path]):
        results = ordered_actor_map(
            partial(_build_qc_worker, store.path),
            range(len(store.cases)),
            workers=config.ray.num_cpus,
        )
        inspections = with_progress(results, total=len(store.cases), label="cases")
        report = write_qc_report(inspections, store.table, args.out or config.paths.qc)
    logger.info("%d of %d to look at: %s", report.flagged, report.cases, report.page)


def _build_qc_worker(path: Location) -> Callable[[int], Inspection]:
    return partial(inspect_case, open_store(path))
