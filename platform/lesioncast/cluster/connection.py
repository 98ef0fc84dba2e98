"""How every job begins: arguments, logging, and a Ray cluster to run on."""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from storage import Location

logger = logging.getLogger(__name__)

# glibc returns every large tensor to the kernel and has its pages zeroed again for the next one;
# kept in the process instead, a sample on a CPU took a fifth less time. jobs/runtime_env.yaml too.
MALLOC_ENV = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True)
class RaySettings:
    """The local cluster a job starts when it finds none: CPUs and object store in MB."""

    num_cpus: int = 2
    object_store_mb: int = 400


def job_parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the flags every job takes; `doc` is the job's docstring."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="such as jobs/configs/demo.yaml")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key, such as --set pretrain.steps=50 (repeatable)",
    )
    return parser


def configure_logging() -> None:
    """Plain lines on standard output; only entry points call this."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("ray.data").setLevel(logging.WARNING)


def source_tree() -> Path:
    """The folder that `lesioncast`, `storage` and `serve` were imported from.

    Raises RuntimeError where they come from different trees: a job would then silently mix an
    installed copy with the submitted one.
    """
    roots = {name: _root_of(name) for name in ("lesioncast", "storage", "serve")}
    if len(set(roots.values())) != 1:
        found = ", ".join(f"{name} from {root}" for name, root in roots.items())
        raise RuntimeError(
            f"expected lesioncast, storage and serve from one tree, got {found}; "
            "submit with --runtime-env jobs/runtime_env.yaml, or uninstall the stale wheel"
        )
    return roots["lesioncast"]


def _root_of(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise RuntimeError(
            f"the package {package} is not importable; "
            "submit with --runtime-env jobs/runtime_env.yaml or run pip install -e ."
        )
    folder = Path(spec.origin).resolve().parent.parent
    return folder.parent if folder.name == "platform" else folder


@contextmanager
def ray_cluster(
    settings: RaySettings, *, reads: Iterable[Location] = (), writes: Iterable[Location] = ()
) -> Iterator[None]:
    """A connection to the running cluster, or a small local one for as long as the block lasts.

    Raises StorageError where a node of the running one does not share the folders that the job
    `reads` or `writes`.

    The running cluster is used under `ray job submit` or where RAY_ADDRESS names one; inside an
    outer block this one joins it. Local workers get this process's import path, so that driver and
    workers run the same tree.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    from lesioncast.cluster.nodes import check_shared_paths

    if ray.is_initialized():
        yield
        return
    logger.info("lesioncast from %s", source_tree())
    with tempfile.TemporaryDirectory(prefix="lc-", ignore_cleanup_errors=True) as folder:
        if os.environ.get("RAY_ADDRESS"):
            ray.init()
            check_shared_paths(reads=reads, writes=writes)
        else:
            os.environ["RAY_TMPDIR"] = folder
            ray.init(
                address="local",
                num_cpus=settings.num_cpus,
                object_store_memory=settings.object_store_mb * 2**20,
                include_dashboard=False,
                runtime_env={
                    "env_vars": MALLOC_ENV | {"PYTHONPATH": os.pathsep.join(_import_path())}
                },
                logging_level=logging.WARNING,
            )
        try:
            yield
        finally:
            ray.shutdown()


def _import_path() -> list[str]:
    tree = source_tree()
    platform = tree / "platform"
    return [str(tree), str(platform)] if platform.is_dir() else [str(tree)]
