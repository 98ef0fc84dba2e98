"""Errors that are nobody's forecast's own and pass: a database, a disk or all samplers away."""

from collections.abc import Iterator

from sqlalchemy.exc import OperationalError, TimeoutError

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds


class NobodyDrawsError(Exception):
    """No sampler has answered for minutes."""


PASSING = (OperationalError, TimeoutError, OSError, NobodyDrawsError)
LASTING = (FileNotFoundError,)  # what was removed does not come back


def passes(error: Exception) -> bool:
    """Whether the same may succeed when it is tried again later."""
    return all(
        isinstance(each, PASSING) and not isinstance(each, LASTING) for each in causes(error)
    )


def causes(error: Exception) -> Iterator[Exception]:
    """The errors of a group, or the one that it is."""
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            yield from causes(each)
    else:
        yield error


def waits() -> Iterator[float]:
    """Seconds to wait before each new try: twice as long every time, up to a bound."""
    wait = FIRST_WAIT
    while True:
        yield wait
        wait = min(2 * wait, LONGEST_WAIT)
