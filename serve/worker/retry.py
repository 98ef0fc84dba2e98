"""Tell errors that pass from errors that stay, and yield the delays between retries.

Transient errors do not depend on the forecast: the database, a disk, an object store or all
samplers are unavailable for a while.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from ray.exceptions import RayTaskError
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError

from storage.backends.outages import storage_failure

INITIAL_DELAY_S, MAX_DELAY_S = 0.5, 60.0
DATABASE_ERRORS = (OperationalError, InterfaceError, TimeoutError)


class SamplersUnavailableError(Exception):
    """No sampler has answered for minutes."""


class OtherBundleError(SamplersUnavailableError):
    """The bundle was replaced: the samplers or the disk hold another one than the worker."""


@dataclass(frozen=True)
class Failure:
    """How an attempt at a forecast failed."""

    #: True if the same work may succeed when it is tried again later.
    transient: bool
    #: What failed, in words that name no subject and no path; None for an error of the forecast.
    reason: str | None


def failure_of(error: Exception) -> Failure:
    """Classify an error. A group of errors is transient if every error in it is."""
    failures = [_failure_of_leaf(leaf) for leaf in leaf_exceptions(error)]
    permanent = [failure for failure in failures if not failure.transient]
    return (permanent or failures)[0]


def is_transient(error: Exception) -> bool:
    """Return True if the same work may succeed when it is tried again later."""
    return failure_of(error).transient


def _failure_of_leaf(error: Exception) -> Failure:
    if isinstance(error, DATABASE_ERRORS):
        return Failure(transient=True, reason="the database does not answer")
    if isinstance(error, OtherBundleError):
        reason = "the bundle was replaced and the service was not restarted"
        return Failure(transient=True, reason=reason)
    if isinstance(error, SamplersUnavailableError):
        return Failure(transient=True, reason="no sampler answers")
    failure = storage_failure(error)
    if failure is None:
        return Failure(transient=False, reason=None)
    return Failure(failure.transient, failure.reason)


def leaf_exceptions(error: Exception) -> Iterator[Exception]:
    """Yield the errors of an exception group at any depth, or the error itself.

    An error of another process is unwrapped: Ray's wrapper has the type of the error, but lacks
    attributes such as errno.
    """
    if isinstance(error, RayTaskError):
        yield from leaf_exceptions(error.cause)
    elif isinstance(error, ExceptionGroup):
        for member in error.exceptions:
            yield from leaf_exceptions(member)
    else:
        yield error


def backoff_delays() -> Iterator[float]:
    """Yield the seconds to wait before each retry: doubled every time, up to a maximum."""
    delay = INITIAL_DELAY_S
    while True:
        yield delay
        delay = min(2 * delay, MAX_DELAY_S)
