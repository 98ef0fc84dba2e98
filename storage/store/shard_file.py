"""Read an array of a shard from its local file, in a third of the time that zarr-python takes.

A shard's file holds chunks and, at its end, an index with the place of each chunk (Zarr 3,
"sharding_indexed" codec, version 1.0). A chunk is a zstd frame and a CRC32C. The index has a CRC32C
too.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs import zstd
from numcodecs.checksum32 import CRC32C

from storage.layout import ROOT_METADATA

CHECKSUM_BYTES = 4  # of a CRC32C
ENTRY_BYTES = 16  # offset and length of a chunk in the index, each a little-endian uint64
NO_CHUNK = 2**64 - 1  # offset and length of a chunk that a shard does not hold
_CRC32C = CRC32C(location="end")
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
# Zarr leaves the order of bytes out where an element is one byte.
_CHUNK_CODECS = (
    [_BYTES, {"name": "zstd"}, {"name": "crc32c"}],
    [{"name": "bytes"}, {"name": "zstd"}, {"name": "crc32c"}],
)
_INDEX_CODECS = [_BYTES, {"name": "crc32c"}]


@dataclass(frozen=True)
class ShardFile:
    """Array of one shard in a local file, with its index read and verified."""

    path: Path
    #: Name of the file in the store, for errors.
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    #: True if the second axis is that of sessions.
    by_session: bool
    #: Offset and length of each chunk, [case, 2], or [case, session, 2] if a session is a chunk.
    index: npt.NDArray[np.int64]

    def row_shape(self, sessions: Sequence[int] | None) -> tuple[int, ...]:
        """Return the shape of a row restricted to `sessions`."""
        if sessions is None or not self.by_session:
            return self.shape[1:]
        return (len(sessions), *self.shape[2:])

    def read_into(
        self,
        rows: Sequence[npt.NDArray[Any]],
        positions: Sequence[int],
        sessions: Sequence[int] | None,
    ) -> None:
        """Fill the contiguous arrays `rows` with the cases at `positions`.

        The file is opened anew, so that reading a shard that was removed meanwhile is an error.
        Raises OSError if the file cannot be read, and ValueError or RuntimeError if it is damaged.
        """
        with _opened(self.path, self.name) as file:
            for row, position in zip(rows, positions, strict=True):
                if self.index.ndim == 3:  # one chunk a session
                    chosen = range(self.shape[1]) if sessions is None else sessions
                    for image, session in zip(row, chosen, strict=True):
                        self._read_chunk(file, self.index[position, session], image)
                elif sessions is None or not self.by_session:
                    self._read_chunk(file, self.index[position], row)
                else:
                    whole = np.empty(self.shape[1:], self.dtype)
                    self._read_chunk(file, self.index[position], whole)
                    row[...] = whole[list(sessions)]

    def _read_chunk(self, file: int, entry: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
        """Decompress a chunk into `out`, after verifying its checksum."""
        offset, length = entry.tolist()
        frame = _CRC32C.decode(_read_at(file, offset, length, self.name))
        # Decompression would leave the rest of `out` as it was, without an error.
        if (size := _content_size(frame)) != out.nbytes:
            raise ValueError(f"a chunk of {size} bytes instead of {out.nbytes} in {self.name}")
        zstd.decompress(frame, out.view(np.uint8))


def open_shard_file(root: Path, array: str) -> ShardFile | None:
    """Return the array `array` (`shards/1f/flair`) of the store in `root`.

    Return None if it has another layout or other codecs than `write_shard` gives it. Raises
    OSError, ValueError or RuntimeError if its files are missing or damaged.
    """
    metadata_name = f"{array}/{ROOT_METADATA}"
    with _opened(root / metadata_name, metadata_name) as file:
        metadata = json.loads(_read_at(file, 0, os.fstat(file).st_size, metadata_name))
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata that are no JSON object in {metadata_name}")
    chunks_by_axis = _chunks_by_axis(metadata)
    if chunks_by_axis is None:
        return None
    shape = tuple(metadata["shape"])
    name = f"{array}/c/{'/'.join('0' * len(shape))}"
    return ShardFile(
        root / name,
        name,
        shape,
        np.dtype(metadata["data_type"]).newbyteorder("<"),
        metadata["dimension_names"][1] == "session",
        _read_index(root / name, name, chunks_by_axis),
    )


def _chunks_by_axis(metadata: dict[str, Any]) -> tuple[int, ...] | None:
    """Return the number of chunks along each axis that is divided into chunks of size 1.

    These are the first axis, or the first two. Return None for any other layout, and for other
    codecs.
    """
    try:
        shape, grid = metadata["shape"], metadata["chunk_grid"]["configuration"]
        ((name, sharding),) = ((each["name"], each["configuration"]) for each in metadata["codecs"])
        codecs = [{**each} for each in sharding["codecs"]]
        codecs[1].pop("configuration", None)  # any level decompresses alike
        chunk, index_codecs = sharding["chunk_shape"], sharding["index_codecs"]
        usual = (
            name == "sharding_indexed"
            and sharding["index_location"] == "end"
            and codecs in _CHUNK_CODECS
            and index_codecs == _INDEX_CODECS
            and grid["chunk_shape"] == shape
            and len(metadata["dimension_names"]) == len(shape)
            and metadata["chunk_key_encoding"]["configuration"]["separator"] == "/"
        )
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    axes = next((n for n in (1, 2) if chunk == [1] * n + shape[n:]), None)
    return tuple(shape[:axes]) if usual and axes else None


def _read_index(path: Path, name: str, chunks_by_axis: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return offset and length of each chunk, after verifying that the file holds all of them."""
    size = math.prod(chunks_by_axis) * ENTRY_BYTES + CHECKSUM_BYTES
    with _opened(path, name) as file:
        end = os.fstat(file).st_size - size
        if end < 0:
            raise ValueError(f"a file without an index at its end in {name}")
        content = _CRC32C.decode(_read_at(file, end, size, name))
    entries: npt.NDArray[np.uint64] = content.view("<u8").reshape(*chunks_by_axis, 2)
    check_index(entries, name)
    # Both are below the size of the file, so their sum cannot overflow.
    if (entries > end).any() or (entries.sum(axis=-1) > end).any():
        raise ValueError(f"an index of chunks beyond the end of the file in {name}")
    return entries.astype(np.int64)


