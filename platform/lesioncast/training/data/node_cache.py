"""Cache the cases of a run on a node: one pass over the store, into read-only arrays.

Training reads cases in random order, which is many times faster from local arrays than from a
store. Before the workers start, `node_caches` fills the cache of every node through Ray Data, while
the CPUs are free. A worker that finds no cache, because its node joined later, fills it by itself.

Cases that a node has no room for stay in the store, and each batch reads its rows there. The pass
then reads the masks only, to find the active cases. The batches are equal to the last bit.
"""

import fcntl
import os
import shutil
import time
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
from lesioncast.imaging.channels import OUTCOME
from lesioncast.training.data.cache_location import describe_choice, first_that_fits, in_memory
from lesioncast.training.data.dataset import VOLUMES, CaseDataset
from lesioncast.training.data.selection import CaseSelection
from storage import MASKS, open_store
from storage.private_files import check_private, private_folder
from storage.store.ray_datasource import ZarrDatasource

METADATA_ARRAYS = ("present", "arm")  # small, and cached even if the volumes are not
STREAMED = "-streamed"  # ends the name of a cache without volumes
KEEP_UNUSED_S = 30 * 86_400.0
"""Seconds after its last use that a cache on disk is kept."""

Array = npt.NDArray[Any]
Rows = Mapping[str, Array]


@dataclass(frozen=True)
class CachedCases:
    """Cache folder of a node."""

    folder: Path
    #: True if the volumes stay in the store and the folder has small arrays only.
    streamed: bool
    #: The choice of the folder, for the log.
    description: str


# Read columns of a selection's cases and sessions, in batches.
Reader = Callable[[CaseSelection, tuple[str, ...]], Iterable[Rows]]


def open_cases(selection: CaseSelection, read: Reader) -> CaseDataset:
    """Open the cases of this node's cache, after filling it with `read` if necessary."""
    with _locked(selection):
        cached = _fill_if_missing(selection, read)
        # Opened under the lock: `release` may remove the files. Memory maps outlive their files.
        if not cached.streamed:
            return CaseDataset.open(cached.folder, selection.sessions, selection.covariates)
    store = open_store(selection.store, inputs=selection.inputs)
    cases = CaseDataset.stream(cached.folder, store, selection.cases, selection.sessions)
    return replace(cases, covariates=selection.covariates)


def fill(selection: CaseSelection, read: Reader) -> CachedCases:
    """Fill this node's cache. At most one process per node calls `read`, at most once."""
    with _locked(selection):
        return _fill_if_missing(selection, read)


def release(selection: CaseSelection) -> None:
    """Free the memory that the cache takes on this node.

    A cache on disk stays for the next run, until it was not used for `KEEP_UNUSED_S`.

    A process that has the cache open can go on reading.
    """
    with _locked(selection):
        for root in filter(in_memory, selection.roots):
            shutil.rmtree(root / selection.name, ignore_errors=True)


@contextmanager
def _locked(selection: CaseSelection) -> Iterator[None]:
    """Hold the lock of a cache, which all processes of the node share.

    Raise StorageError if a root may hold another user's files.
    """
    # The lock file lies in the last root, even for a cache in memory, and is never removed. A
    # process that waits for a removed file would get a lock of its own.
    private_folder(selection.roots[-1])
    for root in selection.roots[:-1]:
        if os.path.lexists(root):  # never read or remove what another user planted there
            check_private(root)
    with (selection.roots[-1] / f"{selection.name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise TrainingError(
                f"{selection.roots[-1]}: expected a file system with file locks for the cache of "
                f"cases, got {error.strerror}; let Ray keep its files on a local disk"
            ) from error
        yield


def _clear_unused(selection: CaseSelection) -> None:
    """Remove caches that killed runs left in memory, and those on disk that nobody used for long.

    Without that, the images of every trial that was ever trained on would stay on the node.
    """
    longest_ago = time.time() - KEEP_UNUSED_S
    for root in selection.roots:
        for folder in filter(Path.is_dir, root.glob("*")):
            name = folder.name.removesuffix(".partial").removesuffix(STREAMED)
            unused = in_memory(root) or folder.stat().st_mtime < longest_ago
            if unused and name != selection.name:
                # A cache that is being filled is locked. It is left alone.
                lock = selection.roots[-1] / f"{name}.lock"
                with lock.open("w") as handle, suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)


