"""Read a store with Ray Data (`ray.data.read_zarr` supports Zarr 2 only)."""

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
_SCALARS = {"case": 8, "arm": 8}  # bytes of an int64
_MIN_TASK_BYTES = 2**25  # a smaller task takes longer to start than to read


class ZarrDatasource(Datasource):
    """Cases of a store as rows with numeric tensor columns: `ray.data.read_datasource(source)`.

    `columns` names arrays of the store (`flair`, `masks` packed as stored, `parcellation`,
    `present`), `case` (the index of the case) and `arm` (its arm index, -1 if unknown). Only these
    are read. Columns with a session axis hold the named `sessions`.

    `cases` are the indices to read, by default all. `inputs` is the `CaseTable.inputs` of the store
    for which these indices are valid. A block holds cases of as few shards as their order allows.

    With `batch_size` a task reads one batch of cases as one block, and batches of `iter_batches`
    with that size are views of blocks in Ray's object store instead of copies. By default Ray Data
    divides the blocks of so few tasks; `read_datasource(source,
    override_num_blocks=source.batches)` prevents that.

    Raises StoreError if the store cannot be read, and ValueError for unknown columns or sessions.
    """

    def __init__(
        self,
        path: Location,
        *,
        columns: Sequence[str] = DEFAULT_COLUMNS,
        sessions: Sequence[str] = SESSIONS,
        cases: Sequence[int] | None = None,
        inputs: str | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._store = open_store(path, inputs=inputs)
        self._columns = tuple(columns)
        self._sessions = session_indices(sessions)
        self._cases = list(range(len(self._store.cases)) if cases is None else cases)
        if not self._cases:
            raise ValueError(f"expected cases of {path} to read, got none")
        arrays = array_specs(self._store.spec.slab, sessions)
        if unknown := set(columns) - set(arrays) - set(_SCALARS):
            raise ValueError(
                f"expected columns in ({', '.join((*arrays, *_SCALARS))}), got {sorted(unknown)}"
            )
        sizes = _SCALARS | {name: array.bytes_per_case for name, array in arrays.items()}
        self._row_bytes = sum(sizes[name] for name in self._columns)
        self._batch_size = batch_size

    @property
    def batches(self) -> int:
        """Return the number of batches of `batch_size` cases, the last of which may be smaller."""
        return -(-len(self._cases) // (self._batch_size or len(self._cases)))

    def estimate_inmemory_data_size(self) -> int:
        """Return the number of bytes of all rows."""
        return self._row_bytes * len(self._cases)

    def get_read_tasks(
        self,
        parallelism: int,
        per_task_row_limit: int | None = None,
        data_context: DataContext | None = None,
    ) -> list[ReadTask]:
        """Return tasks for batches, or for runs of cases in blocks of Ray Data's target size."""
        if self._batch_size is not None:
            starts = range(0, len(self._cases), self._batch_size)
            batches = [list(self._cases[first : first + self._batch_size]) for first in starts]
            return [self._task(batch, len(batch), per_task_row_limit) for batch in batches]
        context = data_context or DataContext.get_current()
        target = context.target_max_block_size or self.estimate_inmemory_data_size()
        rows_per_block = max(1, target // max(1, self._row_bytes))
        max_tasks = -(-self.estimate_inmemory_data_size() // _MIN_TASK_BYTES)
        n_tasks = max(1, min(parallelism, max_tasks, len(self._cases)))
        runs = np.array_split(np.array(self._cases), n_tasks)
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
    """Yield Arrow tables of whole rows.

    Runs in a worker. Its arguments are small: the case table stays in the driver.
    """
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
