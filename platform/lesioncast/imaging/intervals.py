"""Compare the days between a patient's sessions with those that a model was trained on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from storage import Case, VisitSchedule
from storage.layout import CovariateValue
from storage.preprocess.visits import INTERVALS, Intervals

__all__ = [
    "INTERVALS", "IntervalRanges", "check_days", "interval_notes", "interval_ranges",
]  # fmt: skip

Days = tuple[float, float]
"""Least and greatest number of days."""

# Share of a planned interval by which a visit may miss it, where no dates of training are known.
VISIT_WINDOW = 0.1
MAX_DAYS = 36525


@dataclass(frozen=True)
class IntervalRanges:
    """Days between the sessions of the training cases; None if no case has dates."""

    days_to_current: Days | None = None
    days_to_outcome: Days | None = None


def interval_ranges(cases: Iterable[Case]) -> IntervalRanges:
    """Return the ranges of the intervals that the cases have."""
    intervals = [case.intervals for case in cases]
    return IntervalRanges(
        _range(one.days_to_current for one in intervals),
        _range(one.days_to_outcome for one in intervals),
    )


def _range(days: Iterable[float | None]) -> Days | None:
    known = [value for value in days if value is not None]
    return (min(known), max(known)) if known else None


def interval_notes(
    intervals: Intervals, planned: VisitSchedule, *, trained: IntervalRanges, visits: VisitSchedule
) -> Iterator[str]:
    """Yield a sentence for each way in which a patient's visits differ from those of training.

    `planned` is the schedule of the patient's store, `visits` that of the training store.
    """
    if planned.days != visits.days:
        yield (
            f"The model was trained on sessions planned for {_list_days(visits)}; those of this "
            f"patient are planned for {_list_days(planned)}. Its forecast is for the time that it "
            "was trained on."
        )
    steps = zip(
        (intervals.days_to_current, intervals.days_to_outcome),
        (trained.days_to_current, trained.days_to_outcome),
        (0, 1),
        strict=True,
    )
    for days, known, first in steps:
        nominal = visits.days[first + 1] - visits.days[first]
        low, high = known or ((1 - VISIT_WINDOW) * nominal, (1 + VISIT_WINDOW) * nominal)
        if days is not None and not low <= days <= high:
            training = f"{low:g} to {high:g} days" if known else f"{nominal} planned days"
            yield (
                f"{visits.labels[first + 1]} is {days:g} days after {visits.labels[first]} for "
                f"this patient; the model was trained on {training}, and nothing shows that it "
                "holds beyond."
            )


def check_days(name: str, value: CovariateValue) -> None:
    """Raise ValueError unless the days of an interval are unknown or a number that is possible."""
    if value is None:
        return
    if isinstance(value, str) or not 0 < value <= MAX_DAYS:
        raise ValueError(f"covariates.{name}: expected days from 0 to {MAX_DAYS}, got {value}")


def _list_days(visits: VisitSchedule) -> str:
    return "days " + ", ".join(map(str, visits.days))
