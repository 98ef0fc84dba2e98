"""One pass over the store per node, into read-only arrays on the node's own memory or disk.

Training draws cases at random, which is many times faster from local arrays than as a stream.
Before the workers start, `lesioncast.training.data.node_caches` fills every node's cache through
Ray Data, while its CPUs are free. A worker that finds no cache (a node that joined later) fills it
by itself, in process: Ray Data inside a training run waits for ever where the workers hold all
CPUs.

Cases that a node has no room for stay in the store, where each batch reads its rows; the pass then
looks at the masks only, for which cases are active. The batches are the same to the last bit.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray.data
from ray.data.block import BlockAccessor

from lesioncast.errors import TrainingError
from lesioncast.training.data.cache_location import describe_choice, first_that_fits, in_memory
from lesioncast.training.data.dataset import VOLUMES, CaseDataset
from lesioncast.training.data.selection import CaseSelection
from storage import MASKS, open_store
from storage.store.ray_datasource import ZarrDatasource

METADATA_ARRAYS = ("present", "arm")  # small, and always kept

Array = npt.NDArray[Any]
Rows = Mapping[str, Array]


@dataclass(frozen=True)
class CachedCases:
    """What a node has of a cache: a folder of arrays, with the volumes or without (`streamed`)."""

    folder: Path
    streamed: bool
    remark: str


# The columns named, of a cache's cases and sessions, in batches.
Reader = Callable[[CaseSelection, tuple[str, ...]], Iterable[Rows]]


def open_cases(cache: CaseSelection, read: Reader) -> CaseDataset:
    """The cases of this node's cache, which is filled if it is not yet."""
    with _locked(cache):
        kept = _fill_if_missing(cache, read)
        if not kept.streamed:
            return CaseDataset.open(kept.folder, cache.sessions, cache.covariates)
    store = open_store(cache.store, inputs=cache.inputs)
    cases = CaseDataset.stream(kept.folder, store, cache.cases, cache.sessions)
    return replace(cases, covariates=cache.covariates)


def fill(cache: CaseSelection, read: Reader) -> CachedCases:
    """Fills this node's cache; `read` is called by one process a node, at most once."""
    with _locked(cache):
        return _fill_if_missing(cache, read)


def release(cache: CaseSelection) -> None:
    """Gives back what the cache takes of this node's memory; on disk it stays for the next run.

    Who has it open may read on.
    """
    with _locked(cache):
        for root in filter(in_memory, cache.roots):
            shutil.rmtree(root / cache.name, ignore_errors=True)


@contextmanager
def _locked(cache: CaseSelection) -> Iterator[None]:
    cache.roots[-1].mkdir(parents=True, exist_ok=True)
    with (cache.roots[-1] / f"{cache.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _clear_memory(cache: CaseSelection) -> None:
    """Removes what runs that were killed left in memory, but nothing that is being filled."""
    for root in filter(in_memory, cache.roots):
        for folder in filter(Path.is_dir, root.glob("*")):
            name = folder.name.removesuffix(".partial")
            if name != cache.name:
                with (cache.roots[-1] / f"{name}.lock").open("w") as handle, suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)


def _fill_if_missing(cache: CaseSelection, read: Reader) -> CachedCases:
    root = _root(cache)
    remark = describe_choice(cache.size, root, cache.roots)
    folder = root / cache.name if root else cache.roots[-1] / f"{cache.name}-streamed"
    if not folder.is_dir():
        columns = (*VOLUMES, *METADATA_ARRAYS) if root else METADATA_ARRAYS
        wanted = dict.fromkeys(("case", "masks", *columns))  # the masks say which cases are active
        _write(cache, read(cache, tuple(wanted)), folder, columns=columns)
    return CachedCases(folder, root is None, remark)


def _root(cache: CaseSelection) -> Path | None:
    """Where the volumes are or shall be; None where they stay in the store."""
    if cache.size > cache.limit:
        return None
    for root in cache.roots:
        if (root / cache.name).is_dir():
            return root
    _clear_memory(cache)
    return first_that_fits(cache.roots, cache.size)


def _write(
    cache: CaseSelection, batches: Iterable[Rows], folder: Path, *, columns: tuple[str, ...]
) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    row_of = {case: row for row, case in enumerate(cache.cases)}
    arrays: dict[str, np.memmap[Any, Any]] = {}
    active = np.zeros(len(cache.cases), bool)
    missing = set(cache.cases)
    for batch in batches:
        arrays = arrays or {n: _allocate(partial / f"{n}.npy", batch[n], cache) for n in columns}
        rows = [row_of[int(case)] for case in batch["case"]]
        for name, array in arrays.items():
            array[rows] = batch[name]
        active[rows] = _active(batch["masks"], cache.sessions)
        missing -= {int(case) for case in batch["case"]}
    if missing:
        raise TrainingError(
            f"{cache.store}: expected cases {sorted(missing)[:8]}, got none of them"
        )
    np.save(partial / "active.npy", active)
    for array in arrays.values():
        array.flush()
    partial.rename(folder)


def _allocate(path: Path, batch: Array, cache: CaseSelection) -> "np.memmap[Any, Any]":
    shape = (len(cache.cases), *batch.shape[1:])
    array = np.lib.format.open_memmap(path, mode="w+", dtype=batch.dtype, shape=shape)
    # A file with holes would kill the process at the first page that finds the disk full.
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _active(masks: Array, sessions: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    net2 = masks[:, sessions.index("w096"), MASKS.index("net2")]
    return np.array([case.any() for case in net2])


def read_with_ray_data(cache: CaseSelection, columns: tuple[str, ...]) -> Iterator[Rows]:
    """The columns in batches, read by Ray Data's tasks wherever CPUs are free."""
    dataset = ray.data.read_datasource(_source(cache, columns))
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy")


def read_in_process(cache: CaseSelection, columns: tuple[str, ...]) -> Iterator[Rows]:
    """The same batches by the same source, read here and now."""
    for task in _source(cache, columns).get_read_tasks(1):
        for block in task():
            yield BlockAccessor.for_block(block).to_batch_format("numpy")


def _source(cache: CaseSelection, columns: tuple[str, ...]) -> ZarrDatasource:
    return ZarrDatasource(
        cache.store,
        columns=columns,
        sessions=cache.sessions,
        cases=cache.cases,
        inputs=cache.inputs,
    )
