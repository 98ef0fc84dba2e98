"""A store as a source for Ray Data (`ray.data.read_zarr` reads Zarr 2 only)."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from ray.data import DataContext
from ray.data.block import Block, BlockAccessor, BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from storage.backends.backend import Location
from storage.layout import SESSIONS, array_specs, session_indices
from storage.store.array_reader import open_arrays, read_rows
from storage.store.case_table import ShardRow
from storage.store.store import open_store

DEFAULT_COLUMNS = ("case", "flair", "masks", "present", "arm")
_SCALARS = {"case": 8, "arm": 8}  # int64, bytes
_TASK_BYTES = 2**25  # a smaller task costs more to start than to read


class ZarrDatasource(Datasource):
    """Cases of a store as rows with numeric tensor columns: `ray.data.read_datasource(source)`.

    `columns` name arrays of the store (`flair`, `masks` packed as stored, `parcellation`,
    `present`), `case` (the case's index) and `arm` (its arm index, -1 if unknown); those with a
    session axis hold the named `sessions` alone. `cases` are the indices to read, by default all of
    a `split` and an `arm` `having` the channels named, as `Store.select` takes them; `inputs` is
    the digest of the table that they were found in, as `open_store` takes it. What is not asked for
    is not read. A block holds cases of as few files as their order allows.
    Raises StoreError where the store cannot be read, ValueError for what it has not.
    """

    def __init__(
        self,
        path: Location,
        *,
        columns: Sequence[str] = DEFAULT_COLUMNS,
        sessions: Sequence[str] = SESSIONS,
        cases: Sequence[int] | None = None,
        inputs: str | None = None,
        split: str | None = None,
        arm: str | None = None,
        having: Sequence[str] = (),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._store = open_store(path, inputs=inputs)
        self._columns = tuple(columns)
        self._sessions = session_indices(sessions)
        if cases is None:
            chosen = self._store.select(split=split, arm=arm, having=having)
            cases = [case.index for case in chosen]
        self._cases = list(cases)
        if not self._cases:
            raise ValueError(f"expected cases of {path} to read, got none that were asked for")
        known = array_specs(self._store.spec.slab, sessions)
        if unknown := set(columns) - set(known) - set(_SCALARS):
            raise ValueError(
                f"expected columns in ({', '.join((*known, *_SCALARS))}), got {sorted(unknown)}"
            )
        sizes = _SCALARS | {name: array.bytes_per_case for name, array in known.items()}
        self._row_bytes = sum(sizes[name] for name in self._columns)

    def estimate_inmemory_data_size(self) -> int:
        """Bytes of all rows."""
        return self._row_bytes * len(self._cases)

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """Runs of cases, one task each, in blocks of at most Ray Data's target size."""
        context = data_context or DataContext.get_current()
        target = context.target_max_block_size or self.estimate_inmemory_data_size()
        rows_per_block = max(1, target // max(1, self._row_bytes))
        worthwhile = -(-self.estimate_inmemory_data_size() // _TASK_BYTES)
        tasks = max(1, min(parallelism, worthwhile, len(self._cases)))
        runs = np.array_split(np.array(self._cases), tasks)
        return [self._task(run.tolist(), rows_per_block, per_task_row_limit) for run in runs]

    def _task(self, cases: list[int], rows_per_block: int, row_limit: int | None) -> ReadTask:
        chosen = [self._store.cases[index] for index in cases]
        read = partial(
            _read_blocks,
            self._store.path,
            columns=self._columns,
            sessions=self._sessions,
            rows=[case.row for case in chosen],
            scalars={"case": cases, "arm": [case.arm_index for case in chosen]},
            rows_per_block=rows_per_block,
        )
        size = self._row_bytes * len(cases)
        metadata = BlockMetadata(
            num_rows=len(cases), size_bytes=size, exec_stats=None, task_exec_stats=None
        )
        return ReadTask(read, metadata, per_task_row_limit=row_limit)


def _read_blocks(
    path: Location,
    *,
    columns: tuple[str, ...],
    sessions: list[int],
    rows: list[ShardRow],
    scalars: dict[str, list[int]],
    rows_per_block: int,
) -> Iterator[Block]:
    """Arrow tables of whole rows; what it is given is small, the case table stays in the driver."""
    arrays = open_arrays(path)
    for first in range(0, len(rows), rows_per_block):
        part = slice(first, first + rows_per_block)
        batch = {
            name: np.array(scalars[name][part], np.int64)
            if name in scalars
            else read_rows(arrays[name], rows[part], sessions=sessions)
            for name in columns
        }
        yield BlockAccessor.batch_to_block(batch)
