"""Connect to a Ray cluster, or start a local one, for the length of a block."""

import logging
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from storage import Location

logger = logging.getLogger(__name__)

# By default glibc returns the memory of every large tensor to the kernel, which zeroes its pages
# for the next one. With these settings the memory stays in the process, and a sample on a CPU takes
# a fifth less time. jobs/runtime_env.yaml repeats them for submitted jobs.
MALLOC_ENV = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_ARENA_MAX": "1",
}

# A first start reads Ray from a cold disk: its parts may take longer than Ray's own limits (30 s
# for the raylet, three times 5 s for Serve's HTTP proxy, which Serve then kills).
RAY_DEFAULTS = {
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "55",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class RaySettings:
    """Settings of the local cluster that a job starts if none is running."""

    #: Number of CPUs.
    num_cpus: int = 2
    #: Size of the object store, in MB.
    object_store_mb: int = 400


def source_tree() -> Path:
    """Return the folder that `lesioncast`, `storage` and `serve` are imported from.

    Raise RuntimeError if they come from different trees: a job would then silently mix an installed
    copy with the submitted one.
    """
    roots = {name: _root_of(name) for name in ("lesioncast", "storage", "serve")}
    if len(set(roots.values())) != 1:
        origins = ", ".join(f"{name} from {root}" for name, root in roots.items())
        raise RuntimeError(
            f"expected lesioncast, storage and serve from one tree, got {origins}; "
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
    settings: RaySettings | None,
    *,
    reads: Iterable[Location] = (),
    writes: Iterable[Location] = (),
) -> Iterator[None]:
    """Connect to the running cluster, or start a local one for the length of the block.

    The running cluster is used under `ray job submit` and where RAY_ADDRESS names one. A block
    inside another one uses the outer block's cluster. Local workers get this process's import path,
    so that driver and workers run the same tree. A local cluster asks for a token. Without
    `settings` the block has no cluster of its own, for work in this process alone.

    Raise StorageError if a node of the running cluster does not share the folders that the job
    `reads` or `writes`.
    """
    set_ray_defaults()
    if settings is None:
        yield
        return
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
            prepare_token()
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


def set_ray_defaults() -> None:
    """Set our defaults of Ray's settings in the environment, where the user has set none.

    Ray reads them when it is imported or started, so call this before either.
    """
    for name, value in RAY_DEFAULTS.items():
        os.environ.setdefault(name, value)


def prepare_token() -> None:
    """Give this process a token of its own for the cluster that it starts, if the user has none.

    Ray's ports listen on the machine's address, and whoever may call them can run code here. Ray
    lets in only processes that have its token, as our children do, unless RAY_AUTH_MODE says
    otherwise. RAY_AUTH_MODE=disabled remains the user's choice, and is logged.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "disabled":
        logger.warning(
            "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports on this machine can run code and "
            "read data; unset it to have Ray ask for a token"
        )
        return
    given = any(map(os.environ.get, ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")))
    if not given and not (Path.home() / ".ray" / "auth_token").is_file():
        # Ray would write a token to that file with the default mode, for all later clusters.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _import_path() -> list[str]:
    tree = source_tree()
    platform = tree / "platform"
    return [str(tree), str(platform)] if platform.is_dir() else [str(tree)]
