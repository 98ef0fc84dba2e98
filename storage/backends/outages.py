"""Tell outages of a storage, which pass, from refusals, which stay: by the cause of an error.

Errors of disks have an errno. The clients of object stores have their own classes, a status of
HTTP, or the errors of a connection. An error that wraps another one says nothing itself, so the
chain of causes is followed to the first error that does.
"""

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from storage.errors import StoreError, StoreUnavailableError

#: What stays until a person changes something, whatever the time.
REFUSALS = frozenset(
    {
        errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
        errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EBADF, errno.ENOSYS, errno.EOPNOTSUPP,
        errno.EFBIG, errno.EXDEV, errno.ENODEV, errno.ENXIO, errno.EILSEQ,
    }
)  # fmt: skip
TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509})
CLIENT_ERRORS = range(400, 500)
# Parts of the class names of clients: botocore, fsspec, aiohttp, urllib3, httpx, azure, obstore.
_TRANSIENT_NAME = re.compile(
    "Timeout|TimedOut|Connect|Disconnect|Unreachable|Unavailable|Throttl|SlowDown|IncompleteRead"
    "|ProtocolError|PayloadError|RemoteError|^GenericError$|^JoinError$"
)
_REFUSAL_NAME = re.compile(
    "PermissionDenied|AccessDenied|Forbidden|Unauth|Credential|NotFound|NoSuch|InvalidPath"
    "|UnknownConfiguration|NotSupported"
)
_BUILTIN_OUTAGES = (TimeoutError, ConnectionError, InterruptedError, BlockingIOError)
_BUILTIN_REFUSALS = (
    PermissionError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
)


@dataclass(frozen=True)
class StorageFailure:
    """What a storage did: the kind of failure, and words for it that name no path."""

    #: True for an outage, after which the same work may succeed.
    transient: bool
    reason: str


OUTAGE = StorageFailure(transient=True, reason="a storage does not answer")
REFUSAL = StorageFailure(transient=False, reason="a storage refuses the access")


def storage_failure(error: BaseException) -> StorageFailure | None:
    """Return what the first error along the chain of causes says; None if none is a storage's."""
    found: StorageFailure | None = None
    for link in _causes(error):
        if isinstance(link, StoreUnavailableError):
            found = OUTAGE  # its own cause may say more; it is lost between processes
            continue
        said = _of_link(link)
        if said is not None:
            return said
    return found


def store_error(message: str, cause: Exception) -> StoreError:
    """Return the error of a store that `cause` kept from being used: an outage, or for good."""
    failure = storage_failure(cause)
    if failure is not None and failure.transient:
        return StoreUnavailableError(message)
    return StoreError(message)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes, from the outermost to the innermost."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _of_link(error: BaseException) -> StorageFailure | None:
    if isinstance(error, OSError) and error.errno is not None:
        return StorageFailure(error.errno not in REFUSALS, os.strerror(error.errno))
    if isinstance(error, _BUILTIN_REFUSALS):
        return REFUSAL
    if isinstance(error, _BUILTIN_OUTAGES):
        return OUTAGE
    # An OSError without errno is about the content of a file, such as nibabel's of a short one.
    return _of_status(error) or _of_name(error)


def _of_status(error: BaseException) -> StorageFailure | None:
    """Return what the status of HTTP says that a client's error carries, if it carries one."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        values = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
    else:
        values = [
            getattr(each, name, None)
            for each in (error, response)
            for name in ("status", "status_code", "code")
        ]
    status = next((value for value in values if isinstance(value, int)), 0)
    if status in TRANSIENT_STATUSES:
        return StorageFailure(transient=True, reason=f"a storage answers with status {status}")
    if status in CLIENT_ERRORS:
        return StorageFailure(
            transient=False, reason=f"a storage refuses the access with status {status}"
        )
    return None


def _of_name(error: BaseException) -> StorageFailure | None:
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ != "builtins"]
    if any(map(_REFUSAL_NAME.search, names)):
        return REFUSAL
    if any(map(_TRANSIENT_NAME.search, names)):
        return OUTAGE
    return None
