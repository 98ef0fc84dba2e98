"""Dates of acquisition: how files state them, and how two of them are compared.

BIDS allows dates to be shifted to before 1925, so that nobody can be recognised. Shifted dates of
one kind of file agree with each other, but not with those of another kind.
"""

import re
from dataclasses import dataclass
from datetime import date, time
from typing import Literal

_DATE_TIME = re.compile(
    r"(?P<year>[0-9]{4})(?P<dash>-?)(?P<month>[0-9]{2})(?P=dash)(?P<day>[0-9]{2})"
    r"(?:[T ]?(?P<hour>[0-9]{2}):?(?P<minute>[0-9]{2})(?::?(?P<second>[0-9]{2})(?:\.[0-9]*)?)?"
    r"(?:Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
_FIRST_REAL_YEAR = 1925  # BIDS 1.10, common principles: shifted dates lie before

DateFile = Literal["scans", "sessions", "sidecar"]
"""Kinds of files that state dates."""


@dataclass(frozen=True)
class StatedDate:
    """The date of a session as one file states it."""

    #: Session by its role, such as w048.
    session: str
    #: Kind of the file.
    kind: DateFile
    #: The date as written.
    text: str
    #: The file below the trial's folder.
    path: str

    def __str__(self) -> str:
        return f"{self.text} ({self.path})"


@dataclass(frozen=True)
class StatedDates:
    """All dates that the files of a subject state, and sentences on files that are unreadable."""

    dates: tuple[StatedDate, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class AcquisitionTime:
    """Day of an acquisition, with the local time if it is stated."""

    day: date
    time: time | None

    @property
    def shifted(self) -> bool:
        """Return whether the date is not the real one."""
        return self.day.year < _FIRST_REAL_YEAR

    def is_after(self, other: "AcquisitionTime") -> bool:
        """Return whether this is surely later; on one day only times can show it."""
        if self.day != other.day or self.time is None or other.time is None:
            return self.day > other.day
        return self.time > other.time


def parse_acquisition_time(text: str) -> AcquisitionTime | None:
    """Return a date such as 2015-03-02T09:30:00 (ISO 8601) or 20150302 (DICOM), None for others."""
    matched = _DATE_TIME.fullmatch(text.strip())
    if matched is None:
        return None
    year, month, day, hour, minute, second = (
        int(matched[name] or 0) for name in ("year", "month", "day", "hour", "minute", "second")
    )
    try:
        at = None if matched["hour"] is None else time(hour, minute, second)
        return AcquisitionTime(date(year, month, day), at)
    except ValueError:  # such as the 31st of April
        return None
