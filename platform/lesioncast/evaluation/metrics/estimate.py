"""The leaf of every evaluation report, a score with its interval, and how reports become a table.

A report is a tree of frozen dataclasses. The types below say which column of estimates.csv a field
fills, so that the table follows from the types alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Protocol, TypeVar, runtime_checkable

Value = TypeVar("Value")


@dataclass(frozen=True)
class Estimate:
    """A score with its 95 % percentile bootstrap interval; None where it is undefined.

    `defined` is the share of resamples in which the score exists. Below 95 % there is no interval:
    the remaining resamples would describe another set of cases.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    defined: float = 0.0

    @property
    def with_interval(self) -> "EstimateWithInterval | None":
        """Return value and interval where both are defined, else None."""
        if self.value is None or self.low is None or self.high is None:
            return None
        return EstimateWithInterval(self.value, self.low, self.high)


@dataclass(frozen=True)
class EstimateWithInterval:
    """A score whose 95 % interval is defined."""

    value: float
    low: float
    high: float

    def contains(self, number: float) -> bool:
        """Return whether the interval contains `number`, so that no difference from it is shown."""
        return self.low <= number <= self.high


class Column(StrEnum):
    """Columns of estimates.csv that the keys and fields of a report fill."""

    GROUP = "group"
    METHOD = "method"
    CASES = "n"
    POSITIVES = "positives"


ByGroup = Annotated[Mapping[str, Value], Column.GROUP]
"""A mapping whose keys name groups of cases, mostly arms."""
ByMethod = Annotated[Mapping[str, Value], Column.METHOD]
"""A mapping whose keys name methods."""
CaseCount = Annotated[int, Column.CASES]
"""The number of cases behind the estimates beside it and below it."""
PositiveCount = Annotated[int, Column.POSITIVES]
"""How many of these cases are positive, for example active."""


@runtime_checkable
class GroupedRow(Protocol):
    """A record that stands in a sequence and says which group it describes."""

    @property
    def group(self) -> str:
        """Return what tells this record from its neighbours."""
        ...
