"""When enough samples are drawn, and what the result says of that.

Orders with an `error` are drawn a block of seeds at a time, under all arms. Whether to stop depends
on these blocks alone, in their order, so that an interrupted forecast ends with the same samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from lesioncast.forecasting.ensemble import share_active, wilson_interval
from serve.api.schemas import Block

Order = Mapping[str, Any]


def rounds(order: Order, wanted: Sequence[Block]) -> Iterator[list[Block]]:
    """What is drawn together before `precise` is asked."""
    if order.get("error") is None:
        yield list(wanted)
        return
    for _, some in groupby(wanted, key=lambda block: block.first):
        yield list(some)


def precise(order: Order, counts: Mapping[str, Sequence[int]]) -> bool:
    """Whether the share of each arm's samples with lesions is known to the order's `error`."""
    error = order.get("error")
    return error is not None and all(_half_width(some) <= error for some in counts.values())


def _half_width(counts: Sequence[int]) -> float:
    low, high = wilson_interval(share_active(np.array(counts)), len(counts))
    return (high - low) / 2


def order_remarks(order: Order) -> tuple[str, ...]:
    """What is special about how a forecast was drawn."""
    own = ", ".join(f"{name} {value:g}" for name, value in order.get("sampler", {}).items())
    remarks = [f"Drawn with {own} in place of the bundle's own."] if own else []
    if order.get("error") is not None:
        remarks.append(
            f"Drawn until the share of samples with lesions was known to {order['error']:g} under "
            f"every arm (half its 95 % interval), or for {order['samples']} samples."
        )
    return tuple(remarks)
