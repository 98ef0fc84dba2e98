"""Read rows of a store's arrays, with checksums verified and missing files reported."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from storage.backends.backend import Location, StoreBackend
from storage.backends.open import open_backend
from storage.backends.outages import storage_failure
from storage.errors import StoreError, StoreUnavailableError
from storage.layout import ARRAYS, SHARDS, shard_record_path
from storage.store.case_table import ShardRow
from storage.store.shards import decode_record

# Raised by zarr, its codecs and obstore on files that are missing, truncated or corrupt.
_READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, IndexError, EOFError)


_CHECKSUM_BYTES = 4  # of the CRC32C behind a shard's index
_ENTRY_BYTES = 16  # offset and length of a chunk, each a little-endian uint64
_NO_CHUNK = 2**64 - 1  # offset and length of a chunk that a shard does not hold


class MissingDataIsError(WrapperStore[ZarrStore]):
    """A read-only Zarr store that raises for missing data, where Zarr would read zeros.

    Data are missing if there is no file, or if the index at the end of a shard's file says that the
    file does not hold a chunk. Conversion writes every chunk, even one of zeros.
    """

    #: Number of chunks in the shard of the array that is read; 0 while it is opened.
    chunks_per_shard: int = 0

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        content = await super().get(key, prototype, byte_range)
        if content is None:
            raise FileNotFoundError(f"no file {key}")
        # Zarr reads the index either alone, as the end of the file, or with the whole file.
        if byte_range is None or isinstance(byte_range, SuffixByteRequest):
            self._check_index(key, content)
        return content

    def _check_index(self, key: str, content: Buffer) -> None:
        """Raise ValueError if the index at the end of `content` lacks a chunk."""
        size = self.chunks_per_shard * _ENTRY_BYTES
        if not size or len(content) < size + _CHECKSUM_BYTES:
            return  # metadata, or a truncated file, for which Zarr raises
        end = content[len(content) - size - _CHECKSUM_BYTES : len(content) - _CHECKSUM_BYTES]
        entries = np.frombuffer(end.to_bytes(), "<u8").reshape(-1, 2)
        missing = int((entries == _NO_CHUNK).any(axis=1).sum())
        if missing:
            raise ValueError(f"an index without {missing} of {len(entries)} chunks in {key}")


@dataclass(frozen=True)
class ShardedArray:
    """One array of a store across all its shards; `read_rows` reads it."""

    backend: StoreBackend
    name: str
    _opened: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def of_shard(self, shard: str) -> Any:
        """Return the Zarr array of one shard, opened at the first call."""
        if shard not in self._opened:
            files = MissingDataIsError(self.backend.zarr_store())
            path = f"{SHARDS}/{shard}/{self.name}"
            array = zarr.open_array(files, path=path, mode="r", zarr_format=3)
            files.chunks_per_shard = math.prod(
                -(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)
            )
            self._opened[shard] = array
        return self._opened[shard]

    # Open Zarr arrays are left out of pickles: workers open the shards that they read.
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
        positions_in_shard = [rows[index].position for index in indices]
        try:
            part = _read(array.of_shard(shard), positions_in_shard, sessions)
        except _READ_ERRORS as error:
            raise _read_error(
                array, [ShardRow(shard, position) for position in positions_in_shard], error
            ) from error
        if values is None:
            values = np.empty((len(rows), *part.shape[1:]), part.dtype)
        values[indices] = part
    if values is None:
        raise ValueError("expected rows to read, got none")
    return values


def _by_shard(rows: Sequence[ShardRow]) -> dict[str, list[int]]:
    """Return the indices into `rows` for each shard."""
    indices: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        indices.setdefault(row.shard, []).append(index)
    return indices


def _read(array: Any, positions: Sequence[int], sessions: Sequence[int] | None) -> npt.NDArray[Any]:
    """Read rows of one shard in runs of neighbours.

    A list of rows would make Zarr enumerate every voxel; slices do not.
    """
    by_session = sessions is not None and "session" in array.metadata.dimension_names
    spans = _contiguous_slices(sessions) if by_session and sessions is not None else [slice(None)]
    return _concatenate(
        [
            _concatenate([np.asarray(array[rows, span]) for span in spans], axis=1)
            for rows in _contiguous_slices(positions)
        ],
        axis=0,
    )


def _contiguous_slices(positions: Sequence[int]) -> list[slice]:
    """Return the positions in their order, as slices of neighbours."""
    runs: list[slice] = []
    for position in positions:
        if runs and runs[-1].stop == position:
            runs[-1] = slice(runs[-1].start, position + 1)
        else:
            runs.append(slice(position, position + 1))
    return runs


def _concatenate(parts: Sequence[npt.NDArray[Any]], *, axis: int) -> npt.NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


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
        _read(array.of_shard(row.shard), [row.position], None)
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
