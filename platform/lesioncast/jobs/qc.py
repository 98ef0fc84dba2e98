"""Look before training: a table and a page of what the store holds of each subject.

    python jobs/qc.py --config jobs/configs/demo.yaml [--store FOLDER] [--out FOLDER]

Writes qc.html (pictures inside, opens anywhere) and qc.tsv to <root>/qc, flagged subjects first.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lesioncast.cluster.actor_map import ordered_actor_map, with_progress
from lesioncast.cluster.connection import configure_logging, job_parser, ray_cluster
from lesioncast.config import load_config
from lesioncast.errors import ConfigError
from storage import Location, StorageError, open_store
from storage.backends.backend import parse_location
from storage.qc.measure import CaseQuality, measure_case
from storage.qc.report import write_qc_report

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    parser = job_parser(__doc__ or "")
    parser.add_argument(
        "--store", type=parse_location, help="the Zarr store (default: <root>/store.zarr)"
    )
    parser.add_argument("--out", type=Path, help="where the table goes (default: <root>/qc)")
    args = parser.parse_args(argv)
    configure_logging()
    try:
        config = load_config(args.config, args.overrides)
        store = open_store(args.store or config.paths.store)
        with ray_cluster(config.ray, reads=[store.path]):
            results = ordered_actor_map(
                partial(_build_qc_worker, store.path),
                range(len(store.cases)),
                workers=config.ray.num_cpus,
            )
            found = list(with_progress(results, total=len(store.cases), label="cases"))
    except ConfigError as error:
        parser.error(str(error))
    except StorageError as error:
        logger.error("%s", error)
        return 1
    page, _ = write_qc_report(found, store.table, args.out or config.paths.qc)
    logger.info("%d of %d to look at: %s", sum(bool(f.flags) for f in found), len(found), page)
    return 0


def _build_qc_worker(path: Location) -> Callable[[int], CaseQuality]:
    return partial(measure_case, open_store(path))
