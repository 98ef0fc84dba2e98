"""Read an array of a shard with zarr-python, which reads any backend and any codecs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.abc.store import ByteRequest, SuffixByteRequest
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from storage.store.shard_file import CHECKSUM_BYTES, ENTRY_BYTES, check_index


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
        size = self.chunks_per_shard * ENTRY_BYTES
        if not size or len(content) < size + CHECKSUM_BYTES:
            return  # metadata, or a truncated file, for which Zarr raises
        end = content[len(content) - size - CHECKSUM_BYTES : len(content) - CHECKSUM_BYTES]
        check_index(np.frombuffer(end.to_bytes(), "<u8").reshape(-1, 2), key)


@dataclass(frozen=True)
class ZarrShard:
    """Array of one shard that zarr-python has opened."""

    array: Any

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the type of the elements."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype

    def row_shape(self, sessions: Sequence[int] | None) -> tuple[int, ...]:
        """Return the shape of a row restricted to `sessions`."""
        shape: tuple[int, ...] = self.array.shape
        if sessions is None or not self._by_session:
            return shape[1:]
        return (len(sessions), *shape[2:])

    def read_into(
        self,
        rows: Sequence[npt.NDArray[Any]],
        positions: Sequence[int],
        sessions: Sequence[int] | None,
    ) -> None:
        """Fill the arrays `rows` with the cases at `positions`, in runs of neighbours.

        A list of rows would make Zarr enumerate every voxel; slices do not.
        """
        by_session = sessions is not None and self._by_session
        spans = (
            _contiguous_slices(sessions) if by_session and sessions is not None else [slice(None)]
        )
        filled = 0
        for cases in _contiguous_slices(positions):
            parts = [np.asarray(self.array[cases, span]) for span in spans]
            for values in zip(*parts, strict=True):
                rows[filled][...] = values[0] if len(values) == 1 else np.concatenate(values)
                filled += 1

    @property
    def _by_session(self) -> bool:
        return "session" in self.array.metadata.dimension_names


def open_zarr_shard(store: ZarrStore, array: str) -> ZarrShard:
    """Return the array `array` (`shards/1f/flair`) of a store."""
    files = MissingDataIsError(store)
    opened = zarr.open_array(files, path=array, mode="r", zarr_format=3)
    files.chunks_per_shard = math.prod(
        -(-size // chunk) for size, chunk in zip(opened.shape, opened.chunks, strict=True)
    )
    return ZarrShard(opened)


def _contiguous_slices(positions: Sequence[int]) -> list[slice]:
    """Return the positions in their order, as slices of neighbours."""
    runs: list[slice] = []
    for position in positions:
        if runs and runs[-1].stop == position:
            runs[-1] = slice(runs[-1].start, position + 1)
        else:
            runs.append(slice(position, position + 1))
    return runs
