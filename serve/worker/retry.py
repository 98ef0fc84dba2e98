"""Classify errors as transient or permanent, and yield the delays between retries.

Transient errors do not depend on the forecast: the database, a disk or all samplers are
unavailable for a while.
"""

from collections.abc import Iterator

from sqlalchemy.exc import OperationalError, TimeoutError

INITIAL_DELAY_S, MAX_DELAY_S = 0.5, 60.0


class SamplersUnavailableError(Exception):
    """No sampler has answered for minutes."""


TRANSIENT_ERRORS = (OperationalError, TimeoutError, OSError, SamplersUnavailableError)
PERMANENT_ERRORS = (FileNotFoundError,)  # an OSError, but a file that was removed stays away


def is_transient(error: Exception) -> bool:
    """Return True if the same work may succeed when it is tried again later.

    A group of errors is transient if every error in it is.
    """
    return all(
        isinstance(leaf, TRANSIENT_ERRORS) and not isinstance(leaf, PERMANENT_ERRORS)
        for leaf in leaf_exceptions(error)
    )


def leaf_exceptions(error: Exception) -> Iterator[Exception]:
    """Yield the errors of an exception group at any depth, or the error itself."""
    if isinstance(error, ExceptionGroup):
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
