"""Interface of a store's backend: a local folder or a prefix in an object store."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeAlias

from zarr.abc.store import Store as ZarrStore

from storage.backends.outages import store_error
from storage.errors import StoreError

# A folder, or the URL of an object store's prefix (s3://bucket/trial.zarr).
Location: TypeAlias = Path | str

# Writes the case table, which makes the files a store.
Commit = Callable[[bytes], None]


class StoreBackend(Protocol):
    """Files by name (`shards/1f/shard.json`) below one location."""

    @property
    def location(self) -> Location: ...

    def read(self, name: str) -> bytes:
        """Return a file's content. Raises FileNotFoundError if there is no such file."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file in one step and flush it to disk. Raises StoreError on failure."""
        ...

    def list_files(self) -> set[str]:
        """Return the names of all files."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, and folders that become empty."""
        ...

    def zarr_store(self) -> ZarrStore:
        """Return the same files as a read-only Zarr store."""
        ...

    def write_lock(self) -> AbstractContextManager[Commit]:
        """Enter a context for the only writer; it yields the function that writes the case table.

        Raises StorageError if there is another writer. A folder detects it when the context is
        entered, an object store at the latest when the second writer commits its table.
        """
        ...


def write_error(target: Location, size: int, why: str, cause: Exception) -> StoreError:
    """Return the error for a file of `size` bytes that could not be written because of `cause`."""
    return store_error(
        f"{target}: expected to write {size} bytes, got {why}; make room or grant access and run "
        "the same command again: what is finished is kept.",
        cause,
    )


def is_url(location: Location) -> bool:
    """Return whether a location is the URL of an object store."""
    return isinstance(location, str) and "://" in location


def parse_location(text: str) -> Location:
    """Return a location from the command line as an absolute path or a URL."""
    return text if is_url(text) else Path(text).absolute()
