"""One pass over the store per node, into read-only arrays on the node's own disk.

Training draws cases at random, which is many times faster from local arrays than as a stream.
Before the workers start, `prepare_nodes` fills every node's cache through Ray Data, while its CPUs
are free. A worker that finds no cache (a node that joined later) fills it by itself, in process:
Ray Data inside a training run waits for ever where the workers hold all CPUs.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.data
from ray.data.block import BlockAccessor
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lesioncast.training.errors import TrainingError
from storage import CHANNELS, MASKS, SESSIONS, Case, Location, Store
from storage.source import ZarrDatasource

COLUMNS = ("flair", "masks", "present", "arm")
TARGET_SESSION = SESSIONS.index("w096")

Array = npt.NDArray[Any]
Rows = Mapping[str, Array]


@dataclass(frozen=True)
class CaseCache:
    """Some cases of a store, in order; `digest` names their content, `root` is on each node.

    `covariates` [case, covariate] are a few numbers of the case table, which travel with this
    description: the node's files are the same whatever covariates a model sees.
    """

    store: Location
    cases: tuple[int, ...]
    digest: str
    root: Path
    covariates: npt.NDArray[np.float32] | None = field(default=None, compare=False)

    @property
    def folder(self) -> Path:
        """Where a node keeps the arrays."""
        return self.root / self.digest[:20]


Reader = Callable[[CaseCache], Iterable[Rows]]


def training_cases(store: Store, arms: tuple[str, ...]) -> CaseCache:
    """The cases of the training split whose w096 FLAIR and NET2 are known.

    Raises TrainingError where there is none, or where the store's arms are not `arms`.
    """
    if tuple(store.spec.arms) != arms:
        raise TrainingError(
            f"{store.path}: expected the arms {', '.join(arms)}, got {', '.join(store.spec.arms)}; "
            "convert the trial again with this configuration"
        )
    cases = [case for case in store.select(split="train") if _has_target(case)]
    if not cases:
        raise TrainingError(
            f"{store.path}: expected training cases with FLAIR and NET2 at w096, got none"
        )
    digest = _digest(store, cases)
    return CaseCache(store.path, tuple(case.index for case in cases), digest, cache_root())


def cache_root() -> Path:
    """The folder of caches on every node: $LESIONCAST_CACHE, or one in the temporary folder."""
    default = Path(tempfile.gettempdir()) / f"lesioncast-{os.getuid()}"
    return Path(os.environ.get("LESIONCAST_CACHE", default)).absolute()


def _has_target(case: Case) -> bool:
    present = case.present[TARGET_SESSION]
    return bool(present[CHANNELS.index("flair")] and present[CHANNELS.index("net2")])


def _digest(store: Store, cases: Iterable[Case]) -> str:
    content = json.dumps([store.table.inputs, [case.subject for case in cases]])
    return hashlib.sha256(content.encode()).hexdigest()


def fill(cache: CaseCache, read: Reader) -> Path:
    """The folder of the filled cache; `read` is called by one process a node, at most once."""
    folder = cache.folder
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _write(cache, read(cache), folder)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _write(cache: CaseCache, batches: Iterable[Rows], folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    row_of = {case: row for row, case in enumerate(cache.cases)}
    arrays: dict[str, np.memmap[Any, Any]] = {}
    missing = set(cache.cases)
    for batch in batches:
        arrays = arrays or _allocate(partial, batch, len(cache.cases))
        rows = [row_of[int(case)] for case in batch["case"]]
        for name, array in arrays.items():
            array[rows] = batch[name]
        missing -= {int(case) for case in batch["case"]}
    if missing:
        raise TrainingError(
            f"{cache.store}: expected cases {sorted(missing)[:8]}, got none of them"
        )
    np.save(partial / "active.npy", _active(arrays["masks"]))
    for array in arrays.values():
        array.flush()
    partial.rename(folder)


def _allocate(folder: Path, batch: Rows, cases: int) -> dict[str, np.memmap[Any, Any]]:
    return {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy",
            mode="w+",
            dtype=batch[name].dtype,
            shape=(cases, *batch[name].shape[1:]),
        )
        for name in COLUMNS
    }


def _active(masks: Array) -> npt.NDArray[np.bool_]:
    net2 = masks[:, TARGET_SESSION, MASKS.index("net2")]
    return np.array([case.any() for case in net2])


def read_with_ray_data(cache: CaseCache) -> Iterator[Rows]:
    """The cases in batches, read by Ray Data's tasks wherever CPUs are free."""
    dataset = ray.data.read_datasource(_source(cache))
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy")


def read_in_process(cache: CaseCache) -> Iterator[Rows]:
    """The same batches by the same source, read here and now."""
    for task in _source(cache).get_read_tasks(1):
        for block in task():
            yield BlockAccessor.for_block(block).to_batch_format("numpy")


def _source(cache: CaseCache) -> ZarrDatasource:
    return ZarrDatasource(cache.store, columns=("case", *COLUMNS), cases=list(cache.cases))


def prepare_nodes(cache: CaseCache, *, accelerator_type: str | None) -> None:
    """Fill the cache of every node that training may run on, all nodes at once."""
    here = ray.get_runtime_context().get_node_id()
    nodes = _training_nodes(accelerator_type)
    elsewhere = [_fill_on(node, cache) for node in nodes if node != here]
    if here in nodes:
        fill(cache, read_with_ray_data)
    ray.get(elsewhere)


def _training_nodes(accelerator_type: str | None) -> list[str]:
    needed = f"accelerator_type:{accelerator_type}" if accelerator_type else "CPU"
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [n["NodeID"] for n in nodes if n["Alive"] and n["Resources"].get(needed)]


def _fill_on(node: str, cache: CaseCache) -> "ray.ObjectRef[Path]":
    pinned = NodeAffinitySchedulingStrategy(node, soft=False)
    # No CPU of its own: it only waits for Ray Data's tasks and writes what they read.
    task = ray.remote(fill).options(num_cpus=0, scheduling_strategy=pinned)
    return task.remote(cache, read_with_ray_data)