def _fill_if_missing(selection: CaseSelection, read: Reader) -> CachedCases:
    """Fill the cache unless its folder exists. The caller holds the lock."""
    root = _root(selection)
    description = describe_choice(selection.size, root, selection.roots)
    streamed_folder = selection.roots[-1] / f"{selection.name}{STREAMED}"
    folder = root / selection.name if root else streamed_folder
    if not folder.is_dir():
        columns = (*VOLUMES, *METADATA_ARRAYS) if root else METADATA_ARRAYS
        # Masks are always read: they tell which cases are active. dict removes duplicates in order.
        to_read = dict.fromkeys(("case", "masks", *columns))
        _write(selection, read(selection, tuple(to_read)), folder, columns=columns)
    os.utime(folder)  # when it was used last
    return CachedCases(folder, root is None, description)


def _root(selection: CaseSelection) -> Path | None:
    """Return the folder for the volumes, or None if they stay in the store."""
    if selection.size > selection.limit:
        return None
    for root in selection.roots:
        if (root / selection.name).is_dir():
            return root
    _clear_unused(selection)
    return first_that_fits(selection.roots, selection.size)


def _write(
    selection: CaseSelection, batches: Iterable[Rows], folder: Path, *, columns: tuple[str, ...]
) -> None:
    """Write `columns` of the batches and the active cases into a folder, in one step.

    Batches may come in any order. Raise TrainingError if cases are missing.
    """
    private_folder(folder.parent)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    row_of = {case: row for row, case in enumerate(selection.cases)}
    arrays: dict[str, np.memmap[Any, Any]] = {}
    active = np.zeros(len(selection.cases), bool)
    missing = set(selection.cases)
    for batch in batches:
        if not arrays:
            arrays = {
                name: _allocate(partial / f"{name}.npy", batch[name], len(selection.cases))
                for name in columns
            }
        rows = [row_of[int(case)] for case in batch["case"]]
        for name, array in arrays.items():
            array[rows] = batch[name]
        active[rows] = _active(batch["masks"], selection.sessions)
        missing -= {int(case) for case in batch["case"]}
    if missing:
        raise TrainingError(
            f"{selection.store}: expected cases {sorted(missing)[:8]}, got none of them; "
            "convert the trial again"
        )
    np.save(partial / "active.npy", active)
    for array in arrays.values():
        array.flush()
    partial.rename(folder)


def _allocate(path: Path, batch: Array, cases: int) -> "np.memmap[Any, Any]":
    """Create an array file for `cases` rows like those of a batch."""
    shape = (cases, *batch.shape[1:])
    array = np.lib.format.open_memmap(path, mode="w+", dtype=batch.dtype, shape=shape)
    # open_memmap makes a sparse file. On a full disk, writing to one of its pages would kill the
    # process with SIGBUS. Reserving the bytes first raises OSError instead.
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _active(masks: Array, sessions: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """Return which cases have a NET2 lesion at outcome, from packed masks."""
    net2 = masks[:, sessions.index(OUTCOME), MASKS.index("net2")]
    return np.array([case.any() for case in net2])


def read_with_ray_data(selection: CaseSelection, columns: tuple[str, ...]) -> Iterator[Rows]:
    """Yield the columns in batches, read by Ray Data's tasks on free CPUs."""
    dataset = ray.data.read_datasource(_source(selection, columns))
    yield from dataset.iter_batches(batch_size=None, batch_format="numpy")


def read_in_process(selection: CaseSelection, columns: tuple[str, ...]) -> Iterator[Rows]:
    """Yield the same batches from the same source, read in this process.

    Workers read this way: Ray Data would wait for ever for a CPU while they hold all of them.
    """
    for task in _source(selection, columns).get_read_tasks(1):
        for block in task():
            yield BlockAccessor.for_block(block).to_batch_format("numpy")


def _source(selection: CaseSelection, columns: tuple[str, ...]) -> ZarrDatasource:
    return ZarrDatasource(
        selection.store,
        columns=columns,
        sessions=selection.sessions,
        cases=selection.cases,
        inputs=selection.inputs,
    )
