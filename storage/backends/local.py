"""Where a store lies: a folder, or a prefix in an object store, behind the same few calls.

A file of a store appears whole or not at all. Nothing is renamed or copied once it is there, so an
object store can do whatever a folder can but one thing: it has no lock that dies with its holder.
"""

import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore

from storage.backends.backend import PARTIAL_SUFFIX, Commit, Location, is_url, write_error
from storage.errors import StorageError
from storage.layout import CASE_TABLE

if TYPE_CHECKING:
    from storage.backends.object_store import ObjectStoreBackend


_LOCK = ".lock"


@dataclass(frozen=True)
class LocalBackend:
    """A folder of this machine, or one that all machines mount."""

    location: Path

    def read(self, name: str) -> bytes:
        return (self.location / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        target = self.location / name
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}")
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
            raise write_error(target, len(content), error.strerror or str(error)) from error

    def list_files(self) -> set[str]:
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

    def zarr_store(self) -> ZarrStore:
        return LocalStore(self.location, read_only=True)

    @contextmanager
    def write_lock(self) -> Iterator[Commit]:
        try:
            self.location.mkdir(parents=True, exist_ok=True)
            handle = (self.location / _LOCK).open("a")
        except OSError as error:
            raise write_error(self.location, 0, error.strerror or str(error)) from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with the process
            except BlockingIOError as error:
                raise StorageError(
                    f"{self.location}: expected no other conversion, got one that is writing it; "
                    "wait for its end, or choose another place."
                ) from error
            yield lambda content: self.write(CASE_TABLE, content)


def open_backend(location: Location) -> "LocalBackend | ObjectStoreBackend":
    """The folder or the object store's prefix at `location`.

    Raises StorageError where a URL cannot be used.
    """
    if not is_url(location):
        return LocalBackend(Path(location).absolute())
    from storage.backends.object_store import ObjectStoreBackend  # an optional extra

    return ObjectStoreBackend(str(location))
