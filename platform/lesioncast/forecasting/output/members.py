"""What the members of a bundle state apart: the uncertainty that training seeds leave.

The forecast is that of the members' mixture. The spread within it, such as that of the number of
lesions, is reported elsewhere; this is the spread between the members alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lesioncast.forecasting.ensemble import ExpectedOutcomes
from lesioncast.forecasting.output.record import Record


@dataclass(frozen=True, kw_only=True)
class MemberSpread(Record):
    """A number as each member states it, and the standard deviation between members (M - 1)."""

    values: tuple[float, ...]
    sd: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "MemberSpread":
        """Compute the spread of the values of two or more members."""
        return cls(values=tuple(values), sd=float(np.std(values, ddof=1)))


@dataclass(frozen=True, kw_only=True)
class MembersSummary(Record):
    """What each of `count` members states under one arm; the forecast is the mean."""

    count: int
    p_active: MemberSpread
    expected_count: MemberSpread


def summarise_members(expected: ExpectedOutcomes | None) -> MembersSummary | None:
    """Return what each member states under one arm; None where there is one, or no closed form."""
    if expected is None or not expected.members:
        return None
    p_active, lesions = zip(*expected.members, strict=True)
    return MembersSummary(
        count=len(expected.members),
        p_active=MemberSpread.of(p_active),
        expected_count=MemberSpread.of(lesions),
    )


class _Range(NamedTuple):
    """Lowest and highest value of the members under one arm, in the order that compares widths."""

    width: float
    low: float
    high: float
    arm: str

    @classmethod
    def of(cls, arm: str, spread: MemberSpread) -> "_Range":
        low, high = min(spread.values), max(spread.values)
        return cls(high - low, low, high, arm)


def member_notes(by_arm: Mapping[str, ExpectedOutcomes | None]) -> tuple[str, ...]:
    """Return a note on how far the members of a bundle differ; none where there is one member."""
    stated = {arm: summarise_members(expected) for arm, expected in by_arm.items()}
    known = {arm: members for arm, members in stated.items() if members is not None}
    if not known:
        return ()
    active = max(_Range.of(arm, members.p_active) for arm, members in known.items())
    lesions = max(_Range.of(arm, members.expected_count) for arm, members in known.items())
    number = next(iter(known.values())).count
    return (
        f"The mean of {number} models of different training seeds. They differ most in P(active) "
        f"on {active.arm}, from {active.low:.1%} to {active.high:.1%}, and in the lesions expected "
        f"on {lesions.arm}, from {lesions.low:.1f} to {lesions.high:.1f}.",
    )
