"""When enough samples are drawn, and what the result says of that.

Orders with an `error` are drawn a block of seeds at a time, under all arms. Whether to stop depends
on these blocks alone, in their order, so that an interrupted forecast ends with the same samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from lesioncast.forecasting.ensemble import active_fraction, wilson_interval
from lesioncast.forecasting.sampling import sample_seeds

Order = Mapping[str, Any]


@dataclass(frozen=True)
class SampleBlock:
    """Some samples of one arm, drawn by one call: `first` is the number of their first seed."""

    arm: str
    first: int
    seeds: tuple[int, ...]


def split_into_blocks(order: Mapping[str, Any], *, size: int) -> list[SampleBlock]:
    """The order's samples in blocks of `size` seeds; early blocks of all arms come first."""
    seeds = sample_seeds(order["seed"], order["subject"], order["samples"])
    return [
        SampleBlock(arm, first, seeds[first : first + size])
        for first in range(0, len(seeds), size)
        for arm in order["arms"]
    ]


def sampling_rounds(order: Order, wanted: Sequence[SampleBlock]) -> Iterator[list[SampleBlock]]:
    """What is drawn together before `precise` is asked."""
    if order.get("error") is None:
        yield list(wanted)
        return
    for _, some in groupby(wanted, key=lambda block: block.first):
        yield list(some)


def is_precise_enough(order: Order, counts: Mapping[str, Sequence[int]]) -> bool:
    """Whether the share of each arm's samples with lesions is known to the order's `error`."""
    error = order.get("error")
    return error is not None and all(_half_width(some) <= error for some in counts.values())


def _half_width(counts: Sequence[int]) -> float:
    low, high = wilson_interval(active_fraction(np.array(counts)), len(counts))
    return (high - low) / 2


def sampling_notes(order: Order) -> tuple[str, ...]:
    """What is special about how a forecast was drawn."""
    own = ", ".join(f"{name} {value:g}" for name, value in order.get("sampler", {}).items())
    remarks = [f"Drawn with {own} in place of the bundle's own."] if own else []
    if order.get("error") is not None:
        remarks.append(
            f"Drawn until the share of samples with lesions was known to {order['error']:g} under "
            f"every arm (half its 95 % interval), or for {order['samples']} samples."
        )
    return tuple(remarks)
