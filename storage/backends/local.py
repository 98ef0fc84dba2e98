"""Where a store lies: a folder, or a prefix in an object store, behind the same few calls.

A file of a store appears whole or not at all. Nothing is renamed or copied once it is there, so an
object store can do whatever a folder can but one thing: it has no lock that dies with its holder.
"""

import fcntl
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore

from storage.errors import StorageError, StoreError
from storage.layout import CASE_TABLE

if TYPE_CHECKING:
    from storage.backends.object_store import Bucket

# A folder, or the URL of an object store's prefix (s3://bucket/trial.zarr).
Location: TypeAlias = Path | str

Commit = Callable[[bytes], None]

PARTIAL = ".partial"
_LOCK = ".lock"


class Place(Protocol):
    """Files by name (`shards/1f/shard.json`) below one location."""

    @property
    def location(self) -> Location: ...

    def read(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError where there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Put a file there in one step, and safely. Raises StoreError where that fails."""
        ...

    def names(self) -> set[str]:
        """All files."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove files, and folders that become empty."""
        ...

    def arrays(self) -> ZarrStore:
        """The same files for Zarr to read."""
        ...

    def writing(self) -> Any:
        """A context for the one writer, which yields what puts the case table in its place.

        Raises StorageError where there is another writer: at once in a folder, at the latest when
        the second one is to put its table in an object store.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, or one that all machines mount."""

    location: Path

    def read(self, name: str) -> bytes:
        return (self.location / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        target = self.location / name
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as handle:
                    handle.write(content)
                    handle.flush()
                    os.fsync(handle.fileno())  # else a power cut could leave the name without it
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(target, len(content), error.strerror or str(error)) from error

    def names(self) -> set[str]:
        paths = (path for path in self.location.rglob("*") if not path.is_dir())
        return {path.relative_to(self.location).as_posix() for path in paths} - {_LOCK}

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            path = self.location / name
            path.unlink(missing_ok=True)
            for parent in path.relative_to(self.location).parents[:-1]:
                try:
                    (self.location / parent).rmdir()
                except OSError:
                    break

    def arrays(self) -> ZarrStore:
        return LocalStore(self.location, read_only=True)

    @contextmanager
    def writing(self) -> Iterator[Commit]:
        try:
            self.location.mkdir(parents=True, exist_ok=True)
            handle = (self.location / _LOCK).open("a")
        except OSError as error:
            raise cannot_write(self.location, 0, error.strerror or str(error)) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process
            except BlockingIOError as error:
                raise StorageError(
                    f"{self.location}: expected no other conversion, got one that is writing it; "
                    "wait for its end, or choose another place."
                ) from error
            yield lambda content: self.write(CASE_TABLE, content)


def cannot_write(target: Location, size: int, why: str) -> StoreError:
    """The error of a file that could not be put there."""
    return StoreError(
        f"{target}: expected to write {size} bytes, got {why}; make room or grant access and run "
        "the same command again: what is finished is kept."
    )


def place_at(location: Location) -> "Folder | Bucket":
    """The folder or the object store's prefix at `location`.

    Raises StorageError where a URL cannot be used.
    """
    if not is_url(location):
        return Folder(Path(location).absolute())
    from storage.backends.object_store import Bucket  # an optional extra

    return Bucket(str(location))


def is_url(location: Location) -> bool:
    """Whether a location is one of an object store."""
    return isinstance(location, str) and "://" in location


def parse_location(text: str) -> Location:
    """What a command line says, as an absolute path or a URL."""
    return text if is_url(text) else Path(text).absolute()
