"""The header Retry-After, as the service and the gateways before it write it."""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

DEFAULT_WAIT_S = 1.0
MIN_WAIT_S, MAX_WAIT_S = 0.1, 86_400.0


def retry_after_seconds(value: str | None) -> float:
    """Return the seconds that a header Retry-After asks for (RFC 9110, section 10.2.3).

    It is a number or a date. Two gateways may give two values in one line; the longest counts. The
    default stands for a header that is missing or cannot be read. The answer lies between
    `MIN_WAIT_S` and `MAX_WAIT_S`.
    """
    text = value or ""
    seconds = _seconds_until(text)
    if seconds is None:
        seconds = max(map(_number, text.split(",")))
    return min(max(seconds, MIN_WAIT_S), MAX_WAIT_S)


def _number(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        return DEFAULT_WAIT_S
    return DEFAULT_WAIT_S if math.isnan(seconds) else seconds


def _seconds_until(text: str) -> float | None:
    """Return the seconds until a date, None if the text is no date."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    date = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return (date - datetime.now(UTC)).total_seconds()
