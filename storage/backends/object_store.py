"""A store under a prefix of an object store (S3, Google Cloud Storage, Azure).

Credentials, region and endpoint come from the environment variables that obstore reads, for example
AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL, or from the machine's role. AWS_PROFILE is not read.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from zarr.abc.store import Store as ZarrStore
from zarr.storage import ObjectStore

from storage.backends.backend import Commit, write_error
from storage.backends.outages import store_error
from storage.errors import StorageError, StoreError
from storage.layout import CASE_TABLE

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
    from obstore.store import from_url
except ImportError as error:
    raise StorageError("A store at a URL needs obstore: pip install lesioncast[cloud].") from error


class ObjectStoreBackend:
    """Files below a URL such as s3://bucket/trial.zarr; an upload appears when it is complete."""

    def __init__(self, url: str) -> None:
        self.location = url.rstrip("/")

    @cached_property
    def _store(self) -> Any:
        try:
            return from_url(self.location)
        except (BaseError, ValueError) as error:
            raise StorageError(
                f"{self.location}: expected the URL of an object store, got {error}."
            ) from error

    def read(self, name: str) -> bytes:
        try:
            return bytes(obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            raise
        except BaseError as error:
            raise self._unreachable(error) from error

    def write(self, name: str, content: bytes) -> None:
        self._put(name, content, mode="overwrite")

    def list_files(self) -> set[str]:
        try:
            return {str(entry["path"]) for part in obstore.list(self._store) for entry in part}
        except BaseError as error:
            raise self._unreachable(error) from error

    def remove(self, names: Iterable[str]) -> None:
        if paths := sorted(names):
            obstore.delete(self._store, paths)

    def zarr_store(self) -> ZarrStore:
        return ObjectStore(self._store, read_only=True)

    @contextmanager
    def write_lock(self) -> Iterator[Commit]:
        # An object store has no lock that ends with its holder. A conditional write takes its
        # place: the table is written only if nobody else has written one since this point.
        before = self._case_table_tag()

        def commit(content: bytes) -> None:
            self._put(CASE_TABLE, content, mode={"e_tag": before} if before else "create")

        yield commit

    def _case_table_tag(self) -> str | None:
        try:
            return obstore.head(self._store, CASE_TABLE)["e_tag"]
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise self._unreachable(error) from error

    def _put(self, name: str, content: bytes, *, mode: Any) -> None:
        try:
            obstore.put(self._store, name, content, mode=mode)
        except (AlreadyExistsError, PreconditionError) as error:
            raise StorageError(
                f"{self.location}: expected the case table that this conversion began with, got "
                "one that another conversion has written since; run the same command again."
            ) from error
        except (BaseError, OSError) as error:
            raise write_error(
                f"{self.location}/{name}", len(content), _first_line(error), error
            ) from error

    def _unreachable(self, error: Exception) -> StoreError:
        return store_error(
            f"{self.location}: expected an answer of the object store, got {_first_line(error)}.",
            error,
        )


def _first_line(error: Exception) -> str:
    """Return the first line of a client's error; the rest is debugging output of the client."""
    return str(error).strip().splitlines()[0]
