"""Convert a BIDS trial to the Zarr store that training and forecasting read.

    python jobs/convert.py --config jobs/configs/demo.yaml [--bids FOLDER] [--store FOLDER or URL]
        [--mapping FILE]

A trial that is not BIDS: --mapping says where it keeps what, see storage/README.md.

A real trial of other spacing: --bids ../shared/data/ljubljana --set store.resample=true
Run again, whether it was killed or files changed: what is finished and unchanged is kept. Exit code
0: every subject is in the store; 3: some were refused, by name and reason in the log and in
excluded.tsv; 1: no store. With --verify nothing is converted: every digest, of the sources and of
the store, is read again, and what is not as recorded is named; then 1, else 0.
"""

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from lesioncast.cluster.connection import RaySettings, configure_logging, job_parser, ray_cluster
from lesioncast.cluster.metrics import ConversionMetrics
from lesioncast.config import load_config
from lesioncast.errors import ConfigError
from storage import Location, StorageError, open_store, parse_location
from storage.convert.build_shard import ShardTask
from storage.convert.convert import build_on_ray, convert
from storage.convert.plan import plan_conversion
from storage.convert.summary import summarise
from storage.convert.verify import verify

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert or verify as the command line says; the exit code is in the module's docstring."""
    parser = job_parser(__doc__ or "")
    parser.add_argument("--bids", type=Path, help="the trial (default: the configuration's)")
    parser.add_argument(
        "--store", type=parse_location, help="the store (default: the configuration's)"
    )
    parser.add_argument("--mapping", type=Path, help="where a trial that is not BIDS keeps what")
    parser.add_argument("--verify", action="store_true", help="reread every digest instead")
    args = parser.parse_args(argv)
    configure_logging()
    try:
        config = load_config(args.config, args.overrides, mapping=args.mapping)
    except ConfigError as error:
        logger.error("%s", error)
        return 2
    bids, path = args.bids or config.paths.bids, args.store or config.paths.store
    try:
        if args.verify:
            return _verify(path, bids)
        conversion = plan_conversion(
            bids, path, settings=config.store, arms=config.arms, seed=config.seed
        )
        store = convert(conversion, build=partial(_build, config.ray))
    except StorageError as error:
        logger.error("%s", error)
        return 1
    for line in summarise(store.table):
        logger.info("%s", line)
    return 3 if store.table.excluded else 0


def _build(settings: RaySettings, builds: Sequence[ShardTask]) -> Iterable[int]:
    """Build shards on a cluster, which is started only where there are any."""
    with ray_cluster(settings, reads=[builds[0].bids], writes=[builds[0].path]):
        meter = ConversionMetrics()
        for subjects in build_on_ray(builds):
            meter.converted(subjects)
            yield subjects


def _verify(path: Location, bids: Path) -> int:
    store = open_store(path)
    differing = 0
    for differing, line in enumerate(verify(store, bids.resolve()), start=1):  # noqa: B007
        logger.error("%s", line)
    logger.info("%s: %d files are not as recorded", store.path, differing)
    return 1 if differing else 0