def check_index(entries: npt.NDArray[np.uint64], name: str) -> None:
    """Raise ValueError if the index [..., 2] of the file `name` says that it lacks a chunk."""
    missing = int((entries == NO_CHUNK).any(axis=-1).sum())
    if missing:
        raise ValueError(f"an index without {missing} of {entries.size // 2} chunks in {name}")


@contextmanager
def _opened(path: Path, name: str) -> Iterator[int]:
    """Open a file for reading. Raises FileNotFoundError with its name in the store."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no file {name}") from error
    try:
        yield file
    finally:
        os.close(file)


def _read_at(file: int, offset: int, length: int, name: str) -> bytes:
    """Return `length` bytes at `offset`. Raises ValueError if the file ends before."""
    content = os.pread(file, length, offset)
    while len(content) < length:  # some file systems return less than what was asked for
        more = os.pread(file, length - len(content), offset + len(content))
        if not more:
            raise ValueError(f"a file that ends after {offset + len(content)} bytes in {name}")
        content += more
    return content


def _content_size(frame: npt.NDArray[np.uint8]) -> int:
    """Return the uncompressed bytes that a zstd frame states (RFC 8878, section 3.1.1.1).

    Return 0 if the frame does not state it.
    """
    header = frame[:18].tobytes().ljust(18, b"\0")
    descriptor = header[4]
    single_segment = descriptor >> 5 & 1
    size = (single_segment, 2, 4, 8)[descriptor >> 6]
    # A byte with the window's size, unless there is one segment, and the dictionary's identifier.
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    value = int.from_bytes(header[start : start + size], "little")
    return value + 256 if size == 2 else value
