"""Read rows of a store's arrays, with checksums verified and missing files reported."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from storage.backends.backend import Location, StoreBackend
from storage.backends.open import open_backend
from storage.backends.outages import storage_failure
from storage.errors import StoreError, StoreUnavailableError
from storage.layout import ARRAYS, SHARDS, shard_record_path
from storage.store.case_table import ShardRow
from storage.store.shard_file import open_shard_file
from storage.store.shards import decode_record
from storage.store.zarr_shard import open_zarr_shard

# Raised by zarr, its codecs and obstore on files that are missing, truncated or corrupt.
_READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, IndexError, EOFError)


class ShardArray(Protocol):
    """One array of one shard."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def row_shape(self, sessions: Sequence[int] | None) -> tuple[int, ...]:
        """Return the shape of a row restricted to `sessions`."""
        ...

    def read_into(
        self,
        rows: Sequence[npt.NDArray[Any]],
        positions: Sequence[int],
        sessions: Sequence[int] | None,
    ) -> None:
        """Fill the arrays `rows` with the cases at `positions`."""
        ...


@dataclass(frozen=True)
class ShardedArray:
    """One array of a store across all its shards; `read_rows` reads it."""

    backend: StoreBackend
    name: str
    _opened: dict[str, ShardArray] = field(default_factory=dict, compare=False, repr=False)

    def of_shard(self, shard: str) -> ShardArray:
        """Return the array of one shard, opened at the first call.

        A local file with the layout and codecs of `write_shard` is read directly. Zarr-python reads
        everything else.
        """
        if shard not in self._opened:
            path = f"{SHARDS}/{shard}/{self.name}"
            folder = self.backend.location
            opened = open_shard_file(folder, path) if isinstance(folder, Path) else None
            self._opened[shard] = opened or open_zarr_shard(self.backend.zarr_store(), path)
        return self._opened[shard]

    # Open arrays are left out of pickles: workers open the shards that they read.
    def __getstate__(self) -> dict[str, Any]:
        return {"backend": self.backend, "name": self.name, "_opened": {}}


def open_arrays(path: Location) -> dict[str, ShardedArray]:
    """Return the arrays of the store at `path` by name; `Case.row` addresses their rows."""
    backend = open_backend(path)
    return {name: ShardedArray(backend, name) for name in ARRAYS}


def read_rows(
    array: ShardedArray, rows: Sequence[ShardRow], *, sessions: Sequence[int] | None = None
) -> npt.NDArray[Any]:
    """Return rows of a store's array in that order, all sessions or those at `sessions`.

    Only the chunks of these rows and sessions are read. Raises StoreError that names the case and
    the file if the data are missing or damaged.
    """
    values: npt.NDArray[Any] | None = None
    for shard, indices in _by_shard(rows).items():
        positions = [rows[index].position for index in indices]
        try:
            opened = array.of_shard(shard)
            if values is None:
                values = np.empty((len(rows), *opened.row_shape(sessions)), opened.dtype)
            _read(opened, [values[index] for index in indices], positions, sessions)
        except _READ_ERRORS as error:
            in_shard = [ShardRow(shard, position) for position in positions]
            raise _read_error(array, in_shard, error) from error
    if values is None:
        raise ValueError("expected rows to read, got none")
    return values


def _by_shard(rows: Sequence[ShardRow]) -> dict[str, list[int]]:
    """Return the indices into `rows` for each shard."""
    indices: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        indices.setdefault(row.shard, []).append(index)
    return indices


def _read(
    array: ShardArray,
    rows: Sequence[npt.NDArray[Any]],
    positions: Sequence[int],
    sessions: Sequence[int] | None,
) -> None:
    array.read_into(rows, positions, sessions)


def _read_error(array: ShardedArray, rows: Sequence[ShardRow], error: Exception) -> StoreError:
    """Return the error for rows that cannot be read; it names the first unreadable one."""
    row = next((row for row in rows if not _readable(array, row)), rows[0])
    why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    folder = f"{array.backend.location}/{SHARDS}/{row.shard}"
    expected = f"{folder}/{array.name}: expected {_subject(array.backend, row)} as it was written"
    failure = storage_failure(error)
    if failure is not None and failure.transient:
        return StoreUnavailableError(f"{expected}, got {why}; try again when its storage answers.")
    return StoreError(
        f"{expected}, got {why}; if the store was converted again meanwhile, open it again. "
        "Otherwise remove that folder and convert again (convert.py --verify lists all such files)."
    )


def _readable(array: ShardedArray, row: ShardRow) -> bool:
    try:
        opened = array.of_shard(row.shard)
        _read(opened, [np.empty(opened.row_shape(None), opened.dtype)], [row.position], None)
    except _READ_ERRORS:
        return False
    return True


def _subject(backend: StoreBackend, row: ShardRow) -> str:
    """Return the subject of a row from the shard's record, if that is readable."""
    try:
        record = decode_record(backend.read(shard_record_path(row.shard)))
        names = {case_row.position: outcome.subject for outcome, case_row in record.rows(row.shard)}
        return names[row.position]
    except (OSError, KeyError, TypeError, ValueError):
        return f"case {row.position}"
