"""Check the order of a subject's sessions by their dates, and measure the days between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import combinations

from storage.errors import CaseError, Exclusion
from storage.layout import BASELINE, CURRENT, OUTCOME, SESSIONS
from storage.settings import TrialLayout
from storage.trial.cells import is_missing, parse_cell
from storage.trial.dataset import TrialSubject
from storage.trial.dates import AcquisitionTime, StatedDate, parse_acquisition_time

# Days by which dates and a column of the table may differ.
_MAX_DIFFERENCE = 1


@dataclass(frozen=True)
class Intervals:
    """Days from baseline to the current session, and from there to the outcome; None if unknown."""

    days_to_current: float | None = None
    days_to_outcome: float | None = None


INTERVALS = tuple(field.name for field in fields(Intervals))
"""Names of the intervals, also as covariates."""


@dataclass(frozen=True)
class DatedVisits:
    """What is known about when a subject's sessions took place."""

    intervals: Intervals
    #: Sentences on dates that a person should look at.
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Dated:
    """A stated date that could be read."""

    stated: StatedDate
    acquired: AcquisitionTime


@dataclass(frozen=True)
class _Pair:
    """Two dates that may be compared, of an earlier and of a later session."""

    earlier: _Dated
    later: _Dated

    @property
    def days(self) -> int:
        return (self.later.acquired.day - self.earlier.acquired.day).days

    @property
    def wrong_order(self) -> bool:
        return self.earlier.acquired.is_after(self.later.acquired)

    def __str__(self) -> str:
        return f"{self.earlier.stated} and {self.later.stated}"


def check_visits(subject: TrialSubject, layout: TrialLayout) -> DatedVisits:
    """Return the intervals between a subject's sessions: from its dates, else from the table.

    Raises CaseError if dates show that a session took place before one that should precede it.
    Dates that cannot be read, that disagree or that are equal are noted instead.
    """
    notes = list(subject.dates.problems)
    dated = []
    for stated in subject.dates.dates:
        acquired = parse_acquisition_time(stated.text)
        if acquired is None:
            notes.append(f"expected a date such as 2015-03-02T09:30:00, got {stated}; correct it")
        else:
            dated.append(_Dated(stated, acquired))
    notes += _disagreements(dated, layout)
    from_dates = {
        sessions: _days(subject, list(_pairs(dated, *sessions)), layout, notes)
        for sessions in combinations(SESSIONS, 2)
    }
    steps = ((BASELINE, CURRENT), (CURRENT, OUTCOME))
    days = [
        _with_column(from_dates[step], subject.rows[0].get(column, ""), column, notes)
        for step, column in zip(steps, layout.interval_columns, strict=True)
    ]
    return DatedVisits(Intervals(*days), tuple(notes))


def _disagreements(dated: Sequence[_Dated], layout: TrialLayout) -> Iterator[str]:
    """Yield a sentence for each session with two dates, of which neither or both are shifted."""
    for session in SESSIONS:
        of_session = [one for one in dated if one.stated.session == session]
        for one, other in combinations(of_session, 2):
            comparable = one.acquired.shifted == other.acquired.shifted
            if comparable and one.acquired.day != other.acquired.day:
                label = layout.visits.label(session)
                yield f"expected one date of {label}, got {_Pair(one, other)}; correct one"
                break


def _pairs(dated: Sequence[_Dated], one: str, other: str) -> Iterator[_Pair]:
    """Yield the dates of two sessions that may be compared: those of one kind of file.

    Without any, dates that are not shifted may be compared, too.
    """
    pairs = [
        _Pair(earlier, later)
        for earlier in dated
        for later in dated
        if (earlier.stated.session, later.stated.session) == (one, other)
    ]
    of_one_kind = [pair for pair in pairs if pair.earlier.stated.kind == pair.later.stated.kind]
    yield from of_one_kind or (
        pair for pair in pairs if not (pair.earlier.acquired.shifted or pair.later.acquired.shifted)
    )


def _days(
    subject: TrialSubject, pairs: Sequence[_Pair], layout: TrialLayout, notes: list[str]
) -> int | None:
    """Return the days between two sessions, None if they are unknown; add to `notes`.

    Raises CaseError for the wrong order.
    """
    if not pairs:
        return None
    earlier, later = (
        layout.visits.label(one.stated.session) for one in (pairs[0].earlier, pairs[0].later)
    )
    for pair in pairs:
        if pair.wrong_order:
            reason = f"expected {earlier} before {later}, got {pair}"
            raise CaseError(
                Exclusion(
                    subject.name,
                    "sessions out of order",
                    f"{reason}; put the images where they belong or correct the dates",
                    pair.later.stated.session,
                    pair.later.stated.path,
                )
            )
    for pair in pairs:
        if pair.days == 0:
            notes.append(
                f"expected {earlier} and {later} on different days, got {pair}; correct one"
            )
            return None
    if len({pair.days for pair in pairs}) > 1:
        got = " or ".join(dict.fromkeys(str(pair.days) for pair in pairs))
        notes.append(f"expected one interval from {earlier} to {later}, got {got} days; look at it")
    return pairs[0].days


def _with_column(days: int | None, cell: str, column: str, notes: list[str]) -> float | None:
    """Return an interval from dates or else from a cell of the table; add to `notes`."""
    if is_missing(cell):
        return days
    listed = parse_cell(cell)
    if not isinstance(listed, int | float) or listed <= 0:
        notes.append(f"expected days above 0 in {column}, got {cell!r}; correct the table")
        return days
    if days is not None and abs(days - listed) > _MAX_DIFFERENCE:
        notes.append(f"expected {days} days in {column}, as dates say, got {cell}; correct one")
    return listed if days is None else days
