"""Figures and tables as Markdown."""

from collections.abc import Sequence
from typing import Protocol

DASH = "–"  # stands for an undefined figure


class ScoreWithInterval(Protocol):
    """A score whose value or interval may be undefined."""

    @property
    def value(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def format_number(value: float | None, *, digits: int = 3) -> str:
    """Return the figure with `digits` decimals, or a dash where it is undefined."""
    return DASH if value is None else f"{value:.{digits}f}"


def format_probability(value: float, *, exact: bool) -> str:
    """Return a forecast probability in percent.

    An exact one is never shown as certain: it is at most `>99%` and at least `<1%`. A share of
    samples may be 0 or all of them.
    """
    if exact and value > 0.99:
        return ">99%"
    return "<1%" if exact and value < 0.01 else f"{value:.0%}"


def format_estimate(estimate: ScoreWithInterval | None, *, digits: int = 3) -> str:
    """Return for example `0.812 (0.760 to 0.861)`, without the interval where it is undefined."""
    if estimate is None or estimate.value is None:
        return DASH
    value = format_number(estimate.value, digits=digits)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with the column titles `head`."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
