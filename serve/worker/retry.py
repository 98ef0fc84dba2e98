"""Errors that are nobody's forecast's own and pass: a database, a disk or all samplers away."""

from collections.abc import Iterator

from sqlalchemy.exc import OperationalError, TimeoutError

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds


class SamplersUnavailableError(Exception):
    """No sampler has answered for minutes."""


TRANSIENT_ERRORS = (OperationalError, TimeoutError, OSError, SamplersUnavailableError)
PERMANENT_ERRORS = (FileNotFoundError,)  # what was removed does not come back


def is_transient(error: Exception) -> bool:
    """Whether the same may succeed when it is tried again later."""
    return all(
        isinstance(each, TRANSIENT_ERRORS) and not isinstance(each, PERMANENT_ERRORS)
        for each in leaf_exceptions(error)
    )


def leaf_exceptions(error: Exception) -> Iterator[Exception]:
    """The errors of a group, or the one that it is."""
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            yield from leaf_exceptions(each)
    else:
        yield error


def backoff_delays() -> Iterator[float]:
    """Seconds to wait before each new try: twice as long every time, up to a bound."""
    wait = FIRST_WAIT
    while True:
        yield wait
        wait = min(2 * wait, LONGEST_WAIT)
