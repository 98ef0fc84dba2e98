"""Choose the backend of a store by its location."""

from pathlib import Path

from storage.backends.backend import Location, StoreBackend, is_url
from storage.backends.local import LocalBackend


def open_backend(location: Location) -> StoreBackend:
    """Return the backend of the folder or of the object store's prefix at `location`.

    Raises StorageError if a URL cannot be used.
    """
    if not is_url(location):
        return LocalBackend(Path(location).absolute())
    # Imported here because object stores need an optional extra (`lesioncast[cloud]`).
    from storage.backends.object_store import ObjectStoreBackend

    return ObjectStoreBackend(str(location))
