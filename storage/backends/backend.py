"""Interface of a store's backend: a local folder or a prefix in an object store."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from zarr.abc.store import Store as ZarrStore

from storage.errors import StoreError

# A folder, or the URL of an object store's prefix (s3://bucket/trial.zarr).
Location: TypeAlias = Path | str


Commit = Callable[[bytes], None]


PARTIAL_SUFFIX = ".partial"


class StoreBackend(Protocol):
    """Files by name (`shards/1f/shard.json`) below one location."""

    @property
    def location(self) -> Location: ...

    def read(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError where there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Put a file there in one step, and safely. Raises StoreError where that fails."""
        ...

    def list_files(self) -> set[str]:
        """All files."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, and folders that become empty."""
        ...

    def zarr_store(self) -> ZarrStore:
        """The same files for Zarr to read."""
        ...

    def write_lock(self) -> Any:
        """A context for the one writer, which yields what puts the case table in its place.

        Raises StorageError where there is another writer: at once in a folder, at the latest when
        the second one is to put its table in an object store.
        """
        ...


def write_error(target: Location, size: int, why: str) -> StoreError:
    """The error of a file that could not be put there."""
    return StoreError(
        f"{target}: expected to write {size} bytes, got {why}; make room or grant access and run "
        "the same command again: what is finished is kept."
    )


def is_url(location: Location) -> bool:
    """Whether a location is one of an object store."""
    return isinstance(location, str) and "://" in location


def parse_location(text: str) -> Location:
    """What a command line says, as an absolute path or a URL."""
    return text if is_url(text) else Path(text).absolute()
