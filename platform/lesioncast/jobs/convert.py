"""Job `convert`: build or update the Zarr store of a trial, or verify its digests."""

import argparse
import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from lesioncast.cluster.connection import RaySettings, ray_cluster
from lesioncast.config import Config
from lesioncast.jobs.command.arguments import CONVERT
from lesioncast.jobs.command.runner import run_job
from storage import Location, open_store
from storage.convert.build_shard import ShardTask
from storage.convert.convert import build_on_ray, convert
from storage.convert.plan import plan_conversion
from storage.convert.summary import summarise
from storage.convert.verify import verify

logger = logging.getLogger(__name__)
SOME_EXCLUDED = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(CONVERT, convert_or_verify, argv)


def convert_or_verify(config: Config, args: argparse.Namespace) -> int:
    """Convert the trial, or verify the store; the description of the command has the exit codes."""
    bids, path = args.bids or config.paths.bids, args.store or config.paths.store
    if args.verify:
        return _verify(path, bids)
    conversion = plan_conversion(
        bids, path, settings=config.store, arms=config.arms, seed=config.seed
    )
    store = convert(conversion, build=partial(_build, config.ray))
    for line in summarise(store.table):
        logger.info("%s", line)
    return SOME_EXCLUDED if store.table.excluded else 0


def _build(settings: RaySettings, builds: Sequence[ShardTask]) -> Iterable[int]:
    """Build shards on a cluster; `convert` calls this only if there are shards to build."""
    from lesioncast.cluster.metrics import ConversionMetrics  # imports Ray

    with ray_cluster(settings, reads=[builds[0].bids], writes=[builds[0].path]):
        metrics = ConversionMetrics()
        for subjects in build_on_ray(builds):
            metrics.converted(subjects)
            yield subjects


def _verify(path: Location, bids: Path) -> int:
    """Log every file whose digest differs from the recorded one; return 1 if there are any."""
    store = open_store(path)
    differing = 0
    for differing, line in enumerate(verify(store, bids.resolve()), start=1):  # noqa: B007
        logger.error("%s", line)
    logger.info("%s: %d files are not as recorded", store.path, differing)
    return 1 if differing else 0
