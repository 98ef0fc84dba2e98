"""The rows of a store's arrays, checked on the way from the disk."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from storage.backends.backend import Location, StoreBackend
from storage.backends.local import open_backend
from storage.errors import StoreError
from storage.layout import ARRAYS, SHARDS, shard_record_path
from storage.store.case_table import ShardRow
from storage.store.shards import decode_record

# What zarr, its codecs and obstore raise on files that are missing, short or flipped.
_BROKEN = (OSError, ValueError, RuntimeError, KeyError, TypeError, IndexError, EOFError)


class MissingFileIsError(WrapperStore[ZarrStore]):
    """The files of a place for reading; one that is missing is an error, where Zarr reads zeros."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        if found is None:
            raise FileNotFoundError(f"no file {key}")
        return found


@dataclass(frozen=True)
class ShardedArray:
    """One array of a store, in all its shards: `take_rows` reads it."""

    place: StoreBackend
    name: str
    _opened: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def of_shard(self, shard: str) -> Any:
        """The Zarr array of one shard."""
        if shard not in self._opened:
            files = MissingFileIsError(self.place.zarr_store())
            path = f"{SHARDS}/{shard}/{self.name}"
            self._opened[shard] = zarr.open_array(files, path=path, mode="r", zarr_format=3)
        return self._opened[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "name": self.name, "_opened": {}}


def open_arrays(path: Location) -> dict[str, ShardedArray]:
    """The arrays of the store at `path` by name; a case's `row` says where it lies in them."""
    place = open_backend(path)
    return {name: ShardedArray(place, name) for name in ARRAYS}


def read_rows(
    array: ShardedArray, rows: Sequence[ShardRow], *, sessions: Sequence[int] | None = None
) -> npt.NDArray[Any]:
    """Some rows of a store's array in that order, and of its sessions, if it has any, some or all.

    What is not asked for is not read, chunk by chunk. Raises StoreError with the case and the file
    where these are not what was written, or no longer there.
    """
    taken: npt.NDArray[Any] | None = None
    for shard, positions in _by_shard(rows).items():
        places = [rows[position].place for position in positions]
        try:
            part = _read(array.of_shard(shard), places, sessions)
        except _BROKEN as error:
            raise _read_error(array, [ShardRow(shard, place) for place in places], error) from error
        if taken is None:
            taken = np.empty((len(rows), *part.shape[1:]), part.dtype)
        taken[positions] = part
    if taken is None:
        raise ValueError("expected rows to take, got none")
    return taken


def _by_shard(rows: Sequence[ShardRow]) -> dict[str, list[int]]:
    positions: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        positions.setdefault(row.shard, []).append(position)
    return positions


def _read(array: Any, places: Sequence[int], sessions: Sequence[int] | None) -> npt.NDArray[Any]:
    """Neighbours at once, others one after the other: of a list, Zarr would list every voxel."""
    by_session = sessions is not None and "session" in array.metadata.dimension_names
    spans = _contiguous_slices(sessions) if by_session and sessions is not None else [slice(None)]
    return _concatenate(
        [
            _concatenate([np.asarray(array[rows, span]) for span in spans], axis=1)
            for rows in _contiguous_slices(places)
        ],
        axis=0,
    )


def _contiguous_slices(places: Sequence[int]) -> list[slice]:
    """The places in their order, as slices of neighbours."""
    runs: list[slice] = []
    for place in places:
        if runs and runs[-1].stop == place:
            runs[-1] = slice(runs[-1].start, place + 1)
        else:
            runs.append(slice(place, place + 1))
    return runs


def _concatenate(parts: Sequence[npt.NDArray[Any]], *, axis: int) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


def _read_error(array: ShardedArray, rows: Sequence[ShardRow], error: Exception) -> StoreError:
    """The error of rows that cannot be read, for the first that cannot be read alone."""
    row = next((row for row in rows if not _readable(array, row)), rows[0])
    why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    folder = f"{array.place.location}/{SHARDS}/{row.shard}"
    return StoreError(
        f"{folder}/{array.name}: expected {_subject(array.place, row)} as it was written, got "
        f"{why}; open the store again, if it was converted anew meanwhile, or else remove that "
        "folder and convert again (convert.py --verify names all such files)."
    )


def _readable(array: ShardedArray, row: ShardRow) -> bool:
    try:
        _read(array.of_shard(row.shard), [row.place], None)
    except _BROKEN:
        return False
    return True


def _subject(place: StoreBackend, row: ShardRow) -> str:
    """Who lies there, as far as the shard's record still tells."""
    try:
        record = decode_record(place.read(shard_record_path(row.shard)))
        names = {found.place: outcome.subject for outcome, found in record.rows(row.shard)}
        return names[row.place]
    except (OSError, KeyError, TypeError, ValueError):
        return f"case {row.place}"
