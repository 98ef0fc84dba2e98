"""A store in a folder of the local or a shared file system."""

import errno
import fcntl
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore

from storage.atomic import atomic_write
from storage.backends.backend import Commit, write_error
from storage.errors import StorageError
from storage.layout import CASE_TABLE

logger = logging.getLogger(__name__)

_LOCK = ".lock"
# What flock reports on NFS without its lock service, and on Lustre without the option flock.
LOCKS_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class LocalBackend:
    """A folder of this machine, or one that all machines mount."""

    location: Path

    def read(self, name: str) -> bytes:
        return (self.location / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        target = self.location / name
        try:
            atomic_write(target, content)
        except OSError as error:
            raise write_error(target, len(content), error.strerror or str(error), error) from error

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
                except OSError:  # not empty, and so are the folders above it
                    break

    def zarr_store(self) -> ZarrStore:
        return LocalStore(self.location, read_only=True)

    @contextmanager
    def write_lock(self) -> Iterator[Commit]:
        try:
            self.location.mkdir(parents=True, exist_ok=True)
            handle = (self.location / _LOCK).open("a")
        except OSError as error:
            raise write_error(self.location, 0, error.strerror or str(error), error) from error
        with handle:
            try:
                # The kernel releases this lock when the process ends, however it ends. A lock file
                # that only exists would outlive a killed conversion and block the next one.
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StorageError(
                    f"{self.location}: expected no other conversion, got one that is writing it; "
                    "wait until it ends, or choose another path."
                ) from error
            except OSError as error:
                if error.errno not in LOCKS_UNSUPPORTED:
                    raise write_error(
                        self.location, 0, error.strerror or str(error), error
                    ) from error
                logger.warning(
                    "%s: its file system has no file locks (%s); make sure that no other "
                    "conversion writes here",
                    self.location,
                    error.strerror,
                )
            yield lambda content: self.write(CASE_TABLE, content)
