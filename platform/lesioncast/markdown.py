"""Figures and tables as Markdown. A dash is undefined."""

from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

DASH = "–"


def format_number(value: float | None, *, digits: int = 3) -> str:
    """A figure, or a dash where it is undefined."""
    return DASH if value is None else f"{value:.{digits}f}"


def format_estimate(estimate: Record | None, *, digits: int = 3) -> str:
    """`.812 (.760 to .861)`; without the interval where it is undefined."""
    if estimate is None or estimate["value"] is None:
        return DASH
    if estimate["low"] is None:
        return format_number(estimate["value"], digits=digits)
    value, low, high = (f"{estimate[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
