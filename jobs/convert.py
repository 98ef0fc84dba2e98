"""Convert a BIDS trial to the Zarr store that training and forecasting read.

    python jobs/convert.py --config jobs/configs/demo.yaml [--bids FOLDER] [--store FOLDER]
        [--mapping FILE]

A trial that is not BIDS: --mapping says where it keeps what, see storage/README.md.

A real trial of other spacing: --bids ../shared/data/ljubljana --set store.resample=true
Run again: nothing is done unless settings or files changed. Exit code 0: every subject is in the
store; 3: some were refused, by name and reason in the log and in refused.tsv; 1: no store.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from lesioncast.config import Config, load_config
from lesioncast.errors import ConfigError
from lesioncast.start import cluster, configure_logging, job_parser
from storage import StorageError, Store
from storage.convert import convert
from storage.plan import finished_store, plan_conversion
from storage.summary import summarise

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the command line says; the exit code is in the module's docstring."""
    parser = job_parser(__doc__ or "")
    parser.add_argument("--bids", type=Path, help="the trial (default: the configuration's)")
    parser.add_argument("--store", type=Path, help="the store (default: the configuration's)")
    parser.add_argument("--mapping", type=Path, help="where a trial that is not BIDS keeps what")
    args = parser.parse_args(argv)
    configure_logging()
    try:
        config = load_config(args.config, args.overrides, mapping=args.mapping)
    except ConfigError as error:
        logger.error("%s", error)
        return 2
    try:
        store = _store(config, args.bids or config.paths.bids, args.store or config.paths.store)
    except StorageError as error:
        logger.error("%s", error)
        return 1
    for line in summarise(store.table):
        logger.info("%s", line)
    return 3 if store.table.refused else 0


def _store(config: Config, bids: Path, path: Path) -> Store:
    conversion = plan_conversion(
        bids, path, settings=config.store, arms=config.arms, seed=config.seed
    )
    finished = finished_store(conversion)
    if finished is not None:
        logger.info("%s is up to date: settings and files are unchanged", path)
        return finished
    with cluster(config.ray):
        logger.info("converting %d subjects of %s to %s", len(conversion.subjects), bids, path)
        return convert(conversion)


if __name__ == "__main__":
    sys.exit(main())
